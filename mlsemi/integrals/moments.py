"""Second moments <i| r_a r_b |j>. Apart from the other operators, because only properties ask for them."""

from __future__ import annotations

from functools import lru_cache
from math import pi

import torch
from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.integrals.primitive_pairs import PrimitivePairs, contract, scatter
from mlsemi.integrals.shell_pairs import IntegralPlan, PairClass
from mlsemi.integrals.tables import cartesian_rows

_POWERS = ((2, 0, 0), (1, 1, 0), (1, 0, 1), (0, 2, 0), (0, 1, 1), (0, 0, 2))
"""Powers of x, y and z in xx, xy, xz, yy, yz, zz."""


def second_moments(batch: Batch, plan: IntegralPlan) -> Tensor:
    """Matrices of the products of two coordinates about the origin; see `operators` for the scheme.

    Args:
        batch: the molecules.
        plan: `plan(batch)`.

    Returns:
        <i| r_a r_b |j> [bohr^2], shape (molecule, 3, 3, ao, ao), zero in the padding; differentiable in the positions
        to any order.
    """
    pairs = PrimitivePairs(batch, plan)
    values = [
        contract(_second_moments_class(pairs, part, cls), pairs.shell_pair[part], cls)
        for part, cls in zip(pairs.classes, plan.classes, strict=True)
    ]
    six = scatter(values, plan)
    return six.index_select(0, _square(six.device)).unflatten(0, (3, 3)).movedim(2, 0)


@lru_cache(maxsize=8)
def _square(device: torch.device) -> Tensor:
    """Where each of the 3 x 3 products stands among the six."""
    return torch.tensor([0, 1, 2, 1, 3, 4, 2, 4, 5], device=device)


def _second_moments_class(pairs: PrimitivePairs, part: slice, cls: PairClass) -> Tensor:
    """Cartesian xx, xy, xz, yy, yz, zz of the primitive pairs of a class, shape (6, cart1 * cart2, n).

    In one dimension x^n with x = x_A + A raises the power of x_A: s_(i+1)j + A s_ij for n = 1, and so on.
    """
    n_j = cls.l2 + 1
    s = pairs.overlaps(part, cls.l1 + 3, n_j)
    centre = pairs.centre_a[:, part]
    kept = (cls.l1 + 1) * n_j
    plain, once, twice = s[:kept], s[n_j : kept + n_j], s[2 * n_j : kept + 2 * n_j]
    first = torch.addcmul(once, centre, plain)
    moments = (plain, first, twice + centre * (once + first))
    _, rows = cartesian_rows(cls.l1, cls.l2, n_j, s.device)
    table = [[m[:, axis].index_select(0, rows[axis]) for axis in range(3)] for m in moments]
    prefactor = pairs.prefactor[part] * (pi / pairs.p[part]) ** 1.5
    return torch.stack([table[i][0] * table[j][1] * table[k][2] for i, j, k in _POWERS]) * prefactor
