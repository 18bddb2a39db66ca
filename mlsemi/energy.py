"""The energy of the fast mode: second order about the superposed atoms, without a Fock build."""

from __future__ import annotations

from torch import Tensor

from mlsemi.batch import Batch


def electronic_energy(fock_0: Tensor, fock: Tensor, density_0: Tensor, density: Tensor) -> Tensor:
    """1/2 Tr[(F0 + F)(D - D0)]: E[D] - E[D0] to second order if F is the Fock matrix of D, and F0 that of D0.

    With two spins the sum over them of 1/2 Tr[(F0 + F_s)(D_s - D0 / 2)].

    Args:
        fock_0: baseline [Eh], shape (molecule, ao, ao).
        fock: predicted Fock matrices [Eh], shape (molecule, spin, ao, ao).
        density_0: superposed atomic densities, shape (molecule, ao, ao).
        density: densities of `fock`, shape (molecule, spin, ao, ao).

    Returns:
        Energies [Eh], shape (molecule,).
    """
    share = density_0.unsqueeze(1) / fock.shape[1]
    return 0.5 * ((fock_0.unsqueeze(1) + fock) * (density - share)).sum((-3, -2, -1))


def fast_energy(electronic: Tensor, pair_energy: Tensor, atom_energy: Tensor, batch: Batch) -> Tensor:
    """E = 1/2 Tr[(F0 + F)(D - D0)] + E_rep, with E_rep the pair energy of the free atoms plus learned atomic energies.

    Args:
        electronic: from `electronic_energy` [Eh], shape (molecule,).
        pair_energy: of the baseline [Eh], shape (molecule,).
        atom_energy: of the network [Eh], shape (atom,).
        batch: the molecules.

    Returns:
        Energies [Eh], shape (molecule,).
    """
    return electronic + pair_energy + atom_sums(atom_energy, batch)


def atom_sums(atom_energy: Tensor, batch: Batch) -> Tensor:
    """Sum over the atoms of each molecule, shape (molecule,), of values of atoms, shape (atom,)."""
    return atom_energy.new_zeros(batch.n_molecules).index_add(0, batch.molecule, atom_energy)
