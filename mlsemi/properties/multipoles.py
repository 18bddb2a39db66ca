"""Multipole moments of a density."""

from __future__ import annotations

from torch import Tensor

from mlsemi.batch import Batch


def dipole(density: Tensor, dipole_integrals: Tensor, batch: Batch) -> Tensor:
    """Dipole moment mu = sum_A Z_A R_A - Tr[D r] about the origin of coordinates.

    That of a charged molecule depends on where the origin lies. Differentiable in all arguments and in the positions.

    Args:
        density: density of all electrons, shape (molecule, ao, ao).
        dipole_integrals: <mu| r |nu> about the origin [bohr], shape (molecule, 3, ao, ao).
        batch: the molecules.

    Returns:
        Dipole moments [e bohr], shape (molecule, 3).
    """
    weighted = batch.positions * batch.numbers.unsqueeze(-1)
    nuclei = weighted.new_zeros(batch.n_molecules, 3).index_add(0, batch.molecule, weighted)
    return nuclei - (dipole_integrals * density.unsqueeze(1)).sum((-2, -1))
