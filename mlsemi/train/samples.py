"""Labels prepared for training: what depends only on the geometry is computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.data.pack import check_encoding, whole_fock
from mlsemi.data.store import LabelStore
from mlsemi.eigen import solve_density, square_root
from mlsemi.energy import electronic_energy
from mlsemi.engine import Engine
from mlsemi.molecule import Molecule
from mlsemi.state import aufbau_occupations

_CHUNK = 16


@dataclass(frozen=True, eq=False)
class Sample:
    """One label.

    Attributes:
        molecule: the molecule.
        residual: F - F0 [Eh], shape (ao, ao), float32.
        inverse_root: S^-1/2, shape (ao, ao), float32.
        mo_coeff: orbitals of the label, shape (ao, mo), float32.
        n_occupied: number of occupied orbitals.
        repulsion: what the atomic energies have to give: E - 1/2 Tr[(F0 + F)(D - D0)] - pair energy [Eh].
    """

    molecule: Molecule
    residual: Tensor
    inverse_root: Tensor
    mo_coeff: Tensor
    n_occupied: int
    repulsion: float


@dataclass(frozen=True, eq=False)
class SampleBatch:
    """Samples side by side, padded; attributes as in `Sample` with a leading molecule axis."""

    batch: Batch
    residual: Tensor
    inverse_root: Tensor
    mo_coeff: Tensor
    n_occupied: Tensor
    repulsion: Tensor

    def to(self, device: torch.device | str) -> SampleBatch:
        """The same on a device."""
        moved = {k: v.to(device) for k, v in vars(self).items()}
        return SampleBatch(**moved)


def prepare(
    store: LabelStore, indices: Sequence[int], engine: Engine, *, report: Callable[[int], None] | None = None
) -> list[Sample]:
    """Samples of some labels of a store; those of open shells are refused.

    Args:
        store: label file; its Fock matrices may be whole, or residuals to the baseline of `engine`.
        indices: numbers of the labels.
        engine: gives S, F0, D0.
        report: called with the number of samples done.

    Raises:
        ValueError: if the store holds residuals to another baseline, or an open shell.
    """
    check_encoding(store, engine)
    samples: list[Sample] = []
    for start in range(0, len(indices), _CHUNK):
        samples += _prepare_chunk(store, indices[start : start + _CHUNK], engine)
        if report is not None:
            report(len(samples))
    return samples


def _prepare_chunk(store: LabelStore, indices: Sequence[int], engine: Engine) -> list[Sample]:
    records = [store.record(i) for i in indices]
    molecules = [r.molecule for r in records]
    batch = engine.batch(molecules)
    with torch.no_grad():
        exact = engine.integrals(batch)
        terms = exact.baseline
        value = torch.zeros_like(terms.fock)
        for k, record in enumerate(records):
            stored = record.observables.fock
            assert stored is not None, "records of labels have one"
            if stored.shape[0] != 1:
                raise ValueError(
                    f"label {indices[k]} ({molecules[k].name}) is an open shell: not covered by training yet"
                )
            n = stored.shape[-1]
            value[k, :n, :n] = torch.from_numpy(stored[0])
        fock = whole_fock(store, value, engine, batch, terms.fock)
        occupation = aufbau_occupations(batch.n_electrons, batch.spin, batch.n_ao, size=fock.shape[-1])
        orbitals, density = solve_density(fock, exact.overlap, occupation, batch.ao_mask)
        energy = torch.tensor([r.observables.energy for r in records], dtype=torch.float64)
        repulsion = energy - electronic_energy(terms.fock, fock, terms.density, density) - terms.energy
        eye = torch.diag_embed((~batch.ao_mask).double())
        inverse_root = torch.linalg.inv(square_root(exact.overlap, batch.ao_mask) + eye) - eye
        residual = fock - terms.fock
    out = []
    for k, molecule in enumerate(molecules):
        n = int(batch.n_ao[k])
        out.append(
            Sample(
                molecule,
                residual[k, :n, :n].float().clone(),
                inverse_root[k, :n, :n].float().clone(),
                orbitals.mo_coeff[k, :n, :n].float().clone(),
                int((occupation[k] > 0).sum()),
                float(repulsion[k]),
            )
        )
    return out


def collate(samples: Sequence[Sample], engine: Engine) -> SampleBatch:
    """Samples as one padded batch on the CPU."""
    cutoff = engine.network.config.cutoff
    batch = Batch.of([s.molecule for s in samples], engine.basis, cutoff=cutoff)
    n = batch.ao_mask.shape[1]
    padded = np.zeros((3, len(samples), n, n), dtype=np.float32)
    for k, sample in enumerate(samples):
        size = sample.residual.shape[0]
        for part, matrix in enumerate((sample.residual, sample.inverse_root, sample.mo_coeff)):
            padded[part, k, :size, :size] = matrix.numpy()
    residual, inverse_root, mo_coeff = torch.from_numpy(padded)
    return SampleBatch(
        batch=batch,
        residual=residual,
        inverse_root=inverse_root,
        mo_coeff=mo_coeff,
        n_occupied=torch.tensor([s.n_occupied for s in samples]),
        repulsion=torch.tensor([s.repulsion for s in samples], dtype=torch.float64),
    )
