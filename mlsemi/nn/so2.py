"""Equivariance in the bond frame: SO(3) features as SO(2) components, and the maps between them.

In the frame of a bond a rotation about it turns the components m and -m of a feature into each other, and a mirror
plane that holds the bond changes the sign of the -m (sine) components of natural-parity features, of the +m (cosine)
components of unnatural-parity ones. So (cos, sin) of a natural and (sin, -cos) of an unnatural feature turn and reflect
alike: as `even` and `odd` they share one real weight. The m = 0 components are invariant (natural) or change sign under
the mirror (unnatural).

A **bond state** is a list [even_0, odd_0, z_1, z_2, ...]: shapes (pair, channel), (pair, channel), then
(pair, 2, channel) for each m with (even, odd) along the second axis.
A **feature** is a list over l of (atom, 2l + 1, channel) with the natural-parity channels first; unnatural-parity ones
exist for l = 1..l_max - 1, as in the products of orbitals.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """A dense layer with weights of variance 1 / inputs (times `gain` squared); bias optional and zero at first."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False, gain: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * (gain / sqrt(max(inputs, 1))))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def feature_channels(l_max: int, natural: int, unnatural: int) -> list[tuple[int, int]]:
    """(natural, unnatural) channels of each l."""
    return [(natural, unnatural if 1 <= l <= l_max - 1 else 0) for l in range(l_max + 1)]


def bond_widths(channels: Sequence[tuple[int, int]]) -> list[int]:
    """Channels of the bond state [even_0, odd_0, z_1, ...] that holds all components of a feature."""
    l_max = len(channels) - 1
    widths = [sum(n for n, _ in channels), sum(u for _, u in channels)]
    return widths + [sum(sum(channels[l]) for l in range(m, l_max + 1)) for m in range(1, l_max + 1)]


class FeatureLinear(nn.Module):
    """Mixes the channels of a feature, for each l and parity by itself."""

    def __init__(self, inputs: Sequence[tuple[int, int]], outputs: Sequence[tuple[int, int]], *, gain: float = 1.0):
        super().__init__()
        self.inputs = [list(c) for c in inputs]
        self.natural = nn.ModuleList([Linear(a[0], b[0], gain=gain) for a, b in zip(inputs, outputs, strict=True)])
        self.unnatural = nn.ModuleList([Linear(a[1], b[1], gain=gain) for a, b in zip(inputs, outputs, strict=True)])

    def forward(self, feature: Sequence[Tensor]) -> list[Tensor]:
        out = []
        for x, size, natural, unnatural in zip(feature, self.inputs, self.natural, self.unnatural, strict=True):
            if size[1]:
                n, u = x.split(size, dim=-1)
                out.append(torch.cat([natural(n), unnatural(u)], dim=-1))
            else:
                out.append(natural(x))
        return out


def to_bond(feature: Sequence[Tensor], wigner: Sequence[Tensor], channels: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Turns a feature of pairs, (pair, 2l + 1, channel) for each l, into a bond state.

    Args:
        feature: in the laboratory frame.
        wigner: matrices from the bond frame to the laboratory, (pair, 2l + 1, 2l + 1) for each l.
        channels: (natural, unnatural) of each l.
    """
    l_max = len(feature) - 1
    even: list[list[Tensor]] = [[] for _ in range(l_max + 1)]
    odd: list[list[Tensor]] = [[] for _ in range(l_max + 1)]
    for l, (x, d) in enumerate(zip(feature, wigner, strict=True)):
        rows = (d.mT @ x if l else x).unbind(1)
        n, u = channels[l]
        for m in range(l + 1):
            if u:
                cosine, cosine_u = rows[l + m].split([n, u], dim=-1)
                sine, sine_u = rows[l - m].split([n, u], dim=-1) if m else (cosine, cosine_u)
                even[m].append(cosine)
                odd[m].append(sine if m else cosine_u)
                if m:
                    even[m].append(sine_u)
                    odd[m].append(-cosine_u)
            else:
                even[m].append(rows[l + m])
                if m:
                    odd[m].append(rows[l - m])
    pairs = feature[0].shape[0]
    odd_0 = torch.cat(odd[0], -1) if odd[0] else feature[0].new_zeros(pairs, 0)
    higher = [torch.stack([torch.cat(even[m], -1), torch.cat(odd[m], -1)], 1) for m in range(1, l_max + 1)]
    return [torch.cat(even[0], -1), odd_0, *higher]


def from_bond(state: Sequence[Tensor], wigner: Sequence[Tensor], channels: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Inverse of `to_bond`: a bond state of full width to features of pairs in the laboratory frame."""
    l_max = len(channels) - 1
    rows: list[list[Tensor | None]] = [[None] * (2 * l + 1) for l in range(l_max + 1)]
    zero_even = state[0].split([n for n, _ in channels], dim=-1)
    zero_odd = state[1].split([u for _, u in channels], dim=-1)
    for l in range(l_max + 1):
        rows[l][l] = torch.cat([zero_even[l], zero_odd[l]], -1) if channels[l][1] else zero_even[l]
    for m in range(1, l_max + 1):
        sizes = [c for l in range(m, l_max + 1) for c in channels[l]]
        even, odd = (part.split(sizes, dim=-1) for part in state[m + 1].unbind(1))
        for k, l in enumerate(range(m, l_max + 1)):
            n, u = 2 * k, 2 * k + 1
            if channels[l][1]:
                rows[l][l + m] = torch.cat([even[n], -odd[u]], -1)
                rows[l][l - m] = torch.cat([odd[n], even[u]], -1)
            else:
                rows[l][l + m], rows[l][l - m] = even[n], odd[n]
    stacked = [torch.stack([r for r in row if r is not None], dim=1) for row in rows]
    return [d @ x if l else x for l, (x, d) in enumerate(zip(stacked, wigner, strict=True))]


class BondLinear(nn.Module):
    """An SO(2)- and mirror-equivariant dense layer between bond states; only even m = 0 has a bias."""

    def __init__(self, inputs: Sequence[int], outputs: Sequence[int], *, gain: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [Linear(a, b, bias=k == 0, gain=gain) for k, (a, b) in enumerate(zip(inputs, outputs, strict=True))]
        )

    def forward(self, state: Sequence[Tensor]) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self.layers, state, strict=True)]


def concatenate(*states: Sequence[Tensor]) -> list[Tensor]:
    """Bond states side by side along the channels."""
    return [torch.cat(parts, dim=-1) for parts in zip(*states, strict=True)]


def products(state: Sequence[Tensor], width: int) -> list[Tensor]:
    """Products of the first `width` channels of m = 1 and m = 2: even 0, odd 0, m = 1, m = 2.

    With z = even + i odd: |z_1|^2, |z_2|^2, z_1 conj(z_1'), z_2 conj(z_1), z_1 z_1'; ' shifts channels by one.
    """
    if len(state) < 3:
        return [state[0][:, :0], state[1][:, :0]]
    e1, o1 = state[2][..., :width].unbind(1)
    e1s, o1s = e1.roll(1, -1), o1.roll(1, -1)
    cross_even, cross_odd = e1 * e1s + o1 * o1s, o1 * e1s - e1 * o1s
    if len(state) < 4:
        return [torch.cat([e1 * e1 + o1 * o1, cross_even], -1), cross_odd, state[2].new_zeros(e1.shape[0], 2, 0)]
    e2, o2 = state[3][..., :width].unbind(1)
    even_0 = torch.cat([e1 * e1 + o1 * o1, e2 * e2 + o2 * o2, cross_even], -1)
    one = torch.stack([e2 * e1 + o2 * o1, o2 * e1 - e2 * o1], 1)
    two = torch.stack([e1 * e1s - o1 * o1s, e1 * o1s + o1 * e1s], 1)
    return [even_0, cross_odd, one, two]


def product_widths(n_states: int, width: int) -> list[int]:
    """Channels that `products` adds to each member of a bond state of `n_states` members."""
    if n_states < 3:
        return [0, 0]
    if n_states < 4:
        return [2 * width, width] + [0] * (n_states - 2)
    return [3 * width, width, width, width] + [0] * (n_states - 4)
