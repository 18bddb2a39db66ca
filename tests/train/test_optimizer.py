"""Which parameters Muon steps."""

from __future__ import annotations

from dataclasses import replace

from mlsemi.engine import Engine
from mlsemi.nn.network import FockNetwork
from mlsemi.nn.so2 import Linear
from mlsemi.train.optimizer import SMALLEST_MATRIX, dense_matrices


def test_muon_steps_dense_layers_only(water_engine: Engine) -> None:
    # all parts that a network may have: only dense layers may give the name that Muon goes by
    config = replace(water_engine.network.config, charges=True, partial_charges=True, open_shells=True)
    network = FockNetwork(config, water_engine.baseline.slots)
    parameters = dict(network.named_parameters())
    dense = {f"{name}.weight": m for name, m in network.named_modules() if isinstance(m, Linear)}
    assert {name for name in parameters if name.endswith("weight")} == set(dense)
    large = {name for name, m in dense.items() if min(m.weight.shape) >= SMALLEST_MATRIX}
    assert large and set(dense_matrices(parameters)) == large
