"""`scf` mode against PySCF's default guess: Fock builds, times, energies; molecules that the model has not seen.

    OMP_NUM_THREADS=1 python benchmarks/scf_mode.py [--split test] [--molecules 30] [--conv-tol 1e-11]

For each molecule (one geometry of each, spread over the list by size) in turn, one thread:

    default    PySCF from its default guess (minao), its own DIIS: what a user would run
    scf        `scf` mode: prediction, SCF from it (two grids), look at the stability; all of it is timed
    unchecked  the same without that look
    plain      PySCF's own DIIS with the settings of `default`, from the predicted density: what the guess alone gives
    two-grid   the scheme of `scf` from PySCF's default guess: what the scheme alone gives

Fock builds are those on the reference grid; the cheap ones on the coarse grid are counted beside. On a machine that
others use too wall times are longer; CPU times are beside them. Tuned on the validation molecules; figures are of the
test molecules.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyscf
import torch

from mlsemi.basis import Basis
from mlsemi.data.smiles import side_of
from mlsemi.data.store import LabelStore
from mlsemi.files import sha256_of, written_whole
from mlsemi.layout import AOLayout
from mlsemi.model import DEFAULT_MODEL, Model, find_model, load
from mlsemi.molecule import Molecule
from mlsemi.reference.converge import RESIDUAL_PER_SQRT_ENERGY, converge, default_start
from mlsemi.reference.mean_field import GRID_LEVEL, mean_field, solve, to_pyscf_mole

ROOT = Path(__file__).resolve().parents[1]
LABELS = ROOT / "reference_data" / "organic" / "organic_b3lyp_def2svp.h5"
SIDES = ("default", "scf", "unchecked", "plain", "two-grid")


def molecules(path: Path, split: str, count: int | None) -> list[Molecule]:
    """One geometry of each molecule, by size; `count` of them spread over the list."""
    with LabelStore.open(path) as store:
        every = [store.molecule(i) for i in range(len(store))]
    found: dict[str, list[Molecule]] = {}
    for molecule in every:
        if side_of(molecule) == split:
            found.setdefault(molecule.name, []).append(molecule)
    # the geometry in the middle: neither the first nor the hottest of all
    chosen = sorted((m[len(m) // 2] for m in found.values()), key=lambda m: (m.n_electrons, m.name))
    if count is None or count >= len(chosen):
        return chosen
    return [chosen[k] for k in np.linspace(0, len(chosen) - 1, count).round().astype(int)]


def timed(run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What a calculation gives, with its wall and CPU time [s]."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = run()
    return {**found, "wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def predicted_density(model: Model, molecule: Molecule) -> np.ndarray:
    """The density of the model, shape (spin, ao, ao)."""
    with torch.no_grad():
        return model.engine(model.engine.batch([molecule])).state.density[0].numpy()


def default(molecule: Molecule, basis: Basis, method: str, conv_tol: float) -> dict[str, Any]:
    """PySCF from its default guess."""
    found = default_start(molecule, basis, method=method, conv_tol=conv_tol)
    return {"energy": found.energy, "builds": found.cycles, "coarse": 0}


def scf_mode(model: Model, molecule: Molecule, conv_tol: float, *, stability: bool) -> dict[str, Any]:
    """The scf mode."""
    density = predicted_density(model, molecule)
    method, basis = model.header.method, model.header.basis
    found = converge(molecule, basis, density, method=method, conv_tol=conv_tol, stability=stability)
    return {
        "energy": found.observables.energy,
        "builds": found.cycles,
        "coarse": found.coarse_cycles,
        "scheme": found.scheme,
        "moved": found.electrons_moved,
        "warnings": found.observables.warnings,
    }


def plain(model: Model, molecule: Molecule, conv_tol: float) -> dict[str, Any]:
    """PySCF's DIIS from the predicted density."""
    density = AOLayout(model.header.basis, molecule.numbers).to_pyscf(predicted_density(model, molecule))
    field = mean_field(to_pyscf_mole(molecule, model.header.basis), model.header.method, GRID_LEVEL)
    field.conv_tol, field.max_cycle = conv_tol, 100
    energy = float(field.kernel(density if molecule.spin else density[0]))
    return {"energy": energy, "builds": field.cycles + 1, "coarse": 0}


def two_grid(molecule: Molecule, basis: Basis, method: str, conv_tol: float) -> dict[str, Any]:
    """Two grids from PySCF's default guess."""
    tolerance = RESIDUAL_PER_SQRT_ENERGY * conv_tol**0.5
    found = solve(molecule, basis, method=method, residual_tolerance=tolerance, stability=False)
    return {"energy": found.observables.energy, "builds": found.fock_builds, "coarse": found.coarse_builds}


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Ratios to `default`, and the largest difference of the energies [Eh], of each side."""
    out = {}
    for side in SIDES[1:]:
        ratio = {k: np.array([r[side][k] / r["default"][k] for r in rows]) for k in ("builds", "wall", "cpu")}
        total = {k: sum(r[side][k] for r in rows) / sum(r["default"][k] for r in rows) for k in ("wall", "cpu")}
        difference = [abs(r[side]["energy"] - r["default"]["energy"]) for r in rows]
        out[side] = {
            "builds_mean": float(np.mean([r[side]["builds"] for r in rows])),
            "coarse_builds_mean": float(np.mean([r[side]["coarse"] for r in rows])),
            "largest_energy_difference": max(difference),
            "other_solutions": int(sum(d > 1e-8 for d in difference)),
        }
        for k, v in ratio.items():
            out[side] |= {f"{k}_ratio_{f.__name__}": float(f(v)) for f in (np.median, np.mean, np.max)}
        out[side] |= {f"{k}_ratio_of_sums": float(v) for k, v in total.items()}
    return out


def finished(path: Path, digest: str, split: str, conv_tol: float) -> list[dict[str, Any]]:
    """Rows of an earlier run with the same checkpoint that was interrupted."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    same = (found.get("sha256"), found.get("split"), found.get("conv_tol")) == (digest, split, conv_tol)
    return found["rows"] if same else []


def table(found: dict[str, dict[str, float]], builds: float) -> str:
    """The summary in Markdown."""
    lines = [
        f"PySCF's default start: {builds:.1f} Fock builds on average",
        "",
        "| | Fock builds (coarse) | ratio of builds: median, mean | wall time: median, mean | CPU time: median, mean "
        "| of sums: wall, CPU | largest dE, Eh | dE > 1e-8 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for side, v in found.items():
        pairs = " | ".join(
            f"{v[f'{k}_ratio_median']:.2f}, {v[f'{k}_ratio_mean']:.2f}" for k in ("builds", "wall", "cpu")
        )
        lines.append(
            f"| {side} | {v['builds_mean']:.1f} ({v['coarse_builds_mean']:.1f}) | {pairs} | "
            f"{v['wall_ratio_of_sums']:.2f}, {v['cpu_ratio_of_sums']:.2f} | {v['largest_energy_difference']:.0e} | "
            f"{v['other_solutions']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--labels", type=Path, default=LABELS, help="labels that are named by SMILES")
    parser.add_argument("--split", choices=("train", "validation", "test"), default="test")
    parser.add_argument("--molecules", type=int, default=30, help="how many; 0 takes all")
    parser.add_argument("--fresh", action="store_true", help="do not go on with what is in --out")
    parser.add_argument("--conv-tol", type=float, default=1e-11)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "scf_mode.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pyscf.lib.num_threads(1)
    model = load(arguments.model)
    method, basis, tol = model.header.method, model.header.basis, arguments.conv_tol
    digest = sha256_of(find_model(arguments.model))
    rows = [] if arguments.fresh else finished(arguments.out, digest, arguments.split, tol)
    chosen = molecules(arguments.labels, arguments.split, arguments.molecules or None)
    scf_mode(model, chosen[0], tol, stability=True)  # what only the first call takes
    chosen = [m for m in chosen if m.name not in {r["name"] for r in rows}]
    for molecule in chosen:
        row: dict[str, Any] = {"name": molecule.name, "formula": molecule.formula}
        row["default"] = timed(lambda m=molecule: default(m, basis, method, tol))
        row["scf"] = timed(lambda m=molecule: scf_mode(model, m, tol, stability=True))
        row["unchecked"] = timed(lambda m=molecule: scf_mode(model, m, tol, stability=False))
        row["plain"] = timed(lambda m=molecule: plain(model, m, tol))
        row["two-grid"] = timed(lambda m=molecule: two_grid(m, basis, method, tol))
        rows.append(row)
        builds = ", ".join(f"{side} {row[side]['builds']} ({row[side]['cpu']:.2f} s)" for side in SIDES)
        print(f"{molecule.name:14} {builds} {' '.join(row['scf']['warnings'])}", flush=True)
        found = summary(rows)
        with written_whole(arguments.out) as path:
            path.write_text(
                json.dumps(
                    {
                        "model": model.name, "sha256": digest, "method": method, "split": arguments.split,
                        "conv_tol": tol,
                        "date": datetime.now(UTC).isoformat(timespec="seconds"), "pyscf": pyscf.__version__,
                        "load_1_min": os.getloadavg()[0], "summary": found, "rows": rows,
                    },
                    indent=1,
                )
                + "\n"
            )  # fmt: skip
    print("\n" + table(summary(rows), float(np.mean([r["default"]["builds"] for r in rows]))))


if __name__ == "__main__":
    main()
