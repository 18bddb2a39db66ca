"""`mlsemi evaluate`: the errors of a model on labels."""

from __future__ import annotations

import csv
import json
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mlsemi.files import refuse_unusable_folder, sha256_of, written_whole

if TYPE_CHECKING:
    from mlsemi.checkpoint import Header
    from mlsemi.data.store import LabelStore
    from mlsemi.train.evaluate import Evaluation


class SplitName(StrEnum):
    """Values of --split."""

    all = "all"
    train = "train"
    validation = "validation"
    test = "test"


def evaluate(
    model: Annotated[str, typer.Argument(help="Shipped model (see `mlsemi models`) or checkpoint.")],
    labels: Annotated[list[Path], typer.Argument(help="Label files of the method and basis of the model.")],
    split: Annotated[
        SplitName, typer.Option(help="Part of the split by molecule, for labels that are named by their SMILES.")
    ] = SplitName.all,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the results; default: MODEL-on-LABELS here.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many labels of each file.")] = None,
    variational: Annotated[
        bool,
        typer.Option(
            "--variational/--no-variational", help="Also variational or composite energies: a Fock build by PySCF each."
        ),
    ] = False,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes for these, each with one thread.")] = 1,
) -> None:
    """Compare a model with labels: Fock matrices, orbitals, energies, dipoles.

    Every error is that of a molecule first and then averaged over the molecules. Prints a table and writes
    metrics.json, per_molecule.csv (atomic units; errors are predicted minus reference), parity.png and, where energies
    have an error estimate, estimates.png.
    """
    from safetensors import SafetensorError

    from mlsemi import checkpoint
    from mlsemi.cli.display import Display
    from mlsemi.data.store import LabelStore
    from mlsemi.model import find_model
    from mlsemi.train.evaluate import evaluate as run
    from mlsemi.train.evaluate import select, together
    from mlsemi.train.plots import plot_estimates, plot_parity

    try:
        _refuse_repeated(labels)
        path = find_model(model)
        header, engine = checkpoint.load(path)
        with ExitStack() as stack, Display({"predict": "molecules", "variational": "molecules"}) as display:
            stores = [stack.enter_context(LabelStore.open(file)) for file in labels]
            chosen = [select(store, split=split.value, limit=limit) for store in stores]
            folder = output or Path(f"{path.stem if path.stem != 'model' else header.name}-on-{labels[0].stem}")
            refuse_unusable_folder(folder, "--output")
            found = together(
                header,
                [
                    run(header, engine, store, indices, variational=variational, jobs=jobs, report=display.show)
                    for store, indices in zip(stores, chosen, strict=True)
                ],
            )
            said = _provenance(header, path, stores, split.value)
        what = ", ".join(file.name for file in labels)
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "metrics.json", said | _numbers(found))
        _write_rows(folder / "per_molecule.csv", found)
        title = f"{header.name} on {what}, {len(found.rows)} molecules"
        plot_parity(found, folder / "parity.png", title=title)
        plots = ["parity.png"]
        if plot_estimates(found.rows, folder / "estimates.png", title=title, calibration=header.calibration):
            plots.append("estimates.png")
    except KeyboardInterrupt:
        typer.echo("interrupted: nothing was written", err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, RuntimeError, ImportError, SafetensorError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from error
    _print(header, what, found)
    typer.echo(f"written: {folder / 'metrics.json'}, per_molecule.csv, {', '.join(plots)}")


def _refuse_repeated(labels: Sequence[Path]) -> None:
    """Refuses a label file that is given twice: its labels would count twice."""
    seen = set()
    for file in labels:
        if file.resolve() in seen:
            raise ValueError(f"label file {file} is given twice: give every file once")
        seen.add(file.resolve())


def _provenance(header: Header, model: Path, stores: Sequence[LabelStore], split: str) -> dict[str, Any]:
    """What was compared with what, and by what."""
    import numpy as np
    import torch

    import mlsemi

    return {
        "model": {
            "name": header.name,
            "file": model.name,
            "sha256": sha256_of(model),
            "method": header.method,
            "basis": header.basis.name,
            "baseline": header.baseline,
        },
        "labels": [
            {
                "file": Path(store.path).name,
                "sha256": sha256_of(Path(store.path)),
                "method": store.method,
                "resolved_functional": store.resolved_functional,
                "encoding": store.fock_encoding,
                "labels": len(store),
                "versions": str(store.attrs.get("versions", "")),
            }
            for store in stores
        ],
        "split": split,
        "command": " ".join(["mlsemi", *sys.argv[1:]]),
        "versions": {
            "mlsemi": mlsemi.__version__,
            "torch": torch.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _numbers(found: Evaluation) -> dict[str, Any]:
    return {
        "molecules": len(found.rows),
        "metrics": found.metrics,
        "by_heavy_atoms": found.classes,
        "by_group": found.groups,
        "warnings": list(found.warnings),
    }


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    with written_whole(path) as beside:
        beside.write_text(json.dumps(data, indent=2) + "\n")


def _write_rows(path: Path, found: Evaluation) -> None:
    names = list(dict.fromkeys(name for row in found.rows for name in row))
    with written_whole(path) as beside, beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        for row in found.rows:
            writer.writerow({k: f"{v:.12g}" if isinstance(v, float) else v for k, v in row.items()})


_ESTIMATE_TEXTS = {
    "median_ratio": "median of estimate / true error",
    "rank_correlation": "rank correlation with the true error",
    "coverage_68": "true errors within the 68 % interval",
    "coverage_95": "true errors within the 95 % interval",
}


def _text(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.4g}"


def _near_one(value: float) -> str:
    return f"{value:.4f}" if value < 0.999 else f"1 - {max(1 - value, 0):.1e}"


def _print(header: Header, labels: str, found: Evaluation) -> None:
    from rich.console import Console
    from rich.table import Table

    from mlsemi.train.metrics import BRIEF, ESTIMATED_MODES, METRICS

    console = Console(highlight=False)
    table = Table(title=f"{header.name} on {labels}: {len(found.rows)} molecules", title_justify="left")
    table.add_column("error")
    table.add_column("value", justify="right")
    table.add_column("unit")
    for metric in METRICS:
        if metric.key in found.metrics:
            value = found.metrics[metric.key]
            table.add_row(metric.text, _text(value) if metric.unit else _near_one(value), metric.unit)
    for mode in ESTIMATED_MODES:
        for key, text in _ESTIMATE_TEXTS.items():
            if f"estimate_{mode}_{key}" in found.metrics:
                table.add_row(f"error estimate, {mode}: {text}", f"{found.metrics[f'estimate_{mode}_{key}']:.3f}", "")
    console.print(table)
    named = {m.key: f"{m.text.split(':')[0]} [{m.unit}]" for m in METRICS}
    keys = [key for key in BRIEF if key in found.metrics]
    for title, parts in (("number of heavy atoms", found.classes), ("kind of molecule", found.groups)):
        if not parts:
            continue
        classes = Table(title=f"mean absolute errors by {title}", title_justify="left")
        for text in (title.removeprefix("number of "), "molecules", *(named[key] for key in keys)):
            classes.add_column(text, justify="right")
        for n, values in parts.items():
            classes.add_row(
                n, str(int(values["count"])), *(_text(values[key]) if key in values else "" for key in keys)
            )
        console.print(classes)
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)
