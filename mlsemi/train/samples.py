"""Labels prepared for training: what depends only on the geometry is computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.data.pack import check_encoding, whole_fock
from mlsemi.data.store import LabelStore, Record
from mlsemi.eigen import square_root
from mlsemi.engine import Engine
from mlsemi.molecule import Molecule
from mlsemi.state import n_spin_channels

_CHUNK = 16


@dataclass(frozen=True, eq=False)
class Sample:
    """One label. The spin axis has one entry for a closed shell, two for an open one.

    Attributes:
        molecule: the molecule.
        residual: F - F0 [Eh], shape (spin, ao, ao), float32.
        overlap: S, shape (ao, ao), float32.
        inverse_root: S^-1/2, shape (ao, ao), float32.
        mo_coeff: orbitals of the label, shape (spin, ao, mo), float32.
        energy_gradient: derivative of 1/2 Tr[(F0 + F)(D[F] - D0)] with respect to F, shape (spin, ao, ao), float32.
        n_occupied: number of occupied orbitals of each spin.
        repulsion: what the atomic energies have to give: E - 1/2 Tr[(F0 + F)(D - D0)] - pair energy [Eh].
        gradient: of the energy of the label [Eh/bohr], shape (atom, 3); None if it has none.

    Orbitals, energies and their derivatives are those that the engine makes of the F of the label: with an
    `overlap_floor`, those of the F without near dependencies, and the orbitals are filtered so that C^T dF C is the
    error that is left.
    """

    molecule: Molecule
    residual: Tensor
    overlap: Tensor
    inverse_root: Tensor
    mo_coeff: Tensor
    energy_gradient: Tensor
    n_occupied: tuple[int, ...]
    repulsion: float
    gradient: Tensor | None = None


@dataclass(frozen=True, eq=False)
class SampleBatch:
    """Samples side by side, padded; attributes as in `Sample` with a leading molecule axis, without the gradient.

    All have the same spin axis: with an open shell in the batch, a closed one has the same matrices twice, and half of
    `energy_gradient` for each.
    """

    batch: Batch
    residual: Tensor
    overlap: Tensor
    inverse_root: Tensor
    mo_coeff: Tensor
    energy_gradient: Tensor
    n_occupied: Tensor
    repulsion: Tensor

    def to(self, device: torch.device | str) -> SampleBatch:
        """The same on a device."""
        moved = {k: v.to(device) for k, v in vars(self).items()}
        return SampleBatch(**moved)


def prepare(
    store: LabelStore, indices: Sequence[int], engine: Engine, *, report: Callable[[int], None] | None = None
) -> list[Sample]:
    """Samples of some labels of a store.

    Args:
        store: label file; its Fock matrices may be whole, or residuals to the baseline of `engine`.
        indices: numbers of the labels.
        engine: gives S, F0, D0.
        report: called with the number of samples done.

    Raises:
        ValueError: if the store holds residuals to another baseline, or Fock matrices that do not fit the spin.
    """
    check_encoding(store, engine)
    samples: list[Sample] = []
    for start in range(0, len(indices), _CHUNK):
        samples += _prepare_chunk(store, indices[start : start + _CHUNK], engine)
        if report is not None:
            report(len(samples))
    return samples


def stored_fock(records: Sequence[Record], batch: Batch) -> Tensor:
    """What the records of labels store for F, padded, shape (molecule, spin, ao, ao).

    Raises:
        ValueError: for a record whose number of matrices does not fit its spin.
    """
    n_spins, n_padded = n_spin_channels(batch), batch.ao_mask.shape[1]
    out = torch.zeros(len(records), n_spins, n_padded, n_padded, dtype=torch.float64, device=batch.numbers.device)
    for k, record in enumerate(records):
        fock, mol = record.observables.fock, record.molecule
        assert fock is not None, "records of labels have one"
        if len(fock) != (2 if mol.spin else 1):
            raise ValueError(
                f"the label of {mol.name or mol.formula} has spin {mol.spin} and {len(fock)} Fock matrices: closed "
                "shells must be restricted, open shells unrestricted"
            )
        n = fock.shape[-1]
        out[k, :, :n, :n] = torch.from_numpy(fock)
    return out


def _prepare_chunk(store: LabelStore, indices: Sequence[int], engine: Engine) -> list[Sample]:
    records = [store.record(i) for i in indices]
    batch = engine.batch([r.molecule for r in records])
    with torch.no_grad():
        exact = engine.integrals(batch)
        terms = exact.baseline
        fock = whole_fock(store, stored_fock(records, batch), terms.fock)
        keep = engine.dependency_filter(batch, exact.overlap)
    with torch.enable_grad():
        fock.requires_grad_()
        state, electronic = engine.solve(fock, batch, exact, keep)
        (energy_gradient,) = torch.autograd.grad(electronic.sum(), fock)
    with torch.no_grad():
        energy = torch.tensor([r.observables.energy for r in records], dtype=torch.float64)
        repulsion = energy - electronic.detach() - terms.energy
        mo_coeff = state.mo_coeff.detach() if keep is None else keep @ state.mo_coeff.detach()
        eye = torch.diag_embed((~batch.ao_mask).double())
        inverse_root = torch.linalg.inv(square_root(exact.overlap, batch.ao_mask) + eye) - eye
        residual = fock.detach() - terms.fock.unsqueeze(1)
        n_occupied = (state.mo_occ > 0).sum(-1).tolist()
    out = []
    for k, record in enumerate(records):
        n, spins = int(batch.n_ao[k]), 2 if record.molecule.spin else 1
        out.append(
            Sample(
                record.molecule,
                residual[k, :spins, :n, :n].float().clone(),
                exact.overlap[k, :n, :n].float().clone(),
                inverse_root[k, :n, :n].float().clone(),
                mo_coeff[k, :spins, :n, :n].float().clone(),
                # what a closed shell has one matrix of may have been solved for both spins
                energy_gradient[k, :, :n, :n].unflatten(0, (spins, -1)).sum(1).float(),
                tuple(n_occupied[k][:spins]),
                float(repulsion[k]),
                None if record.observables.gradient is None else torch.as_tensor(record.observables.gradient),
            )
        )
    return out


def collate(samples: Sequence[Sample], engine: Engine) -> SampleBatch:
    """Samples as one padded batch on the CPU."""
    cutoff = engine.network.config.cutoff
    batch = Batch.of([s.molecule for s in samples], engine.basis, cutoff=cutoff)
    n, spins = batch.ao_mask.shape[1], n_spin_channels(batch)
    of_spin = np.zeros((3, len(samples), spins, n, n), dtype=np.float32)
    of_both = np.zeros((2, len(samples), n, n), dtype=np.float32)
    for k, sample in enumerate(samples):
        size = sample.overlap.shape[0]
        share = len(sample.residual) / spins
        for part, matrix in enumerate((sample.residual, sample.mo_coeff, share * sample.energy_gradient)):
            of_spin[part, k, :, :size, :size] = matrix.numpy()
        for part, matrix in enumerate((sample.overlap, sample.inverse_root)):
            of_both[part, k, :size, :size] = matrix.numpy()
    residual, mo_coeff, energy_gradient = torch.from_numpy(of_spin)
    overlap, inverse_root = torch.from_numpy(of_both)
    return SampleBatch(
        batch=batch,
        residual=residual,
        overlap=overlap,
        inverse_root=inverse_root,
        mo_coeff=mo_coeff,
        energy_gradient=energy_gradient,
        n_occupied=torch.tensor([s.n_occupied * (spins // len(s.n_occupied)) for s in samples]),
        repulsion=torch.tensor([s.repulsion for s in samples], dtype=torch.float64),
    )
