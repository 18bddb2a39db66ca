"""Exact forces against central differences of the same energy: both modes, closed and open shells, HF, PBE, B3LYP.

    OMP_NUM_THREADS=1 python benchmarks/forces.py [--molecules water CO2 ...] [--methods hf pbe b3lyp]

Largest deviation over all coordinates [Eh/bohr], by four points with a step of 2e-3 bohr. The network is in float64;
beside it the float32 figure: the largest difference of its gradient from the float64 one. The densities are those of
one model for all methods: forces are exact for whatever density is predicted. Open shells: a model for them with
--open-model; without one the default model with the orbitals of both spins alike and occupied unlike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyscf
import torch

from mlsemi import checkpoint
from mlsemi.engine import Engine
from mlsemi.interop.ase import read_molecules
from mlsemi.interop.atomic_write import written_whole
from mlsemi.model import DEFAULT_MODEL, find_model
from mlsemi.molecule import Molecule
from mlsemi.reference.forces import predicted, variational_gradient
from mlsemi.reference.variational import variational

ROOT = Path(__file__).resolve().parents[1]
STEP = 2e-3
CORRECTION = 0.8
"""c of the corrected energy; any value tests its gradient."""

_GEOMETRIES = {
    "water": ([8, 1, 1], [[0, 0, 0.1173], [0, 0.7572, -0.4692], [0, -0.7572, -0.4692]], 0),
    "CO2": ([8, 6, 8], [[0, 0, -1.19], [0, 0, 0.01], [0, 0, 1.16]], 0),  # along z
    "HCN": ([1, 6, 7], [[-1.06, 0.02, 0.0], [0.0, 0.0, 0.0], [1.15, 0.03, 0.02]], 0),
    "NH3": ([7, 1, 1, 1], [[0, 0, 0.12], [0.94, 0, -0.27], [-0.47, 0.82, -0.28], [-0.47, -0.81, -0.25]], 0),
    "CH2O": ([6, 8, 1, 1], [[0, 0, -0.53], [0, 0, 0.68], [0.02, 0.94, -1.11], [0, -0.93, -1.13]], 0),
    "NH2": ([7, 1, 1], [[0, 0, 0.14], [0, 0.80, -0.49], [0.02, -0.81, -0.48]], 1),
    "CH3": ([6, 1, 1, 1], [[0, 0, 0.03], [1.08, 0, 0], [-0.55, 0.93, 0.02], [-0.54, -0.94, 0]], 1),
}  # fmt: skip


def molecules() -> dict[str, Molecule]:
    """By name: six closed shells of different shape, two open ones."""
    found = {k: Molecule.from_angstrom(z, x, spin=s, name=k) for k, (z, x, s) in _GEOMETRIES.items()}
    closed = {k: m for k, m in found.items() if not m.spin}
    closed["ethanol"] = replace(read_molecules(ROOT / "examples" / "ethanol.xyz")[0], name="ethanol")
    return closed | {k: m for k, m in found.items() if m.spin}


def engines(name: str, *, open_shells: bool) -> tuple[Engine, Engine]:
    """The engine of a model in float64 and in float32."""
    header = checkpoint.read_header(find_model(name))
    if not open_shells or header.network.open_shells:
        parts = [checkpoint.load(find_model(name), dtype=d)[1] for d in (torch.float64, torch.float32)]
    else:
        tensors = checkpoint.load(find_model(name))[1].state_dict()
        header = replace(header, network=replace(header.network, open_shells=True))
        parts = []
        for dtype in (torch.float64, torch.float32):
            engine = checkpoint.engine_of(header, dtype=dtype, build=False)
            checkpoint.load_tensors(engine, {k: v for k, v in tensors.items() if v.numel()}, keep=checkpoint.ADDED)
            parts.append(engine)
    return tuple(engine.eval().requires_grad_(False) for engine in parts)  # type: ignore[return-value]


def fast(engine: Engine, molecule: Molecule) -> tuple[float, np.ndarray]:
    """Energy of the fast mode and its gradient."""
    batch = engine.batch([molecule])
    positions = batch.positions.clone().requires_grad_()
    energy = engine(batch.with_positions(positions)).energy[0]
    return float(energy.detach()), torch.autograd.grad(energy, positions)[0].numpy()


def in_mode(method: str, correction: float) -> Callable[[Engine, Molecule], tuple[float, np.ndarray]]:
    """Energy at the predicted density and its gradient."""

    def run(engine: Engine, molecule: Molecule) -> tuple[float, np.ndarray]:
        found, gradient = variational_gradient(engine, molecule, method=method, correction=correction)
        return found.corrected_energy, gradient

    return run


def energy_of(engine: Engine, molecule: Molecule, mode: str, method: str) -> float:
    """Energy of a mode without its gradient."""
    with torch.no_grad():
        if mode == "fast":
            return float(engine(engine.batch([molecule])).energy[0])
        density = predicted([molecule], engine)[0][0].numpy()
    correction = CORRECTION if mode == "corrected" else 0.0
    found = variational(molecule, engine.basis, density, method=method, correction=correction)
    return found.corrected_energy


def differences(energy: Callable[[np.ndarray], float], positions: np.ndarray) -> np.ndarray:
    """Gradient by four points for each coordinate."""
    out = np.empty(positions.size)
    for k in range(positions.size):
        shift = np.zeros(positions.size)
        shift[k] = STEP
        e = [energy(positions + n * shift.reshape(positions.shape)) for n in (1, -1, 2, -2)]
        out[k] = (8 * (e[0] - e[1]) - (e[2] - e[3])) / (12 * STEP)
    return out.reshape(positions.shape)


def one(pair: tuple[Engine, Engine], molecule: Molecule, mode: str, method: str) -> dict:
    """Figures of a molecule, mode and method."""
    run = fast if mode == "fast" else in_mode(method, CORRECTION if mode == "corrected" else 0.0)
    start = time.process_time()
    _, gradient = run(pair[0], molecule)
    seconds = time.process_time() - start
    single = run(pair[1], molecule)[1]
    expected = differences(
        lambda x: energy_of(pair[0], replace(molecule, positions=x), mode, method), molecule.positions
    )
    return {
        "molecule": molecule.name, "spin": molecule.spin, "mode": mode, "method": method,
        "deviation": float(np.abs(gradient - expected).max()), "float32": float(np.abs(single - gradient).max()),
        "largest": float(np.abs(gradient).max()), "sum": float(np.abs(gradient.sum(axis=0)).max()), "cpu_s": seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--open-model", help="model of open shells; --model if there is none")
    parser.add_argument("--molecules", nargs="+", choices=list(molecules()), default=list(molecules()))
    parser.add_argument("--methods", nargs="+", default=["hf", "pbe", "b3lyp"])
    parser.add_argument(
        "--modes", nargs="+", choices=("fast", "variational", "corrected"), default=("fast", "variational")
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "forces.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pyscf.lib.num_threads(1)
    closed = engines(arguments.model, open_shells=False)
    opened = engines(arguments.open_model or arguments.model, open_shells=True)
    rows = []
    print(
        "| molecule | mode | method | deviation | float32 | largest component | CPU, s |\n|---|---|---|---|---|---|---|"
    )
    for name in arguments.molecules:
        molecule = molecules()[name]
        for mode in arguments.modes:
            for method in ["-"] if mode == "fast" else arguments.methods:
                row = one(opened if molecule.spin else closed, molecule, mode, method)
                rows.append(row)
                figures = " | ".join(f"{row[k]:.1e}" for k in ("deviation", "float32", "largest"))
                print(f"| {name} | {mode} | {method} | {figures} | {row['cpu_s']:.2f} |", flush=True)
                with written_whole(arguments.out) as path:
                    date = datetime.now(UTC).isoformat(timespec="seconds")
                    about = {"model": arguments.model, "date": date, "step": STEP, "pyscf": pyscf.__version__}
                    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(f"\nlargest deviation {max(r['deviation'] for r in rows):.1e} Eh/bohr")


if __name__ == "__main__":
    main()
