"""Bonds longer than those of the training, against the number of radial functions of the network.

    python benchmarks/md17/stretched.py [--counts 7 10 16 32] [--steps 1200]

Ethanol: frames whose two bonds of heavy atoms are both shorter than their mean plus 0.8 standard deviations train (a
tenth of them validates), those with one beyond 1.9 test. Each network is that of `ethanol.toml` but for `n_radial`,
from fresh weights with the same steps. All frames are of train_01; the test labels are not read.

Run the same command again to go on: trainings resume where they were.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_curve import FOLDER, ROOT, check_labels, labels_of, read_runs, tested, trained, write_config

from mlsemi.data.store import LabelStore, write_store
from mlsemi.files import written_whole
from mlsemi.train.config import read_config

SHORT, LONG = 0.8, 1.9
"""Standard deviations from the mean of a bond: up to the first ones train, beyond the second ones test."""

_BONDED = 1.9
"""Heavy atoms are bonded up to this mean distance [angstrom]."""

_TRAINING = {"batch": 8, "learning_rate": 5e-3, "ema": 0.995, "validate_every": 300, "threads": 1}
PANELS = {
    "h_mae_uEh": "F, AO elements: MAE [uEh]",
    "h_orthonormal_mae_uEh": "F, orthonormal basis: MAE [uEh]",
}


def longest(store: LabelStore) -> np.ndarray:
    """Of each frame, the bond of heavy atoms that is stretched most, in standard deviations from its mean."""
    positions = np.array([store.molecule(i).positions_angstrom for i in range(len(store))])
    heavy = np.flatnonzero(store.molecule(0).numbers > 1)
    distances = (np.linalg.norm(positions[:, i] - positions[:, j], axis=-1) for i, j in combinations(heavy, 2))
    bonds = np.array([d for d in distances if d.mean() < _BONDED])
    return ((bonds - bonds.mean(1, keepdims=True)) / bonds.std(1, keepdims=True)).max(0)


def split(labels: Path, work: Path) -> dict[str, int]:
    """Writes `train.h5` and `stretched.h5`; says how many frames each has."""
    with LabelStore.open(labels) as store:
        z = longest(store)
        parts = {"train": np.flatnonzero(z < SHORT), "stretched": np.flatnonzero(z > LONG)}
        for name, rows in parts.items():
            write_store(work / f"{name}.h5", (store.record(int(i)) for i in rows), dict(store.attrs))
    return {name: len(rows) for name, rows in parts.items()}


def one_run(n_radial: int, steps: int, work: Path) -> dict[str, Any]:
    """Trains and tests one network."""
    tables = tomllib.loads((FOLDER / "ethanol.toml").read_text())
    tables |= {"name": f"n-radial-{n_radial}", "output": ".", "network": {"n_radial": n_radial}}
    tables |= {"data": {"validation": tables["data"]["validation"]}, "training": {"steps": steps, **_TRAINING}}
    config = read_config(write_config(tables, work / "train.h5", work))
    made = trained(config)
    return {"n_radial": n_radial, "steps": steps, **made, **tested(config, work / "stretched.h5")}


def plot(runs: Mapping[str, Any], picture: Path) -> None:
    """Errors on stretched bonds and on validation labels against the number of radial functions."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = sorted(runs.values(), key=lambda run: run["n_radial"])
    counts = [run["n_radial"] for run in rows]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    validation = ("ao_meh", "orthonormal_meh")
    for axis, (key, title), known in zip(figure.subplots(1, 2), PANELS.items(), validation, strict=True):
        axis.loglog(counts, [r["metrics"][key] for r in rows], "o-", color="#b03a2e", label="stretched bonds")
        axis.loglog(counts, [1e3 * r["validation"][known] for r in rows], "s-", color="#2e6f9e", label="validation")
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_xticks([], minor=True)
        axis.set(title=title, xlabel="radial functions")
        axis.grid(True, which="both", alpha=0.2)
        axis.legend(frameon=False)
    with written_whole(picture) as beside:
        figure.savefig(beside, format="png", dpi=120)


def show(runs: Mapping[str, Any]) -> None:
    """The table."""
    columns = ["radial functions", "validation: AO, orthonormal, uEh", "stretched: AO / maximum, orthonormal, uEh"]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for run in sorted(runs.values(), key=lambda run: run["n_radial"]):
        known, found = run["validation"], run["metrics"]
        print(
            f"| {run['n_radial']} | {1e3 * known['ao_meh']:.3g}, {1e3 * known['orthonormal_meh']:.3g} | "
            f"{found['h_mae_uEh']:.3g} / {found['h_max_uEh']:.0f}, {found['h_orthonormal_mae_uEh']:.3g} |"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Splits, trains, tests, writes, draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[7, 10, 16, 32], help="of radial functions")
    parser.add_argument("--steps", type=int, default=1200, help="of each training (default 1200)")
    parser.add_argument("--labels", type=Path, help="labels (default: those of ethanol.toml)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "md17" / "stretched", help="for the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "md17_stretched.json")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    runs = read_runs(arguments.out)
    for folder in (arguments.work, arguments.out.parent):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        labels = arguments.labels or labels_of("ethanol")
        check_labels("ethanol", 1, labels)
        frames = split(labels, arguments.work)
        if runs and (kept := json.loads(arguments.out.read_text())["frames"]) != frames:
            raise ValueError(
                f"{arguments.out} is of other labels ({kept}, not {frames}): give another --out, or remove it"
            )
        for count in arguments.counts:
            name = f"{count}-{arguments.steps}"
            if name not in runs:
                runs[name] = one_run(count, arguments.steps, arguments.work)
                with written_whole(arguments.out) as path:
                    path.write_text(json.dumps({"frames": frames, "runs": runs}, indent=1) + "\n")
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stopped:
        sys.exit(f"interrupted: {stopped or 'what was saved before stays'}; run the same command again to go on")
    plot(runs, arguments.out.with_suffix(".png"))
    show(runs)
    print(f"\n{arguments.out}, {arguments.out.with_suffix('.png').name}")


if __name__ == "__main__":
    main()
