"""What each part of network, loss and optimizer is worth: ethanol, the same processor time for each variant.

    python benchmarks/md17/ablation.py [--seconds 200] [--variants attention l-2] [--seeds 0 1] | --list

A variant is `ablation.toml` with one thing changed (`ablation_variants.py`). Its steps are timed first (processor time
of one thread, samples prepared, no validation) by turns with those of the reference: the load of the machine, which
changes such times by tens of percent, favours neither. As many steps as fit into `--seconds` then follow from fresh
weights, and the cosine of the learning rate ends with them. The warm-up is a tenth of the steps at most and the moving
average of the weights short, as fits a short run; all else is that of the configuration. The errors are those of the
last weights on the validation labels, by their names in `curves.csv`; `energy` and `fast` are per atom. The ratios are
to the reference of the same seed, on the same labels; several seeds say what a ratio is worth. Test labels are not
read.

Run the same command again to go on: what is done with the same settings is kept.

What is not here: `[network] charges = true` changes nothing of a neutral molecule (the potential of the excess charge
and the embedding of charges are left out of the computation); `partial-charges` is the learned-charge term of neutral
molecules. All terms of the loss are computed whatever their weight, so that a weight of zero saves no time.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_variants import REFERENCE, VARIANTS
from learning_curve import ROOT, Say, check_labels, labels_of, read_runs, tables_of, write_config

from mlsemi import checkpoint
from mlsemi.files import sha256_of, written_whole
from mlsemi.train import loop
from mlsemi.train.config import Config, DataConfig, TrainingConfig, read_config
from mlsemi.train.loop import Progress, fit
from mlsemi.train.objective import Objective, fock_objective
from mlsemi.train.optimizer import MuonAdamW
from mlsemi.train.setup import set_up
from mlsemi.train.statistics import set_statistics

ERRORS = {
    "validation_ao_meh": "ao",
    "validation_orthonormal_meh": "orthonormal",
    "validation_occupied_virtual_meh": "occupied-virtual",
    "validation_energy_meh": "energy",
    "validation_fast_meh": "fast",
}
_EMA = 0.99
_WARM, _TIMED, _TURNS = 5, 20, 3
"""Steps that are done before the timing, those that are timed, and how often."""
_LATE = 2 / 3
"""Share of the steps after which `Variant.late` holds."""


@contextmanager
def optimizer_of_loop(kind: type[MuonAdamW]) -> Iterator[None]:
    """The training loop with another optimizer."""
    own = loop.MuonAdamW
    loop.MuonAdamW = kind
    try:
        yield
    finally:
        loop.MuonAdamW = own


class Clock(Say):
    """Processor time after each step, and the last row of the curves.

    Args:
        title: for the lines of progress; there are none without.
        weights: of the loss; they are changed on the way.
        late: what they become.
    """

    def __init__(self, title: str, weights: dict[str, float], late: Mapping[str, float]) -> None:
        super().__init__(title)
        self.times, self.row = [time.process_time()], dict[str, float]()
        self.weights, self.late = weights, late

    def training(self, progress: Progress) -> None:
        """Report of the training loop."""
        self.times.append(time.process_time())
        self.row = progress.row or {}
        if progress.done >= _LATE * progress.total:
            self.weights.update(self.late)
        if self.title:
            super().training(progress)

    def steps(self) -> np.ndarray:
        """Processor time of each step [s] but the last one, which holds the validation."""
        return np.diff(self.times)[:-1]


@lru_cache(maxsize=3)
def prepared(data: DataConfig, baseline: str, seed: int) -> tuple[checkpoint.Header, Objective]:
    """Header and samples, which depend on nothing else."""
    config = Config("samples", Path(), baseline, 0.0, data, training=TrainingConfig(seed=seed))
    header, _, objective = set_up(config, None, Say(f"samples, F0 {baseline}").training)
    return header, objective


class Trial:
    """A variant with fresh weights, ready to be trained.

    Args:
        name: of the variant.
        seed: of weights, order and split.
        arguments: labels, their number, and a folder to work in.
    """

    def __init__(self, name: str, seed: int, arguments: argparse.Namespace) -> None:
        self.variant, tables = VARIANTS[name], tables_of_variant(name, arguments.limit, seed)
        self.config = config = read_config(write_config(tables, arguments.labels, arguments.work))
        data = replace(config.data, labels=(str(arguments.labels),))  # as one name for all variants
        header, samples = prepared(data, config.baseline, seed)
        self.header = replace(header, name=config.name, network=config.network)
        torch.manual_seed(seed)
        self.engine = checkpoint.engine_of(self.header)
        if self.variant.network is not None:
            self.variant.network(self.engine.network)
        with torch.no_grad():
            set_statistics(self.engine, samples.samples)
        self.objective = fock_objective(self.engine, samples.samples, samples.validation, config.loss, "cpu")
        if self.variant.objective is not None:
            self.objective = self.variant.objective(self.engine, self.objective)
        self.fresh = {key: value.clone() for key, value in self.engine.state_dict().items()}

    def run(self, steps: int, *, title: str = "", validation: int | None = None) -> Clock:
        """Trains from the fresh weights, and validates on all or the first `validation` labels."""
        self.engine.load_state_dict(self.fresh)
        weights = dict(self.objective.weights)
        chosen = replace(self.objective, weights=weights, validation=self.objective.validation[:validation])
        settings = replace(self.config.training, steps=steps, validate_every=steps)
        settings = replace(settings, warmup=min(settings.warmup, steps // 10))
        clock = Clock(title, weights, self.variant.late)
        with optimizer_of_loop(self.variant.optimizer), tempfile.TemporaryDirectory(dir=self.config.output) as folder:
            own = replace(self.config, training=settings, output=Path(folder))
            fit(own, self.header, self.engine, chosen, report=clock.training)
        return clock

    def timed(self) -> np.ndarray:
        """Processor time of some steps [s], shape (step,)."""
        return self.run(_WARM + _TIMED + 1, validation=1).steps()[_WARM:]


def measured(trial: Trial, reference: Trial, seconds: float, reference_s: float | None) -> dict[str, Any]:
    """Times a variant and the reference by turns, trains the variant and validates it.

    If the reference was trained before with `reference_s` a step [s], the present load of the machine is taken out.
    """
    own, other = np.median([(trial.timed(), reference.timed()) for _ in range(_TURNS)], axis=(0, 2)).tolist()
    step = own if reference_s is None else reference_s * own / other
    steps = max(2, round(seconds / step))
    clock = trial.run(steps, title=trial.config.name)
    return {
        "steps": steps,
        "step_s": step,
        "step_ms_per_molecule": 1e3 * step / trial.config.training.batch,
        "cpu_s": float(clock.steps().mean() * steps),
        "parameters": sum(p.numel() for p in trial.engine.network.parameters()),
        "labels_train": len(trial.objective.samples),
        "labels_validation": len(trial.objective.validation),
        "validation": {key: value for key, value in clock.row.items() if key.startswith("validation_")},
    }


def tables_of_variant(name: str, limit: int, seed: int) -> dict[str, Any]:
    """`ablation.toml` with the changes of a variant; the steps are not in it, they follow from its speed."""
    tables = tables_of("ablation", limit, None, seed)
    left_out = ("steps", "validate_every")
    tables["training"] = {k: v for k, v in tables["training"].items() if k not in left_out} | {"ema": _EMA}
    for key, change in VARIANTS[name].changes.items():
        tables[key] = {**tables.get(key, {}), **change} if isinstance(change, Mapping) else change
    return tables | {"name": f"{name}-seed{seed}"}


def common(arguments: argparse.Namespace) -> dict[str, Any]:
    """What runs must share to be compared."""
    return {
        "seconds": arguments.seconds,
        "labels": arguments.labels.name,
        "labels_sha256": sha256_of(arguments.labels),
        "limit": arguments.limit,
    }


def one_run(name: str, seed: int, arguments: argparse.Namespace, runs: dict[str, Any]) -> bool:
    """Adds a run to those that are done; False if it was there or cannot be done with these labels."""
    suffix = f"{arguments.limit}-{arguments.seconds:g}s-seed{seed}"
    key, reference_key = f"{name}-{suffix}", f"{REFERENCE}-{suffix}"
    variant, tables = VARIANTS[name], tables_of_variant(name, arguments.limit, seed)
    settings = {**common(arguments), "variant": name, "seed": seed, "late": dict(variant.late), "config": tables}
    if key in runs and runs[key]["settings"] == settings:
        return False
    reference = Trial(REFERENCE, seed, arguments)
    if "gradient" in tables["loss"] and all(s.gradient is None for s in reference.objective.validation):
        print(f"{name}: left out, {arguments.labels.name} has no gradients", file=sys.stderr, flush=True)
        return False
    known = runs[reference_key]["step_s"] if name != REFERENCE and reference_key in runs else None
    trial = reference if name == REFERENCE else Trial(name, seed, arguments)
    runs[key] = {"settings": settings, "what": variant.what, **measured(trial, reference, arguments.seconds, known)}
    return True


def chosen_runs(runs: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, list[Any]]:
    """Runs of the present time and labels of each variant, in the order of the seeds, with ratios to the reference."""
    alike = [run for run in runs.values() if common(arguments).items() <= run["settings"].items()]
    reference = {run["settings"]["seed"]: run["validation"] for run in alike if run["settings"]["variant"] == REFERENCE}
    found: dict[str, list[Any]] = {}
    for run in sorted(alike, key=lambda run: run["settings"]["seed"]):
        base = reference.get(run["settings"]["seed"], {})
        ratios = {key: run["validation"][key] / base[key] for key in ERRORS if key in base}
        found.setdefault(run["settings"]["variant"], []).append({**run, "ratios": ratios})
    return {name: found[name] for name in VARIANTS if name in found}


def plot(groups: Mapping[str, list[Any]], picture: Path) -> None:
    """Ratios of the errors to those of the reference: bars for the means, dots for the seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(ERRORS) + 1, 1 + 0.24 * len(groups)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(ERRORS), sharey=True)
    for key, axis in zip(ERRORS, axes, strict=True):
        for row, members in enumerate(groups.values()):
            ratios = [run["ratios"][key] for run in members if key in run["ratios"]]
            if ratios:
                mean = np.mean(ratios)
                axis.barh(row, mean - 1, left=1, color="#2e6f9e", height=0.7)
                axis.plot(ratios, [row] * len(ratios), "o", color="#b03a2e", markersize=3)
                axis.text(0.99, row, f"{mean:.2f}", transform=axis.get_yaxis_transform(), ha="right", va="center")
        axis.set(xscale="log", xlim=(0.4, 4), title=f"{ERRORS[key]} / reference")
        axis.set_xticks([0.5, 1, 2], ["0.5", "1", "2"])
        axis.set_xticks([], minor=True)
        axis.set_yticks(range(len(groups)), list(groups))
        axis.axvline(1, color="black", linewidth=0.8)
        axis.grid(True, axis="x", which="both", alpha=0.2)
    axes[0].invert_yaxis()
    with written_whole(picture) as beside:
        figure.savefig(beside, format="png", dpi=120)


def show(groups: Mapping[str, list[Any]]) -> None:
    """The table: means over the seeds, and the ratio of the AO error for each of them too."""
    sizes = {"steps": "steps", "step_ms_per_molecule": "ms / step and molecule", "cpu_s": "processor time, s"}
    errors = [f"{name}, mEh" for name in ERRORS.values()]
    columns = ["variant", "what differs", *sizes.values(), "parameters", *errors, "ao / reference"]
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for name, members in groups.items():
        row = [name, members[0]["what"], *(f"{np.mean([run[key] for run in members]):.4g}" for key in sizes)]
        row += [str(members[0]["parameters"])]
        row += [f"{np.mean([run['validation'][key] for run in members]):.4g}" for key in ERRORS]
        ratios = [run["ratios"]["validation_ao_meh"] for run in members if run["ratios"]]
        each = f" ({', '.join(f'{ratio:.3f}' for ratio in ratios)})" if len(ratios) > 1 else ""
        print(f"| {' | '.join([*row, f'{np.mean(ratios):.3f}{each}' if ratios else '-'])} |")


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="list the variants and do nothing")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), metavar="NAME", help="default: all")
    parser.add_argument("--seconds", type=float, default=200.0, help="processor time of each training (default 200)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of weights, order and split (default 0)")
    parser.add_argument("--labels", type=Path, help="training labels (default: those of ablation.toml)")
    parser.add_argument("--limit", type=int, default=1000, help="labels, validation included (default 1000)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "md17" / "ablation", help="for files on the way")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "md17_ablation.json")
    arguments = parser.parse_args(argv)
    if not arguments.seconds > 0:
        parser.error(f"--seconds {arguments.seconds:g} must be positive")
    return arguments


def main() -> None:
    """Trains, writes, draws."""
    arguments = parsed()
    if arguments.list:
        print("\n".join(f"{name:<20} {variant.what}" for name, variant in VARIANTS.items()))
        return
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    runs, failed = read_runs(arguments.out), False
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        arguments.labels = arguments.labels or labels_of("ablation")
        check_labels("ethanol", arguments.limit, arguments.labels)
        for name, seed in ((name, seed) for seed in arguments.seeds for name in arguments.variants or VARIANTS):
            try:
                new = one_run(name, seed, arguments, runs)
            except RuntimeError as error:  # of a loss that was not finite
                new, failed = False, True
                print(f"{name}, seed {seed}: failed: {error}", file=sys.stderr, flush=True)
            if new:
                with written_whole(arguments.out) as path:
                    path.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the variants that are done are kept; run the same command again to go on")
    groups, picture = chosen_runs(runs, arguments), arguments.out.with_suffix(".png")
    plot(groups, picture)
    show(groups)
    print(f"\n{arguments.out}, {picture.name}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
