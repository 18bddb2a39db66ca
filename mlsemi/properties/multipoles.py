"""Multipole moments of a density.

All are about the origin of coordinates. The first moment that is not zero does not depend on where that lies, all
beyond it do: the dipole moment of a charged molecule, and the quadrupole moment of one that has a dipole moment.
"""

from __future__ import annotations

import torch
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


def second_moment(density: Tensor, second_moment_integrals: Tensor, batch: Batch) -> Tensor:
    """Second moment M_ab = sum_A Z_A R_Aa R_Ab - Tr[D r_a r_b] about the origin of coordinates.

    Differentiable in all arguments and in the positions.

    Args:
        density: density of all electrons, shape (molecule, ao, ao).
        second_moment_integrals: <mu| r_a r_b |nu> about the origin [bohr^2], shape (molecule, 3, 3, ao, ao), from
            `mlsemi.integrals.moments.second_moments`.
        batch: the molecules.

    Returns:
        Symmetric matrices [e bohr^2], shape (molecule, 3, 3).
    """
    r = batch.positions
    weighted = r.unsqueeze(-1) * r.unsqueeze(-2) * batch.numbers[:, None, None]
    nuclei = weighted.new_zeros(batch.n_molecules, 3, 3).index_add(0, batch.molecule, weighted)
    return nuclei - (second_moment_integrals * density[:, None, None]).sum((-2, -1))


def traceless(moment: Tensor) -> Tensor:
    """Buckingham's quadrupole moment (3 M_ab - delta_ab Tr M) / 2 of second moments, shape (..., 3, 3)."""
    trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1)[..., None, None]
    return 1.5 * moment - 0.5 * trace * torch.eye(3, dtype=moment.dtype, device=moment.device)


def quadrupole(density: Tensor, second_moment_integrals: Tensor, batch: Batch) -> Tensor:
    """Traceless quadrupole moment Theta_ab = (3 M_ab - delta_ab Tr M) / 2 about the origin of coordinates.

    M is the `second_moment`. This is the definition of Buckingham (Adv. Chem. Phys. 12, 107 (1967)), in which a linear
    molecule along z has Theta_zz = -2 Theta_xx = Theta. Differentiable in all arguments and in the positions.

    Args:
        density: as in `second_moment`.
        second_moment_integrals: as in `second_moment`.
        batch: the molecules.

    Returns:
        Symmetric matrices of trace zero [e bohr^2], shape (molecule, 3, 3); times `BOHR_IN_ANGSTROM` and
        `DIPOLE_AU_IN_DEBYE` of `mlsemi.units` they are in debye angstrom.
    """
    return traceless(second_moment(density, second_moment_integrals, batch))
