"""What a training minimizes: its samples, and the terms of the loss of some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from mlsemi.blocks import BlockMap
from mlsemi.engine import Engine
from mlsemi.frames import BondFrames
from mlsemi.train.config import LossConfig
from mlsemi.train.loss import loss_terms
from mlsemi.train.samples import Sample, collate


@dataclass(frozen=True, eq=False)
class Objective:
    """All that the loop knows of what it trains on.

    Attributes:
        samples: to train on.
        validation: samples of the same kind to validate on.
        weights: of each term in the loss.
        units: of each term as it stands in names of columns, "meh" (1e-3 Eh), "meh_per_bohr" or "mebohr" (1e-3 e bohr).
        terms: the terms of a list of samples, each a mean over them.
        trained: parameters that are trained, by their name in the network.
    """

    samples: Sequence[Any]
    validation: Sequence[Any]
    weights: Mapping[str, float]
    units: Mapping[str, str]
    terms: Callable[[Sequence[Any]], dict[str, Tensor]]
    trained: Mapping[str, nn.Parameter]

    def total(self, terms: Mapping[str, Any]) -> Any:  # noqa: ANN401 (tensors or numbers)
        """Weighted sum of terms."""
        return sum(self.weights[name] * value for name, value in terms.items())


def fock_objective(
    engine: Engine, samples: Sequence[Sample], validation: Sequence[Sample], loss: LossConfig, device: str
) -> Objective:
    """Fock matrices and repulsive energies of labels, see `mlsemi.train.loss`."""

    def terms(chosen: Sequence[Sample]) -> dict[str, Tensor]:
        group = collate(chosen, engine).to(device)
        output = engine.network(group.batch, BondFrames.of(group.batch, engine.network.l_max))
        return loss_terms(output, BlockMap.of(group.batch, engine.baseline.slots), group)

    weights = dict(vars(loss))
    trained = dict(engine.network.named_parameters())
    return Objective(samples, validation, weights, dict.fromkeys(weights, "meh"), terms, trained)
