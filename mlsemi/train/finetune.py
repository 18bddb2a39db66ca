"""Fine-tuning on observables: energies, gradients, dipoles and ionization energies of any method.

The Fock matrix of the new method does not exist; what is compared follows from the predicted one: the energy of the
fast mode, its gradient, the dipole of the density, minus the energy of the HOMO. The gradient of the loss reaches the
network through density and eigenproblem.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlsemi.baseline import BaselineTerms
from mlsemi.batch import Batch
from mlsemi.blocks import BlockMap
from mlsemi.data.store import LabelStore
from mlsemi.engine import Engine, Integrals, Prediction
from mlsemi.frames import BondFrames
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.properties.multipoles import dipole
from mlsemi.train.config import FinetuneConfig
from mlsemi.train.loss import gradient_differences
from mlsemi.train.objective import Objective
from mlsemi.train.statistics import refit_atomic_energies

UNITS = {"energy": "meh", "gradient": "meh_per_bohr", "dipole": "mebohr", "ionization": "meh", "fock": "meh"}
_MILLI = 1e3
_CHUNK = 16


@dataclass(frozen=True, eq=False)
class Target:
    """One label, and what depends only on its geometry.

    Attributes:
        molecule: the molecule.
        observables: of the label; some fields of `WANTED` are there.
        overlap: S, shape (ao, ao).
        moments: dipole integrals [bohr], shape (3, ao, ao).
        fock_0: F0 [Eh], shape (ao, ao).
        density_0: D0, shape (ao, ao).
        pair_energy: of the baseline [Eh].
        fock: that of the model that is fine-tuned [Eh], shape (spin, ao, ao), float32.
        energy: that of the model that is fine-tuned [Eh].
        homo: energy of its highest occupied orbital [Eh].
    """

    molecule: Molecule
    observables: Observables
    overlap: Tensor
    moments: Tensor
    fock_0: Tensor
    density_0: Tensor
    pair_energy: float
    fock: Tensor
    energy: float
    homo: float


WANTED: dict[str, Callable[[Observables], Any]] = {
    "energy": lambda o: o.energy,
    "gradient": lambda o: o.gradient,
    "dipole": lambda o: o.dipole,
    "ionization": lambda o: None if o.ionization_energies is None else o.ionization_energies[0],
}
"""What the terms of the loss compare with."""


def observables_objective(
    engine: Engine,
    stores: Sequence[LabelStore],
    parts: Sequence[tuple[list[int], list[int]]],
    settings: FinetuneConfig,
    device: str,
    *,
    report: Callable[[int], None] | None = None,
) -> Objective:
    """Prepares labels of observables, and refits atomic reference energies and zero of orbital energies to them.

    Args:
        engine: the model to be fine-tuned, on the CPU; its atomic energies and its `orbital_shift` change.
        stores: label files.
        parts: numbers of the labels to train and to validate on in each of them.
        settings: weights.
        device: where training will run.
        report: called with the number of labels prepared.

    Raises:
        ValueError: if no weight is set, or no label has what a weight asks for.
    """
    weights = {name: getattr(settings, name) for name in UNITS if getattr(settings, name)}
    if not set(weights) - {"fock"}:
        raise ValueError(f"[finetune] sets no weight: give one of {', '.join(WANTED)} a positive one")
    prepared: list[list[Target]] = [[], []]
    done = 0
    for store, part in zip(stores, parts, strict=True):
        for k in (0, 1):
            for start in range(0, len(part[k]), _CHUNK):
                prepared[k] += _targets(store, part[k][start : start + _CHUNK], engine)
                done += len(part[k][start : start + _CHUNK])
                if report is not None:
                    report(done)
    wanted = [name for name in WANTED if name in weights]
    for name in wanted:
        for part, of in zip(prepared, ("training", "validation"), strict=True):
            if not _having(part, name):
                raise ValueError(
                    f"[finetune] {name} has the weight {weights[name]:g}, but none of the {len(part)} labels for {of} "
                    "has it: set the weight to 0, or label with it"
                )
    prepared = [
        [t for t in part if any(WANTED[name](t.observables) is not None for name in wanted)] for part in prepared
    ]
    if "energy" in weights:
        having = [prepared[0][k] for k in _having(prepared[0], "energy")]
        missing = np.array([t.observables.energy for t in having], dtype=float) - np.array([t.energy for t in having])
        refit_atomic_energies(engine.network.energy_readout, engine.elements, [t.molecule for t in having], missing)
    if "ionization" in weights:
        shift = refit_orbital_shift(engine, prepared[0])
        prepared = [[replace(t, fock=t.fock + shift * t.overlap.float()) for t in part] for part in prepared]

    def terms(chosen: Sequence[Target]) -> dict[str, Tensor]:
        return observable_terms(engine, chosen, set(weights), device)

    def residuals(chosen: Sequence[Target]) -> Tensor:
        found = observable_differences(engine, chosen, set(weights) - {"fock"}, device)[0]
        of_sample: list[list[Tensor]] = [[] for _ in chosen]
        for name, parts in found.items():
            for k, values in zip(_having(chosen, name), parts, strict=True):
                of_sample[k].append(weights[name] * values)
        return torch.cat([values for parts in of_sample for values in parts])

    units = {name: UNITS[name] for name in weights}
    return Objective(prepared[0], prepared[1], weights, units, terms, residuals)


def _targets(store: LabelStore, indices: Sequence[int], engine: Engine) -> list[Target]:
    records = [store.record(i) for i in indices]
    batch = engine.batch([r.molecule for r in records])
    with torch.no_grad():
        exact = engine.integrals(batch, dipole=True)
        prediction = engine.predict(batch, exact)
        ionization = ionization_energy(prediction)
    moments, terms, out = exact.dipole, exact.baseline, []
    assert moments is not None
    for k, record in enumerate(records):
        n, spins = int(batch.n_ao[k]), 2 if record.molecule.spin else 1
        cut = (k, slice(n), slice(n))
        out.append(
            Target(
                record.molecule,
                record.observables,
                exact.overlap[cut].clone(),
                moments[k, :, :n, :n].clone(),
                terms.fock[cut].clone(),
                terms.density[cut].clone(),
                float(terms.energy[k]),
                prediction.state.fock[k, :spins, :n, :n].float().clone(),
                float(prediction.energy[k]),
                -float(ionization[k]),
            )
        )
    return out


def refit_orbital_shift(engine: Engine, targets: Sequence[Target]) -> float:
    """Shifts all orbital energies so that minus that of the HOMO is the ionization energy on average.

    Functionals have it too high by electronvolts. F + shift S has the same orbitals and density as F, so that nothing
    else changes.

    Returns:
        The change of `Engine.orbital_shift` [Eh].
    """
    having = [targets[k] for k in _having(targets, "ionization")]
    shift = -float(np.mean([WANTED["ionization"](t.observables) + t.homo for t in having]))
    engine.orbital_shift += shift
    return shift


def observable_terms(engine: Engine, targets: Sequence[Target], wanted: set[str], device: str) -> dict[str, Tensor]:
    """Errors of each molecule that has the quantity, each of shape (such molecules,).

    Returns:
        `energy` [mEh]: absolute error. `gradient` [mEh/bohr], `dipole` [1e-3 e bohr]: mean absolute error of the
        components. `ionization` [mEh]: absolute error of minus the energy of the HOMO. `fock` [mEh]: mean absolute
        deviation from the Fock matrix of the model that is fine-tuned.
    """
    differences, prediction = observable_differences(engine, targets, wanted, device)
    error = {
        name: torch.stack([values.abs().mean() for values in parts]) if parts else torch.zeros(0)
        for name, parts in differences.items()
    }
    if "fock" in wanted:
        error["fock"] = _MILLI * _from_base(prediction, targets, engine.batch([t.molecule for t in targets]))
    return error


def observable_differences(
    engine: Engine, targets: Sequence[Target], wanted: set[str], device: str
) -> tuple[dict[str, list[Tensor]], Prediction]:
    """What is predicted minus the labels, in the units of `UNITS`.

    Returns:
        For each quantity a vector of components for each molecule that has it, and the prediction.
    """
    batch = engine.batch([t.molecule for t in targets])
    exact = collate_integrals(targets, batch, engine)
    prediction = engine.predict(batch, exact)
    found: dict[str, list[Tensor]] = {}
    if "energy" in wanted:
        found["energy"] = _differences(prediction.energy, targets, "energy")
    if "gradient" in wanted:
        having = [targets[k] for k in _having(targets, "gradient")]
        labels = [torch.as_tensor(t.observables.gradient) for t in having]
        parts = gradient_differences(engine, [t.molecule for t in having], labels) if having else []
        found["gradient"] = [part.flatten() for part in parts]
    if "dipole" in wanted:
        assert exact.dipole is not None
        found["dipole"] = _differences(dipole(prediction.state.total_density, exact.dipole, batch), targets, "dipole")
    if "ionization" in wanted:
        found["ionization"] = _differences(ionization_energy(prediction), targets, "ionization")
    return found, prediction


def ionization_energy(prediction: Prediction) -> Tensor:
    """Minus the energy of the highest occupied orbital, over both spins [Eh], shape (molecule,)."""
    state = prediction.state
    occupied = state.mo_energy.masked_fill(state.mo_occ == 0, -torch.inf)
    return -occupied.flatten(1).amax(1)


def _having(targets: Sequence[Target], name: str) -> list[int]:
    """Which of the targets have a quantity."""
    return [k for k, target in enumerate(targets) if WANTED[name](target.observables) is not None]


def _differences(found: Tensor, targets: Sequence[Target], name: str) -> list[Tensor]:
    """A quantity minus its label [1e-3 a.u.], of the targets that have it, each of shape (component,)."""
    having = _having(targets, name)
    values = [np.atleast_1d(np.asarray(WANTED[name](targets[k].observables), dtype=float)) for k in having]
    labels = torch.as_tensor(np.array(values).reshape(len(having), -1)).to(found)
    return list(_MILLI * (found[having].reshape(labels.shape) - labels))


def _from_base(prediction: Prediction, targets: Sequence[Target], batch: Batch) -> Tensor:
    fock = prediction.state.fock
    base = _padded([t.fock.expand(fock.shape[1], -1, -1) for t in targets], fock.shape[-1]).to(fock)
    size = batch.n_ao.to(fock.dtype) ** 2 * fock.shape[1]
    return (fock - base).abs().sum((-3, -2, -1)) / size


def collate_integrals(targets: Sequence[Target], batch: Batch, engine: Engine) -> Integrals:
    """The exact part of a batch, from what was computed once for each target."""
    n, device = batch.ao_mask.shape[1], batch.positions.device
    stacked: Mapping[str, Tensor] = {
        name: _padded([getattr(t, name) for t in targets], n).to(device)
        for name in ("overlap", "moments", "fock_0", "density_0")
    }
    pair_energy = torch.tensor([t.pair_energy for t in targets], dtype=torch.float64, device=device)
    return Integrals(
        stacked["overlap"],
        stacked["moments"],
        BaselineTerms(stacked["fock_0"], stacked["density_0"], pair_energy),
        BlockMap.of(batch, engine.baseline.slots),
        BondFrames.of(batch, engine.network.l_max),
    )


def _padded(matrices: Sequence[Tensor], n: int) -> Tensor:
    """Matrices over AOs side by side, shape (molecule, ..., n, n)."""
    out = matrices[0].new_zeros(len(matrices), *matrices[0].shape[:-2], n, n)
    for k, matrix in enumerate(matrices):
        out[k, ..., : matrix.shape[-1], : matrix.shape[-1]] = matrix
    return out
