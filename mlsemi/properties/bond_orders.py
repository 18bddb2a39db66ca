"""Bond orders and valences, for closed and open shells.

With X^s = D^s S for Mayer's, or S^1/2 D^s S^1/2 for those of Wiberg, of each spin s,

    B_AB = 2 sum_s sum over mu of A, nu of B of X^s_munu X^s_numu,

which for a closed shell, X = 2 X^s, is the sum of X_munu X_numu. It is this formula that holds for open shells as well
(Mayer, Int. J. Quantum Chem. 29, 73 and 477 (1986)): a density of all electrons alone does not have what it needs.

A matrix of bond orders has shape (molecule, atom, atom), atoms counted in each molecule and padded with zeros; it is
symmetric, and its diagonal is zero.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.eigen import square_root
from mlsemi.properties.populations import atoms_of_aos


class Valences(NamedTuple):
    """Valences of atoms after Mayer, each of shape (atom,).

    Attributes:
        total: 2 sum over mu of A of X_mumu, less the sum over mu, nu of A of X_munu X_numu, where X = X^alpha + X^beta.
        free: what the total has beyond the bond orders, sum over mu, nu of A of (X^alpha - X^beta)_munu
            (X^alpha - X^beta)_numu: about the number of unpaired electrons, zero for a closed shell.
    """

    total: Tensor
    free: Tensor


def mayer_bond_orders(density: Tensor, overlap: Tensor, batch: Batch) -> Tensor:
    """Bond orders of Mayer (Chem. Phys. Lett. 97, 270 (1983)), see the module; differentiable.

    Args:
        density: density matrices of one (all electrons of closed shells) or two spins, shape (molecule, spin, ao, ao).
        overlap: overlap matrices, shape (molecule, ao, ao).
        batch: the molecules.

    Returns:
        Shape (molecule, atom, atom).
    """
    return _between_atoms(density @ overlap.unsqueeze(1), batch)


def wiberg_bond_orders(density: Tensor, overlap: Tensor, batch: Batch) -> Tensor:
    """Bond orders of Wiberg (Tetrahedron 24, 1083 (1968)) in the AOs after symmetric (Loewdin) orthogonalization.

    Differentiable.

    Args:
        density: density matrices of one (all electrons of closed shells) or two spins, shape (molecule, spin, ao, ao).
        overlap: overlap matrices, shape (molecule, ao, ao).
        batch: the molecules.

    Returns:
        Shape (molecule, atom, atom); none is below zero.
    """
    root = square_root(overlap, batch.ao_mask).unsqueeze(1)
    return _between_atoms(root @ density @ root, batch)


def mayer_valences(density: Tensor, overlap: Tensor, batch: Batch) -> Valences:
    """Total and free valence of each atom after Mayer, with X = D S.

    For a single determinant the free valence is the total one less the sum of the Mayer bond orders of the atom.

    Args:
        density: density matrices of one (all electrons of closed shells) or two spins, shape (molecule, spin, ao, ao).
        overlap: overlap matrices, shape (molecule, ao, ao).
        batch: the molecules.
    """
    x = density @ overlap.unsqueeze(1)
    whole = x.sum(1)
    unpaired = x[:, 0] - x[:, 1] if x.shape[1] == 2 else torch.zeros_like(whole)
    members = atoms_of_aos(batch)
    exists = members.any(2)  # every atom has AOs
    electrons = members @ whole.diagonal(dim1=1, dim2=2).unsqueeze(-1)
    total = 2 * electrons.squeeze(-1) - _blocks(whole, members).diagonal(dim1=1, dim2=2)
    return Valences(total[exists], _blocks(unpaired, members).diagonal(dim1=1, dim2=2)[exists])


def _between_atoms(x: Tensor, batch: Batch) -> Tensor:
    """Bond orders from X of one or two spins, shape (molecule, spin, ao, ao)."""
    members = atoms_of_aos(batch)
    blocks = torch.stack([_blocks(one, members) for one in x.unbind(1)]).sum(0) * x.shape[1]
    none = torch.eye(members.shape[1], dtype=torch.bool, device=x.device)
    return torch.where(none, 0.0, (blocks + blocks.mT) / 2)


def _blocks(x: Tensor, members: Tensor) -> Tensor:
    """Sum over mu of A, nu of B of x_munu x_numu, shape (molecule, atom, atom)."""
    return members @ (x * x.mT) @ members.mT
