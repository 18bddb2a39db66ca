"""The training loop: resumable to the step, with a moving average of the weights that is validated and saved."""

from __future__ import annotations

import csv
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mlsemi import checkpoint
from mlsemi.engine import Engine
from mlsemi.files import refuse_unusable_folder, written_whole
from mlsemi.train.config import Config
from mlsemi.train.gauss_newton import GaussNewton
from mlsemi.train.objective import Objective
from mlsemi.train.optimizer import MuonAdamW
from mlsemi.train.setup import Progress, Report, set_up

STATE = "state.pt"
CURVES = "curves.csv"
_PARTS = {"head": ("energy_readout.",), "readout": ("energy_readout.", "pair_readout.", "atom_readout.", "spin_")}
_MAX_BAD_STEPS = 20

_LATER = ("method", "basis", "baseline_identity", "overlap_floor", "label_contents")
"""What the fingerprints in earlier states lack."""


def train(config: Config, *, start: str | Path | None = None, report: Report | None = None) -> Path:
    """Trains a model, or goes on where an earlier run into the same folder stopped.

    Writes into `config.output`: `model.safetensors` (the moving average), `best.safetensors` (the one with the lowest
    validation loss), `curves.csv`, and `state.pt` for resuming. The stored state belongs to one configuration and to
    the contents of its labels: only `steps`, `device` and `threads` may be changed between runs.

    On SIGINT (Ctrl-C) and SIGTERM the step is finished and the state saved; a second one ends it at once, and the state
    saved before stays.

    Args:
        config: what to train on what.
        start: checkpoint of a trained model to go on from; by default weights are fresh.
        report: called with the progress.

    Returns:
        Path of the checkpoint.

    Raises:
        ValueError: for labels that do not fit together or with the configuration, an output that can be no folder, or a
            folder of another run.
        RuntimeError: if the loss stops being finite, or no step could be taken.
        KeyboardInterrupt: after a signal, when the state is saved.
    """
    if config.training.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("[training] device = 'cuda', but torch finds no CUDA device here: set it to 'cpu'")
    refuse_unusable_folder(config.output, "output =")  # the folder is made when the labels are found to fit
    torch.manual_seed(config.training.seed)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    say = report or (lambda _: None)
    return fit(config, *set_up(config, start, say), report=say)


def fit(
    config: Config,
    header: checkpoint.Header,
    engine: Engine,
    objective: Objective,
    *,
    report: Report | None = None,
) -> Path:
    """The loop of `train`, with an objective that is set up already.

    Args:
        config: schedule and folder.
        header: what the checkpoint will say.
        engine: on the device where it is trained; its weights change.
        objective: what is minimized.
        report: called with the progress.
    """
    run = _Run(config, header, engine, objective)
    config.output.mkdir(parents=True, exist_ok=True)
    run.resume()
    with _stop_requests() as asked:
        run.loop(report or (lambda _: None), asked)
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


def trained_parameters(network: nn.Module, part: str) -> dict[str, nn.Parameter]:
    """Parameters of a part of a network (`mlsemi.train.config.TRAINED`), by their name."""
    return {name: p for name, p in network.named_parameters() if part == "all" or name.startswith(_PARTS[part])}


class _Run:
    """One training run: everything that a resumed run must get back."""

    def __init__(
        self,
        config: Config,
        header: checkpoint.Header,
        engine: Engine,
        objective: Objective,
    ) -> None:
        self.config, self.header, self.engine, self.objective = config, header, engine, objective
        settings = config.training
        self.parameters = trained_parameters(getattr(engine, objective.trains), settings.trained)
        self.optimizer = self._optimizer()
        self.average = {k: p.detach().clone() for k, p in self.parameters.items()}
        self.step = 0
        self.skipped = 0
        self.best = math.inf
        self.stale = 0
        self.seconds = 0.0
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def _optimizer(self) -> MuonAdamW | GaussNewton:
        settings, residuals = self.config.training, self.objective.residuals
        if settings.optimizer == "gauss-newton":
            if residuals is None or self.config.finetune is None:
                raise ValueError("optimizer = 'gauss-newton' is for fine-tuning, with [finetune]")
            return GaussNewton(self.parameters, residuals, damping=self.config.finetune.damping)
        return MuonAdamW(self.parameters, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay)

    def fingerprint(self) -> dict[str, Any]:
        """What must not change between a run and its continuation."""
        data = self.header.to_json()
        config = data["training"]["config"]
        # what a network does not have is left out, so that states of before there was such a thing still fit
        parts = {k: config[k] for k in ("baseline", "data", "loss", "finetune") if config.get(k)}
        if "finetune" in parts:
            parts["finetune"] = {k: v for k, v in parts["finetune"].items() if v != ""}
        return parts | {
            "method": [data["resolved_functional"], data["energy_method"]],
            "basis": data["basis_hash"],
            "baseline_identity": self.engine.baseline.identity,
            "overlap_floor": data["overlap_floor"],
            "label_contents": data["training"].get("label_contents_sha256"),
            "network": {k: v for k, v in config["network"].items() if v is not False},
            "labels": [data["training"][k] for k in ("labels_train", "labels_validation", "labels_sha256")],
            "training": {k: v for k, v in config["training"].items() if k not in ("steps", "device", "threads")},
            **{k: data["training"][k] for k in ("started_from",) if k in data["training"]},
        }

    def save_state(self) -> None:
        """Writes all that resuming needs; beside, then renamed."""
        state = {
            "fingerprint": json.dumps(self.fingerprint(), sort_keys=True),
            "parameters": {k: p.detach() for k, p in self.parameters.items()},
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "numbers": {
                "step": self.step,
                "skipped": self.skipped,
                "best": self.best,
                "stale": self.stale,
                "seconds": self.seconds,
            },
            "sums": self.sums,
            "counts": self.counts,
        }
        with written_whole(self.config.output / STATE) as beside:
            torch.save(state, beside)

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
        if changed := _changed(json.loads(state["fingerprint"]), self.fingerprint()):
            raise ValueError(
                f"{self.config.output} holds a run of another configuration or other labels: {', '.join(changed)} "
                "differ (only steps, device and threads may change): choose another output, or remove the folder"
            )
        with torch.no_grad():
            for key, value in state["parameters"].items():
                self.parameters[key].copy_(value)
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        numbers = state["numbers"]
        self.step, self.best, self.seconds = numbers["step"], numbers["best"], numbers["seconds"]
        self.skipped = numbers.get("skipped", 0)  # which earlier states do not have
        self.sums, self.counts, self.stale = state["sums"], state["counts"], numbers["stale"]
        _truncate_curves(self.config.output / CURVES, self.step)

    def loop(self, say: Report, asked: Callable[[], bool] = lambda: False) -> None:
        """Steps until done, or until `asked` to stop: then the state is saved and KeyboardInterrupt raised."""
        settings = self.config.training
        start, first = time.perf_counter() - self.seconds, self.step
        began, row, bad = time.perf_counter(), None, 0
        batches = self._batches()
        while self.step < settings.steps and not self._given_up() and not self._converged():
            if isinstance(self.optimizer, GaussNewton):
                terms = self._step_of_all(self.optimizer)
            else:
                terms = self._one_step(self.optimizer, next(batches))
            bad = 0 if terms else bad + 1
            self.skipped += 0 if terms else 1
            if bad > _MAX_BAD_STEPS:
                raise RuntimeError(
                    f"the loss was not finite for {bad} steps before step {self.step}: lower the learning rate"
                )
            self.seconds = time.perf_counter() - start
            due = self.step % settings.validate_every == 0 or self.step == settings.steps or self._converged()
            if due and self.step > self.skipped:  # weights that no step has changed are no model
                row = self._validate()
                self.save_state()
            rate = (self.step - first) / (time.perf_counter() - began)
            say(Progress("train", self.step, settings.steps, rate, row))
            if asked() and self.step < settings.steps:
                self.save_state()
                raise KeyboardInterrupt(f"step {self.step} is done and saved")

        if self.step == self.skipped:
            raise RuntimeError(
                f"none of the {self.step} steps was taken, since loss or gradient was not finite in any, and no model "
                "is written: look for values in the labels that are not finite, or lower the learning rate"
            )
        if settings.patience:
            best = self.config.output / "best.safetensors"
            checkpoint.copy(best, self.config.output / "model.safetensors")

    def _given_up(self) -> bool:
        """Whether the loss on the validation labels has not fallen for too long."""
        patience = self.config.training.patience
        return bool(patience) and self.stale >= patience

    def _converged(self) -> bool:
        return isinstance(self.optimizer, GaussNewton) and self.optimizer.converged

    def _batches(self) -> Iterator[list[Any]]:
        """Batches from the present step on: the order follows from seed and epoch alone."""
        samples = self.objective.samples
        size = min(self.config.training.batch, len(samples))
        per_epoch = len(samples) // size
        position = self.step
        while True:
            epoch, k = divmod(position, per_epoch)
            order = np.random.default_rng([self.config.training.seed, epoch]).permutation(len(samples))
            for chunk in range(k, per_epoch):
                chosen = order[chunk * size : (chunk + 1) * size]
                yield [samples[i] for i in chosen]
            position = (epoch + 1) * per_epoch

    def _learning_rate(self) -> float:
        settings = self.config.training
        if self.step < settings.warmup:
            return settings.learning_rate * (self.step + 1) / settings.warmup
        done = (self.step - settings.warmup) / max(1, settings.steps - settings.warmup)
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))

    def _step_of_all(self, optimizer: GaussNewton) -> dict[str, Tensor]:
        """One step of all samples, and their errors after it; the average is the weights themselves."""
        samples, size = self.objective.samples, self.config.training.batch
        optimizer.step(samples)
        self.step += 1
        self.average = {k: p.detach().clone() for k, p in self.parameters.items()}
        self.sums, self.counts, terms = {}, {}, {}
        with torch.no_grad():
            for start in range(0, len(samples), size):
                terms = self.objective.terms(samples[start : start + size])
                _add(self.sums, self.counts, terms)
        return terms

    def _one_step(self, optimizer: MuonAdamW, samples: Sequence[Any]) -> dict[str, Tensor]:
        """One optimizer step; an empty answer if loss or gradient was not finite and the step was skipped."""
        settings = self.config.training
        optimizer.set_learning_rate(self._learning_rate())
        optimizer.zero_grad()
        terms = self.objective.terms(samples)
        means = {name: errors.mean() for name, errors in terms.items() if len(errors)}
        loss = torch.as_tensor(self.objective.total(means))
        if loss.requires_grad:  # a batch may have none of the terms that have a weight
            loss.backward(inputs=list(self.parameters.values()))  # and not with respect to positions too
        norm = torch.nn.utils.clip_grad_norm_(self.parameters.values(), settings.clip)
        self.step += 1
        if not (bool(torch.isfinite(norm)) and bool(torch.isfinite(loss))):
            return {}
        optimizer.step()
        decay = min(settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)
        _add(self.sums, self.counts, terms)
        return terms

    def _averaged_state(self) -> dict[str, Tensor]:
        state = self.engine.state_dict()
        return {**state, **{f"{self.objective.trains}.{k}": v for k, v in self.average.items()}}

    def _validate(self) -> dict[str, float]:
        """Errors of the averaged weights on the validation labels; writes curves and checkpoints."""
        own = {k: p.detach().clone() for k, p in self.parameters.items()}
        with torch.no_grad():
            for key, p in self.parameters.items():
                p.copy_(self.average[key])
            errors = self._validation_errors()
            for key, p in self.parameters.items():
                p.copy_(own[key])
        weights = self.objective.weights
        if wrong := [name for name, error in errors.items() if weights[name] and not math.isfinite(error)]:
            raise RuntimeError(
                f"validation after step {self.step}: {', '.join(wrong)} not finite: lower the learning rate and choose "
                "another output; checkpoint and state of the validation before, if there was one, stay"
            )
        units = self.objective.units
        row: dict[str, float] = {"step": self.step, "seconds": round(self.seconds, 1), "rate": self._learning_rate()}
        row |= {f"train_{k}_{units[k]}": self.sums[k] / self.counts[k] if k in self.sums else math.nan for k in units}
        row |= {f"validation_{k}_{units[k]}": v for k, v in errors.items()}
        self.sums, self.counts = {}, {}
        loss = self.objective.total(errors)
        training = dict(self.header.training) | {
            "steps": self.step,
            "steps_skipped": self.skipped,
            "seconds": round(self.seconds, 1),
            "validation": {f"{k}_{units[k]}": round(v, 6) for k, v in errors.items() if math.isfinite(v)},
        }
        header = replace(self.header, training=training)
        checkpoint.save(self.config.output / "model.safetensors", header, self._averaged_state())
        self.stale += 1
        if loss < self.best:
            self.best, self.stale = loss, 0
            checkpoint.save(self.config.output / "best.safetensors", header, self._averaged_state())
        _append_curves(self.config.output / CURVES, row)
        return row

    def _validation_errors(self) -> dict[str, float]:
        """Mean of each term over the validation samples that have it."""
        samples, size = self.objective.validation, self.config.training.batch
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for start in range(0, len(samples), size):
            _add(sums, counts, self.objective.terms(samples[start : start + size]))
        return {k: v / counts[k] for k, v in sums.items()}


def _changed(stored: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of two fingerprints differs; what an earlier version did not store is not compared."""
    compared = [name for name in sorted({*stored, *now}) if name in stored or name not in _LATER]
    dumped = [{k: json.dumps(v, sort_keys=True) for k, v in fingerprint.items()} for fingerprint in (stored, now)]
    return [name for name in compared if dumped[0].get(name) != dumped[1].get(name)]


def _add(sums: dict[str, float], counts: dict[str, int], terms: Mapping[str, Tensor]) -> None:
    """Adds the errors of some samples to their sums and numbers."""
    for name, errors in terms.items():
        if not len(errors):
            continue
        sums[name] = sums.get(name, 0.0) + float(errors.detach().sum())
        counts[name] = counts.get(name, 0) + len(errors)


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
    with written_whole(path) as beside, beside.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=names)
        writer.writeheader()
        writer.writerows(rows)
