"""One layer: features of atoms meet in the frame of each bond, and the answer goes back to the atoms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mlsemi.nn.so2 import (
    BondLinear,
    FeatureLinear,
    Linear,
    bond_widths,
    concatenate,
    from_bond,
    product_widths,
    products,
    to_bond,
)

LIMIT = 2.0
"""Root mean square that a tempered member of a bond state cannot exceed: a few times what is usual in training."""


def tempering(state: Sequence[Tensor]) -> list[Tensor]:
    """Factors that temper a bond state: 1 / sqrt(1 + <x^2> / LIMIT^2) for each member, shape (pair, 1).

    The mean is over the channels of the member and (even, odd). Hardly changes what is small; keeps gates and products
    from running away where a geometry is far from the training.
    """
    flat = [x.flatten(1) for x in state]
    squares = [torch.linalg.vecdot(x, x)[:, None] / max(x.shape[1], 1) for x in flat]
    return [torch.rsqrt(1 + square / LIMIT**2) for square in squares]


def scaled(state: Sequence[Tensor], factors: Sequence[Tensor]) -> list[Tensor]:
    """Members of a bond state times factors of shape (pair, channel) or (pair, 1)."""
    return [x * (f if x.dim() == 2 else f[:, None]) for x, f in zip(state, factors, strict=True)]


def tempered(state: Sequence[Tensor]) -> list[Tensor]:
    """A bond state times its factors of `tempering`."""
    return scaled(state, tempering(state))


class BondUpdate(nn.Module):
    """Updates the state of each bond from its two atoms.

    Both atoms' features are mixed, added and turned into the bond frame and tempered; a dense layer with the state so
    far and with the radial embedding, gates from the invariants, products of components, and a second dense layer
    follow.

    Args:
        channels: (natural, unnatural) channels of each l of the atom features.
        widths: channels of the bond state.
        radial: width of the radial embedding.
        product_width: channels that are multiplied with each other.
    """

    def __init__(
        self, channels: Sequence[tuple[int, int]], widths: Sequence[int], radial: int, product_width: int
    ) -> None:
        super().__init__()
        self.channels = list(channels)
        self.widths, self.product_width = list(widths), product_width
        self.from_i = FeatureLinear(channels, channels, gain=0.7)
        self.from_j = FeatureLinear(channels, channels, gain=0.7)
        inner = bond_widths(channels)
        inputs = [a + b for a, b in zip(inner, widths, strict=True)]
        inputs[0] += radial
        self.into = BondLinear(inputs, widths)
        self.radial = Linear(radial, sum(widths))
        self.gate = Linear(widths[0], sum(widths[1:]), bias=True)
        extra = product_widths(len(widths), product_width)
        self.out = BondLinear([a + b for a, b in zip(widths, extra, strict=True)], widths, gain=0.5)

    def forward(
        self, feature: Sequence[Tensor], state: Sequence[Tensor], radial: Tensor, pair: Tensor, wigner: Sequence[Tensor]
    ) -> list[Tensor]:
        """The new bond state."""
        i, j = pair
        mixed = [
            a.index_select(0, i) + b.index_select(0, j)
            for a, b in zip(self.from_i(feature), self.from_j(feature), strict=True)
        ]
        bond = concatenate(to_bond(mixed, wigner, self.channels), state)
        first, *factors = tempering(bond)
        bond[0] = torch.cat([bond[0] * first, radial], -1)
        hidden = self.into(bond)
        scales = self.radial(radial).split(self.widths, dim=-1)
        invariant = silu(hidden[0] * scales[0])
        gates = self.gate(invariant).split(self.widths[1:], dim=-1)
        # the dense layer has commuted with the factors: they are cheaper here, where there are fewer channels
        gates = [g * s * f for g, s, f in zip(gates, scales[1:], factors, strict=True)]
        hidden = tempered([invariant, *scaled(hidden[1:], gates)])
        extra = products(hidden, self.product_width)
        hidden = [torch.cat([x, extra[k]], -1) if k < len(extra) else x for k, x in enumerate(hidden)]
        return [old + new for old, new in zip(state, self.out(hidden), strict=True)]


class Message(nn.Module):
    """Sums the bond states over the neighbours of each atom.

    Args:
        channels: (natural, unnatural) channels of each l of the atom features.
        widths: channels of the bond state.
        neighbours: typical number of neighbours; sums are divided by its square root.
    """

    def __init__(self, channels: Sequence[tuple[int, int]], widths: Sequence[int], neighbours: float) -> None:
        super().__init__()
        self.channels = list(channels)
        self.out = BondLinear(widths, bond_widths(channels), gain=neighbours**-0.5)

    def forward(
        self, state: Sequence[Tensor], envelope: Tensor, pair: Tensor, wigner: Sequence[Tensor], n_atoms: int
    ) -> list[Tensor]:
        """Features, (atom, 2l + 1, channel) for each l."""
        message = self.out(state)
        feature = from_bond(scaled(message, [envelope[:, None]] * len(message)), wigner, self.channels)
        return [x.new_zeros(n_atoms, *x.shape[1:]).index_add(0, pair[0], x) for x in feature]


class AtomUpdate(nn.Module):
    """Adds a message to the atom features, with gates from the invariants.

    Args:
        channels: (natural, unnatural) channels of each l.
    """

    def __init__(self, channels: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.sizes = [n + u for n, u in channels]
        scalars = channels[0][0]
        self.mix = FeatureLinear(channels, channels)
        self.hidden = Linear(2 * scalars, 2 * scalars, bias=True)
        self.scalar = Linear(2 * scalars, scalars)
        self.gates = Linear(2 * scalars, sum(self.sizes[1:]), bias=True)

    def forward(self, feature: Sequence[Tensor], message: Sequence[Tensor]) -> list[Tensor]:
        """The new features."""
        mixed = self.mix(message)
        hidden = silu(self.hidden(torch.cat([feature[0], mixed[0]], -1)[:, 0]))
        gates = self.gates(hidden).split(self.sizes[1:], dim=-1)
        scalar = feature[0] + mixed[0] + self.scalar(hidden)[:, None]
        higher = [x + y * (1 + g[:, None]) for x, y, g in zip(feature[1:], mixed[1:], gates, strict=True)]
        return [scalar, *higher]
