"""Fine-tuning against what else one can do with a few labels, at equal labels and on the same unseen geometries.

    python benchmarks/finetune/compare.py LABELS TEST --counts 10 30 100 --seeds 0 1 2 -o OUT.json

Ways: `refit` shifts the atomic reference energies only; `finetune` trains the whole network through density and
eigenproblem; `delta` leaves the electronic part to the base and trains the same network, from the same weights, to
give nothing but an energy; `scratch` is `finetune` from fresh weights. Every way refits the atomic reference energies,
and nine labels in ten train, the others tell how far it is. Errors of MP2 and Hartree-Fock, from the labels
themselves, are given with the same refit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlsemi import checkpoint
from mlsemi.data.store import LabelStore
from mlsemi.engine import Engine
from mlsemi.frames import BondFrames
from mlsemi.model import find_model
from mlsemi.molecule import Molecule
from mlsemi.nn.network import FockNetwork
from mlsemi.train.config import OPTIMIZERS, Config, DataConfig, FinetuneConfig, TrainingConfig
from mlsemi.train.evaluate import evaluate, select
from mlsemi.train.finetune import Target
from mlsemi.train.loop import fit
from mlsemi.train.objective import Objective
from mlsemi.train.setup import set_up
from mlsemi.units import HARTREE_IN_KCAL_PER_MOL

WAYS = ("refit", "finetune", "delta", "scratch")


def configuration(labels: Path, output: Path, count: int, seed: int, optimizer: str, steps: int) -> Config:
    """The same schedule for all ways: chosen on validation labels of water."""
    weights = (1.0, 1.0, 0.1) if optimizer == "gauss-newton" else (1.0, 0.1, 0.05)
    return Config(
        name="finetuned",
        output=output,
        baseline="atoms",
        overlap_floor=0.0,
        data=DataConfig(labels=(str(labels),), limit=count, validation=0.1),
        training=TrainingConfig(
            optimizer=optimizer,
            steps=steps,
            batch=16,
            learning_rate=1e-3,
            warmup=20,
            ema=0.98,
            validate_every=max(steps // 10, 1),
            seed=seed,
            threads=1,
        ),
        finetune=FinetuneConfig(**dict(zip(("energy", "dipole", "ionization"), weights, strict=True))),
    )


def fresh_weights(engine: Engine, seed: int) -> None:
    """Random weights, with the means and scales of the base."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = FockNetwork(engine.network.config, engine.baseline.slots, dtype=engine.network.dtype)
    with torch.no_grad():
        for own, other in zip(engine.network.parameters(), network.parameters(), strict=True):
            own.copy_(other)


def energy_only(engine: Engine, objective: Objective, electronic: dict[int, float]) -> Objective:
    """The network gives an energy on top of the electronic one of the base, which stays as it is."""

    def residuals(targets: Sequence[Target]) -> Tensor:
        batch = engine.batch([t.molecule for t in targets])
        output = engine.network(batch, BondFrames.of(batch, engine.network.l_max))
        atoms = torch.zeros(len(targets), dtype=torch.float64).index_add(0, batch.molecule, output.atom_energy)
        label = torch.tensor([t.observables.energy - electronic[id(t)] for t in targets], dtype=torch.float64)
        return 1e3 * (atoms - label)

    def terms(targets: Sequence[Target]) -> dict[str, Tensor]:
        return {"energy": residuals(targets).abs()}

    return replace(objective, weights={"energy": 1.0}, units={"energy": "meh"}, terms=terms, residuals=residuals)


def atom_energies(engine: Engine, molecules: Sequence[Molecule]) -> np.ndarray:
    """Sum of the atomic energies of each molecule [Eh]."""
    batch = engine.batch(list(molecules))
    with torch.no_grad():
        output = engine.network(batch, BondFrames.of(batch, engine.network.l_max))
    return np.bincount(batch.molecule.numpy(), output.atom_energy.numpy())


def electronic_energies(engine: Engine, molecules: Sequence[Molecule]) -> np.ndarray:
    """Energies of the fast mode without the atomic ones [Eh]."""
    with torch.no_grad():
        whole = engine(engine.batch(list(molecules))).energy.numpy()
    return whole - atom_energies(engine, molecules)


def without_lacking(settings: FinetuneConfig, labels: Path) -> FinetuneConfig:
    """Leaves out weights of what the labels do not have."""
    with LabelStore.open(labels) as store:
        seen = store.record(0).observables
    lacking = {"dipole": seen.dipole is None, "ionization": seen.ionization_energies is None}
    return replace(settings, **{name: 0.0 for name, lacks in lacking.items() if lacks})


def run(way: str, labels: Path, test: Path, base: Path, config: Config) -> dict:
    """Errors on the test labels of one way, one number of labels, one seed."""
    count, seed, folder = config.data.limit, config.training.seed, config.output
    assert config.finetune is not None and count is not None
    config = replace(config, finetune=without_lacking(config.finetune, labels))
    start = time.process_time()
    torch.manual_seed(seed)
    header, engine, objective = set_up(config, base, lambda _: None)
    if way == "scratch":
        fresh_weights(engine, seed)
    if way == "delta":
        targets = (*objective.samples, *objective.validation)
        electronic = electronic_energies(checkpoint.load(base)[1], [t.molecule for t in targets])
        objective = energy_only(engine, objective, dict(zip(map(id, targets), electronic, strict=True)))
    if way == "refit":
        checkpoint.save(folder / "model.safetensors", header, engine.state_dict())
    else:
        fit(config, header, engine, objective)
    seconds = time.process_time() - start
    header, engine = checkpoint.load(folder / "model.safetensors")
    with LabelStore.open(test) as store:
        rows = evaluate(header, engine, store, select(store)).rows
        errors = np.array([row["energy_fast_error"] for row in rows], dtype=float)
        if way == "delta":
            errors = delta_errors(engine, checkpoint.load(base)[1], store)
    found = {"energy_kcal": float(np.abs(errors).mean() * HARTREE_IN_KCAL_PER_MOL)}
    found["energy_max_kcal"] = float(np.abs(errors).max() * HARTREE_IN_KCAL_PER_MOL)
    for name, key, factor in (
        ("dipole_D", "dipole_error", 2.541746473),
        ("ionization_eV", "ionization_error", 27.211386),
    ):
        values = [abs(float(row[key])) * factor for row in rows if key in row]
        if values and way != "delta":
            found[name] = float(np.mean(values))
    return {
        "way": way,
        "labels": count,
        "seed": seed,
        "steps": 0 if way == "refit" else header.training["steps"],
        "cpu_s": seconds,
    } | found


def delta_errors(engine: Engine, base: Engine, store: LabelStore) -> np.ndarray:
    """Errors with the electronic energy of the base instead of that of the trained network [Eh]."""
    records = [store.record(i) for i in range(len(store))]
    molecules = [record.molecule for record in records]
    labels = np.array([record.observables.energy for record in records], dtype=float)
    return electronic_energies(base, molecules) + atom_energies(engine, molecules) - labels


def methods(labels: Path, test: Path, counts: Sequence[int]) -> list[dict]:
    """Errors of Hartree-Fock and MP2 with the same refit."""
    out = []
    with LabelStore.open(labels) as store, LabelStore.open(test) as held:
        for name in ("scf_total_energy", "mp2_total_energy"):
            if getattr(store.record(0).observables, name) is None:
                continue

            def table(part: LabelStore, n: int, column: str = name) -> tuple[np.ndarray, np.ndarray]:
                records = [part.record(i) for i in range(min(n, len(part)))]
                elements = np.array(sorted({z for r in records for z in r.molecule.numbers.tolist()}))
                composition = np.array([(r.molecule.numbers[:, None] == elements).sum(0) for r in records], dtype=float)
                gaps = np.array([r.observables.energy - getattr(r.observables, column) for r in records])
                return composition, gaps

            for count in counts:
                composition, gaps = table(store, count)
                shift, *_ = np.linalg.lstsq(composition, gaps, rcond=None)
                composition, gaps = table(held, len(held))
                errors = (gaps - composition @ shift) * HARTREE_IN_KCAL_PER_MOL
                found = {"energy_kcal": float(np.abs(errors).mean()), "energy_max_kcal": float(np.abs(errors).max())}
                out.append({"way": name.removesuffix("_total_energy"), "labels": count} | found)
    return out


def main() -> None:
    """Reads the command line, runs all, writes JSON and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("labels", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--base", default="water-pbe-def2svp")
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 30, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="gauss-newton")
    parser.add_argument("--steps", type=int, help="default: 20 at most of gauss-newton, 400 of muon")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps = arguments.steps or (20 if arguments.optimizer == "gauss-newton" else 400)
    base = find_model(arguments.base)
    rows = methods(arguments.labels, arguments.test, arguments.counts)
    for row in rows:
        print(row, flush=True)
    for count in arguments.counts:
        for seed in arguments.seeds:
            for way in arguments.ways:
                folder = Path(tempfile.mkdtemp())
                try:
                    config = configuration(arguments.labels, folder, count, seed, arguments.optimizer, steps)
                    found = run(way, arguments.labels, arguments.test, base, config)
                finally:
                    shutil.rmtree(folder)
                rows.append(found)
                print({k: round(v, 5) if isinstance(v, float) else v for k, v in found.items()}, flush=True)
                beside = arguments.output.with_name(arguments.output.name + ".part")
                beside.write_text(json.dumps({"base": arguments.base, "rows": rows}, indent=1) + "\n")
                beside.replace(arguments.output)


if __name__ == "__main__":
    main()
