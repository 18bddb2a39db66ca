"""Properties of molecules that the organic model has not seen, against those of the reference densities and Hessians.

    L=reference_data/organic/organic_b3lyp_def2svp; R=benchmarks/results
    python benchmarks/properties.py static $L.h5 ${L}_a.h5 ${L}_b.h5 -o $R/properties_static.json
    python benchmarks/properties.py vibrations $L.h5 --modes fast variational \
        -o $R/properties_vibrations.json

`static`: one geometry, the first, of every test molecule (`mlsemi.data.split`). The reference is the same property of
the labelled Fock matrix; no SCF is run. `vibrations`: the smallest test molecules, each relaxed and differentiated by
the model and by PySCF at the same level, each at its own minimum; written after each molecule, and
the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mlsemi
from mlsemi.batch import Batch
from mlsemi.data.pack import whole_fock
from mlsemi.data.split import split_of
from mlsemi.data.store import LabelStore
from mlsemi.engine import Engine
from mlsemi.files import sha256_of, written_whole
from mlsemi.integrals import plan, second_moments
from mlsemi.model import Mode, Model, find_model
from mlsemi.molecule import Molecule
from mlsemi.properties.bond_orders import mayer_bond_orders, wiberg_bond_orders
from mlsemi.properties.intrinsic import iao_charges, minimal_overlaps
from mlsemi.properties.multipoles import dipole, quadrupole
from mlsemi.properties.populations import loewdin_charges, mulliken_charges
from mlsemi.properties.response import mean_polarizability, polarizability
from mlsemi.state import ElectronicState, solve_state
from mlsemi.units import DIPOLE_AU_IN_DEBYE
from mlsemi.vibrations import frequencies, relaxed


def test_labels(paths: list[Path]) -> Iterator[tuple[LabelStore, int, Molecule]]:
    """The first label of each test molecule."""
    seen: set[str] = set()
    for path in paths:
        with LabelStore.open(path) as store:
            for i in range(len(store)):
                molecule = store.molecule(i)
                if molecule.name not in seen and split_of(molecule.name) == "test" and not store.is_degenerate(i):
                    seen.add(molecule.name)
                    yield store, i, molecule


def static_properties(state: ElectronicState, moments: torch.Tensor, seconds: torch.Tensor, batch: Batch) -> dict:
    """Properties of a state, as arrays [a.u.]."""
    density, overlap = state.total_density, state.overlap
    alpha = polarizability(state.fock, overlap, moments, batch)
    found = {
        "dipole [D]": dipole(density, moments, batch) * DIPOLE_AU_IN_DEBYE,
        "quadrupole [e bohr^2]": quadrupole(density, seconds, batch),
        "Mulliken charges [e]": mulliken_charges(density, overlap, batch),
        "Loewdin charges [e]": loewdin_charges(density, overlap, batch),
        "IAO charges [e]": iao_charges(state.density, overlap, minimal_overlaps(batch), batch),
        "Mayer bond orders": mayer_bond_orders(state.density, overlap, batch),
        "Wiberg bond orders": wiberg_bond_orders(state.density, overlap, batch),
        "polarizability, mean, uncoupled [%]": mean_polarizability(alpha),
    }
    return {name: value.numpy() for name, value in found.items()}


def static(engine: Engine, paths: list[Path]) -> dict[str, dict[str, float]]:
    """Errors of each property: mean over the molecules of the mean over its components."""
    errors: dict[str, list[float]] = {}
    with torch.no_grad():
        for store, i, molecule in test_labels(paths):
            batch = engine.batch([molecule])
            prediction = engine(batch, dipole=True)
            n = int(batch.n_ao[0])
            stored = torch.as_tensor(np.asarray(store.fock_values(i))).double().reshape(1, -1, n, n)
            fock = whole_fock(store, stored, prediction.integrals.baseline.fock)
            reference = solve_state(fock, prediction.state.overlap, batch)
            moments, seconds = prediction.integrals.dipole, second_moments(batch, plan(batch))
            assert moments is not None
            found, wanted = (static_properties(s, moments, seconds, batch) for s in (prediction.state, reference))
            for name, value in found.items():
                error = np.abs(value - wanted[name])
                if name.endswith("[%]"):
                    error = 100 * error / np.abs(wanted[name])
                elif name.startswith("dipole"):
                    error = np.linalg.norm(value - wanted[name])
                errors.setdefault(name, []).append(float(np.mean(error)))
    return {
        name: {"mean": float(np.mean(v)), "median": float(np.median(v)), "max": float(np.max(v)), "count": len(v)}
        for name, v in errors.items()
    }


def vibrations(model: Model, digest: str, paths: list[Path], count: int, modes: list[Mode], output: Path) -> None:
    """Wavenumbers and intensities of the smallest test molecules, in some modes and, as `scf`, by PySCF.

    Goes on with what `output` has of the same model; `digest` is the SHA-256 of its checkpoint.

    Raises:
        ValueError: if `output` is of another model.
    """
    chosen = sorted((m for _, _, m in test_labels(paths)), key=lambda m: (m.n_atoms, m.name))[:count]
    about = {"model": model.name, "sha256": digest}
    earlier: dict[str, Any] = json.loads(output.read_text()) if output.exists() else about
    if {key: earlier.get(key) for key in about} != about:
        raise ValueError(f"{output} is of another model than {model.name}: give another -o, or remove it")
    rows: dict[str, dict] = earlier.get("molecules", {})
    for molecule in chosen:
        row = rows.setdefault(molecule.name, {})
        for mode in ("scf", *modes):
            if mode not in row:
                row[mode] = harmonic(model, molecule, mode)
                write(output, about | {"molecules": rows})
        print(f"{molecule.name}: " + "; ".join(compared([row], mode) for mode in modes), flush=True)
    for mode in modes:
        print(f"all: {compared(list(rows.values()), mode)}")


def harmonic(model: Model, molecule: Molecule, mode: Mode) -> dict:
    """Wavenumbers [cm^-1] and intensities [km/mol] at the minimum of a mode, or why there are none."""
    try:
        found = frequencies(model, relaxed(model, relaxed(model, molecule), mode=mode), mode=mode)
    except (ValueError, RuntimeError) as error:
        return {"failure": str(error)}
    return {"wavenumbers": found.vibrations.wavenumbers.tolist(), "intensities": found.intensities.tolist()}


def compared(rows: list[dict], mode: Mode) -> str:
    """Errors of a mode over all vibrations of some molecules, in words."""
    whole = [row for row in rows if "wavenumbers" in row["scf"] and "wavenumbers" in row[mode]]
    if not whole:
        return f"{mode}: " + "; ".join(row[k]["failure"] for row in rows for k in ("scf", mode) if "failure" in row[k])
    found, wanted, bright, light = (
        np.concatenate([row[k][name] for row in whole])
        for name in ("wavenumbers", "intensities")
        for k in (mode, "scf")
    )
    shift = np.abs(found - wanted)
    return (
        f"{mode}, {len(whole)} of {len(rows)} molecules, {len(shift)} vibrations: mean |shift| {shift.mean():.1f} "
        f"cm^-1 ({100 * np.mean(shift / wanted):.1f} %), median {np.median(shift):.1f}, largest {shift.max():.0f}; "
        f"intensities {np.abs(bright - light).mean():.1f} km/mol"
    )


def write(output: Path, found: object) -> None:
    """JSON, whole or not at all."""
    with written_whole(output) as beside:
        Path(beside).write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("static", "vibrations"))
    parser.add_argument("labels", type=Path, nargs="+", help="label files")
    parser.add_argument("--model", default="organic-b3lyp-def2svp")
    parser.add_argument("--molecules", type=int, default=8, help="of `vibrations`")
    parser.add_argument(
        "--modes", nargs="+", choices=("fast", "variational"), default=["fast"], help="for `vibrations`"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file")
    arguments = parser.parse_args()
    model = mlsemi.load(arguments.model)
    if arguments.part == "static":
        found = static(model.engine, arguments.labels)
        for name, values in found.items():
            print(f"{name:<38} mean {values['mean']:.4g}  median {values['median']:.4g}  largest {values['max']:.4g}")
        write(arguments.output, found)
    else:
        digest = sha256_of(find_model(arguments.model))
        vibrations(model, digest, arguments.labels, arguments.molecules, arguments.modes, arguments.output)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
