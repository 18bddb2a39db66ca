"""Exact forces against central differences of the same energy: both modes, closed and open shells, HF, PBE, B3LYP.

    OMP_NUM_THREADS=1 python benchmarks/forces.py [--molecules water CO2 ...] [--methods hf pbe b3lyp]

Largest deviation [Eh/bohr] over all coordinates, of more than three atoms over five random directions, by four points
with a step of 2e-3 bohr. The network is in float64; beside it the float32 figure: the largest difference of its
gradient from the float64 one. The densities are those of one model for all methods: forces are exact for whatever
density is predicted.

Open shells: those of a model for them (--open-model). Without one the Fock matrices of the default model are split by
the exchange that a reference density would give, F - 0.5 Eh S D0 S for each spin with D0 fixed and S moving: a density
with a gap that depends on the geometry as a predicted one does (variational mode only).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyscf
import torch

from mlsemi import checkpoint
from mlsemi.batch import Batch
from mlsemi.engine import Engine
from mlsemi.files import written_whole
from mlsemi.interop.ase import read_molecules
from mlsemi.model import DEFAULT_MODEL, find_model
from mlsemi.molecule import Molecule
from mlsemi.reference.forces import predicted, variational_gradient
from mlsemi.reference.mean_field import solve
from mlsemi.reference.variational import variational
from mlsemi.state import solve_state

ROOT = Path(__file__).resolve().parents[1]
STEP = 2e-3
SPLITTING = 0.5
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


class SplitSpins:
    """An engine for the open shells of one molecule, made of one for closed shells; see above."""

    def __init__(self, engine: Engine, molecule: Molecule) -> None:
        self.engine, self.basis, self.batch = engine, engine.basis, engine.batch
        density = solve(molecule, engine.basis, method="b3lyp").observables.density
        self.density = torch.from_numpy(density)

    def __call__(self, batch: Batch) -> SimpleNamespace:
        """A prediction with the split state alone."""
        # the network sees nuclei only: a closed shell of another charge will do
        molecules = tuple(replace(m, charge=m.charge + m.spin, spin=0) for m in batch.molecules)
        closed = replace(batch, molecules=molecules, charge=batch.charge + batch.spin, spin=0 * batch.spin)
        found = self.engine(closed).state
        overlap = found.overlap.unsqueeze(1)
        fock = found.fock - SPLITTING * overlap @ self.density @ overlap
        return SimpleNamespace(state=solve_state(fock, found.overlap, batch))


def engines(name: str) -> tuple[Engine, Engine]:
    """The engine of a model in float64 and in float32."""
    loaded = [checkpoint.load(find_model(name), dtype=d)[1] for d in (torch.float64, torch.float32)]
    return tuple(engine.eval().requires_grad_(False) for engine in loaded)  # type: ignore[return-value]


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


def directions(n_atoms: int) -> np.ndarray:
    """Unit vectors to differentiate along, shape (direction, atom, 3)."""
    if n_atoms <= 3:
        return np.eye(3 * n_atoms).reshape(-1, n_atoms, 3)
    random = np.random.default_rng(1).normal(size=(5, n_atoms, 3))
    return random / np.linalg.norm(random, axis=(1, 2), keepdims=True)


def slope(energy: Callable[[np.ndarray], float], positions: np.ndarray, direction: np.ndarray) -> float:
    """Derivative of an energy along a direction, by four points."""
    e = [energy(positions + n * STEP * direction) for n in (1, -1, 2, -2)]
    return (8 * (e[0] - e[1]) - (e[2] - e[3])) / (12 * STEP)


def one(pair: tuple[Engine, Engine], molecule: Molecule, mode: str, method: str) -> dict:
    """Figures of a molecule, mode and method."""
    run = fast if mode == "fast" else in_mode(method, CORRECTION if mode == "corrected" else 0.0)
    start = time.process_time()
    _, gradient = run(pair[0], molecule)
    seconds = time.process_time() - start
    single = run(pair[1], molecule)[1]
    along = directions(molecule.n_atoms)

    def energy(x: np.ndarray) -> float:
        return energy_of(pair[0], replace(molecule, positions=x), mode, method)

    deviation = max(abs(slope(energy, molecule.positions, d) - float(np.sum(d * gradient))) for d in along)
    return {
        "molecule": molecule.name, "spin": molecule.spin, "mode": mode, "method": method,
        "deviation": deviation, "float32": float(np.abs(single - gradient).max()),
        "largest": float(np.abs(gradient).max()), "sum": float(np.abs(gradient.sum(axis=0)).max()), "cpu_s": seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--open-model", help="a model of open shells")
    parser.add_argument("--molecules", nargs="+", choices=list(molecules()), default=list(molecules()))
    parser.add_argument("--methods", nargs="+", default=["hf", "pbe", "b3lyp"])
    parser.add_argument(
        "--modes", nargs="+", choices=("fast", "variational", "corrected"), default=("fast", "variational")
    )
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "forces.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pyscf.lib.num_threads(1)
    closed = engines(arguments.model)
    opened = engines(arguments.open_model) if arguments.open_model else None
    rows = json.loads(arguments.out.read_text())["rows"] if arguments.out.is_file() else []
    titles = ("molecule", "mode", "method", "deviation", "float32", "largest component", "CPU, s")
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for name in arguments.molecules:
        molecule = molecules()[name]
        pair: Any = closed
        model = arguments.open_model if molecule.spin and opened else arguments.model
        if molecule.spin:
            pair = opened or tuple(SplitSpins(engine, molecule) for engine in closed)
        for mode in arguments.modes:
            if mode == "fast" and molecule.spin and opened is None:
                continue
            for method in ["-"] if mode == "fast" else arguments.methods:
                row = {"model": model} | one(pair, molecule, mode, method)
                # what is not asked for keeps its figures
                rows = [r for r in rows if (r["molecule"], r["mode"], r["method"]) != (name, mode, method)] + [row]
                figures = " | ".join(f"{row[k]:.1e}" for k in ("deviation", "float32", "largest"))
                print(f"| {name} | {mode} | {method} | {figures} | {row['cpu_s']:.2f} |", flush=True)
                with written_whole(arguments.out) as path:
                    date = datetime.now(UTC).isoformat(timespec="seconds")
                    about = {"date": date, "step": STEP, "pyscf": pyscf.__version__}
                    path.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")
    print(f"\nlargest deviation {max(r['deviation'] for r in rows):.1e} Eh/bohr")


if __name__ == "__main__":
    main()
