"""Atomic charges and spins from populations of the AOs, and the shares of the atoms in orbitals.

Both kinds depend strongly on the basis set: compare within one basis only, or take those of `intrinsic`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.eigen import square_root

PopulationKind = Literal["mulliken", "loewdin"]
"""How the charge between two AOs is shared: in halves, or by symmetric orthogonalization of the AOs."""


def mulliken_charges(density: Tensor, overlap: Tensor, batch: Batch) -> Tensor:
    """Mulliken charges q_A = Z_A - sum over AOs of A of (D S)_mumu (Mulliken 1955).

    Differentiable in density and overlap.

    Args:
        density: density of all electrons, shape (molecule, ao, ao).
        overlap: overlap matrices, shape (molecule, ao, ao).
        batch: the molecules.

    Returns:
        Charges [e], shape (atom,).
    """
    return batch.numbers - mulliken_populations(density, overlap, batch)


def loewdin_charges(density: Tensor, overlap: Tensor, batch: Batch) -> Tensor:
    """Loewdin charges q_A = Z_A - sum over AOs of A of (S^1/2 D S^1/2)_mumu (Loewdin 1950).

    Differentiable twice in density and overlap. With d functions or higher they are invariant under rotation because
    the AOs are spherical.

    Args:
        density: density of all electrons, shape (molecule, ao, ao).
        overlap: overlap matrices, shape (molecule, ao, ao).
        batch: the molecules.

    Returns:
        Charges [e], shape (atom,).
    """
    return batch.numbers - loewdin_populations(density, overlap, batch)


def mulliken_populations(density: Tensor, overlap: Tensor, batch: Batch) -> Tensor:
    """Electrons of a density on each atom, as in `mulliken_charges`, or unpaired ones; shape (atom,)."""
    return _on_atoms((density * overlap.mT).sum(-1), batch)


def loewdin_populations(density: Tensor, overlap: Tensor, batch: Batch) -> Tensor:
    """Electrons of a density on each atom, as in `loewdin_charges`, or unpaired ones; shape (atom,)."""
    root = square_root(overlap, batch.ao_mask)
    return _on_atoms(((root @ density) * root).sum(-1), batch)


def populations(density: Tensor, overlap: Tensor, batch: Batch, *, kind: PopulationKind) -> Tensor:
    """`mulliken_populations` or `loewdin_populations`, shape (atom,).

    Raises:
        ValueError: for another kind.
    """
    if kind not in ("mulliken", "loewdin"):
        raise ValueError(f"kind={kind!r} must be 'mulliken' or 'loewdin'")
    return (mulliken_populations if kind == "mulliken" else loewdin_populations)(density, overlap, batch)


def orbital_populations(mo_coeff: Tensor, overlap: Tensor, batch: Batch, *, kind: PopulationKind) -> Tensor:
    """Share of each atom in each orbital; they add up to one. Mulliken's may be below zero or above one.

    For a set of degenerate orbitals only the sum over the set is invariant. Differentiable.

    Args:
        mo_coeff: orbital coefficients, shape (molecule, spin, ao, mo).
        overlap: overlap matrices, shape (molecule, ao, ao).
        batch: the molecules.
        kind: the population.

    Returns:
        Shape (molecule, spin, atom, mo), atoms counted in each molecule and padded with zeros.

    Raises:
        ValueError: for another kind.
    """
    if kind == "mulliken":
        share = mo_coeff * (overlap.unsqueeze(1) @ mo_coeff)
    elif kind == "loewdin":
        share = (square_root(overlap, batch.ao_mask).unsqueeze(1) @ mo_coeff).square()
    else:
        raise ValueError(f"kind={kind!r} must be 'mulliken' or 'loewdin'")
    return atoms_of_aos(batch).unsqueeze(1) @ share


def atoms_of_aos(batch: Batch) -> Tensor:
    """One where an AO is of an atom, else zero, shape (molecule, atom, ao), float64.

    Atoms are counted in each molecule; both axes are padded with zeros, as AO matrices are.
    """
    count = torch.bincount(batch.molecule, minlength=batch.n_molecules)
    first = count.cumsum(0) - count
    molecule = batch.molecule[batch.ao_atom]
    n_molecules, n_ao = batch.ao_mask.shape
    out = torch.zeros(n_molecules, int(count.max()), n_ao, dtype=torch.float64, device=batch.numbers.device)
    out[molecule, batch.ao_atom - first[molecule], batch.ao_mask.nonzero()[:, 1]] = 1.0
    return out


def _on_atoms(population: Tensor, batch: Batch) -> Tensor:
    """Sums over the AOs of each atom of populations of shape (molecule, ao)."""
    return population.new_zeros(len(batch.numbers)).index_add(0, batch.ao_atom, population[batch.ao_mask])
