"""Atomic charges from populations of the AOs. Both depend strongly on the basis set: compare within one basis only."""

from __future__ import annotations

import torch
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
    return _charges((density * overlap.mT).sum(-1), batch)


def loewdin_charges(density: Tensor, overlap: Tensor, batch: Batch) -> Tensor:
    """Loewdin charges q_A = Z_A - sum over AOs of A of (S^1/2 D S^1/2)_mumu (Loewdin 1950).

    Differentiable once in density and overlap. With d functions or higher they are invariant under rotation because
    the AOs are spherical.

    Args:
        density: density of all electrons, shape (molecule, ao, ao).
        overlap: overlap matrices, shape (molecule, ao, ao).
        batch: the molecules.

    Returns:
        Charges [e], shape (atom,).
    """
    root = square_root(overlap, batch.ao_mask)
    return _charges(((root @ density) * root).sum(-1), batch)


def _charges(population: Tensor, batch: Batch) -> Tensor:
    """Charges of the atoms from the populations of the AOs, shape (molecule, ao)."""
    on_atom = population.new_zeros(len(batch.numbers)).index_add(0, _atom_of_ao(batch), population[batch.ao_mask])
    return batch.numbers - on_atom


def _atom_of_ao(batch: Batch) -> Tensor:
    """Atom of each AO of the batch, molecule after molecule and without padding, shape (ao,)."""
    before = torch.cumsum(batch.n_ao, 0) - batch.n_ao
    starts = before[batch.molecule] + batch.ao_offset
    marks = torch.zeros(int(batch.n_ao.sum()), dtype=torch.int64, device=batch.numbers.device)
    return marks.index_add(0, starts, torch.ones_like(starts)).cumsum(0) - 1
