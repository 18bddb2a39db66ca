"""The variants of `ablation.py`: what is changed, and the code of what no configuration can change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, silu

from mlsemi.blocks import BlockMap
from mlsemi.engine import Engine
from mlsemi.frames import BondFrames
from mlsemi.nn.interaction import AtomUpdate, BondUpdate, Message
from mlsemi.nn.network import FockNetwork
from mlsemi.nn.readout import PairReadout
from mlsemi.nn.so2 import Linear, from_bond
from mlsemi.train.loss import loss_terms
from mlsemi.train.objective import Objective
from mlsemi.train.optimizer import MuonAdamW
from mlsemi.train.samples import Sample, collate

REFERENCE = "reference"
_HEADS, _HIDDEN, _LARGEST_LOGIT = 4, 64, 6.0
_BOND = 2.8
"""Length of a bond of C and O [bohr]."""


class AttentionMessage(Message):
    """A message that weights each neighbour by attention, channel c by head c mod 4.

    The logits are those of a dense layer on the invariants of the bond (as in Equiformer, Y.-L. Liao and T. Smidt,
    2022), the weights a softmax over the neighbours of an atom with the envelope inside: n e_ij exp(a_ij) / (1 + sum_k
    e_ik exp(a_ik)). Because of the 1 even the last neighbour fades away smoothly at the reach. With the typical number
    of neighbours n, sums are as large as without attention.
    """

    def __init__(self, channels: Sequence[tuple[int, int]], widths: Sequence[int], neighbours: float) -> None:
        super().__init__(channels, widths, neighbours)
        self.neighbours = neighbours
        self.hidden = Linear(widths[0], _HIDDEN, bias=True)
        self.logit = Linear(_HIDDEN, _HEADS)

    def forward(
        self, state: Sequence[Tensor], envelope: Tensor, pair: Tensor, wigner: Sequence[Tensor], n_atoms: int
    ) -> list[Tensor]:
        """Features, (atom, 2l + 1, channel) for each l."""
        logit = _LARGEST_LOGIT * torch.tanh(self.logit(silu(self.hidden(state[0]))) / _LARGEST_LOGIT)
        share = envelope[:, None] * torch.exp(logit)
        total = 1 + share.new_zeros(n_atoms, _HEADS).index_add(0, pair[0], share)
        weight = self.neighbours * share / total.index_select(0, pair[0])
        feature = []
        for x in from_bond(self.out(state), wigner, self.channels):
            weighted = x * weight[:, None, torch.arange(x.shape[-1], device=x.device) % _HEADS]
            feature.append(x.new_zeros(n_atoms, *x.shape[1:]).index_add(0, pair[0], weighted))
        return feature


class FittedUpdate(AtomUpdate):
    """An update of features that may come with more or fewer channels: they are cut off, or filled up by zeros."""

    def forward(self, feature: Sequence[Tensor], message: Sequence[Tensor]) -> list[Tensor]:
        """The new features."""
        fitted = [
            [pad(x, (0, n - x.shape[-1])) for x, n in zip(parts, self.sizes, strict=True)]
            for parts in (feature, message)
        ]
        return super().forward(*fitted)


def attention(network: FockNetwork) -> None:
    """Messages weighted by attention."""
    config = network.config
    network.messages = nn.ModuleList(
        [AttentionMessage(network.channels, network.widths, config.neighbours) for _ in range(config.layers)]
    )


def order_at_most(order: int) -> Callable[[FockNetwork], None]:
    """Features of l <= `order` only, without the cost of the others, up to the last message.

    That one, and the bonds after it, have all l, without which some components of the blocks would be zero.
    """

    def change(network: FockNetwork) -> None:
        config, widths = network.config, network.widths
        low = [c if l <= order else (0, 0) for l, c in enumerate(network.channels)]
        bonds = [BondUpdate(low, widths, config.radial, config.product) for _ in range(config.layers)]
        messages = [Message(low, widths, config.neighbours) for _ in range(config.layers - 1)]
        updates = [AtomUpdate(low) for _ in range(config.layers - 1)]
        network.first_update = FittedUpdate(low)
        network.bonds = nn.ModuleList([*bonds, network.bonds[-1]])
        network.messages = nn.ModuleList([*messages, network.messages[-1]])
        network.updates = nn.ModuleList([*updates, FittedUpdate(network.channels)])

    return change


class FlatPairReadout(PairReadout):
    """The typical sizes of the components of a block are those at the length of a bond, at all distances."""

    def scale(self, pair_type: Tensor, distance: Tensor) -> Tensor:
        """Typical size of each component [Eh], shape (pair, component)."""
        return super().scale(pair_type, torch.full_like(distance, _BOND))


def flat_sizes(network: FockNetwork) -> None:
    """Blocks whose typical size does not know the distance."""
    network.pair_readout.__class__ = FlatPairReadout


class NothingYet(nn.Module):
    """Bond states that begin at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, radial: Tensor) -> Tensor:
        """Shape (pair, channel)."""
        return radial.new_zeros(len(radial), self.width)


def no_two_body_state(network: FockNetwork) -> None:
    """Bond states that begin at zero instead of a function of distance and elements."""
    network.start = NothingYet(network.widths[0])  # pyright: ignore[reportAttributeAccessIssue]


class AdamWAlone(MuonAdamW):
    """AdamW with the settings that it has beside Muon, for all parameters."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float) -> None:
        # it is their names that send the matrices of dense layers to Muon
        unnamed = {str(k): p for k, p in enumerate(parameters.values())}
        super().__init__(unnamed, learning_rate=learning_rate, weight_decay=weight_decay)


class ConstantRate(MuonAdamW):
    """Keeps the highest learning rate that there was."""

    highest = 0.0

    def set_learning_rate(self, rate: float) -> None:
        """Sets the learning rate of the next step."""
        self.highest = max(self.highest, rate)
        super().set_learning_rate(self.highest)


class DipoleTerm:
    """The error of the dipole to first order in that of F, as a further term of the loss [1e-3 e bohr].

    It is Tr[G_x dF] for each direction x, G_x = 4 sum_ia r_x,ia / (e_i - e_a) of closed shells, with the orbitals i
    (occupied) and a (virtual) of the label: the same that the loss of the `fast` energy does with its G.

    Args:
        engine: gives F0 and the dipole integrals.
        objective: without the term.
        weight: of the term.
    """

    def __init__(self, engine: Engine, objective: Objective, weight: float) -> None:
        self.engine, self.weight = engine, weight
        with torch.no_grad():
            self.response = {id(s): self._response(s) for s in (*objective.samples, *objective.validation)}

    def _response(self, sample: Sample) -> Tensor:
        """G of a label [e bohr / Eh], shape (3, ao, ao)."""
        exact = self.engine.integrals(self.engine.batch([sample.molecule]), dipole=True)
        assert exact.dipole is not None and len(sample.n_occupied) == 1, "closed shells"
        fock, orbitals = exact.baseline.fock[0] + sample.residual[0], sample.mo_coeff[0].double()
        energy, n = ((fock @ orbitals) * orbitals).sum(0), sample.n_occupied[0]
        occupied, virtual = orbitals[:, :n], orbitals[:, n:]
        moved = occupied.T @ exact.dipole[0] @ virtual / (energy[:n, None] - energy[n:])
        return (4 * occupied @ moved @ virtual.T).float()

    def terms(self, chosen: Sequence[Sample]) -> dict[str, Tensor]:
        """All terms of the loss."""
        group = collate(chosen, self.engine)
        output = self.engine.network(group.batch, BondFrames.of(group.batch, self.engine.network.l_max))
        blocks = BlockMap.of(group.batch, self.engine.baseline.slots)
        found = loss_terms(output, blocks, group)
        error = (output.correction(blocks, group.batch, group.overlap) - group.residual)[:, 0]
        size = error.shape[-1]
        padded = [pad(g, (0, size - g.shape[-1]) * 2) for g in (self.response[id(s)] for s in chosen)]
        found["dipole"] = 1e3 * torch.einsum("mxij,mij->mx", torch.stack(padded), error).abs().mean(-1)
        return found


def dipoles(weight: float) -> Callable[[Engine, Objective], Objective]:
    """Dipoles as additional labels."""

    def change(engine: Engine, objective: Objective) -> Objective:
        return replace(
            objective,
            terms=DipoleTerm(engine, objective, weight).terms,
            weights={**objective.weights, "dipole": weight},
            units={**objective.units, "dipole": "mebohr"},
        )

    return change


@dataclass(frozen=True)
class Variant:
    """What is changed.

    Attributes:
        what: in one line.
        changes: to the tables of the configuration.
        network: changes a fresh network.
        objective: changes what is minimized.
        optimizer: takes the place of Muon and AdamW.
        late: weights of the loss in the last third of the steps.
    """

    what: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    network: Callable[[FockNetwork], None] | None = None
    objective: Callable[[Engine, Objective], Objective] | None = None
    optimizer: type[MuonAdamW] = MuonAdamW
    late: Mapping[str, float] = field(default_factory=dict)


def _set(table: str, what: str, **values: Any) -> Variant:
    return Variant(what, {table: values})


_NO_ENERGIES = {"energy": 0.0, "fast": 0.0}
_HALF = {"natural": 24, "unnatural": 8, "bond": [56, 8, 32, 20, 8, 4], "product": 12}
_WIDE = {"natural": 72, "unnatural": 24, "bond": [168, 24, 96, 60, 24, 12], "product": 36}
_NATURAL = {"unnatural": 0, "bond": [112, 0, 64, 40, 16, 8]}
VARIANTS = {
    REFERENCE: Variant("ablation.toml"),
    "f0-sap": Variant("F0: superposition of atomic potentials", {"baseline": "sap"}),
    "f0-none": Variant("no F0", {"baseline": "none"}),
    "layers-0": _set("network", "no messages but the first sums over the neighbours", layers=0),
    "layers-1": _set("network", "one round of messages instead of two", layers=1),
    "layers-3": _set("network", "three rounds of messages", layers=3),
    "half-width": _set("network", "half the channels of features, bonds and products", **_HALF),
    "wide": _set("network", "1.5 times the channels of features, bonds and products", **_WIDE),
    "attention": Variant("attention between neighbours, four heads", network=attention),
    "no-products": _set("network", "no products of features in the bond frame", product=0),
    "no-unnatural": _set("network", "no features of unnatural parity, no odd m = 0", **_NATURAL),
    "n-radial-16": _set("network", "16 radial functions instead of 32", n_radial=16),
    "radial-32": _set("network", "radial embedding of width 32 instead of 64", radial=32),
    "flat-sizes": Variant("typical size of a block's components not by distance", network=flat_sizes),
    "no-two-body": Variant("bond states begin at zero, not by distance and elements", network=no_two_body_state),
    "reach-6": _set("network", "messages within 6 bohr; the two-body part beyond stays", reach=6.0),
    "l-2": Variant("l <= 2 up to the last message, which has all l", network=order_at_most(2)),
    "l-3": Variant("l <= 3 up to the last message, which has all l", network=order_at_most(3)),
    "partial-charges": _set("network", "partial charges, whose potential has no cutoff", partial_charges=True),
    "ao": _set("loss", "AO only, no energies", orthonormal=0.0, occupied_virtual=0.0, **_NO_ENERGIES),
    "ao-orthonormal": _set("loss", "AO and orthonormal, no energies", occupied_virtual=0.0, **_NO_ENERGIES),
    "ao-occupied-virtual": _set("loss", "AO and occupied-virtual, no energies", orthonormal=0.0, **_NO_ENERGIES),
    "no-energies": _set("loss", "AO, orthonormal and occupied-virtual, no energies", **_NO_ENERGIES),
    "no-orthonormal": _set("loss", "no orthonormal term", orthonormal=0.0),
    "orthonormal": _set("loss", "orthonormal 0.2 instead of 0.01", orthonormal=0.2),
    "occupied-virtual": _set("loss", "occupied-virtual 1 instead of 0.2", occupied_virtual=1.0),
    "fast": _set("loss", "energies 0.5 and 0.05 instead of 0.05 and 0.001", energy=0.5, fast=0.05),
    "first-weights": _set(
        "loss", "1, 0.2, 0.1, 0.5, 0.05", ao=1.0, orthonormal=0.2, occupied_virtual=0.1, energy=0.5, fast=0.05
    ),
    "late-metrics": Variant(
        "five times the weight on orthonormal and occupied-virtual in the last third of the steps",
        late={"orthonormal": 0.05, "occupied_virtual": 1.0},
    ),
    "dipoles": Variant("dipoles too, to first order in the error of F, weight 0.005", objective=dipoles(0.005)),
    "dipoles-0": Variant("dipoles with the weight 0: their error without being trained", objective=dipoles(0.0)),
    "gradients": _set("loss", "gradients of the fast mode too, weight 0.2", gradient=0.2),
    "adamw": Variant("AdamW alone", optimizer=AdamWAlone),
    "adamw-third": Variant(
        "AdamW alone, a third of the learning rate", {"training": {"learning_rate": 2.5e-3 / 3}}, optimizer=AdamWAlone
    ),
    "rate-1e-3": _set("training", "learning rate 1e-3 instead of 2.5e-3", learning_rate=1e-3),
    "rate-5e-3": _set("training", "learning rate 5e-3", learning_rate=5e-3),
    "weight-decay": _set("training", "weight decay 0.1", weight_decay=0.1),
    "constant-rate": Variant("learning rate constant after the warm-up", optimizer=ConstantRate),
    "batch-4": _set("training", "batches of 4 instead of 8", batch=4),
    "batch-16": _set("training", "batches of 16", batch=16),
}
