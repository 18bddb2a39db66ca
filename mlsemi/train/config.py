"""The training configuration: one TOML file."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from mlsemi.baseline import KINDS
from mlsemi.nn.network import NetworkConfig

SPLITS = ("random", "molecule")
OPTIMIZERS = ("muon", "gauss-newton")
TRAINED = ("head", "readout", "all")
"""Parts of a network that a training may change."""
DIFFERENCES = ("variational", "fast")
"""Energies of a model to which differences can be learned."""


@dataclass(frozen=True)
class DataConfig:
    """Which labels.

    Attributes:
        labels: label files, relative to the configuration file.
        split: "random": a share of the labels validates; "molecule": whole molecules by the fixed hash of their
            canonical SMILES (`mlsemi.data.split`), test molecules are left out altogether.
        validation: share of the labels that validate, for the random split.
        limit: use only the first so many labels of each file.
    """

    labels: tuple[str, ...]
    split: str = "random"
    validation: float = 0.1
    limit: int | None = None


@dataclass(frozen=True)
class LossConfig:
    """Weights of the parts of the loss, each a mean over molecules.

    Attributes:
        ao: mean absolute error of the elements of F [mEh].
        orthonormal: the same in the basis S^-1/2 F S^-1/2 [mEh].
        occupied_virtual: root mean square over the occupied-virtual block in the reference orbitals [mEh].
        energy: absolute error of the repulsive energy per atom [mEh].
        fast: absolute error of the energy of the fast mode per atom [mEh], to first order in the error of F. The
            energy hangs on few combinations of elements of F: a weight of a few hundredths balances their number.
        gradient: mean absolute error of the components of the gradient of the fast mode [mEh/bohr], over the labels
            that have one.
    """

    ao: float = 1.0
    orthonormal: float = 0.2
    occupied_virtual: float = 0.1
    energy: float = 0.2
    fast: float = 0.0
    gradient: float = 0.0


@dataclass(frozen=True)
class FinetuneConfig:
    """Training on observables instead of Fock matrices: weights of the parts of the loss, each a mean over molecules.

    Attributes:
        energy: absolute error of the total energy [mEh].
        gradient: mean absolute error of the components of the gradient [mEh/bohr].
        dipole: mean absolute error of the components of the dipole [1e-3 e bohr].
        ionization: absolute error of minus the energy of the HOMO against the lowest ionization energy [mEh].
        fock: mean absolute deviation of F from that of the model that is fine-tuned [mEh]: keeps it near.
        damping: for `gauss-newton`, of the squared distance from the weights of the model that is fine-tuned, beside
            the squares of all errors times their weights: keeps it near.
        difference_to: learn what the energies of the labels differ by from those of the model, "variational" or "fast"
            ones, by a network of its own; the Fock matrix stays. Of energy and gradient only; `trained` then speaks of
            that network. Empty: train through the Fock matrix.
    """

    energy: float = 0.0
    gradient: float = 0.0
    dipole: float = 0.0
    ionization: float = 0.0
    fock: float = 0.0
    damping: float = 0.01
    difference_to: str = ""


@dataclass(frozen=True)
class TrainingConfig:
    """How long and how.

    Attributes:
        optimizer: "muon": Muon and AdamW on batches; "gauss-newton": all labels in every step, by least squares, with
            [finetune] only. It ends when it has converged, after ten steps or so; batch, learning_rate, warmup,
            weight_decay, clip and ema are of "muon" only.
        steps: optimizer steps.
        batch: molecules in a step.
        learning_rate: peak of the schedule.
        warmup: steps of linear warm-up; a cosine to zero follows.
        weight_decay: decoupled, see `mlsemi.train.optimizer`.
        clip: largest norm of the gradient.
        ema: decay of the moving average of the weights, which is what is validated and saved.
        seed: of weights and order.
        validate_every: steps between validations (and resumable states).
        patience: stop after so many validations without a lower loss, and take the weights of the lowest; 0 trains
            for all `steps` and takes the last ones.
        trained: "head": the readout of the repulsive energy only, so that F stays; "readout": all readouts; "all": the
            whole network.
        device: "cpu" or "cuda".
        threads: torch threads; None leaves the default.
    """

    optimizer: str = "muon"
    steps: int = 10000
    batch: int = 8
    learning_rate: float = 3e-3
    warmup: int = 200
    weight_decay: float = 0.0
    clip: float = 1.0
    ema: float = 0.999
    seed: int = 0
    validate_every: int = 500
    patience: int = 0
    trained: str = "all"
    device: str = "cpu"
    threads: int | None = None


@dataclass(frozen=True)
class Config:
    """A training run.

    Attributes:
        name: name of the model.
        output: folder of the run, relative to the configuration file.
        baseline: kind of F0.
        overlap_floor: see `mlsemi.engine.Engine`; None: that of the model to start from, 0 without one.
        data: labels.
        network: size.
        named: sizes of the network that the file names; what is not named is that of the model to start from, if there
            is one. None: all of them are meant.
        loss: weights.
        training: schedule.
        finetune: weights for training on observables; None trains on Fock matrices, with `loss`.
    """

    name: str
    output: Path
    baseline: str
    overlap_floor: float | None
    data: DataConfig
    network: NetworkConfig = field(default_factory=NetworkConfig)
    named: frozenset[str] | None = None
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    finetune: FinetuneConfig | None = None


def read_config(path: str | Path) -> Config:
    """Reads a configuration; paths in it are relative to its folder.

    Raises:
        ValueError: if the file is missing or no TOML, or holds an unknown key or value.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such configuration: {path}")
    try:
        data = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error
    parts = {
        "data": DataConfig,
        "network": NetworkConfig,
        "loss": LossConfig,
        "training": TrainingConfig,
        "finetune": FinetuneConfig,
    }
    unknown = sorted(set(data) - set(parts) - {"name", "output", "baseline", "overlap_floor"})
    if unknown:
        raise ValueError(
            f"{path}: unknown key(s) {unknown}; known: name, output, baseline, overlap_floor, {', '.join(parts)}"
        )
    built: dict[str, Any] = {key: _section(kind, data.get(key, {}), key, path) for key, kind in parts.items()}
    if "finetune" not in data:
        built["finetune"] = None
    else:
        of_base = sorted({"loss", "network", "baseline", "overlap_floor"} & set(data))
        if of_base:
            raise ValueError(
                f"{path}: {', '.join(of_base)} beside [finetune]: its weights take the place of [loss], all else is "
                "that of the model given by --from; remove it"
            )
    folder = path.resolve().parent
    labels = tuple(str(folder / label) for label in built["data"].labels)
    built["data"] = DataConfig(**{**vars(built["data"]), "labels": labels})
    name = str(data.get("name", path.stem))
    config = Config(
        name=name,
        output=folder / str(data.get("output", f"runs/{name}")),
        baseline=str(data.get("baseline", "atoms")),
        overlap_floor=_number(data["overlap_floor"], "overlap_floor", path) if "overlap_floor" in data else None,
        named=frozenset(data.get("network", {})),
        **built,
    )
    _check(config, path)
    return config


def _number(value: Any, key: str, path: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise ValueError(f"{path}: {key} = {value!r} must be a number from 0 to below 1")
    return float(value)


def _section(kind: type, values: Any, key: str, path: Path) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{path}: {key!r} must be a table, [{key}]")
    known = {f.name: f for f in fields(kind)}
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ValueError(f"{path}: unknown key(s) {unknown} in [{key}]; known: {', '.join(known)}")
    if key == "data" and not isinstance(values.get("labels"), (list, str)):
        raise ValueError(f'{path}: [data] needs labels = ["FILE.h5", ...]')
    clean = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    if isinstance(clean.get("labels"), str):
        clean["labels"] = (clean["labels"],)
    for k, value in clean.items():
        kind_of = str(known[k].type)
        numeric = kind_of.startswith(("int", "float"))
        wanted = int if kind_of.startswith("int") else (int, float)
        if numeric and (isinstance(value, bool) or not isinstance(value, wanted)):
            raise ValueError(f"{path}: [{key}] {k} = {value!r} must be {'an integer' if wanted is int else 'a number'}")
        if numeric and isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{path}: [{key}] {k} = {value} must be finite")
        if kind_of == "bool" and not isinstance(value, bool):
            raise ValueError(f"{path}: [{key}] {k} = {value!r} must be true or false")
        if kind_of.startswith("tuple"):
            member = int if "int" in kind_of else str
            if not isinstance(value, tuple) or not value or not all(type(v) is member for v in value):
                raise ValueError(f"{path}: [{key}] {k} = {value!r} must be a list of {member.__name__}, not empty")
    return kind(**clean)


def _check(config: Config, path: Path) -> None:
    """Refuses values that cannot work."""
    if config.baseline not in KINDS:
        raise ValueError(f"{path}: baseline = {config.baseline!r} must be one of {', '.join(KINDS)}")
    if config.data.split not in SPLITS:
        raise ValueError(f"{path}: [data] split = {config.data.split!r} must be one of {', '.join(SPLITS)}")
    if not 0 < config.data.validation < 1:
        raise ValueError(f"{path}: [data] validation = {config.data.validation} must lie between 0 and 1")
    if config.data.limit is not None and config.data.limit <= 1:
        raise ValueError(f"{path}: [data] limit = {config.data.limit} must be 2 at least: one label validates")
    training = config.training
    if training.trained not in TRAINED:
        raise ValueError(f"{path}: [training] trained = {training.trained!r} must be one of {', '.join(TRAINED)}")
    if training.optimizer not in OPTIMIZERS:
        raise ValueError(
            f"{path}: [training] optimizer = {training.optimizer!r} must be one of {', '.join(OPTIMIZERS)}"
        )
    if training.optimizer == "gauss-newton":
        if config.finetune is None:
            raise ValueError(f"{path}: [training] optimizer = 'gauss-newton' is for fine-tuning, with [finetune]")
        if config.finetune.fock:
            raise ValueError(
                f"{path}: [finetune] fock = {config.finetune.fock:g} must be 0 with optimizer = 'gauss-newton': there "
                "damping keeps F near"
            )
        if config.finetune.damping <= 0:
            raise ValueError(f"{path}: [finetune] damping = {config.finetune.damping:g} must be positive")
    if config.finetune is not None and config.finetune.difference_to:
        if config.finetune.difference_to not in DIFFERENCES:
            raise ValueError(
                f"{path}: [finetune] difference_to = {config.finetune.difference_to!r} must be one of "
                f"{', '.join(DIFFERENCES)}"
            )
        if not config.finetune.energy > 0:
            raise ValueError(f"{path}: [finetune] difference_to needs a positive weight for energy")
        for key in ("dipole", "ionization", "fock"):
            if getattr(config.finetune, key):
                raise ValueError(
                    f"{path}: [finetune] {key} = {getattr(config.finetune, key):g} must be 0 with difference_to, "
                    "where the Fock matrix stays as it is"
                )
    for key, weights in (("loss", config.loss), ("finetune", config.finetune)):
        for name, weight in vars(weights).items() if weights else ():
            if not isinstance(weight, str) and weight < 0:
                raise ValueError(f"{path}: [{key}] {name} = {weight:g} must not be negative")
    if config.finetune is None and not any(vars(config.loss).values()):
        raise ValueError(
            f"{path}: [loss] sets all weights to 0: give one of {', '.join(vars(config.loss))} a positive one"
        )
    for key in ("warmup", "weight_decay", "seed", "patience"):
        if getattr(training, key) < 0:
            raise ValueError(f"{path}: [training] {key} = {getattr(training, key)} must not be negative")
    for key in ("steps", "batch", "learning_rate", "clip", "validate_every"):
        if getattr(training, key) <= 0:
            raise ValueError(f"{path}: [training] {key} = {getattr(training, key)} must be positive")
    if training.threads is not None and training.threads <= 0:
        raise ValueError(
            f"{path}: [training] threads = {training.threads} must be positive: leave it out for the default of torch"
        )
    if not 0 <= training.ema < 1:
        raise ValueError(f"{path}: [training] ema = {training.ema} must lie in [0, 1)")
    if training.device not in ("cpu", "cuda"):
        raise ValueError(f"{path}: [training] device = {training.device!r} must be cpu or cuda")
