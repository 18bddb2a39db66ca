"""Fine-tuning against what else one can do with a few labels, at equal labels and on the same unseen geometries.

    python benchmarks/finetune/compare.py LABELS TEST --counts 10 30 100 --seeds 0 1 2 -o OUT.json

Ways: `refit` shifts the atomic reference energies only; `finetune` trains the whole network through density and
eigenproblem; `difference` trains an energy network, from the same weights, on the difference to the variational
energies of the base, and is tested in the composite mode; `delta` does so on the difference to the fast energies:
Delta-learning without electronic structure; `scratch` is `finetune` from fresh weights. Every way refits the atomic
reference energies, and nine labels in ten train, the others tell how far it is (with `--split molecule` those of
validation molecules).

A seed is another draw of labels: of a fixed random order of the file, seed k takes the k-th block of so many labels
while there is one. Where the file has no such block left, seeds choose which labels validate. `--first` draws from the
first labels of the file only.

Errors of MP2 and Hartree-Fock, from the labels themselves, and of other methods whose energies label files hold
(`--method NAME FILE`, of training and test geometries or some of them; the same NAME may have several files), are given
with the same refit. Test labels of unlike molecules give isomerization and hydrogenation energies besides.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from summaries import energies, reactions

from mlsemi import checkpoint
from mlsemi.data.store import LabelStore, Record, molecule_key, write_store
from mlsemi.engine import Engine
from mlsemi.files import written_whole
from mlsemi.model import Model, find_model
from mlsemi.molecule import Molecule
from mlsemi.nn.network import FockNetwork
from mlsemi.train.config import OPTIMIZERS, SPLITS, TRAINED, Config, DataConfig, FinetuneConfig, TrainingConfig
from mlsemi.train.evaluate import evaluate, select
from mlsemi.train.loop import fit
from mlsemi.train.setup import set_up
from mlsemi.train.statistics import element_counts
from mlsemi.units import DIPOLE_AU_IN_DEBYE, HARTREE_IN_EV

WAYS = ("refit", "finetune", "difference", "delta", "scratch")
DIFFERENCE_TO = {"difference": "variational", "delta": "fast"}


def configuration(labels: Path, output: Path, arguments: argparse.Namespace, seed: int) -> Config:
    """The same schedule for all ways: chosen on validation labels of water."""
    gauss_newton = arguments.optimizer == "gauss-newton"
    steps = arguments.steps or (20 if gauss_newton else 400)
    weights = (1.0, 1.0, 0.1) if gauss_newton else (1.0, 0.1, 0.05)
    return Config(
        name="finetuned",
        output=output,
        baseline="atoms",
        overlap_floor=0.0,
        data=DataConfig(labels=(str(labels),), split=arguments.split, validation=0.1),
        training=TrainingConfig(
            optimizer=arguments.optimizer,
            steps=steps,
            batch=16,
            learning_rate=1e-3,
            warmup=20,
            ema=0.98,
            validate_every=max(steps // 10, 1),
            seed=seed,
            trained=arguments.trained,
            threads=1,
        ),
        finetune=FinetuneConfig(
            **dict(zip(("energy", "dipole", "ionization"), weights, strict=True)), damping=arguments.damping
        ),
    )


def drawn(labels: Path, count: int, seed: int, folder: Path, first: int | None = None) -> Path:
    """A label file with the labels of one draw from the first so many; `labels` itself where it has no more."""
    with LabelStore.open(labels) as store:
        if count >= len(store):
            return labels
        order = np.random.default_rng(0).permutation(min(len(store), first or len(store)))
        block = order[count * seed : count * (seed + 1)]
        if len(block) < count:
            block = order[:count]
        path = folder / "drawn.h5"
        write_store(path, (store.record(int(i)) for i in sorted(block)), store.attrs, fock_encoding=store.fock_encoding)
    return path


def fresh_weights(engine: Engine, seed: int) -> None:
    """Random weights, with the means and scales of the base."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FockNetwork(engine.network.config, engine.baseline.slots, dtype=engine.network.dtype)
    with torch.no_grad():
        for own, other in zip(engine.network.parameters(), network.parameters(), strict=True):
            own.copy_(other)


def fast_energies(engine: Engine, molecules: Sequence[Molecule]) -> np.ndarray:
    """Energies of the fast mode [Eh]."""
    with torch.no_grad():
        return engine(engine.batch(list(molecules))).energy.numpy()


def without_lacking(settings: FinetuneConfig, labels: Path) -> FinetuneConfig:
    """Leaves out weights of what the labels do not have."""
    with LabelStore.open(labels) as store:
        seen = store.record(0).observables
    lacking = {"dipole": seen.dipole is None, "ionization": seen.ionization_energies is None}
    return replace(settings, **{name: 0.0 for name, lacks in lacking.items() if lacks})


def run(way: str, labels: Path, test: Path, base: Path, config: Config) -> dict:
    """Errors on the test labels of one way, with one draw of labels."""
    seed, folder = config.training.seed, config.output
    assert config.finetune is not None
    settings = without_lacking(config.finetune, labels)
    if way in DIFFERENCE_TO:
        settings = FinetuneConfig(settings.energy, damping=settings.damping, difference_to=DIFFERENCE_TO[way])
    config = replace(config, finetune=settings)
    start = time.process_time()
    torch.manual_seed(seed)
    header, engine, objective = set_up(config, base, lambda _: None)
    if way == "scratch":
        fresh_weights(engine, seed)
    if way == "refit":
        checkpoint.save(folder / "model.safetensors", header, engine.state_dict())
    else:
        fit(config, header, engine, objective)
    seconds = time.process_time() - start
    header, engine = checkpoint.load(folder / "model.safetensors")
    model = Model(header, engine)

    def errors(records: Sequence[Record]) -> np.ndarray:
        molecules = [record.molecule for record in records]
        if way == "difference":
            found = np.array([model.predict(molecule, mode="composite").energy for molecule in molecules])
        else:
            found = fast_energies(engine, molecules)
        return found - energies_of(records)

    with LabelStore.open(test) as store:
        held = list(store.all_records())
        found = summary(held, errors(held), *with_errors(hydrides(labels), errors))
        if way not in DIFFERENCE_TO:
            found |= observables(evaluate(header, engine, store, select(store)).rows)
    steps = 0 if way == "refit" else header.training["steps"]
    return {"way": way, "seed": seed, "steps": steps, "cpu_s": seconds} | found


def observables(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean absolute errors of dipole [D] and ionization energy [eV], where the labels have them."""
    found = {}
    for name, key, factor in (
        ("dipole_D", "dipole_error", DIPOLE_AU_IN_DEBYE),
        ("ionization_eV", "ionization_error", HARTREE_IN_EV),
    ):
        values = [abs(float(row[key])) * factor for row in rows if key in row]
        if values:
            found[name] = float(np.mean(values))
    return found


def energies_of(records: Sequence[Record]) -> np.ndarray:
    """Energies of labels [Eh]."""
    return np.array([record.observables.energy for record in records], dtype=float)


def hydrides(labels: Path) -> list[Record]:
    """The labels of H2 and of hydrides: what hydrogenation gives."""
    with LabelStore.open(labels) as store:
        return [r for r in store.all_records() if r.molecule.n_heavy_atoms <= 1]


def with_errors(
    records: Sequence[Record], errors: Callable[[Sequence[Record]], np.ndarray]
) -> tuple[list[Molecule], np.ndarray]:
    """Molecules of some labels, and errors of their energies [Eh]."""
    return [record.molecule for record in records], errors(records) if records else np.zeros(0)


def summary(
    held: Sequence[Record], errors: np.ndarray, partners: Sequence[Molecule], of_partners: np.ndarray
) -> dict[str, float]:
    """Of the energies, and of the reactions where the molecules are not all alike."""
    molecules = [record.molecule for record in held]
    found = energies(errors)
    if len({molecule.formula for molecule in molecules}) > 1:
        found |= reactions(molecules, errors, partners, of_partners)
    return found


def other_methods(arguments: argparse.Namespace) -> list[dict]:
    """Errors of other methods with the atomic reference energies refitted to all labels that are drawn from."""
    with LabelStore.open(arguments.labels) as store, LabelStore.open(arguments.test) as held_store:
        seen, held = list(store.all_records())[: arguments.first], list(held_store.all_records())
    sources: dict[str, Callable[[Record], float | None]] = {
        "hf": lambda r: r.observables.scf_total_energy,
        "mp2": lambda r: r.observables.mp2_total_energy,
    }
    known: dict[str, dict[str, float | None]] = {}
    for name, path in arguments.method:
        with LabelStore.open(path) as store:
            energies_by_key = {molecule_key(r.molecule): r.observables.energy for r in store.all_records()}
        known[name] = known.get(name, {}) | energies_by_key
    for name, energies_by_key in known.items():
        sources[name] = lambda record, found=energies_by_key: found.get(molecule_key(record.molecule))
    out = []
    for name, source in sources.items():
        gaps = {
            id(r): float(energy) - float(r.observables.energy)  # type: ignore[arg-type]
            for r in (*seen, *held)
            if (energy := source(r)) is not None
        }
        fitted, tested = ([r for r in part if id(r) in gaps] for part in (seen, held))
        if not (fitted and tested):
            print(f"{name}: not known for these geometries, left out", flush=True)
            continue
        elements = sorted({z for r in (*fitted, *tested) for z in r.molecule.numbers.tolist()})

        def counts(records: Sequence[Record], elements: list[int] = elements) -> np.ndarray:
            return element_counts([r.molecule for r in records], elements)

        shift, *_ = np.linalg.lstsq(counts(fitted), np.array([gaps[id(r)] for r in fitted]), rcond=None)

        def errors(records: Sequence[Record], gaps: dict[int, float] = gaps, shift: np.ndarray = shift) -> np.ndarray:
            return np.array([gaps[id(r)] for r in records]) - counts(records) @ shift

        small = [r for r in fitted if r.molecule.n_heavy_atoms <= 1]
        found = summary(tested, errors(tested), *with_errors(small, errors))
        out.append({"way": name, "labels": len(fitted), "tested": len(tested)} | found)
    return out


def main() -> None:
    """Reads the command line, runs all, writes JSON and prints a line for each run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--base", default="water-pbe-def2svp")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--first", type=int, help="draw from the first so many labels of the file only")
    parser.add_argument("--split", choices=SPLITS, default="random")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="gauss-newton")
    parser.add_argument("--steps", type=int, help="default: 20 at most of gauss-newton, 400 of muon")
    parser.add_argument("--damping", type=float, default=0.01)
    parser.add_argument("--trained", choices=TRAINED, default="all")
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=WAYS)
    parser.add_argument("--method", nargs=2, action="append", default=[], metavar=("NAME", "FILE"))
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = find_model(arguments.base)
    rows = other_methods(arguments)
    for row in rows:
        print({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}, flush=True)
    with LabelStore.open(arguments.labels) as store:
        most = min(len(store), arguments.first or len(store))
    for count in arguments.counts:
        for seed in arguments.seeds:
            for way in arguments.ways:
                with tempfile.TemporaryDirectory() as name:
                    labels = drawn(arguments.labels, count, seed, Path(name), arguments.first)
                    config = configuration(labels, Path(name) / "run", arguments, seed)
                    config.output.mkdir()
                    found = {"labels": min(count, most)} | run(way, labels, arguments.test, base, config)
                rows.append(found)
                print({k: round(v, 5) if isinstance(v, float) else v for k, v in found.items()}, flush=True)
                with written_whole(arguments.output) as path:
                    Path(path).write_text(json.dumps({"base": arguments.base, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
