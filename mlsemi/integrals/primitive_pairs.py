"""Primitive pairs at the positions of a batch, their one-dimensional overlaps, and what is made of sums over them."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.integrals.shell_pairs import IntegralPlan, PairClass
from mlsemi.integrals.tables import pair_harmonics

NEGLIGIBLE = 1e-15
"""Primitive pairs whose Gaussian prefactor times coefficients is below this are left out."""


class PrimitivePairs:
    """The primitive pairs that are not negligible at the positions of a batch, class by class.

    Attributes:
        classes: for each class of shell pairs the slice of its primitive pairs.
        shell_pair: index of the shell pair within its class, shape (n,).
        molecule: shape (n,).
        a, b, p: exponents of the two primitives and their sum [bohr^-2], shape (n,).
        centre_a: position of the first centre, shape (3, n).
        ab: A - B [bohr], shape (3, n).
        prefactor: coefficients times exp(-mu R^2), shape (n,).
    """

    def __init__(self, batch: Batch, plan: IntegralPlan) -> None:
        kept, self.classes = _screen(batch.positions.detach(), plan)
        shell_pair = plan.primitive_pair.index_select(0, kept)
        self.shell_pair = plan.within_class.index_select(0, shell_pair)
        self.molecule = plan.pair_molecule.index_select(0, shell_pair)
        self.a = plan.a.index_select(0, kept)
        self.b = plan.b.index_select(0, kept)
        self.p = self.a + self.b
        x = batch.positions.t()
        self.centre_a = x.index_select(1, plan.pair_atoms[0].index_select(0, shell_pair))
        self.ab = self.centre_a - x.index_select(1, plan.pair_atoms[1].index_select(0, shell_pair))
        mu = self.a * self.b / self.p
        self.prefactor = torch.exp(-mu * (self.ab * self.ab).sum(0)) * plan.coefficient.index_select(0, kept)

    def overlaps(self, part: slice, n_i: int, n_j: int) -> Tensor:
        """s_ij of each axis for i < n_i and j < n_j, shape (n_i * n_j, 3, n), j fastest."""
        half = 0.5 / self.p[part]
        ab = self.ab[:, part]
        pa = ab * (-2 * self.b[part] * half)
        column = [torch.ones_like(ab)]
        if n_i + n_j > 2:
            column.append(pa)
        for i in range(1, n_i + n_j - 2):
            column.append(torch.addcmul(pa * column[i], column[i - 1], half, value=i))
        rows = [column[:n_i]]
        for _ in range(n_j - 1):
            column = [torch.addcmul(up, ab, here) for here, up in zip(column[:-1], column[1:], strict=True)]
            rows.append(column[:n_i])
        return torch.stack([rows[j][i] for i in range(n_i) for j in range(n_j)])


def _screen(positions: Tensor, plan: IntegralPlan) -> tuple[Tensor, list[slice]]:
    """Indices of the primitive pairs that count, and the slice of each class among them."""
    atoms = plan.pair_atoms
    r2 = (positions.index_select(0, atoms[0]) - positions.index_select(0, atoms[1])).square_().sum(1)
    exponent = torch.addcmul(plan.log_size, plan.mu, r2.index_select(0, plan.primitive_pair), value=-1)
    kept = (exponent > log(NEGLIGIBLE)).nonzero().squeeze(1)
    ends = torch.searchsorted(kept, plan.class_ends).tolist()
    return kept, [slice(s, e) for s, e in zip([0, *ends[:-1]], ends, strict=True)]


def contract(values: Tensor, shell_pair: Tensor, pairs: PairClass) -> Tensor:
    """Sum over primitives, then Cartesian to spherical; shape (..., cart1 * cart2, n) to (..., sph1 * sph2 * pair)."""
    lead = values.shape[:-1]
    flat = values.reshape(-1, values.shape[-1])
    out = flat.new_zeros(flat.shape[0], pairs.n).index_add(1, shell_pair, flat)
    transform = pair_harmonics(pairs.l1, pairs.l2, values.device)
    return (transform @ out.view(*lead, pairs.n)).flatten(-2)


def scatter(values: list[Tensor], plan: IntegralPlan) -> Tensor:
    """Class by class values, each (..., element), as padded symmetric matrices (..., molecule, ao, ao)."""
    lead = values[0].shape[:-1]
    flat = torch.cat([*values, values[0].new_zeros(*lead, 1)], -1)
    return flat.index_select(-1, plan.source).view(*lead, plan.n_molecules, plan.n_ao, plan.n_ao)
