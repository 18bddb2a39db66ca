"""What a training starts from: labels opened, split and prepared, the engine, and what the model will say of itself."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mlsemi
from mlsemi import checkpoint
from mlsemi.data.smiles import side_of
from mlsemi.data.store import LabelStore, molecule_key
from mlsemi.domain import SEPARATE_ANGSTROM, distance_ranges, n_fragments
from mlsemi.engine import Engine
from mlsemi.molecule import Molecule
from mlsemi.nn.network import NetworkConfig
from mlsemi.train.config import Config
from mlsemi.train.difference import differences_objective
from mlsemi.train.finetune import observables_objective
from mlsemi.train.objective import Objective, fock_objective
from mlsemi.train.samples import Sample, prepare
from mlsemi.train.statistics import refit_to_samples, set_spin_statistics, set_statistics

_FEW = 20
"""Formulas that a model names: with more it is one of a kind of molecules, not of these."""

_LEARNED = ("energy", "fock", "gradient", "dipole", "ionization_energies")
"""What of a label trainings and fine-tuning compare with."""

LEFT_OUT = "labels of states that are not unique (degenerate frontier orbitals) are left out"


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


def set_up(config: Config, start: str | Path | None, say: Report) -> tuple[checkpoint.Header, Engine, Objective]:
    """Opens the labels, makes the engine, splits and prepares.

    Raises:
        ValueError: for labels that do not fit together, with the configuration, or with the model to start from.
    """
    with ExitStack() as stack:
        stores = [stack.enter_context(LabelStore.open(path)) for path in config.data.labels]
        first = stores[0]
        for store in stores[1:]:
            store.check(basis=first.basis)
            if store.resolved_functional != first.resolved_functional:
                raise ValueError(
                    f"label files of different methods: {first.resolved_functional!r} in {config.data.labels[0]}"
                    f" and {store.resolved_functional!r}: train on labels of one method"
                )
        if config.finetune is None and not first.has_fock:
            raise ValueError(
                f"the labels in {first.path} are of {first.level} and have no Fock matrices: fine-tune a model on "
                "them, with [finetune] in the configuration and --from MODEL"
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
        config = _of_base(config, start)
        _check_states(config, used)
        header = _header(config, first, used, counts)
        record = {"labels_degenerate_left_out": left_out, "label_contents_sha256": contents_hash(stores, parts)}
        header = replace(header, training=dict(header.training) | record)
        header, engine = _begin(header, start, finetune=config.finetune is not None)
        began, total = time.perf_counter(), len(used)

        def show(done: int) -> None:
            say(Progress("prepare", done, total, done / (time.perf_counter() - began)))

        device = config.training.device
        if config.finetune is not None:
            header = replace(header, energy_method=first.level)
            if config.finetune.difference_to:
                assert start is not None, "fine-tuning has one"
                header = _with_difference(header, start, config.finetune.difference_to)
                settings, method = config.finetune, header.method
                objective = differences_objective(engine, stores, parts, settings, device, method=method, report=show)
            else:
                objective = observables_objective(engine, stores, parts, config.finetune, device, report=show)
            return replace(header, orbital_shift=engine.orbital_shift), engine.to(device), objective
        prepared = _prepare(engine, stores, parts, show)
        level = first.level
    with torch.no_grad():
        if start is None:
            set_statistics(engine, prepared[0])
        else:
            base = checkpoint.read_header(start)
            if header.network.open_shells and not base.network.open_shells:
                set_spin_statistics(engine, prepared[0])
            finetuned = base.energy_method not in ("", level)
            if finetuned or base.resolved_functional != header.resolved_functional:
                refit_to_samples(engine, prepared[0])
                note = f"{start} has energies of {base.level()}, the labels of {level}: atomic energies are refitted"
                say(Progress("prepare", total, total, 0.0, note=note))
    return header, engine.to(device), fock_objective(engine, *prepared, config.loss, device)


def contents_hash(stores: Sequence[LabelStore], parts: Sequence[tuple[list[int], list[int]]]) -> str:
    """Hash of all that labels hold to be trained on, in their order: 16 hexadecimal digits.

    Args:
        stores: label files.
        parts: numbers of the labels to train and to validate on in each of them.
    """
    digest = hashlib.sha256()
    for store, part in zip(stores, parts, strict=True):
        for index in (*part[0], *part[1]):
            label = store.record(index)
            digest.update(label.key.encode())
            for name in _LEARNED:
                value = getattr(label.observables, name)
                array = np.asarray([] if value is None else value, dtype="<f8")
                digest.update(f" {name} {array.shape} ".encode() + array.tobytes())
    return digest.hexdigest()[:16]


def _prepare(
    engine: Engine,
    stores: Sequence[LabelStore],
    parts: Sequence[tuple[list[int], list[int]]],
    show: Callable[[int], None],
) -> tuple[list[Sample], list[Sample]]:
    """Samples to train and to validate on."""
    prepared: tuple[list[Sample], list[Sample]] = ([], [])
    before = 0
    for store, part in zip(stores, parts, strict=True):
        for k in (0, 1):
            prepared[k].extend(prepare(store, part[k], engine, report=lambda done, at=before: show(at + done)))
            before += len(part[k])
    return prepared


def _of_base(config: Config, start: str | Path | None) -> Config:
    """The configuration; what it does not name of network and filter is that of the model to start from.

    For fine-tuning all of the network, F0 and filter are that model's.

    Raises:
        ValueError: for fine-tuning, or training of a part, without one.
    """
    if start is None:
        if config.finetune is not None:
            raise ValueError("[finetune] needs a trained model to start from: give one with --from")
        if config.training.trained != "all":
            raise ValueError(
                f"[training] trained = {config.training.trained!r} is for a part of a trained model: give one with "
                "--from"
            )
        return replace(config, overlap_floor=config.overlap_floor or 0.0)
    base = checkpoint.read_header(start)
    if config.finetune is None:
        named = {f.name for f in fields(NetworkConfig)} if config.named is None else config.named
        network = replace(base.network, **{name: getattr(config.network, name) for name in named})
        floor = base.overlap_floor if config.overlap_floor is None else config.overlap_floor
        return replace(config, network=network, overlap_floor=floor)
    return replace(config, network=base.network, baseline=base.baseline, overlap_floor=base.overlap_floor)


def _with_difference(header: checkpoint.Header, start: str | Path, to: str) -> checkpoint.Header:
    """With an energy network: Fock matrices, and what is known of the errors that follow from them, are the base's.

    Raises:
        ValueError: if the energies of the base are of another method than its Fock matrices, or that method is another
            one in this PySCF.
        ImportError: without PySCF, for the difference to variational energies.
    """
    base = checkpoint.read_header(start)
    if base.energy_method:
        raise ValueError(
            f"{start} was fine-tuned to {base.energy_method}: start from the model that it was made from, whose fast "
            f"energies are of {base.level('variational')}"
        )
    if to == "variational":
        try:
            from mlsemi.reference.mean_field import resolve_functional
        except ModuleNotFoundError as error:
            raise ImportError(
                f"the difference to variational energies needs PySCF ({error}): install mlsemi[reference]"
            ) from error
        now = resolve_functional(base.method)
        if now != base.resolved_functional:
            raise ValueError(
                f"{base.method} means {now} in this PySCF, but the labels of {start} have {base.resolved_functional}: "
                "variational energies would be of another method"
            )
    kept = {k: v for k, v in base.calibration.items() if k in ("correction", "variational", "corrected")}
    return replace(header, difference_to=to, difference_domain=header.domain, domain=base.domain, calibration=kept)


def _begin(header: checkpoint.Header, start: str | Path | None, *, finetune: bool) -> tuple[checkpoint.Header, Engine]:
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
    if not finetune:
        if base.baseline != header.baseline:
            raise ValueError(f"{start} has baseline {base.baseline!r}, the configuration {header.baseline!r}")
        if base.basis.content_hash(header.elements) != header.basis.content_hash(header.elements):
            raise ValueError(f"{start} is of basis {base.basis.name!r}, the labels of {header.basis.name!r}")
    engine.overlap_floor = header.overlap_floor
    provenance = {"name": base.name, "method": base.method, "training": dict(base.training)}
    training = dict(header.training) | {"started_from": provenance}
    header = replace(header, basis=base.basis, elements=base.elements, training=training)
    if finetune:  # Fock matrices stay those of the method of the base, in its basis; the energies change
        header = replace(header, method=base.method, resolved_functional=base.resolved_functional)
    else:
        engine.orbital_shift = 0.0
    return header, engine.train()


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
    formulas = {m.formula for m in used}
    few = len(formulas) <= _FEW
    domain = {
        "charges": sorted({m.charge for m in used}),
        "spins": sorted({m.spin for m in used}),
        "states": sorted({(m.charge, m.spin) for m in used}),
        "min_atoms": min(m.n_atoms for m in used),
        "max_atoms": max(m.n_atoms for m in used),
        "max_heavy_atoms": max(m.n_heavy_atoms for m in used),
        "max_fragments": max(n_fragments(m, tolerance_angstrom=SEPARATE_ANGSTROM) for m in used),
        "formulas": sorted(formulas) if few else [],
        "distances": distance_ranges(used) if few else {},
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
        overlap_floor=config.overlap_floor or 0.0,
        network=config.network,
        domain=domain,
        training=training,
    )
