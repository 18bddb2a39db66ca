"""A short training set: frozen labels of water, and an engine whose tables are computed once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlsemi import checkpoint
from mlsemi.data.store import LabelStore
from mlsemi.engine import Engine
from mlsemi.nn.network import NetworkConfig
from mlsemi.train.config import Config, read_config

WATER = Path(__file__).parents[2] / "reference_data" / "water" / "water_pbe_def2svp_500.h5"
NETWORK = NetworkConfig(8, 4, (12, 4, 8, 6), layers=1, product=4, radial=8, n_radial=8, neighbours=2.0)


@pytest.fixture(scope="session")
def water_labels() -> Path:
    """500 labels of water, PBE/def2-SVP, stored as residuals to F0."""
    return WATER


@pytest.fixture(scope="session")
def water_engine(water_labels: Path) -> Engine:
    """Fresh weights; not to be changed."""
    with LabelStore.open(water_labels) as store:
        basis = store.basis
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Engine(basis, (1, 8), NETWORK).eval().requires_grad_(False)


@pytest.fixture
def make_engine(water_engine: Engine) -> Callable[..., Engine]:
    """As `checkpoint.engine_of`, without computing the tables of the baseline again: they cost two seconds."""

    def engine_of(header: checkpoint.Header, *, dtype: torch.dtype = torch.float32, build: bool = True) -> Engine:
        sizes = {
            "members": header.members,
            "energy_network": bool(header.difference_to),
            "dtype": dtype,
            "build": False,
        }
        engine = Engine(header.basis, header.elements, header.network, **sizes)
        if build:
            engine.baseline.load_state_dict(water_engine.baseline.state_dict())
            engine.baseline.prepare()
        return engine

    return engine_of


@pytest.fixture
def configure(
    tmp_path: Path, water_labels: Path, make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Config]:
    """Writes and reads a configuration of a tiny run: `configure(folder, limit=10, loss={"ao": 2.0}, steps=4, ...)`."""
    monkeypatch.setattr(checkpoint, "engine_of", make_engine)

    def make(
        output: str = "run",
        *,
        limit: int = 10,
        split: str = "random",
        labels: Path = water_labels,
        network: dict[str, bool | int] | None = None,
        loss: dict[str, float] | None = None,
        **training: float,
    ) -> Config:
        settings = {"steps": 6, "batch": 3, "warmup": 2, "validate_every": 3, "threads": 1} | training
        lines = [
            f'output = "{output}"',
            "[data]",
            f'labels = ["{labels}"]',
            f'split = "{split}"',
            f"limit = {limit}",
            "validation = 0.2",
            "[network]",
            *(f"{k} = {json.dumps(v)}" for k, v in (vars(NETWORK) | (network or {})).items()),
            "[loss]",
            *(f"{k} = {v}" for k, v in (loss or {}).items()),
            "[training]",
            *(f"{k} = {v}" for k, v in settings.items()),
        ]
        path = tmp_path / f"{output}.toml"
        path.write_text("\n".join(lines))
        return read_config(path)

    return make


@pytest.fixture
def engine(water_engine: Engine, make_engine: Callable[..., Engine], base_header: checkpoint.Header) -> Engine:
    """An engine whose weights may change."""
    engine = make_engine(base_header)
    engine.load_state_dict(water_engine.state_dict())
    engine.baseline.prepare()
    return engine


@pytest.fixture(scope="session")
def base_header(water_engine: Engine) -> checkpoint.Header:
    """Of a model to fine-tune."""
    return checkpoint.Header(
        name="base",
        method="pbe",
        resolved_functional="1*GGA_X_PBE[101] + 1*GGA_C_PBE[130]; exact exchange 0",
        basis=water_engine.basis,
        elements=(1, 8),
        baseline="atoms",
        network=water_engine.network.config,
        training={"steps": 0},
    )


@pytest.fixture
def base(tmp_path: Path, base_header: checkpoint.Header, water_engine: Engine) -> Path:
    """A checkpoint to fine-tune."""
    path = tmp_path / "base.safetensors"
    checkpoint.save(path, base_header, water_engine.state_dict())
    return path
