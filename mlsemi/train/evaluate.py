"""Evaluation of a model on labels: every metric, and what the parity plots show."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.calibration import spread
from mlsemi.checkpoint import Header
from mlsemi.data.pack import check_encoding, whole_fock
from mlsemi.data.smiles import side_of
from mlsemi.data.store import LabelStore, Record
from mlsemi.engine import Engine, Prediction
from mlsemi.molecule import Molecule, symbol_of
from mlsemi.properties.multipoles import dipole
from mlsemi.state import ElectronicState, solve_state
from mlsemi.train.evaluate_observables import observable_rows
from mlsemi.train.metrics import Report, Row, State, average, by_class, by_group, state_errors
from mlsemi.train.samples import stored_fock
from mlsemi.train.variational_energies import composite_energies, variational_energies

SPLITS = ("all", "train", "validation", "test")
_BATCH_AOS = 400
"""Orbitals of a batch together: larger ones are no faster on a CPU."""
_FOCK_SAMPLES = 200_000


@dataclass(eq=False)
class Parity:
    """Pairs of reference and prediction for the plots [a.u.], each a list of arrays of shape (2, n)."""

    fock: list[np.ndarray] = field(default_factory=list)
    mo_energy: list[np.ndarray] = field(default_factory=list)
    gap: list[np.ndarray] = field(default_factory=list)
    dipole: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation gives.

    Attributes:
        rows: numbers of each molecule [a.u.], in the order of the labels.
        parity: for the plots.
        metrics: averages over the molecules, by name with unit.
        classes: brief averages by number of heavy atoms; empty for a single formula.
        groups: averages of closed and open shells, neutral and charged molecules, where there are both.
        warnings: what the reader should know.
    """

    rows: list[Row]
    parity: Parity
    metrics: dict[str, float]
    classes: dict[str, dict[str, float]]
    groups: dict[str, dict[str, float]]
    warnings: tuple[str, ...]


def select(store: LabelStore, *, split: str = "all", limit: int | None = None) -> list[int]:
    """Numbers of the labels of a part of the split by molecule.

    Raises:
        ValueError: for an unknown part, labels that are not named by SMILES, or nothing selected.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} must be one of {', '.join(SPLITS)}")
    chosen = [i for i in range(len(store)) if split == "all" or side_of(store.molecule(i)) == split][:limit]
    if not chosen:
        raise ValueError(f"no label of {store.path} is in split={split!r}: it holds {len(store)} labels")
    return chosen


def has_its_fock(header: Header, store: LabelStore) -> bool:
    """Whether labels are to be compared with the Fock matrices of a model, or else with what it was fine-tuned to."""
    same = store.resolved_functional == header.resolved_functional
    return store.has_fock and (same or store.level != header.energy_method)


def check_labels(header: Header, store: LabelStore, molecules: Sequence[Molecule]) -> tuple[str, ...]:
    """Refuses labels that do not belong to a model; the AO order was checked on opening.

    Returns:
        Warnings about molecules outside of the domain of the model.

    Raises:
        ValueError: for another method or basis, or elements that the model does not cover.
    """
    if not store.has_fock and store.level != header.energy_method:
        own = header.energy_method or f"{header.method}/{header.basis.name}"
        raise ValueError(
            f"label file {store.path} holds energies of {store.level}, but those of model {header.name!r} are of "
            f"{own}: take labels of that level, or fine-tune the model on these"
        )
    with_fock = has_its_fock(header, store)
    if with_fock and store.resolved_functional != header.resolved_functional:
        raise ValueError(
            f"label file {store.path} was made with {store.method!r} ({store.resolved_functional}), but model "
            f"{header.name!r} is of {header.method!r} ({header.resolved_functional}): take labels of that method"
        )
    elements = {z for m in molecules for z in m.numbers.tolist()}
    lacking = sorted(elements - set(header.elements))
    if lacking:
        raise ValueError(
            f"label file {store.path} has {', '.join(map(symbol_of, lacking))}, but model {header.name!r} covers "
            f"{', '.join(map(symbol_of, header.elements))} only"
        )
    if with_fock and store.basis.content_hash(elements) != header.basis.content_hash(elements):
        raise ValueError(
            f"label file {store.path} is in basis {store.basis.name!r}, but model {header.name!r} in "
            f"{header.basis.name!r}{' (other functions)' if store.basis.name == header.basis.name else ''}: take "
            "labels in its basis"
        )
    found = []
    for name, values in (("charges", {m.charge for m in molecules}), ("spins", {m.spin for m in molecules})):
        known = header.domain.get(name)
        outside = sorted(values - set(known)) if known else []
        if outside:
            found.append(f"{name} {outside} were not among the labels that the model was trained on")
    return tuple(found)


def evaluate(
    header: Header,
    engine: Engine,
    store: LabelStore,
    indices: Sequence[int],
    *,
    variational: bool = False,
    jobs: int = 1,
    report: Report | None = None,
) -> Evaluation:
    """Compares a model with labels.

    Args:
        header: what the model says of itself.
        engine: the model.
        store: labels; their Fock matrices may be whole, or residuals to the baseline of the model.
        indices: which labels.
        variational: also E[D] of the reference method at the predicted density, by PySCF; with labels of the method
            whose difference to it the model has learned, the composite energy that follows.
        jobs: processes for that, each with one thread; with several, call it from a guarded main module.
        report: shows progress.

    Raises:
        ValueError: for labels that do not belong to the model.
        ImportError: for `variational` without PySCF.
    """
    with_fock = has_its_fock(header, store)
    if variational and not with_fock and header.difference_to != "variational":
        raise ValueError(
            f"the labels in {store.path} are of {store.level}: variational energies, which are of {header.method}, "
            "have nothing to be compared with there"
        )
    warnings = _reference_warnings(header) if variational else []
    if with_fock:
        check_encoding(store, engine)
    molecules = {i: store.molecule(i) for i in indices}
    used, left_out = _usable(header, store, indices, molecules)
    warnings += [*check_labels(header, store, [molecules[i] for i in used]), *left_out]
    say = report or (lambda stage, done, total, rate: None)
    if not with_fock:
        parity = Parity()
        rows = observable_rows(engine, store, used, molecules, parity.dipole, say=say)
        undefined = [row for row in rows if np.isnan(float(row.get("gradient_mae", 0.0)))]
        for row in undefined:
            del row["gradient_mae"]
        if undefined:
            warnings.append(f"{len(undefined)} gradients are left out: the predicted gap is closed, and they have none")
        if variational:
            chosen = [molecules[i] for i in used]
            warnings += _failures(composite_energies(header, engine, chosen, rows, jobs=jobs, say=say))
        return Evaluation(rows, parity, average(rows), by_class(rows), by_group(rows), tuple(warnings))
    rows, parity, densities = _predict_all(engine, store, used, molecules, keep=variational, say=say)
    if header.energy_method not in ("", store.level):  # fine-tuned to energies of another method than the labels'
        for row in rows:
            for name in ("energy_fast_error", "energy_fast_estimate"):
                row.pop(name, None)
        warnings.append(f"fast energies, of {header.energy_method}, are not compared with those of {store.level}")
    if variational:
        failed = variational_energies(header, [molecules[i] for i in used], densities, rows, jobs=jobs, say=say)
        warnings += _failures(failed)
        _correct_all(header, rows)
    metrics = average(rows, header.calibration)
    return Evaluation(rows, parity, metrics, by_class(rows), by_group(rows, header.calibration), tuple(warnings))


def _failures(failed: Sequence[str]) -> list[str]:
    """A warning of variational energies that failed, if any did."""
    return [f"{len(failed)} variational energies failed, the first: {failed[0]}"] if failed else []


def together(header: Header, parts: Sequence[Evaluation]) -> Evaluation:
    """Evaluations of one model on several label files as one."""
    if len(parts) == 1:
        return parts[0]
    rows = [row for part in parts for row in part.rows]
    parity = Parity()
    for name in vars(parity):
        getattr(parity, name).extend(pair for part in parts for pair in getattr(part.parity, name))
    warnings = tuple(dict.fromkeys(text for part in parts for text in part.warnings))
    return Evaluation(
        rows, parity, average(rows, header.calibration), by_class(rows), by_group(rows, header.calibration), warnings
    )


def _correct_all(header: Header, rows: Sequence[Row]) -> None:
    """Adds the errors of the corrected energies, if the model has a correction."""
    from mlsemi.reference.modes import stored_correction

    correction = stored_correction(header)
    if correction is None:
        return
    for row in rows:
        if "energy_variational_estimate" in row:
            estimate = float(row["energy_variational_estimate"])
            row["energy_corrected_error"] = float(row["energy_variational_error"]) - correction.factor * estimate
            row["energy_corrected_estimate"] = estimate


def _usable(
    header: Header, store: LabelStore, indices: Sequence[int], molecules: dict[int, Molecule]
) -> tuple[list[int], list[str]]:
    """The labels that can be compared with, and how many others there are."""
    unique = [i for i in indices if not store.is_degenerate(i)]
    used = [i for i in unique if header.network.open_shells or not molecules[i].spin]
    said = []
    if len(unique) < len(indices):
        said.append(
            f"{len(indices) - len(unique)} labels of states that are not unique (degenerate frontier orbitals) were "
            "left out"
        )
    if len(used) < len(unique):
        said.append(f"{len(unique) - len(used)} labels of open shells, which the model does not cover, were left out")
    if not used:
        raise ValueError(f"none of the {len(indices)} labels chosen from {store.path} can be used: {'; '.join(said)}")
    return used, said


def _reference_warnings(header: Header) -> list[str]:
    """Fails without PySCF before anything is computed; warns if a method's name means something else in this one."""
    try:
        from mlsemi.reference.mean_field import resolve_functional
    except ImportError as error:
        raise ImportError(f"variational energies need PySCF ({error}): install mlsemi[reference]") from error
    now = resolve_functional(header.method)
    if now == header.resolved_functional:
        return []
    return [f"{header.method} means {now} in this PySCF, but {header.resolved_functional} in the labels of the model"]


def _predict_all(
    engine: Engine,
    store: LabelStore,
    indices: Sequence[int],
    molecules: dict[int, Molecule],
    *,
    keep: bool,
    say: Report,
) -> tuple[list[Row], Parity, list[np.ndarray]]:
    """Rows, parity and, where `keep`, densities, in the order of `indices`."""
    n_ao = {i: sum(map(engine.basis.n_ao, molecules[i].numbers.tolist())) for i in indices}
    # open shells by themselves: they have two Fock matrices
    order = sorted(range(len(indices)), key=lambda k: (molecules[indices[k]].spin > 0, n_ao[indices[k]]))
    rows: list[Row] = [{} for _ in indices]
    densities = [np.zeros(0)] * len(indices)
    total = sum(n_ao[i] ** 2 for i in indices)
    parity, random = Parity(), np.random.default_rng(0)
    start, done = time.perf_counter(), 0
    while done < len(order):
        members: list[int] = []
        size = 0
        for k in order[done:]:
            size += n_ao[indices[k]]
            mixed = members and (molecules[indices[members[0]]].spin > 0) != (molecules[indices[k]].spin > 0)
            if members and (size > _BATCH_AOS or mixed):
                break
            members.append(k)
        records = [store.record(indices[k]) for k in members]
        for k, record, (row, density) in zip(
            members, records, _predict_batch(engine, store, records, parity, random, _FOCK_SAMPLES / total), strict=True
        ):
            labels: Row = {"label": indices[k], "index": record.index, "name": record.molecule.name}
            rows[k] = labels | row
            if keep:
                densities[k] = density
        done += len(members)
        say("predict", done, len(order), done / (time.perf_counter() - start))
    return rows, parity, densities


def _predict_batch(
    engine: Engine,
    store: LabelStore,
    records: Sequence[Record],
    parity: Parity,
    random: np.random.Generator,
    fraction: float,
) -> Iterator[tuple[Row, np.ndarray]]:
    """Row and density of each molecule of a batch."""
    batch = engine.batch([r.molecule for r in records])
    with torch.no_grad():
        prediction = engine(batch, dipole=True, with_members=True)
        # Fock matrices of the labels have their own zero, whatever a fine-tuning has made of that of the energies
        state, exact = prediction.state.shifted(-engine.orbital_shift), prediction.integrals
        reference = _reference_state(engine, store, records, batch, prediction)
        assert exact.dipole is not None
        moments = dipole(state.total_density, exact.dipole, batch)
    matrices = (state.fock, reference.fock, exact.baseline.fock, state.overlap, state.density)
    fock, fock_ref, baseline, overlap, density = (_numpy(m) for m in matrices)
    mo_energy, mo_coeff, mo_energy_ref, mo_coeff_ref, dipoles = (
        _numpy(x) for x in (state.mo_energy, state.mo_coeff, reference.mo_energy, reference.mo_coeff, moments)
    )
    n_occupied = (state.mo_occ > 0).sum(-1).tolist()
    assert prediction.member_energy is not None
    spreads = spread(_numpy(prediction.energy), _numpy(prediction.member_energy)) if len(engine.members) else None
    for k, record in enumerate(records):
        n, mol, obs = int(batch.n_ao[k]), record.molecule, record.observables
        cut, cut_both = (k, slice(n), slice(n)), (k, slice(None), slice(n), slice(n))
        energies = mo_energy_ref[k, :, :n]
        if obs.mo_energy is not None and obs.mo_energy.shape == energies.shape:
            energies = obs.mo_energy
        found = State(fock[cut_both], mo_energy[k, :, :n], mo_coeff[cut_both])
        wanted = State(fock_ref[cut_both], energies, mo_coeff_ref[cut_both])
        row: Row = {
            "formula": mol.formula,
            "charge": mol.charge,
            "spin": mol.spin,
            "n_atoms": mol.n_atoms,
            "n_heavy": mol.n_heavy_atoms,
            "n_ao": n,
            **state_errors(found, wanted, overlap[cut], n_occupied[k]),
            "baseline_h_mae": float(np.abs(baseline[cut] - fock_ref[cut_both]).mean()),
            "energy": float(obs.energy if obs.energy is not None else np.nan),
            "energy_fast": float(prediction.energy[k]),
        }
        row["energy_fast_error"] = float(row["energy_fast"]) - float(row["energy"])
        if spreads is not None:
            row["energy_fast_estimate"] = float(spreads[k])
        chosen = random.random((len(n_occupied[k]), n, n)) < fraction
        parity.fock.append(np.stack([wanted.fock[chosen], found.fock[chosen]]))
        for spin, occupied in enumerate(n_occupied[k]):
            parity.mo_energy.append(np.stack([wanted.mo_energy[spin], found.mo_energy[spin]])[:, : occupied + 1])
        ends = np.array([wanted.frontier(n_occupied[k]), found.frontier(n_occupied[k])])
        if np.isfinite(ends).all():
            parity.gap.append(np.diff(ends))
        if obs.dipole is not None:
            moment = dipoles[k]
            row["dipole_error"] = float(np.linalg.norm(moment - obs.dipole))
            row["dipole_norm_error"] = float(np.linalg.norm(moment) - np.linalg.norm(obs.dipole))
            parity.dipole.append(np.stack([obs.dipole, moment]))
        yield row, density[cut_both]


def _reference_state(
    engine: Engine, store: LabelStore, records: Sequence[Record], batch: Batch, prediction: Prediction
) -> ElectronicState:
    """States of the labelled Fock matrices."""
    baseline = prediction.integrals.baseline.fock
    fock = whole_fock(store, stored_fock(records, batch), baseline)
    return solve_state(fock, prediction.state.overlap, batch)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
