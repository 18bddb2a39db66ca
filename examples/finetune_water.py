"""Fine-tuning in ten minutes: a model of water goes from PBE to CCSD(T) with 10, 20 and 30 labels.

Takes the shipped model `water-pbe-def2svp` and the labels in reference_data/water_cc (energies, dipoles and ionization
energies of CCSD(T)/cc-pVTZ), fine-tunes on the first 10, 20 and 30 of them as docs/how-to-finetune.md explains, and
compares the models with labels of 100 other geometries. Nine labels in ten train, the others validate. That takes two
minutes of one core, and no PySCF.

    python examples/finetune_water.py -o finetune_water

It prints a table, and writes into the folder learning_curve.png, and for each number N of labels water_cc_N.toml and
water_cc_N/: configuration, model and curves of the run. The same command goes on after an interruption, and trains
nothing twice.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from mlsemi import checkpoint
from mlsemi.data.store import LabelStore
from mlsemi.engine import Engine
from mlsemi.model import find_model
from mlsemi.train.config import Config, read_config
from mlsemi.train.evaluate import evaluate, select
from mlsemi.train.finetune import UNITS
from mlsemi.train.loop import CURVES, train
from mlsemi.train.setup import Progress, set_up
from mlsemi.units import HARTREE_IN_KCAL_PER_MOL

BASE = "water-pbe-def2svp"
LABELS = Path(__file__).resolve().parents[1] / "reference_data" / "water_cc" / "water_ccsdt_ccpvtz_100.h5"
TEST = LABELS.with_name("water_ccsdt_ccpvtz_test.h5")
WEIGHTS = {"energy": 1.0, "dipole": 1.0, "ionization": 0.1}
CONFIGURATION = """\
output = "{name}"

[data]
labels = [{labels}]
limit = {count}
validation = 0.1

[finetune]
{weights}
damping = 0.01

[training]
optimizer = "gauss-newton"
steps = {steps}
validate_every = 1
threads = 1
"""
COLUMNS = {"energy_fast_mae_kcal_per_mol": "kcal/mol", "dipole_mae_D": "D", "ionization_mae_eV": "eV"}
"""Metrics of the table, as `mlsemi evaluate` names them, and their units."""

CHEMICAL_ACCURACY = 1.0
"""[kcal/mol]"""

GREY, RED, BLUE = "#8a8a8a", "#b03a2e", "#2e6f9e"


@dataclass(frozen=True)
class Run:
    """One number of labels: metrics before and after, and the losses of training and validation labels at each step."""

    labels: int
    before: dict[str, float]
    after: dict[str, float]
    losses: dict[str, list[float]]


def configure(folder: Path, count: int, steps: int) -> Config:
    """Writes the configuration of a run, which `mlsemi train` takes as well, and reads it."""
    path = folder / f"water_cc_{count}.toml"
    labels = json.dumps(str(LABELS), ensure_ascii=False)
    weights = "\n".join(f"{name} = {weight}" for name, weight in WEIGHTS.items())
    text = CONFIGURATION.format(name=path.stem, labels=labels, count=count, weights=weights, steps=steps)
    path.write_text(text, encoding="utf-8")
    return read_config(path)


def fine_tune(config: Config, count: int, geometries: int) -> Run:
    """Fine-tunes on the first `count` labels, with the errors on test geometries before and after."""
    print(f"{count} labels", flush=True)
    base = find_model(BASE)
    header, engine, objective = set_up(config, base, lambda _: None)  # refits atomic energies and zero of the orbitals
    before, losses = errors(header, engine, geometries), {}
    with torch.no_grad():
        for part, samples in (("train", objective.samples), ("validation", objective.validation)):
            means = {name: values.mean() for name, values in objective.terms(samples).items()}
            losses[part] = [float(objective.total(means))]
    path = train(config, start=base, report=show)
    with (config.output / CURVES).open(newline="") as file:
        for row in csv.DictReader(file):
            for part, values in losses.items():
                values.append(sum(w * float(row[f"{part}_{name}_{UNITS[name]}"]) for name, w in WEIGHTS.items()))
    header, engine = checkpoint.load(path)
    print(f"  {header.training['steps']} steps, {header.training['seconds']:.0f} s", flush=True)
    return Run(count, before, errors(header, engine, geometries), losses)


def errors(header: checkpoint.Header, engine: Engine, geometries: int) -> dict[str, float]:
    """Metrics of `COLUMNS` on the first so many test labels."""
    with LabelStore.open(TEST) as store:
        metrics = evaluate(header, engine, store, select(store, limit=geometries)).metrics
    return {key: metrics[key] for key in COLUMNS}


def show(progress: Progress) -> None:
    """Prints the energy errors after a step."""
    if progress.row:
        unit = HARTREE_IN_KCAL_PER_MOL / 1e3
        own, other = (unit * progress.row[f"{part}_energy_meh"] for part in ("train", "validation"))
        print(f"  step {progress.done}: energy {own:.2g}, of validation labels {other:.2g} kcal/mol", flush=True)


def report(runs: Sequence[Run], geometries: int) -> None:
    """Prints the table."""
    print(f"\nMean absolute errors on {geometries} other geometries, against CCSD(T)/cc-pVTZ")
    print(f"      {'before: atomic energies refitted':>35s}{'after':>19s}")
    print("labels" + 2 * f"{'energy':>13s}{'dipole':>10s}{'ionization':>12s}")
    print("      " + 2 * "{:>13s}{:>10s}{:>12s}".format(*COLUMNS.values()))
    for run in runs:
        values = ("{:13.4f}{:10.5f}{:12.5f}".format(*found.values()) for found in (run.before, run.after))
        print(f"{run.labels:6d}" + "".join(values))


def draw(path: Path, runs: Sequence[Run]) -> None:
    """The learning curve, and the course of the run with the most labels."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts, energy = [run.labels for run in runs], next(iter(COLUMNS))
    left.axhline(CHEMICAL_ACCURACY, color="black", linestyle=":", linewidth=1, label="chemical accuracy")
    left.plot(counts, [run.before[energy] for run in runs], "o-", color=GREY, label="atomic energies refitted")
    left.plot(counts, [run.after[energy] for run in runs], "o-", color=BLUE, label="fine-tuned")
    left.set(title="energy: MAE on other geometries", xlabel="labels", ylabel="kcal/mol", xscale="log", yscale="log")
    left.set_xticks(counts, labels=[str(count) for count in counts])
    left.xaxis.set_minor_locator(NullLocator())
    for part, colour in (("train", GREY), ("validation", RED)):
        right.plot(runs[-1].losses[part], "o-", color=colour, label=part, markersize=3, linewidth=1.2)
    right.set(title=f"{counts[-1]} labels: weighted sum of the MAE", xlabel="step", ylabel="1e-3 a.u.", yscale="log")
    for axis in (left, right):
        axis.grid(True, which="both", alpha=0.2)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=Path("finetune_water"), help="folder; is made")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 20, 30], help="numbers of labels")
    parser.add_argument("--test-geometries", type=int, default=100, help="how many")
    parser.add_argument("--steps", type=int, default=20, help="Gauss-Newton steps at most")
    given = parser.parse_args(arguments)
    output, counts, geometries = given.output, sorted(set(given.counts)), given.test_geometries
    if not output.parent.is_dir():
        parser.error(f"--output {output}: there is no folder {output.parent} to make it in; make that one first")
    if output.exists() and not output.is_dir():
        parser.error(f"--output {output} is a file; give the name of a folder")
    try:
        for option, path, least, numbers in (("counts", LABELS, 2, counts), ("test-geometries", TEST, 1, [geometries])):
            with LabelStore.open(path) as store:
                for number in numbers:
                    if not least <= number <= len(store):
                        parser.error(f"--{option} {number} must be {least} to {len(store)}, what {path.name} holds")
        output.mkdir(exist_ok=True)
        runs = [fine_tune(configure(output, count, given.steps), count, geometries) for count in counts]
        report(runs, geometries)
        draw(output / "learning_curve.png", runs)
    except KeyboardInterrupt as stopped:
        parser.exit(130, f"interrupted ({stopped or 'at once'}): run the same command again to go on\n")
    except (ValueError, OSError, RuntimeError, MemoryError) as error:
        parser.exit(1, f"error: {error}\n")
    print(f"plot: {output / 'learning_curve.png'}")


if __name__ == "__main__":
    main()
