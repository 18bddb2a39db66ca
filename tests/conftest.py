"""Fixtures of all tests: seeded randomness, rotations, a few molecules, and where the large geometries lie."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mlsemi.basis import load_basis
from mlsemi.checkpoint import ADDED, Header, engine_of, load_tensors, save
from mlsemi.engine import Engine
from mlsemi.molecule import Molecule
from mlsemi.nn.network import NetworkConfig

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("MLSEMI_SHARED", ROOT.parent / "shared"))


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    # a shell that starts jobs in the background lets them ignore Ctrl-C, which some tests send
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if (SHARED / "data").is_dir():
        return
    skip = pytest.mark.skip(reason=f"no geometries at {SHARED / 'data'}: set MLSEMI_SHARED")
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the large geometries; tests that use it carry `@pytest.mark.shared`."""
    return SHARED / "data"


@pytest.fixture(scope="session")
def examples() -> Path:
    """Folder of the example geometries."""
    return ROOT / "examples"


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator that starts the same for each test."""
    return np.random.default_rng(20)


@pytest.fixture
def random_rotation(rng: np.random.Generator) -> Callable[..., np.ndarray]:
    """Makes random rotations, shape (3, 3); `improper=True` gives one with determinant -1."""

    def make(*, improper: bool = False) -> np.ndarray:
        q, r = np.linalg.qr(rng.normal(size=(3, 3)))
        q = q * np.sign(np.diag(r))
        return q if (np.linalg.det(q) < 0) == improper else -q

    return make


@pytest.fixture(scope="session")
def molecules() -> dict[str, Molecule]:
    """Unlike molecules by name, away from symmetric orientations: one atom to seven, H to S, charged, open shell."""
    angstrom = {
        "helium": ([2], [[0.3, -0.2, 0.1]]),
        "water": ([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]]),
        "hydrogen_sulfide": ([1, 16, 1], [[0.1, 0.96, 0.83], [0.0, 0.02, -0.1], [-0.05, -0.97, 0.8]]),
        "formamide": (
            [7, 6, 8, 1, 1, 1],
            [[-1.11, 0.24, 0.11], [0.22, 0.35, -0.04], [0.98, -0.58, -0.08], [-1.52, -0.68, 0.2], [-1.72, 1.04, 0.14],
             [0.55, 1.40, -0.12]],
        ),
    }  # fmt: skip
    made = {name: Molecule.from_angstrom(np.array(z), np.array(x), name=name) for name, (z, x) in angstrom.items()}
    hydroxyl = Molecule.from_angstrom(np.array([8, 1]), np.array([[0.0, 0.1, 0.0], [0.5, 0.6, 0.6]]), spin=1, name="OH")
    ammonium = Molecule.from_angstrom(
        np.array([7, 1, 1, 1, 1]),
        np.array([[0.0, 0, 0], [0.6, 0.6, 0.58], [-0.6, -0.6, 0.6], [-0.6, 0.57, -0.6], [0.6, -0.6, -0.6]]),
        charge=1,
        name="ammonium",
    )
    return made | {"hydroxyl": hydroxyl, "ammonium": ammonium}


@pytest.fixture(scope="session")
def tiny_header() -> Header:
    """A model of H and O in STO-3G, small enough to build in a second."""
    return Header(
        name="tiny",
        method="hf",
        resolved_functional="HF",
        basis=load_basis("sto-3g").subset((1, 8)),
        elements=(1, 8),
        baseline="atoms",
        network=NetworkConfig(8, 4, (12, 4, 8, 6), layers=1, product=4, radial=8, n_radial=8, neighbours=2.0),
        domain={"charges": [0], "spins": [0], "max_atoms": 4, "formulas": []},
        training={"labels_train": 90, "labels_validation": 10},
        errors={"H MAE [uEh]": 12.5},
    )


@pytest.fixture(scope="session")
def tiny_engine(tiny_header: Header) -> Engine:
    """Its engine in float64, not trained: fresh weights from a fixed seed."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return engine_of(tiny_header, dtype=torch.float64).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def open_header(tiny_header: Header) -> Header:
    """The same for ions and open shells."""
    states = [(q, s) for q in (-1, 0, 1) for s in (0, 1, 2)]
    return replace(
        tiny_header,
        name="open",
        network=replace(tiny_header.network, charges=True, open_shells=True),
        domain={"charges": [-1, 0, 1], "spins": [0, 1, 2], "states": states, "max_atoms": 4, "formulas": []},
    )


@pytest.fixture(scope="session")
def open_engine(open_header: Header, tiny_engine: Engine) -> Engine:
    """Its engine in float64: the weights of the tiny one, and random ones for charge and spin."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        engine = engine_of(open_header, dtype=torch.float64, build=False)
        load_tensors(engine, {k: v for k, v in tiny_engine.state_dict().items() if v.numel()}, keep=ADDED)
        for name, parameter in engine.network.named_parameters():
            if name.startswith(("state_embedding.", "charge_potential.logit")):
                parameter.data.add_(0.2 * torch.randn_like(parameter))
        engine.network.spin_pair_readout.log_scale[..., 0] = -3.0
        engine.network.spin_atom_readout.scale.fill_(0.05)
    return engine.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_header: Header, tiny_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both as a file."""
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save(path, tiny_header, tiny_engine.state_dict())
    return path
