"""The training loop: resumable to the step, with a moving average of the weights that is validated and saved."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import platform
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mlsemi
from mlsemi import checkpoint
from mlsemi.blocks import BlockMap
from mlsemi.data.smiles import side_of
from mlsemi.data.store import LabelStore, molecule_key
from mlsemi.engine import Engine
from mlsemi.frames import BondFrames
from mlsemi.molecule import Molecule
from mlsemi.train.config import Config
from mlsemi.train.loss import loss_terms, total_loss
from mlsemi.train.optimizer import MuonAdamW
from mlsemi.train.samples import Sample, SampleBatch, collate, prepare
from mlsemi.train.statistics import set_spin_statistics, set_statistics

STATE = "state.pt"
CURVES = "curves.csv"
LEFT_OUT = "labels of states that are not unique (degenerate frontier orbitals) are left out"
_MAX_BAD_STEPS = 20


@dataclass(frozen=True)
class Progress:
    """State of a run for display.

    Attributes:
        stage: "prepare" or "train".
        done: samples prepared, or steps done.
        total: of how many.
        rate: of these per second.
        row: the last row of the curves, or None.
        note: something to tell once.
    """

    stage: str
    done: int
    total: int
    rate: float
    row: dict[str, float] | None = None
    note: str = ""


Report = Callable[[Progress], None]


def train(config: Config, *, start: str | Path | None = None, report: Report | None = None) -> Path:
    """Trains a model, or goes on where an earlier run into the same folder stopped.

    Writes into `config.output`: `model.safetensors` (the moving average), `best.safetensors` (the one with the lowest
    validation loss), `curves.csv`, and `state.pt` for resuming. The stored state belongs to one configuration: only
    `steps`, `device` and `threads` may be changed between runs.

    On SIGINT (Ctrl-C) and SIGTERM the step is finished and the state saved; a second one ends it at once, and the state
    saved before stays.

    Args:
        config: what to train on what.
        start: checkpoint of a trained model to go on from; by default weights are fresh.
        report: called with the progress.

    Returns:
        Path of the checkpoint.

    Raises:
        ValueError: for labels that do not fit together or with the configuration, or a folder of another run.
        RuntimeError: if the loss stops being finite.
        KeyboardInterrupt: after a signal, when the state is saved.
    """
    if config.training.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("[training] device = 'cuda', but torch finds no CUDA device here: set it to 'cpu'")
    torch.manual_seed(config.training.seed)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    config.output.mkdir(parents=True, exist_ok=True)
    say = report or (lambda _: None)
    header, engine, samples, validation = _setup(config, start, say)
    run = _Run(config, header, engine, samples, validation)
    run.resume()
    with _stop_requests() as asked:
        run.loop(say, asked)
    return config.output / "model.safetensors"


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Turns the first SIGINT or SIGTERM into a request that the loop asks for between steps.

    An exception in the middle of a step would leave weights, moving average and optimizer of different steps behind.
    """
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _setup(
    config: Config, start: str | Path | None, say: Report
) -> tuple[checkpoint.Header, Engine, list[Sample], list[Sample]]:
    """Opens the labels, makes the engine, splits and prepares."""
    stores = [LabelStore.open(path) for path in config.data.labels]
    try:
        first = stores[0]
        for store in stores[1:]:
            store.check(basis=first.basis)
            if store.resolved_functional != first.resolved_functional:
                raise ValueError(
                    f"label files of different methods: {first.resolved_functional!r} in {config.data.labels[0]}"
                    f" and {store.resolved_functional!r}: train on labels of one method"
                )
        whole = [split_labels(store, config) for store in stores]
        parts = [without_degenerate(store, part) for store, part in zip(stores, whole, strict=True)]
        left_out = sum(len(p[k]) for p in whole for k in (0, 1)) - sum(len(p[k]) for p in parts for k in (0, 1))
        counts = [sum(len(part[k]) for part in parts) for k in (0, 1)]
        if not all(counts):
            without = f" (and {left_out} of states that are not unique)" if left_out else ""
            raise ValueError(
                f"the labels split into {counts[0]} for training and {counts[1]} for validation{without}: both parts "
                "need some"
            )
        if left_out:
            say(Progress("prepare", 0, 1, 0.0, note=f"{left_out} {LEFT_OUT}"))
        used = [store.molecule(i) for store, p in zip(stores, parts, strict=True) for i in (*p[0], *p[1])]
        _check_states(config, used)
        header = _header(config, first, used, counts)
        header = replace(header, training=dict(header.training) | {"labels_degenerate_left_out": left_out})
        header, engine = _begin(header, start)
        total, before, began = len(used), 0, time.perf_counter()
        prepared: list[list[Sample]] = [[], []]
        for store, part in zip(stores, parts, strict=True):
            for k in (0, 1):

                def show(done: int, offset: int = before) -> None:
                    rate = (offset + done) / (time.perf_counter() - began)
                    say(Progress("prepare", offset + done, total, rate))

                prepared[k] += prepare(store, part[k], engine, report=show)
                before += len(part[k])
    finally:
        for store in stores:
            store.close()
    with torch.no_grad():
        if start is None:
            set_statistics(engine, prepared[0])
        elif header.network.open_shells and not checkpoint.read_header(start).network.open_shells:
            set_spin_statistics(engine, prepared[0])
    return header, engine.to(config.training.device), prepared[0], prepared[1]


def _begin(header: checkpoint.Header, start: str | Path | None) -> tuple[checkpoint.Header, Engine]:
    """A fresh engine, or that of a trained model, with its means and scales, to go on from.

    Raises:
        ValueError: if that model is of another basis, baseline or size, or lacks an element of the labels.
    """
    if start is None:
        return header, checkpoint.engine_of(header)
    base, engine = checkpoint.load_extended(start, header.network)
    missing = sorted(set(header.elements) - set(base.elements))
    if missing:
        raise ValueError(f"the labels hold element(s) {missing}, which {start} does not cover: {list(base.elements)}")
    if base.baseline != header.baseline:
        raise ValueError(f"{start} has baseline {base.baseline!r}, the configuration {header.baseline!r}")
    if base.basis.content_hash(header.elements) != header.basis.content_hash(header.elements):
        raise ValueError(f"{start} is of basis {base.basis.name!r}, the labels of {header.basis.name!r}")
    provenance = {"name": base.name, "method": base.method, "training": dict(base.training)}
    training = dict(header.training) | {"started_from": provenance}
    return replace(header, basis=base.basis, elements=base.elements, training=training), engine.train()


def split_labels(store: LabelStore, config: Config) -> tuple[list[int], list[int]]:
    """Numbers of the training and of the validation labels of a store.

    The random split depends on seed and number of labels only; the split by molecule on the SMILES alone.

    Raises:
        ValueError: for labels to be split by molecule that are not named by their SMILES.
    """
    count = len(store) if config.data.limit is None else min(len(store), config.data.limit)
    if config.data.split == "molecule":
        where = [side_of(store.molecule(i)) for i in range(count)]
        parts = [i for i in range(count) if where[i] == "train"], [i for i in range(count) if where[i] == "validation"]
    else:
        order = np.random.default_rng(config.training.seed).permutation(count).tolist()
        held = max(1, round(config.data.validation * count))
        parts = sorted(order[held:]), sorted(order[:held])
    return parts


def without_degenerate(store: LabelStore, part: tuple[list[int], list[int]]) -> tuple[list[int], list[int]]:
    """The labels of a split whose state is unique."""
    return [i for i in part[0] if not store.is_degenerate(i)], [i for i in part[1] if not store.is_degenerate(i)]


def _check_states(config: Config, used: Sequence[Molecule]) -> None:
    """Refuses labels that the network could not tell apart.

    Raises:
        ValueError: for open shells, or molecules of unlike charge, that the network is not made for.
    """
    opened = sum(m.spin != 0 for m in used)
    if opened and not config.network.open_shells:
        raise ValueError(
            f"{opened} of {len(used)} labels are open shells: set [network] open_shells = true, or leave them out"
        )
    charges = sorted({m.charge for m in used})
    if len(charges) > 1 and not config.network.charges:
        raise ValueError(f"the labels have charges {charges}: set [network] charges = true, or leave the ions out")


def _header(config: Config, store: LabelStore, used: Sequence[Any], counts: list[int]) -> checkpoint.Header:
    elements = tuple(sorted({z for m in used for z in m.numbers.tolist()}))
    domain = {
        "charges": sorted({m.charge for m in used}),
        "spins": sorted({m.spin for m in used}),
        "states": sorted({(m.charge, m.spin) for m in used}),
        "max_atoms": max(m.n_atoms for m in used),
        "max_heavy_atoms": max(m.n_heavy_atoms for m in used),
        "formulas": sorted({m.formula for m in used}) if len({m.formula for m in used}) <= 20 else [],
    }
    training = {
        "labels_train": counts[0],
        "labels_validation": counts[1],
        "labels_sha256": hashlib.sha256("".join(sorted(molecule_key(m) for m in used)).encode()).hexdigest()[:16],
        "config": json.loads(json.dumps(asdict(replace(config, output=Path(config.output.name))), default=str)),
        "label_versions": str(store.attrs.get("versions", "")),
        "versions": {"mlsemi": mlsemi.__version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    training["config"]["data"]["labels"] = [Path(p).name for p in config.data.labels]
    return checkpoint.Header(
        name=config.name,
        method=store.method,
        resolved_functional=store.resolved_functional,
        basis=store.basis.subset(elements),
        elements=elements,
        baseline=config.baseline,
        overlap_floor=config.overlap_floor,
        network=config.network,
        domain=domain,
        training=training,
    )


class _Run:
    """One training run: everything that a resumed run must get back."""

    def __init__(
        self,
        config: Config,
        header: checkpoint.Header,
        engine: Engine,
        samples: Sequence[Sample],
        validation: Sequence[Sample],
    ) -> None:
        self.config, self.header, self.engine = config, header, engine
        self.samples, self.validation = samples, validation
        settings = config.training
        self.parameters = dict(engine.network.named_parameters())
        self.optimizer = MuonAdamW(
            self.parameters, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay
        )
        self.average = {k: p.detach().clone() for k, p in self.parameters.items()}
        self.step = 0
        self.best = math.inf
        self.seconds = 0.0
        self.sums: dict[str, float] = {}
        self.n_sums = 0

    def fingerprint(self) -> dict[str, Any]:
        """What must not change between a run and its continuation."""
        data = self.header.to_json()
        config = data["training"]["config"]
        # what a network does not have is left out, so that states of before there was such a thing still fit
        network = {k: v for k, v in config["network"].items() if v is not False}
        return {k: config[k] for k in ("baseline", "data", "loss")} | {
            "network": network,
            "labels": [data["training"][k] for k in ("labels_train", "labels_validation", "labels_sha256")],
            "training": {k: v for k, v in config["training"].items() if k not in ("steps", "device", "threads")},
            **{k: data["training"][k] for k in ("started_from",) if k in data["training"]},
        }

    def save_state(self) -> None:
        """Writes all that resuming needs; beside, then renamed."""
        path = self.config.output / STATE
        beside = path.with_suffix(".part")
        state = {
            "fingerprint": json.dumps(self.fingerprint(), sort_keys=True),
            "parameters": {k: p.detach() for k, p in self.parameters.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "numbers": {"step": self.step, "best": self.best, "seconds": self.seconds, "n_sums": self.n_sums},
            "sums": self.sums,
        }
        try:
            torch.save(state, beside)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)

    def resume(self) -> None:
        """Takes up the state of an earlier run, if there is one.

        Raises:
            ValueError: if it is of another configuration, or cannot be read.
        """
        path = self.config.output / STATE
        if not path.is_file():
            # curves without a state are those of a run that was killed before its first state, or was given up
            (self.config.output / CURVES).unlink(missing_ok=True)
            return
        try:
            state = torch.load(path, map_location=self.config.training.device, weights_only=True)
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"{path} cannot be read ({reason}): remove it to train from the start") from error
        if state["fingerprint"] != json.dumps(self.fingerprint(), sort_keys=True):
            raise ValueError(
                f"{self.config.output} holds a run of another configuration (only steps, device and threads may "
                "change): choose another output, or remove the folder"
            )
        with torch.no_grad():
            for key, value in state["parameters"].items():
                self.parameters[key].copy_(value)
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        numbers = state["numbers"]
        self.step, self.best, self.seconds = numbers["step"], numbers["best"], numbers["seconds"]
        self.sums, self.n_sums = state["sums"], numbers["n_sums"]
        _truncate_curves(self.config.output / CURVES, self.step)

    def loop(self, say: Report, asked: Callable[[], bool] = lambda: False) -> None:
        """Steps until done, or until `asked` to stop: then the state is saved and KeyboardInterrupt raised."""
        settings = self.config.training
        start, first = time.perf_counter() - self.seconds, self.step
        began, row, bad = time.perf_counter(), None, 0
        batches = self._batches()
        while self.step < settings.steps:
            terms = self._one_step(next(batches))
            bad = 0 if terms else bad + 1
            if bad > _MAX_BAD_STEPS:
                raise RuntimeError(
                    f"the loss was not finite for {bad} steps before step {self.step}: lower the learning rate"
                )
            self.seconds = time.perf_counter() - start
            if self.step % settings.validate_every == 0 or self.step == settings.steps:
                row = self._validate()
                self.save_state()
            rate = (self.step - first) / (time.perf_counter() - began)
            say(Progress("train", self.step, settings.steps, rate, row))
            if asked() and self.step < settings.steps:
                self.save_state()
                raise KeyboardInterrupt(f"step {self.step} is done and saved")

    def _batches(self) -> Iterator[SampleBatch]:
        """Batches from the present step on: the order follows from seed and epoch alone."""
        size = min(self.config.training.batch, len(self.samples))
        per_epoch = len(self.samples) // size
        position = self.step
        while True:
            epoch, k = divmod(position, per_epoch)
            order = np.random.default_rng([self.config.training.seed, epoch]).permutation(len(self.samples))
            for chunk in range(k, per_epoch):
                chosen = order[chunk * size : (chunk + 1) * size]
                yield collate([self.samples[i] for i in chosen], self.engine).to(self.config.training.device)
            position = (epoch + 1) * per_epoch

    def _learning_rate(self) -> float:
        settings = self.config.training
        if self.step < settings.warmup:
            return settings.learning_rate * (self.step + 1) / settings.warmup
        done = (self.step - settings.warmup) / max(1, settings.steps - settings.warmup)
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def _terms(self, samples: SampleBatch) -> dict[str, Tensor]:
        frames = BondFrames.of(samples.batch, self.engine.network.l_max)
        output = self.engine.network(samples.batch, frames)
        return loss_terms(output, BlockMap.of(samples.batch, self.engine.baseline.slots), samples)

    def _one_step(self, samples: SampleBatch) -> dict[str, Tensor]:
        """One optimizer step; an empty answer if the gradient was not finite and the step was left out."""
        settings = self.config.training
        self.optimizer.set_learning_rate(self._learning_rate())
        self.optimizer.zero_grad()
        terms = self._terms(samples)
        total_loss(terms, self.config.loss).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip)
        self.step += 1
        if not bool(torch.isfinite(norm)):
            return {}
        self.optimizer.step()
        decay = min(settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)
        for key, value in terms.items():
            self.sums[key] = self.sums.get(key, 0.0) + float(value.detach())
        self.n_sums += 1
        return terms

    def _averaged_state(self) -> dict[str, Tensor]:
        state = self.engine.state_dict()
        return {**state, **{f"network.{k}": v for k, v in self.average.items()}}

    def _validate(self) -> dict[str, float]:
        """Errors of the averaged weights on the validation labels; writes curves and checkpoints."""
        own = {k: p.detach().clone() for k, p in self.parameters.items()}
        with torch.no_grad():
            for key, p in self.parameters.items():
                p.copy_(self.average[key])
            sums: dict[str, float] = {}
            size = self.config.training.batch
            for start in range(0, len(self.validation), size):
                chunk = self.validation[start : start + size]
                terms = self._terms(collate(chunk, self.engine).to(self.config.training.device))
                for key, value in terms.items():
                    sums[key] = sums.get(key, 0.0) + float(value) * len(chunk)
            for key, p in self.parameters.items():
                p.copy_(own[key])
        errors = {k: v / len(self.validation) for k, v in sums.items()}
        row: dict[str, float] = {"step": self.step, "seconds": round(self.seconds, 1), "rate": self._learning_rate()}
        row |= {f"train_{k}_meh": v / max(self.n_sums, 1) for k, v in self.sums.items()}
        row |= {f"validation_{k}_meh": v for k, v in errors.items()}
        self.sums, self.n_sums = {}, 0
        loss = sum(getattr(self.config.loss, k) * v for k, v in errors.items())
        training = dict(self.header.training) | {
            "steps": self.step,
            "seconds": round(self.seconds, 1),
            "validation_meh": {k: round(v, 6) for k, v in errors.items()},
        }
        header = replace(self.header, training=training)
        checkpoint.save(self.config.output / "model.safetensors", header, self._averaged_state())
        if loss < self.best:
            self.best = loss
            checkpoint.save(self.config.output / "best.safetensors", header, self._averaged_state())
        _append_curves(self.config.output / CURVES, row)
        return row


def _append_curves(path: Path, row: dict[str, float]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if new:
            writer.writeheader()
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def _truncate_curves(path: Path, step: int) -> None:
    """Drops rows beyond a step: a run that was killed after writing them does them again."""
    if not path.exists():
        return
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        whole = [r for r in reader if None not in r.values()]
        names, rows = list(reader.fieldnames or []), [r for r in whole if int(r["step"]) <= step]
    beside = path.with_suffix(".part")
    with beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(beside, path)
