"""Forces and energies of each mode against the gradients of a label file.

    python benchmarks/md17/evaluate_forces.py MODEL TEST.h5 --modes fast variational --count 300 [-o OUT.json]

Force errors are those of the components [meV/angstrom], energy errors are in kcal/mol: the mean over a molecule, then
over molecules; rms and maximum beside. Labels have PySCF's SCF gradient.

Run the same command again to go on: figures of the same model and labels are kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyscf
import torch

from mlsemi.data.store import LabelStore
from mlsemi.files import sha256_of, written_whole
from mlsemi.model import MODES, Model, find_model, load
from mlsemi.units import BOHR_IN_ANGSTROM, HARTREE_IN_EV, HARTREE_IN_KCAL_PER_MOL

MEV_PER_ANGSTROM = 1e3 * HARTREE_IN_EV / BOHR_IN_ANGSTROM
"""One Eh/bohr."""

_SAVE_SECONDS = 30.0

Rows = dict[str, dict[str, Any]]
"""Of a mode: what was found for each label, by its `molecule_key`."""


def chosen_labels(store: LabelStore, count: int | None) -> list[int]:
    """The first labels with gradients.

    Raises:
        ValueError: if there are none, or fewer than asked for.
    """
    found = [i for i in range(len(store)) if store.observables(i).gradient is not None]
    if not found:
        raise ValueError(f"no label of {store.path} has a gradient: make them with `mlsemi label --gradient`")
    if count is not None and len(found) < count:
        raise ValueError(f"{store.path} has {len(found)} labels with gradients, --count asks for {count}")
    return found[:count]


def one(model: Model, store: LabelStore, index: int, mode: str) -> dict[str, Any]:
    """Energy error [Eh], gradient [Eh/bohr] and CPU time [s] of one label."""
    cpu = time.process_time()
    found = model.predict(store.molecule(index), mode=mode, forces=True, estimate=False)  # type: ignore[arg-type]
    reference = store.observables(index)
    assert found.energy is not None and reference.energy is not None
    if found.gradient is None:
        raise RuntimeError(f"{store.molecule(index).name}, {mode}: {'; '.join(found.warnings)}")
    return {
        "energy_error": found.energy - reference.energy,
        "gradient": found.gradient.tolist(),
        "cpu_s": time.process_time() - cpu,
    }


def force_errors(found: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Errors of the components of forces [meV/angstrom]; gradients [Eh/bohr], shape (molecule, atom, 3)."""
    error = MEV_PER_ANGSTROM * np.abs(found - wanted)
    return {
        "force_mae_meV_per_angstrom": float(error.mean()),
        "force_rms_meV_per_angstrom": float(np.sqrt((error**2).mean())),
        "force_max_meV_per_angstrom": float(error.max()),
    }


def summary(rows: dict[str, Rows], gradients: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Figures of each mode over the labels `gradients` [Eh/bohr]."""
    out = {}
    for mode, found in rows.items():
        keys = [key for key in gradients if key in found]
        if not keys:
            continue
        own = np.array([found[key]["gradient"] for key in keys])
        energy = HARTREE_IN_KCAL_PER_MOL * np.array([found[key]["energy_error"] for key in keys])
        out[mode] = {
            "molecules": len(keys),
            **force_errors(own, np.array([gradients[key] for key in keys])),
            "energy_mae_kcal_per_mol": float(np.abs(energy).mean()),
            "energy_rms_kcal_per_mol": float(np.sqrt((energy**2).mean())),
            "energy_max_kcal_per_mol": float(np.abs(energy).max()),
            "cpu_s_mean": float(np.mean([found[key]["cpu_s"] for key in keys])),
        }
    return out


def show(found: dict[str, dict[str, float]]) -> None:
    """The table."""
    force, energy = "forces: MAE / rms / maximum, meV/angstrom", "energy: MAE / rms / maximum, kcal/mol"
    print(f"\n| mode | molecules | {force} | {energy} | CPU, s |\n|---|---|---|---|---|")
    for mode, values in found.items():
        force, energy = (
            " / ".join(f"{values[f'{name}_{kind}_{unit}']:.4g}" for kind in ("mae", "rms", "max"))
            for name, unit in (("force", "meV_per_angstrom"), ("energy", "kcal_per_mol"))
        )
        print(f"| {mode} | {values['molecules']} | {force} | {energy} | {values['cpu_s_mean']:.2f} |")


def earlier(path: Path, about: dict[str, Any]) -> dict[str, Rows]:
    """Rows of an earlier run with the same model and labels.

    Raises:
        ValueError: if the file is of others.
    """
    if not path.is_file():
        return {}
    found = json.loads(path.read_text())
    differing = [key for key, value in about.items() if found.get(key) != value]
    if differing:
        raise ValueError(f"{path} holds figures with another {', '.join(differing)}: give another --out, or remove it")
    return found["rows"]


def main() -> None:
    """Computes, shows the progress, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="shipped model or checkpoint")
    parser.add_argument("labels", type=Path, metavar="TEST.h5", help="label file with gradients")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["fast", "variational"])
    parser.add_argument("--count", type=int, help="only the first so many labels")
    parser.add_argument("--precision", choices=("float32", "float64"), default="float32", help="of the network")
    parser.add_argument("-o", "--out", type=Path, help="JSON file; default: MODEL-forces-on-LABELS.json here")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pyscf.lib.num_threads(1)
    try:
        path = find_model(arguments.model)
        model = load(path, precision=arguments.precision)
        out = arguments.out or Path(f"{model.name}-forces-on-{arguments.labels.stem}.json")
        about = {"model": model.name, "sha256": sha256_of(path), "precision": arguments.precision}
        about |= {"labels": arguments.labels.name, "labels_sha256": sha256_of(arguments.labels)}
        rows = earlier(out, about)
        with LabelStore.open(arguments.labels) as store:
            run(model, store, arguments, about, rows, out)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")


def run(
    model: Model,
    store: LabelStore,
    arguments: argparse.Namespace,
    about: dict[str, Any],
    rows: dict[str, Rows],
    out: Path,
) -> None:
    """All modes, one after the other, the labels that are not done yet."""
    if store.resolved_functional != model.header.resolved_functional:
        raise ValueError(f"{store.path} is of {store.level}, but the model {model.name} is of {model.header.method}")
    indices = chosen_labels(store, arguments.count)
    keys = {i: store.record(i).key for i in indices}
    gradients = {keys[i]: np.asarray(store.observables(i).gradient) for i in indices}

    def save() -> dict[str, dict[str, float]]:
        found = summary(rows, gradients)
        date = datetime.now(UTC).isoformat(timespec="seconds")
        with written_whole(out) as beside:
            text = json.dumps({**about, "date": date, "pyscf": pyscf.__version__, "summary": found, "rows": rows})
            beside.write_text(text + "\n")
        return found

    saved = time.monotonic()
    for mode in arguments.modes:
        done = rows.setdefault(mode, {})
        for number, i in enumerate(indices, start=1):
            if keys[i] not in done:
                done[keys[i]] = one(model, store, i, mode)
            print(f"\r{mode}: {number}/{len(indices)}", end="", file=sys.stderr, flush=True)
            if time.monotonic() - saved > _SAVE_SECONDS:
                save()
                saved = time.monotonic()
        print(file=sys.stderr)
    show(save())
    print(f"\n{out}")


if __name__ == "__main__":
    main()
