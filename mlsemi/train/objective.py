"""What a training minimizes: its samples, and the terms of the loss of some of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mlsemi.blocks import BlockMap
from mlsemi.engine import Engine
from mlsemi.frames import BondFrames
from mlsemi.train.config import LossConfig
from mlsemi.train.loss import gradient_errors, loss_terms
from mlsemi.train.samples import Sample, collate


@dataclass(frozen=True, eq=False)
class Objective:
    """All that the loop knows of what it trains on.

    Attributes:
        samples: to train on.
        validation: samples of the same kind to validate on.
        weights: of each term in the loss.
        units: of each term as it stands in names of columns, "meh" (1e-3 Eh), "meh_per_bohr" or "mebohr" (1e-3 e bohr).
        terms: of a list of samples, the errors of those that have the quantity, each of shape (such samples,).
        residuals: of a list of samples, one after the other, all components of their errors times the weights, shape
            (component,); None where there are none to be squared.
        trains: which network of the engine, "network" or "energy_network".
    """

    samples: Sequence[Any]
    validation: Sequence[Any]
    weights: Mapping[str, float]
    units: Mapping[str, str]
    terms: Callable[[Sequence[Any]], dict[str, Tensor]]
    residuals: Callable[[Sequence[Any]], Tensor] | None = None
    trains: str = "network"

    def total(self, means: Mapping[str, Any]) -> Any:  # noqa: ANN401 (tensors or numbers)
        """Weighted sum of the means of the terms; one of weight 0 is left out, since 0 times NaN is not 0.

        It is the number 0 if none has a weight.
        """
        return sum(self.weights[name] * value for name, value in means.items() if self.weights[name])


def fock_objective(
    engine: Engine, samples: Sequence[Sample], validation: Sequence[Sample], loss: LossConfig, device: str
) -> Objective:
    """Fock matrices, energies and, where labels have them, gradients, see `mlsemi.train.loss`.

    Raises:
        ValueError: if gradients have a weight and no label has one.
    """
    weights = dict(vars(loss))
    for part, of in ((samples, "training"), (validation, "validation")):
        if loss.gradient and all(s.gradient is None for s in part):
            raise ValueError(
                f"[loss] gradient has the weight {loss.gradient:g}, but none of the {len(part)} labels for {of} has a "
                "gradient: label with --gradient, or set the weight to 0"
            )
    if not loss.gradient:
        del weights["gradient"]

    def terms(chosen: Sequence[Sample]) -> dict[str, Tensor]:
        group = collate(chosen, engine).to(device)
        output = engine.network(group.batch, BondFrames.of(group.batch, engine.network.l_max))
        found = loss_terms(output, BlockMap.of(group.batch, engine.baseline.slots), group)
        if loss.gradient:
            having = [s for s in chosen if s.gradient is not None]
            labels = [s.gradient for s in having if s.gradient is not None]
            found["gradient"] = gradient_errors(engine, [s.molecule for s in having], labels)
        return found

    units = {name: "meh_per_bohr" if name == "gradient" else "meh" for name in weights}
    return Objective(samples, validation, weights, units, terms)
