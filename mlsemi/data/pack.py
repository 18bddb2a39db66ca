"""Compact label files: residuals F - F0 as integers, and how they are read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlsemi.data.store import LabelStore, Record, write_store
from mlsemi.engine import Engine
from mlsemi.molecule import Molecule

_CHUNK = 32
_ROUNDING = 1e-10
"""F0 is reproduced to this [Eh] on other machines and with other batches."""


def encoding_of(engine: Engine) -> str:
    """What label files call residuals to the baseline of an engine."""
    return f"residual:{engine.baseline.identity}"


def check_encoding(store: LabelStore, engine: Engine) -> None:
    """Refuses a label file whose Fock matrices cannot be restored with the baseline of an engine.

    Raises:
        ValueError: if it stores residuals to another baseline.
    """
    if not store.has_fock:
        raise ValueError(
            f"label file {store.path} holds {store.level}, energies without Fock matrices: use it for fine-tuning, or "
            "take labels of a mean-field method"
        )
    expected = encoding_of(engine)
    if store.fock_encoding not in ("full", expected):
        raise ValueError(
            f"label file {store.path} stores {store.fock_encoding!r}, but the baseline of this model is {expected!r}: "
            "use labels with whole Fock matrices, or the baseline that they were stored with"
        )


def whole_fock(store: LabelStore, stored: Tensor, baseline: Tensor) -> Tensor:
    """Fock matrices from what a label file stores.

    Args:
        store: the file.
        stored: its values, padded, shape (molecule, spin, ao, ao).
        baseline: F0 that the residuals refer to [Eh], shape (molecule, ao, ao).

    Returns:
        F [Eh], shape (molecule, spin, ao, ao).
    """
    if store.fock_encoding == "full":
        return stored
    return stored + baseline.unsqueeze(1)


def baseline_fock(engine: Engine, molecules: Sequence[Molecule]) -> Tensor:
    """F0 of molecules; shape (molecule, ao, ao) [Eh]."""
    with torch.no_grad():
        return engine.integrals(engine.batch(list(molecules))).baseline.fock


def pack_residuals(
    store: LabelStore,
    path: str | Path,
    engine: Engine,
    *,
    quantum: float,
    gradients: bool = False,
    report: Callable[[int, int], None] | None = None,
) -> float:
    """Writes a label file anew with F - F0 as integer multiples of a quantum, and checks it.

    Everything else is kept as it is, failed records too. Labelling starts from `store` again, not from the packed
    file.

    Args:
        store: labels with whole Fock matrices.
        path: the new file.
        engine: gives F0; its basis must be that of the labels.
        quantum: step of the stored values [Eh]; F is off by half of it at most.
        gradients: keep the nuclear gradients.
        report: called with the number of records done and of all, twice as many as there are: packed, then checked.

    Returns:
        Largest deviation of the restored F [Eh].

    Raises:
        ValueError: if the labels are packed already, are of another basis, or a quantum is not positive.
        RuntimeError: if the restored Fock matrices deviate by more than half a quantum; no file is left then.
    """
    path = Path(path)
    if not 0 < quantum < 1:
        raise ValueError(f"quantum={quantum} must lie between 0 and 1 Eh; 1e-7 to 1e-6 is sensible")
    if path.exists() and path.samefile(store.path):
        raise ValueError(f"{path} is the label file that is to be packed: choose another name")
    store.check(basis=engine.basis, fock_encoding="full")
    total = len(store) + store.n_failures
    say = report or (lambda done, of: None)
    keeps = gradients and bool(store.attrs.get("gradient", False))

    def residuals() -> Iterator[Record]:
        for rows in _chunks(total):
            records = [store.any_record(row) for row in rows]
            for record, baseline in zip(records, _baselines(engine, records), strict=True):
                yield _packed(record, baseline, keeps)
            say(rows[-1] + 1, 2 * total)

    attrs = {**store.attrs, "gradient": keeps}
    write_store(path, residuals(), attrs, fock_encoding=encoding_of(engine), fock_quantum=quantum)
    try:
        deviation = _largest_deviation(store, path, engine, lambda done: say(total + done, 2 * total))
        if not deviation <= 0.5 * quantum + _ROUNDING:
            raise RuntimeError(f"the packed F deviates by {deviation:.1e} Eh, more than half of quantum={quantum}")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return deviation


def _chunks(total: int) -> list[list[int]]:
    return [list(range(start, min(start + _CHUNK, total))) for start in range(0, total, _CHUNK)]


def _baselines(engine: Engine, records: Sequence[Record]) -> list[np.ndarray | None]:
    """F0 of each record, shape (ao, ao); None where there is no label."""
    labelled = [k for k, r in enumerate(records) if not r.failure]
    out: list[np.ndarray | None] = [None] * len(records)
    if labelled:
        padded = baseline_fock(engine, [records[k].molecule for k in labelled]).cpu().numpy()
        for k, matrix in zip(labelled, padded, strict=True):
            fock = records[k].observables.fock
            assert fock is not None
            out[k] = matrix[: fock.shape[-1], : fock.shape[-1]]
    return out


def _packed(record: Record, baseline: np.ndarray | None, keeps_gradient: bool) -> Record:
    observables = record.observables
    if baseline is not None:
        assert observables.fock is not None
        observables = replace(observables, fock=observables.fock - baseline)
    return replace(record, observables=observables if keeps_gradient else replace(observables, gradient=None))


def _largest_deviation(store: LabelStore, path: Path, engine: Engine, say: Callable[[int], None]) -> float:
    """Largest |F restored - F| of a packed file [Eh]."""
    largest = 0.0
    with LabelStore.open(path) as packed:
        if packed.keys() != store.keys():
            raise RuntimeError(f"the packed file {path} does not hold the records of {store.path}")
        for rows in _chunks(len(store) + store.n_failures):
            records = [packed.any_record(row) for row in rows]
            for row, record, baseline in zip(rows, records, _baselines(engine, records), strict=True):
                if baseline is not None:
                    fock = store.any_record(row).observables.fock
                    assert fock is not None and record.observables.fock is not None
                    largest = max(largest, float(np.abs(record.observables.fock + baseline - fock).max()))
            say(rows[-1] + 1)
    return largest
