"""Learning curves: test errors against the number of labels, all else equal.

    python benchmarks/md17/learning_curve.py ethanol [--steps 20000] [--counts 100 300 1000]

For each number of labels (validation included) `MOLECULE.toml` is written anew into the work folder with `limit` and
the steps, and trained from fresh weights. The frames of rMD17 come in random order, so that the first labels of a file
are a random choice. The test labels are evaluated at the end only, with the last weights: they choose nothing. Run the
same command again to go on: what is done with the same settings and label files is kept, a training that was
interrupted is resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from mlsemi import checkpoint
from mlsemi.data.store import LabelStore
from mlsemi.files import sha256_of, written_whole
from mlsemi.train.config import Config, read_config
from mlsemi.train.evaluate import evaluate, select
from mlsemi.train.loop import Progress, train

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(__file__).resolve().parent
FORMULAS = {"ethanol": "C2H6O", "malonaldehyde": "C3H4O2", "uracil": "C4H4N2O2"}
COUNTS = {"ethanol": (100, 300, 1000), "malonaldehyde": (100, 300, 1000), "uracil": (100, 300, 500, 1000)}

PANELS = {
    "h_mae_uEh": "F, AO elements: MAE [uEh]",
    "occupied_energies_mae_uEh": "occupied orbital energies: MAE [uEh]",
    "energy_fast_mae_kcal_per_mol": "fast energy: MAE [kcal/mol]",
    "energy_variational_mae_kcal_per_mol": "variational energy: MAE [kcal/mol]",
}
_SHOWN = {
    "h_mae_uEh": "H MAE",
    "h_rms_uEh": "rms",
    "h_max_uEh": "maximum, uEh",
    "occupied_energies_mae_uEh": "occupied, uEh",
    "energy_fast_mae_kcal_per_mol": "fast",
    "energy_variational_mae_kcal_per_mol": "variational, kcal/mol",
}
_COLOURS = {"ethanol": "#2e6f9e", "malonaldehyde": "#b03a2e", "uracil": "#3c7d4b"}
_SAY_SECONDS = 30.0


def tables_of(molecule: str, count: int, steps: int | None, seed: int | None) -> dict[str, Any]:
    """`MOLECULE.toml` with another number of labels, without the paths in it."""
    tables = tomllib.loads((FOLDER / f"{molecule}.toml").read_text())
    training = tables["training"]
    training["steps"] = training["steps"] if steps is None else steps
    training["seed"] = training.get("seed", 0) if seed is None else seed
    training["validate_every"] = min(training["validate_every"], max(1, training["steps"] // 5))
    name = f"{molecule}-{count}-{training['steps']}x{training['batch']}-seed{training['seed']}"
    data = {key: value for key, value in tables["data"].items() if key != "labels"}
    return tables | {"name": name, "output": ".", "data": data | {"limit": count}}


def labels_of(molecule: str) -> Path:
    """Training labels as `MOLECULE.toml` names them.

    Raises:
        ValueError: if it names several files, each of which `limit` would be for.
    """
    labels = tomllib.loads((FOLDER / f"{molecule}.toml").read_text())["data"]["labels"]
    if len(labels) != 1:
        raise ValueError(f"{molecule}.toml names {len(labels)} label files: give one with --labels")
    return FOLDER / labels[0]


def write_config(tables: Mapping[str, Any], labels: Path, work: Path) -> Path:
    """Writes a configuration into a folder of its own below `work`."""
    folder = work / tables["name"]
    folder.mkdir(parents=True, exist_ok=True)
    data = {"labels": [os.path.relpath(labels.resolve(), folder.resolve())], **tables["data"]}
    path = folder / "config.toml"
    with written_whole(path) as beside:
        beside.write_text(toml_of({**tables, "data": data}))
    return path


def toml_of(tables: Mapping[str, Any]) -> str:
    """A configuration as TOML. Plain values come first; those of JSON are values of TOML too."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in tables.items() if not isinstance(value, Mapping)]
    for name, table in tables.items():
        if isinstance(table, Mapping):
            plain += ["", f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    return "\n".join(plain) + "\n"


def check_labels(molecule: str, count: int, labels: Path, *others: Path) -> None:
    """Refuses to train on other labels, or fewer, than the row will say.

    Raises:
        ValueError: if the files are of another molecule, or hold fewer training labels.
    """
    for path in (labels, *others):
        with LabelStore.open(path) as store:
            found = sorted({store.molecule(i).formula for i in range(len(store))})
        if found != [FORMULAS[molecule]]:
            raise ValueError(f"{path} holds labels of {', '.join(found) or 'nothing'}, not of {FORMULAS[molecule]}")
    with LabelStore.open(labels) as store:
        if len(store) < count:
            raise ValueError(f"{labels} holds {len(store)} labels, {count} are asked for: label more geometries")


class Say:
    """A line of progress on standard error now and then."""

    def __init__(self, title: str) -> None:
        self.title, self.next = title, time.monotonic()

    def training(self, progress: Progress) -> None:
        """Report of the training loop."""
        self.evaluation(progress.stage, progress.done, progress.total, progress.rate)

    def evaluation(self, stage: str, done: int, total: int, rate: float) -> None:
        """Report of the evaluation."""
        if time.monotonic() >= self.next or done == total:
            print(f"{self.title}: {stage} {done}/{total}, {rate:.1f}/s", file=sys.stderr, flush=True)
            self.next = time.monotonic() + _SAY_SECONDS


def trained(config: Config) -> dict[str, Any]:
    """Trains, or goes on, and says what it took."""
    cpu = time.process_time()
    train(config, report=Say(config.name).training)
    header = checkpoint.read_header(config.output / "model.safetensors")
    return {
        "labels_train": header.training["labels_train"],
        "labels_validation": header.training["labels_validation"],
        "training_s": header.training["seconds"],
        "cpu_s_of_the_last_start": time.process_time() - cpu,
        "validation": header.training["validation"],
    }


def tested(config: Config, test: Path, *, limit: int | None = None, variational: bool = False) -> dict[str, Any]:
    """Errors on the test labels."""
    header, engine = checkpoint.load(config.output / "model.safetensors")
    with LabelStore.open(test) as store:
        found = evaluate(
            header,
            engine.requires_grad_(False),
            store,
            select(store, limit=limit),
            variational=variational,
            report=Say(config.name).evaluation,
        )
    parameters = sum(p.numel() for p in engine.network.parameters())
    return {"parameters": parameters, "tested": len(found.rows), "metrics": found.metrics}


def read_runs(path: Path) -> dict[str, Any]:
    """Runs that are done, by name."""
    return json.loads(path.read_text())["runs"] if path.is_file() else {}


def plot(runs: Mapping[str, Any], picture: Path) -> None:
    """Errors against numbers of labels, both axes logarithmic, for all molecules with the same number of steps."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter, StrMethodFormatter

    groups: dict[tuple[str, int, int], list[Any]] = {}
    for run in runs.values():
        training = run["settings"]["config"]["training"]
        group = run["settings"]["molecule"], training["steps"], training["seed"]
        groups.setdefault(group, []).append(run)
    shown = [key for key in PANELS if any(key in run["metrics"] for run in runs.values())]
    columns = 2 if len(shown) == 4 else len(shown)
    rows = len(shown) // columns
    figure = Figure(figsize=(4.8 * columns, 3.8 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for key, axis in zip(shown, axes, strict=True):
        for number, ((molecule, steps, seed), members) in enumerate(sorted(groups.items())):
            points = sorted((r["settings"]["labels"], r["metrics"][key]) for r in members if key in r["metrics"])
            label = f"{molecule}, {steps} steps" + (f", seed {seed}" if seed else "")
            style = {"marker": "osv^D"[number % 5], "color": _COLOURS[molecule], "linewidth": 1.2}
            if points:
                axis.loglog(*zip(*points, strict=True), label=label, **style)
        counts = sorted({run["settings"]["labels"] for run in runs.values()})
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.set_xticks([], minor=True)
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        low, high = axis.get_ylim()
        axis.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}") if high < 30 * low else NullFormatter())
        axis.set(title=PANELS[key], xlabel="labels, validation included")
        axis.grid(True, which="both", alpha=0.2)
    axes[0].legend(frameon=False)
    with written_whole(picture) as beside:
        figure.savefig(beside, format="png", dpi=120)


def show(runs: Mapping[str, Any]) -> None:
    """The table."""
    columns = ["molecule", "labels", "steps x batch", "training, h (one thread)", *_SHOWN.values()]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for run in sorted(runs.values(), key=lambda r: (r["settings"]["molecule"], r["settings"]["labels"])):
        s, training = run["settings"], run["settings"]["config"]["training"]
        steps = f"{training['steps']} x {training['batch']}"
        row = [s["molecule"], s["labels"], steps, f"{run['training_s'] / 3600:.2f}"]
        row += [f"{run['metrics'][key]:.4g}" if key in run["metrics"] else "-" for key in _SHOWN]
        print(f"| {' | '.join(map(str, row))} |")


def one_run(molecule: str, count: int, arguments: argparse.Namespace, runs: dict[str, Any]) -> bool:
    """Adds a run to those that are done; False if it was there."""
    tables = tables_of(molecule, count, arguments.steps, arguments.seed)
    labels = arguments.labels or labels_of(molecule)
    test = arguments.test or ROOT / "runs" / "md17" / f"{molecule}_test.h5"
    with LabelStore.open(test) as store:
        test_labels = len(select(store, limit=arguments.test_limit))
    settings = {
        "molecule": molecule,
        "labels": count,
        "labels_sha256": sha256_of(labels),
        "test": test.name,
        "test_sha256": sha256_of(test),
        "test_labels": test_labels,
        "variational": arguments.variational,
        "config": tables,
    }
    name = tables["name"]
    if name in runs and runs[name]["settings"] == settings:
        return False
    check_labels(molecule, count, labels, test)
    config = read_config(write_config(tables, labels, arguments.work))
    made = trained(config)
    errors = tested(config, test, limit=arguments.test_limit, variational=arguments.variational)
    runs[name] = {"settings": settings, **made, **errors}
    return True


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("molecule", choices=list(COUNTS))
    parser.add_argument("--labels", type=Path, help="training labels (default: those of MOLECULE.toml)")
    parser.add_argument("--test", type=Path, help="test labels (default: runs/md17/MOLECULE_test.h5)")
    parser.add_argument("--counts", type=int, nargs="+", help="labels (default 100 300 1000; uracil 500 too)")
    parser.add_argument("--steps", type=int, help="steps of each training (default: those of MOLECULE.toml)")
    parser.add_argument("--seed", type=int, help="of weights, order and split (default: that of MOLECULE.toml, or 0)")
    parser.add_argument("--test-limit", type=int, help="only the first so many test labels")
    parser.add_argument("--variational", action="store_true", help="variational energies too: a Fock build each")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "md17" / "learning_curve", help="for the runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "md17_learning_curve.json")
    return parser.parse_args(argv)


def main() -> None:
    """Trains, evaluates, writes, draws."""
    arguments = parsed()
    torch.set_num_threads(1)
    runs = read_runs(arguments.out)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        for count in arguments.counts or COUNTS[arguments.molecule]:
            if one_run(arguments.molecule, count, arguments, runs):
                with written_whole(arguments.out) as path:
                    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt as stopped:
        sys.exit(f"interrupted: {stopped or 'what was saved before stays'}; run the same command again to go on")
    picture = arguments.out.with_suffix(".png")
    plot(runs, picture)
    show(runs)
    print(f"\n{arguments.out}, {picture.name}")


if __name__ == "__main__":
    main()
