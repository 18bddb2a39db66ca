"""From features to blocks of the Fock matrix: pairs in the bond frame, atoms through Clebsch-Gordan coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import sqrt

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from mlsemi.blocks import Slots
from mlsemi.nn.coupling import clebsch_gordan
from mlsemi.nn.so2 import BondLinear, Linear

_HIDDEN = 64
_SOFT = 0.2
"""Width of the bend where the distance of a scale is held [bohr]."""


def _first_slot(slots: Slots) -> tuple[list[int], list[int]]:
    """First slot and l of every shell slot."""
    ladder = [l for l, n in enumerate(slots.n_shells) for _ in range(n)]
    return list(np.cumsum([0] + [2 * l + 1 for l in ladder[:-1]])), ladder


def pair_paths(slots: Slots) -> tuple[list[int], Tensor, Tensor]:
    """The SO(2) components of a pair block.

    The product of components mu of one orbital and nu of the other turns about the bond with M = |mu - nu| and
    M = mu + nu.

    Returns:
        Number of components in the order of a bond state ([even_0, odd_0, z_1, ...]); the orthogonal matrix that turns
        the components, concatenated with even before odd, into the block, shape (component, slot * slot); and for each
        component the path it belongs to, shape (component,): even and odd of one M > 0 share a path.
    """
    first, ladder = _first_slot(slots)
    n, half = slots.n_slots, 1 / sqrt(2)
    even: dict[int, list[dict]] = {m: [] for m in range(2 * slots.l_max + 1)}
    odd: dict[int, list[dict]] = {m: [] for m in range(2 * slots.l_max + 1)}
    for a, la in enumerate(ladder):
        for b, lb in enumerate(ladder):
            at, bt = first[a] + la, first[b] + lb  # the m = 0 slots
            for mu in range(la + 1):
                for nu in range(lb + 1):
                    if mu == 0 or nu == 0:
                        even[mu + nu].append({(at + mu, bt + nu): 1.0})
                        if mu + nu:
                            odd[mu + nu].append({(at - mu, bt - nu): 1.0})
                        continue
                    sign = half if mu >= nu else -half
                    even[abs(mu - nu)].append({(at + mu, bt + nu): half, (at - mu, bt - nu): half})
                    odd[abs(mu - nu)].append({(at - mu, bt + nu): sign, (at + mu, bt - nu): -sign})
                    even[mu + nu].append({(at + mu, bt + nu): half, (at - mu, bt - nu): -half})
                    odd[mu + nu].append({(at - mu, bt + nu): half, (at + mu, bt - nu): half})
    rows, path, n_paths = [], [], 0
    for m in even:
        for k, part in enumerate((even[m], odd[m])):
            rows.extend(part)
            start = n_paths if (m == 0 or k == 0) else n_paths - len(part)
            path.extend(range(start, start + len(part)))
            n_paths = start + len(part)
    matrix = torch.zeros(len(rows), n, n, dtype=torch.float64)
    for k, row in enumerate(rows):
        for (i, j), value in row.items():
            matrix[k, i, j] = value
    widths = [len(even[0]), len(odd[0])] + [len(even[m]) for m in even if m]
    return widths, matrix.view(len(rows), n * n), torch.tensor(path)


def atom_paths(slots: Slots) -> tuple[list[tuple[int, int]], Tensor, Tensor]:
    """The irreducible components of a symmetric atom block: shells a <= b couple to L = |la - lb|..la + lb.

    A shell with itself gives even L only; odd ones are antisymmetric.

    Returns:
        (natural, unnatural) number of paths for each L; the matrix with orthonormal rows from components to the block,
        shape (component, slot * slot), with components ordered by L, then m, then path (natural first); and for each
        component its path, shape (component,).
    """
    first, ladder = _first_slot(slots)
    n = slots.n_slots
    counts, blocks, path, n_paths = [], [], [], 0
    for big in range(2 * slots.l_max + 1):
        natural, unnatural = [], []
        for a, la in enumerate(ladder):
            for b, lb in enumerate(ladder[a:], start=a):
                if not abs(la - lb) <= big <= la + lb or (a == b and big % 2):
                    continue
                coupling = (clebsch_gordan(la, lb, big) * sqrt(2 * big + 1)).permute(2, 0, 1)
                rows = slice(first[a], first[a] + 2 * la + 1), slice(first[b], first[b] + 2 * lb + 1)
                block = torch.zeros(2 * big + 1, n, n, dtype=torch.float64)
                block[:, rows[0], rows[1]] = coupling
                block = (block + block.mT) / (2.0 if a == b else sqrt(2))
                (natural if (la + lb + big) % 2 == 0 else unnatural).append(block)
        counts.append((len(natural), len(unnatural)))
        both = natural + unnatural
        if both:
            blocks.append(torch.stack(both, dim=1).reshape(-1, n * n))
            path += list(range(n_paths, n_paths + len(both))) * (2 * big + 1)
            n_paths += len(both)
    return counts, torch.cat(blocks), torch.tensor(path)


class PairReadout(nn.Module):
    """Bond states to pair blocks in the bond frame.

    Args:
        slots: shape of the blocks.
        widths: channels of the bond state.
        n_types: number of ordered element pairs.
    """

    matrix: Tensor
    path: Tensor
    log_scale: Tensor
    span: Tensor

    def __init__(self, slots: Slots, widths: Sequence[int], n_types: int) -> None:
        super().__init__()
        outputs, matrix, path = pair_paths(slots)
        if len(outputs) > len(widths):
            raise ValueError(f"the bond state reaches m = {len(widths) - 2}, the blocks need m = {len(outputs) - 2}")
        self.widths, self.n_slots = list(widths), slots.n_slots
        self.type_gate = nn.Parameter(torch.ones(n_types, sum(widths)))
        self.out = BondLinear(widths[: len(outputs)], outputs, gain=0.3)
        self.register_buffer("matrix", matrix, persistent=False)
        self.register_buffer("path", path, persistent=False)
        self.register_buffer("log_scale", torch.zeros(n_types, int(path.max()) + 1, 3))
        self.register_buffer("span", torch.tensor([-torch.inf, torch.inf]).repeat(n_types, 1))

    def scale(self, pair_type: Tensor, distance: Tensor) -> Tensor:
        """Typical size of each component at a distance [Eh], shape (pair, component): exp(a + b d + c d^2).

        Outside of the distances that it was fitted to, d stays near the end of these: a rising fit goes on for ever.
        """
        a, b, c = self.log_scale[pair_type].unbind(-1)
        low, high = self.span[pair_type].unbind(-1)
        soft = partial(softplus, beta=1 / _SOFT)
        d = (distance + soft(low - distance) - soft(distance - high))[:, None]
        return torch.exp(a + (b + c * d) * d).index_select(1, self.path)

    def forward(self, state: Sequence[Tensor], pair_type: Tensor, distance: Tensor) -> Tensor:
        """Blocks in the bond frame [Eh], shape (pair, slot, slot)."""
        gates = self.type_gate[pair_type].split(self.widths, dim=-1)
        gated = [x * (g if x.dim() == 2 else g[:, None]) for x, g in zip(state, gates, strict=True)]
        components = torch.cat([x.flatten(1) for x in self.out(gated[: len(self.out.layers)])], dim=1)
        scaled = components * self.scale(pair_type, distance)
        return (scaled @ self.matrix).view(-1, self.n_slots, self.n_slots)


class AtomReadout(nn.Module):
    """Atom features to symmetric atom blocks, each element with weights of its own.

    Args:
        slots: shape of the blocks.
        channels: (natural, unnatural) channels of each l of the features.
    """

    matrix: Tensor
    path: Tensor
    scale: Tensor
    mean: Tensor

    def __init__(self, slots: Slots, channels: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.counts, matrix, path = atom_paths(slots)
        self.channels, self.n_slots, n = list(channels), slots.n_slots, len(slots.elements)
        self.natural = nn.ParameterList(
            [torch.randn(n, c[0], k[0]) * 0.3 * c[0] ** -0.5 for c, k in zip(channels, self.counts, strict=False)]
        )
        self.unnatural = nn.ParameterList(
            [
                torch.randn(n, c[1], k[1]) * 0.3 * max(c[1], 1) ** -0.5
                for c, k in zip(channels, self.counts, strict=False)
            ]
        )
        self.register_buffer("matrix", matrix, persistent=False)
        self.register_buffer("path", path, persistent=False)
        self.register_buffer("scale", torch.ones(n, int(path.max()) + 1))
        self.register_buffer("mean", torch.zeros(n, slots.n_slots, slots.n_slots))

    def forward(self, feature: Sequence[Tensor], element: Tensor) -> Tensor:
        """Blocks [Eh], shape (atom, slot, slot)."""
        parts = []
        for x, c, k, w, v in zip(feature, self.channels, self.counts, self.natural, self.unnatural, strict=False):
            out = [x[..., : c[0]] @ w[element]]
            if k[1]:
                out.append(x[..., c[0] :] @ v[element])
            parts.append(torch.cat(out, dim=-1).flatten(1))
        components = torch.cat(parts, dim=1) * self.scale[element].index_select(1, self.path)
        return (components @ self.matrix).view(-1, self.n_slots, self.n_slots) + self.mean[element]


class EnergyReadout(nn.Module):
    """Invariants of atoms and bonds to the energy of each atom.

    Args:
        scalars: invariant channels of the atoms.
        invariants: invariant channels of the bond state.
        n_elements: number of elements.
    """

    offset: Tensor
    scale: Tensor

    def __init__(self, scalars: int, invariants: int, n_elements: int) -> None:
        super().__init__()
        self.hidden = Linear(scalars, _HIDDEN, bias=True)
        self.out = nn.Parameter(torch.randn(n_elements, _HIDDEN) * 0.02)
        self.pair_hidden = Linear(invariants, _HIDDEN, bias=True)
        self.pair_out = nn.Parameter(torch.randn(n_elements**2, _HIDDEN) * 0.02)
        # total energies of atoms need float64 whatever the precision of the network: as two numbers of lower precision
        self.register_buffer("offset", torch.zeros(2, n_elements))
        self.register_buffer("scale", torch.ones(()))

    def forward(
        self, scalars: Tensor, element: Tensor, invariants: Tensor, pair_type: Tensor, near: Tensor, first: Tensor
    ) -> Tensor:
        """Atomic energies [Eh], shape (atom,), float64.

        Args:
            scalars: of the atoms, shape (atom, scalar).
            element: of the atoms, shape (atom,).
            invariants: of the directed pairs, shape (pair, invariant).
            pair_type: ordered element pair of each, shape (pair,).
            near: envelope of each pair, shape (pair,).
            first: the atom that a pair's energy counts to, shape (pair,).
        """
        of_atom = (silu(self.hidden(scalars)) * self.out[element]).sum(-1)
        of_pair = (silu(self.pair_hidden(invariants)) * self.pair_out[pair_type]).sum(-1) * near
        correction = of_atom.index_add(0, first, of_pair) * self.scale
        return correction.double() + self.offset.double().sum(0)[element]

    def set_offset(self, offset: Tensor) -> None:
        """Sets the atomic reference energies [Eh], shape (element,), float64."""
        high = offset.to(self.offset.dtype)
        self.offset.copy_(torch.stack([high, (offset - high.double()).to(high.dtype)]))
