"""Errors of a model on labels without Fock matrices: energies, gradients, dipoles, ionization energies."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from mlsemi.data.store import LabelStore, Record
from mlsemi.engine import Engine, Prediction
from mlsemi.molecule import Molecule
from mlsemi.properties.multipoles import dipole
from mlsemi.train.finetune import ionization_energy
from mlsemi.train.metrics import Report, Row

_BATCH = 8


def observable_rows(
    engine: Engine,
    store: LabelStore,
    indices: Sequence[int],
    molecules: Mapping[int, Molecule],
    dipoles: list[np.ndarray],
    *,
    say: Report,
) -> list[Row]:
    """Rows of labels, in the order of `indices`.

    Args:
        engine: the model.
        store: the labels.
        indices: which of them.
        molecules: their molecules.
        dipoles: takes pairs of reference and prediction, each of shape (2, 3) [e bohr].
        say: shows progress.

    Returns:
        As of `mlsemi.train.evaluate.evaluate`, with what the labels have: `energy_fast_error`, `gradient_mae`
        (nan where the predicted gap is closed), `dipole_error`, `dipole_norm_error`, `ionization_error` [a.u.].
    """
    order = sorted(indices, key=lambda i: (molecules[i].spin > 0, molecules[i].n_atoms))
    found: dict[int, Row] = {}
    start = time.perf_counter()
    for first in range(0, len(order), _BATCH):
        chosen = order[first : first + _BATCH]
        records = [store.record(i) for i in chosen]
        for i, record, row in zip(chosen, records, _rows(engine, records, dipoles), strict=True):
            found[i] = {"label": i, "index": record.index, "name": record.molecule.name} | row
        say("predict", len(found), len(order), len(found) / (time.perf_counter() - start))
    return [found[i] for i in indices]


def _rows(engine: Engine, records: Sequence[Record], dipoles: list[np.ndarray]) -> list[Row]:
    batch = engine.batch([record.molecule for record in records])
    with_gradient = any(record.observables.gradient is not None for record in records)
    with torch.set_grad_enabled(with_gradient):
        if with_gradient:
            batch = batch.with_positions(batch.positions.clone().requires_grad_())
        prediction = engine(batch, dipole=True)
        gradient = np.zeros((0, 3))
        if with_gradient:
            gradient = prediction.gradient(batch).cpu().numpy()
    moments = _moments(prediction, batch)
    ionization = ionization_energy(prediction).detach().cpu().numpy()
    rows: list[Row] = []
    first = 0
    for k, record in enumerate(records):
        mol, label = record.molecule, record.observables
        atoms = slice(first, first := first + mol.n_atoms)
        assert label.energy is not None, "labels have one"
        row: Row = {
            "formula": mol.formula,
            "charge": mol.charge,
            "spin": mol.spin,
            "n_atoms": mol.n_atoms,
            "n_heavy": mol.n_heavy_atoms,
            "n_ao": int(batch.n_ao[k]),
            "energy": label.energy,
            "energy_fast": float(prediction.energy[k].detach()),
        }
        row["energy_fast_error"] = float(row["energy_fast"]) - label.energy
        if label.gradient is not None:
            row["gradient_mae"] = float(np.abs(gradient[atoms] - label.gradient).mean())
        if label.dipole is not None:
            row["dipole_error"] = float(np.linalg.norm(moments[k] - label.dipole))
            row["dipole_norm_error"] = float(np.linalg.norm(moments[k]) - np.linalg.norm(label.dipole))
            dipoles.append(np.stack([label.dipole, moments[k]]))
        if label.ionization_energies is not None:
            row["ionization_error"] = float(ionization[k] - label.ionization_energies[0])
        rows.append(row)
    return rows


def _moments(prediction: Prediction, batch) -> np.ndarray:  # noqa: ANN001
    integrals = prediction.integrals.dipole
    assert integrals is not None
    with torch.no_grad():
        return dipole(prediction.state.total_density, integrals, batch).cpu().numpy()
