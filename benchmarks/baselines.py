"""The baselines F0: time per molecule, their own error, and the error of F after equal training.

    python benchmarks/baselines.py [--water LABELS] [--water-test LABELS] [--ethanol LABELS] [--ethanol-test LABELS]

The same network is trained on each baseline with the same labels, steps, batches and seed, on one thread. Errors are
those of the test labels; without a test file, of the tenth of the labels that validates (nothing is chosen by it).
Label files that store residuals are restored to whole Fock matrices in the work folder first. Run it again to go on
after an interruption: what is done with the same settings is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

# both are scripts of this folder
from speed import EXAMPLES, ROOT, SINGLE, Timing, displaced, environment, measure

from mlsemi import checkpoint
from mlsemi.baseline import KINDS
from mlsemi.data.pack import baseline_fock, check_encoding
from mlsemi.data.store import LabelStore, Record, write_store
from mlsemi.engine import Engine
from mlsemi.files import written_whole
from mlsemi.integrals import one_electron, plan
from mlsemi.interop.ase import read_molecules
from mlsemi.nn.network import NetworkConfig
from mlsemi.train.config import Config, DataConfig, TrainingConfig
from mlsemi.train.evaluate import evaluate
from mlsemi.train.loop import train
from mlsemi.train.setup import Progress, split_labels

SYSTEMS = {"water": (1500, 16), "ethanol": (800, 8)}
"""Steps and molecules in a step."""

WATER = ROOT / "reference_data" / "water" / "water_pbe_def2svp_500.h5"
_SMALL = NetworkConfig(natural=4, unnatural=2, bond=(4, 2, 2), layers=1, product=2, radial=8, n_radial=8)
"""The network plays no part in F0."""

_SHOWN = {
    "baseline_h_mae_uEh": "F0, MAE, uEh",
    "h_mae_uEh": "F, MAE, uEh",
    "h_orthonormal_mae_uEh": "F orthonormal, MAE, uEh",
    "occupied_energies_mae_uEh": "occupied energies, MAE, uEh",
    "energy_fast_mae_kcal_per_mol": "fast energy, MAE, kcal/mol",
}
_CHUNK = 32
_SAY_SECONDS = 30.0


def elements_of(store: LabelStore) -> tuple[int, ...]:
    """Atomic numbers in a label file, ascending."""
    return tuple(sorted({z for i in range(len(store)) for z in store.molecule(i).numbers.tolist()}))


def whole(path: Path, work: Path) -> Path:
    """A label file with whole Fock matrices: the file itself, or a restored copy in the work folder."""
    with LabelStore.open(path) as store:
        if store.fock_encoding == "full":
            return path
        out = work / f"{path.stem}_whole.h5"
        if out.is_file() and out.stat().st_mtime >= path.stat().st_mtime:
            return out
        engine = Engine(store.basis, elements_of(store), _SMALL)
        check_encoding(store, engine)
        write_store(out, _restored(store, engine), store.attrs)
    return out


def _restored(store: LabelStore, engine: Engine) -> Iterator[Record]:
    for start in range(0, len(store), _CHUNK):
        records = [store.record(i) for i in range(start, min(start + _CHUNK, len(store)))]
        baselines = baseline_fock(engine, [r.molecule for r in records]).numpy()
        for record, padded in zip(records, baselines, strict=True):
            stored = record.observables.fock
            assert stored is not None
            n = stored.shape[-1]
            yield replace(record, observables=replace(record.observables, fock=stored + padded[:n, :n]))


def timings(system: str, basis_of: Path, kinds: list[str], repeats: int) -> dict[str, dict[str, Timing]]:
    """Time per molecule of each F0 and of the network, in batches of 1 and 8."""
    molecule = read_molecules(EXAMPLES / f"{system}.xyz")[0]
    with LabelStore.open(basis_of) as store:
        basis, elements = store.basis, elements_of(store)
    found: dict[str, dict[str, Timing]] = {}
    for kind in kinds:
        engine = Engine(basis, elements, NetworkConfig(), baseline=kind).eval()
        found[kind] = {}
        for size in (1, 8):
            with torch.no_grad():
                batch = engine.batch(displaced(molecule, size))
                exact, tables = engine.integrals(batch), plan(batch)
                kinetic = one_electron(batch, tables)[1]
                f0 = (batch, tables, kinetic, exact.blocks, exact.frames)
                found[kind][f"F0, batch {size}"] = measure(lambda e=engine, a=f0: e.baseline(*a), repeats).over(size)
                pair = (batch, exact.frames)
                name = f"network, batch {size}"
                found[kind][name] = measure(lambda e=engine, a=pair: e.network(*a), repeats).over(size)
    return found


class _Say:
    """A line of progress on standard error now and then."""

    def __init__(self, title: str) -> None:
        self.title, self.next = title, time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if time.monotonic() >= self.next:
            rate = f"{progress.done}/{progress.total}, {progress.rate:.1f}/s"
            print(f"{self.title}: {progress.stage} {rate}", file=sys.stderr, flush=True)
            self.next = time.monotonic() + _SAY_SECONDS


def trained(config: Config, test: Path | None) -> dict[str, Any]:
    """Trains, or goes on, and evaluates on labels that were not trained on."""
    cpu = time.process_time()
    path = train(config, report=_Say(config.name))
    header, engine = checkpoint.load(path)
    labels = test or Path(config.data.labels[0])
    with LabelStore.open(labels) as store:
        held_out = list(range(len(store))) if test else split_labels(store, config)[1]
        found = evaluate(header, engine.requires_grad_(False), store, held_out)
    return {
        "metrics": {key: found.metrics[key] for key in _SHOWN if key in found.metrics},
        "evaluated": len(held_out),
        "labels_train": header.training["labels_train"],
        "cpu_s_of_the_last_start": time.process_time() - cpu,
    }


def configuration(system: str, kind: str, labels: Path, arguments: argparse.Namespace) -> Config:
    """A run of its own folder for all that matters."""
    steps, batch = getattr(arguments, f"{system}_steps"), SYSTEMS[system][1]
    name = f"{system}-{kind}-{steps}x{batch}-seed{arguments.seed}"
    return Config(
        name=name,
        output=arguments.work / name,
        baseline=kind,
        overlap_floor=0.0,
        data=DataConfig(labels=(str(labels.resolve()),)),
        training=TrainingConfig(
            steps=steps, batch=batch, seed=arguments.seed, threads=1, validate_every=max(1, steps // 5)
        ),
    )


def show(found: dict[str, Any]) -> None:
    """The tables."""
    print("\n### Time per molecule, wall (CPU), ms\n")
    for number, (system, kinds) in enumerate(found.get("timings", {}).items()):
        for kind, times in kinds.items():
            if not number and kind == next(iter(kinds)):
                print(f"| molecule | baseline | {' | '.join(times)} |\n|{'---|' * (len(times) + 2)}")
            print(f"| {system} | {kind} | {' | '.join(str(Timing(**t)) for t in times.values())} |")
    print("\n### Errors on labels that were not trained on\n")
    columns = ["labels", "baseline", "steps x batch", "training labels", "tested", *_SHOWN.values()]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for run in found.get("training", {}).values():
        s = run["settings"]
        numbers = [f"{run['metrics'][key]:.4g}" if key in run["metrics"] else "-" for key in _SHOWN]
        row = [s["system"], s["baseline"], f"{s['steps']} x {s['batch']}", run["labels_train"], run["evaluated"]]
        print(f"| {' | '.join(map(str, row + numbers))} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for system, (steps, _) in SYSTEMS.items():
        default = WATER if system == "water" else None
        parser.add_argument(f"--{system}", type=Path, default=default, help=f"labels; default: {default or 'left out'}")
        parser.add_argument(f"--{system}-test", type=Path, help="test labels")
        parser.add_argument(f"--{system}-steps", type=int, default=steps, help=f"steps of training (default {steps})")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=21, help="calls of which the median time is taken")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "baselines", help="folder of the training runs")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "baselines.json")
    arguments = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in SINGLE.items()):
        # the numerical libraries read these when they are loaded
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SINGLE})
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}

    def save() -> None:
        found["environment"] = environment()
        with written_whole(arguments.out) as path:
            path.write_text(json.dumps(found, indent=1) + "\n")

    for system in SYSTEMS:
        source, test = getattr(arguments, system), getattr(arguments, f"{system}_test")
        if source is None:
            continue
        labels = whole(source, arguments.work)
        measured = timings(system, labels, arguments.kinds, arguments.repeats)
        found.setdefault("timings", {})[system] = {k: {n: vars(t) for n, t in v.items()} for k, v in measured.items()}
        save()
        test_labels = whole(test, arguments.work) if test else None
        for kind in arguments.kinds:
            config = configuration(system, kind, labels, arguments)
            settings = {
                "system": system,
                "baseline": kind,
                "steps": config.training.steps,
                "batch": config.training.batch,
                "seed": config.training.seed,
                "labels": source.name,
                "test": test.name if test else "validation labels",
            }
            done = found.setdefault("training", {}).get(config.name)
            if done is None or done["settings"] != settings:
                found["training"][config.name] = {"settings": settings, **trained(config, test_labels)}
                save()
    show(found)
    print(f"\n{arguments.out}")


if __name__ == "__main__":
    main()
