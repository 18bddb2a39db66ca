"""Charges: the spherical charges of the Coulomb integrals, and which of them act on which Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor

from mlsemi.integrals.hermite import CHUNK, Kinds, Run, asymptotic, hermite_coulomb

CANDIDATES = 1 << 18
"""Combinations of primitive pair and centre that are treated at once, so that temporaries stay bounded."""

SMALLEST_RUN = 2048
"""Fewer combinations than this are evaluated with their neighbours, even if these have more terms or another kind."""


class Charges:
    """Centres with their potentials, sorted by molecule.

    Args:
        centers: positions C [bohr], shape (center, 3).
        center_molecule: molecule of each centre, shape (center,).
        omega2: omega^2 of the terms [bohr^-2], shape (center, k).
        weight: weights of the terms [e], shape (center, k).
        n_molecules: number of molecules.
        scale: factor of each centre, shape (center,); may require a gradient.
    """

    def __init__(
        self,
        centers: Tensor,
        center_molecule: Tensor,
        omega2: Tensor,
        weight: Tensor,
        n_molecules: int,
        *,
        scale: Tensor | None = None,
    ) -> None:
        molecule, order = torch.sort(center_molecule, stable=True)
        self.position = centers.index_select(0, order).t()
        self.scale = None if scale is None else scale.index_select(0, order)
        k = omega2.shape[1]
        rows, kind = torch.unique(torch.cat([omega2, weight], 1), dim=0, return_inverse=True)
        self.kinds = Kinds.of(rows[:, :k], rows[:, k:])
        self.kind = kind.index_select(0, order)
        self.reach = self.kinds.reach().index_select(1, self.kind)
        self.neutral = (self.kinds.rest[0].abs() < 1e-12).index_select(0, self.kind) & (scale is None)
        self.count = torch.bincount(molecule, minlength=n_molecules)
        self.first = self.count.cumsum(0) - self.count

    def field(self, position: Tensor, p: Tensor, molecule: Tensor, degree: int) -> Tensor:
        """Hermite Coulomb integrals summed over the centres of the same molecule.

        Args:
            position: centres P of the Gaussians [bohr], shape (3, n).
            p: their exponents [bohr^-2], shape (n,).
            molecule: their molecules, shape (n,).
            degree: highest t + u + v.

        Returns:
            Shape (component, n).
        """
        n = p.shape[0]
        ends = self.count.index_select(0, molecule).cumsum(0)
        n_parts = int(ends[-1]) // CANDIDATES + 1 if n else 1
        marks = torch.arange(1, n_parts, device=p.device) * CANDIDATES
        bounds = [0, *torch.searchsorted(ends, marks).tolist(), n]
        parts = [slice(i, j) for i, j in zip(bounds[:-1], bounds[1:], strict=True) if i < j]
        fields = [self._field(position[:, part], p[part], molecule[part], degree) for part in parts or [slice(0, 0)]]
        return torch.cat(fields, 1) if len(fields) > 1 else fields[0]

    def _field(self, position: Tensor, p: Tensor, molecule: Tensor, degree: int) -> Tensor:
        pair, center, runs = self._combinations(position.detach(), p, molecule, asymptotic(degree + 1))
        r = position.index_select(1, pair) - self.position.index_select(1, center)
        kind = self.kind.index_select(0, center)
        values = hermite_coulomb(r, p.index_select(0, pair), self.kinds, kind, runs, l_max=degree)
        if self.scale is not None:
            values = values * self.scale.index_select(0, center)
        return values.new_zeros(values.shape[0], p.shape[0]).index_add(1, pair, values)

    def _combinations(
        self, position: Tensor, p: Tensor, molecule: Tensor, t_max: float
    ) -> tuple[Tensor, Tensor, list[Run]]:
        """All (primitive pair, centre) of one molecule within reach, sorted by kind and by number of active terms.

        A neutral centre all of whose terms are past t_max, where they have reached their asymptotes, does not act.
        """
        count = self.count.index_select(0, molecule)
        pair = torch.repeat_interleave(count)
        offset = self.first.index_select(0, molecule) - (count.cumsum(0) - count)
        center = torch.arange(pair.shape[0], device=pair.device) + offset.index_select(0, pair)
        beyond = (-t_max / p).index_select(0, pair)
        for x, c in zip(position, self.position.detach(), strict=True):
            d = x.index_select(0, pair).sub_(c.index_select(0, center))
            beyond.addcmul_(d, d)
        n_kinds, n_terms = self.kinds.weight.shape[1], self.kinds.weight.shape[0]
        last = n_kinds * (n_terms + 1)
        dtype = torch.uint8 if last < 256 else torch.int32
        active = torch.zeros(pair.shape[0], dtype=dtype, device=pair.device)
        for row in self.reach * t_max:
            active.add_(beyond < row.index_select(0, center))
        out_of_reach = (active == 0).logical_and_(self.neutral.index_select(0, center))
        key = (self.kind.to(dtype) * (n_terms + 1)).index_select(0, center).add_(active)
        key, order = key.masked_fill_(out_of_reach, last).sort()
        counts = torch.bincount(key, minlength=last + 1)[:last].view(n_kinds, n_terms + 1).tolist()
        order = order[: sum(map(sum, counts))]
        return pair.index_select(0, order), center.index_select(0, order), _runs(counts)


def _runs(counts: list[list[int]]) -> list[Run]:
    """Runs of combinations from the number of them for each kind and number of active terms."""
    runs: list[Run] = []
    start = stop = terms = 0
    kind: int | None = -1
    for k, row in enumerate(counts):
        for n_terms, count in enumerate(row):
            if not count:
                continue
            if stop - start >= SMALLEST_RUN:
                runs.append(Run(start, stop, terms, kind))
                start, terms, kind = stop, 0, -1
            kind = k if kind in (-1, k) else None
            stop, terms = stop + count, max(terms, n_terms)
    if stop > start:
        runs.append(Run(start, stop, terms, kind))
    return [part for run in runs for part in _split(run)]


def _split(run: Run) -> list[Run]:
    """A run in pieces of about `CHUNK` Boys functions."""
    n = run.stop - run.start
    pieces = max(1, round(n * max(run.n_terms, 1) / CHUNK))
    bounds = [run.start + n * i // pieces for i in range(pieces + 1)]
    return [Run(i, j, run.n_terms, run.kind) for i, j in zip(bounds[:-1], bounds[1:], strict=True)]
