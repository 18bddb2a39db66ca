"""The total spin of a determinant."""

from __future__ import annotations

import torch
from torch import Tensor

from mlsemi.batch import Batch


def spin_square(density: Tensor, overlap: Tensor, batch: Batch) -> Tensor:
    """<S^2> = S_z (S_z + 1) + N_beta - sum_ij |S_ij|^2 over occupied alpha i and beta j.

    The sum is Tr[D_alpha S D_beta S]. A pure state of spin S has S (S + 1): 0.75 for a doublet, 2 for a triplet; what
    is above is contamination by states of higher spin (Szabo and Ostlund, Modern Quantum Chemistry, 2.5).

    Args:
        density: densities, shape (molecule, spin, ao, ao); zero results for a spin axis of one.
        overlap: overlap matrices, shape (molecule, ao, ao).
        batch: the molecules.

    Returns:
        Shape (molecule,).
    """
    if density.shape[1] == 1:
        return density.new_zeros(batch.n_molecules)
    alpha, beta = (density @ overlap.unsqueeze(1)).unbind(1)
    shared = torch.einsum("kij,kji->k", alpha, beta)
    projection = 0.5 * batch.spin.double()
    n_beta = ((batch.n_electrons - batch.spin) // 2).double()
    return projection * (projection + 1) + n_beta - shared
