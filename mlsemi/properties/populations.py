"""Atomic charges and spins from populations of the AOs.

Both kinds depend strongly on the basis set: compare within one basis only.
"""

from __future__ import annotations

from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.eigen import square_root


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


def _on_atoms(population: Tensor, batch: Batch) -> Tensor:
    """Sums over the AOs of each atom of populations of shape (molecule, ao)."""
    return population.new_zeros(len(batch.numbers)).index_add(0, batch.ao_atom, population[batch.ao_mask])
