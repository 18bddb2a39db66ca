"""Calibration of a trained model: what its error estimates are worth, found on validation molecules.

Gives a checkpoint that holds, beside the model, further members for the estimate of the fast mode, the intervals of
`mlsemi.calibration`, and the correction of the corrected mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from mlsemi import checkpoint
from mlsemi.calibration import FEWEST, fit_interval
from mlsemi.checkpoint import Header
from mlsemi.data.store import LabelStore
from mlsemi.engine import Engine
from mlsemi.nn.network import FockNetwork
from mlsemi.reference.second_order import fit_correction
from mlsemi.train.evaluate import Report, evaluate, has_its_fock, select
from mlsemi.train.metrics import Row, paired


def with_members(path: str | Path, members: Sequence[str | Path]) -> tuple[Header, Engine]:
    """A model and independently trained members in one engine.

    Args:
        path: checkpoint of the model; members that it has already are dropped.
        members: checkpoints of the members; of the same method, basis, elements and baseline, of any size.

    Raises:
        ValueError: for members that do not belong to the model.
    """
    header, engine = checkpoint.load(path)
    if header.difference_to:
        raise ValueError(
            f"{path} has learned a difference to another method, which members do not have: they would say nothing of "
            "its energies"
        )
    loaded = [checkpoint.load(member) for member in members]
    for member, (other, _) in zip(members, loaded, strict=True):
        _check_member(header, other, path, member)
    pairs = zip((path, *members), (engine, *(e for _, e in loaded)), strict=True)
    _check_different([(path, each.network) for path, each in pairs])
    networks = tuple(other.network for other, _ in loaded)
    header = replace(header, members=networks, calibration={})
    tensors = {k: v for k, v in engine.state_dict().items() if not k.startswith("members.")}
    for k, (_, other) in enumerate(loaded):
        own = {name: v for name, v in other.state_dict().items() if name.startswith("network.")}
        tensors |= {f"members.{k}.{name.removeprefix('network.')}": v for name, v in own.items()}
    combined = checkpoint.engine_of(header, build=False)
    checkpoint.load_tensors(combined, {k: v for k, v in tensors.items() if v.numel()}, path=path)
    return header, combined.eval().requires_grad_(False)


def _check_different(networks: Sequence[tuple[str | Path, FockNetwork]]) -> None:
    """Refuses a network that is there twice: its distance from itself says nothing."""
    for (path, one), (other_path, other) in combinations(networks, 2):
        theirs = other.state_dict()
        if one.config == other.config and all(torch.equal(v, theirs[k]) for k, v in one.state_dict().items()):
            raise ValueError(
                f"member {other_path} has the same weights as {path}: give models that were trained by themselves"
            )


def _check_member(header: Header, other: Header, path: str | Path, member: str | Path) -> None:
    same = {
        "method": lambda h: h.resolved_functional,
        "basis": lambda h: h.basis.content_hash(),
        "elements": lambda h: h.elements,
        "baseline": lambda h: h.baseline,
        "overlap floor": lambda h: h.overlap_floor,
    }
    for what, of in same.items():
        if of(other) != of(header):
            raise ValueError(f"member {member} has another {what} than {path}: they must agree")
    for flag in ("charges", "open_shells"):
        if getattr(header.network, flag) and not getattr(other.network, flag):
            raise ValueError(
                f"member {member} does not see what {path} sees: train it with [network] {flag} = true on the same "
                "labels"
            )
    unknown = {tuple(state) for state in header.domain.get("states", [])} - {
        tuple(state) for state in other.domain.get("states", [])
    }
    if unknown:
        raise ValueError(
            f"member {member} was not trained on the pairs of charge and spin {sorted(unknown)}, which {path} covers: "
            "train it on the same labels"
        )
    if other.network.cutoff > header.network.cutoff:
        raise ValueError(
            f"member {member} has cutoff {other.network.cutoff:g} bohr, beyond that of {path}, "
            f"{header.network.cutoff:g}: it would not see the pairs that it needs"
        )


def calibrate(
    header: Header,
    engine: Engine,
    stores: Sequence[LabelStore],
    *,
    split: str = "validation",
    jobs: int = 1,
    report: Report | None = None,
) -> Header:
    """Fits intervals and correction on labels that the model was not trained on.

    Args:
        header: what the model says of itself.
        engine: the model, with its members.
        stores: label files.
        split: part of the split by molecule; "all" for labels without one.
        jobs: processes for the variational energies.
        report: shows progress.

    Returns:
        The header with its `calibration`.

    Raises:
        ValueError: for labels that do not belong to the model, or too few of them.
        ImportError: without PySCF.
    """
    parts: list[tuple[LabelStore, list[int]]] = []
    for store in stores:
        if not has_its_fock(header, store):
            raise ValueError(
                f"{store.path} has labels of {store.level}: calibrate on those of {header.level('variational')}, with "
                "Fock matrices"
            )
        parts.append((store, select(store, split=split)))
    if (count := sum(len(chosen) for _, chosen in parts)) < FEWEST:
        raise ValueError(f"{count} labels of split={split!r} are too few to calibrate with: {FEWEST} at least")
    rows: list[Row] = []
    for store, chosen in parts:
        rows += evaluate(header, engine, store, chosen, variational=True, jobs=jobs, report=report).rows
    found: dict[str, Any] = {"labels": len(rows), "molecules": len({row["name"] or row["formula"] for row in rows})}
    if engine.members:
        found["fast"] = fit_interval(*paired(rows, "energy_fast_error", "energy_fast_estimate")).to_json()
    errors, estimates = paired(rows, "energy_variational_error", "energy_variational_estimate")
    correction = fit_correction(errors, estimates)
    found["correction"] = asdict(correction)
    found["variational"] = fit_interval(errors, estimates).to_json()
    found["corrected"] = fit_interval(errors - correction.factor * estimates, estimates).to_json()
    return replace(header, calibration=found)
