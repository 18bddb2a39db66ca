"""Means and scales of the targets, from the training labels: what the readouts start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlsemi.blocks import BlockMap
from mlsemi.energy import atom_sums
from mlsemi.engine import Engine
from mlsemi.frames import BondFrames
from mlsemi.molecule import Molecule
from mlsemi.nn.charges import potential_matrix
from mlsemi.nn.readout import AtomReadout, EnergyReadout, PairReadout
from mlsemi.train.samples import Sample, SampleBatch, collate

_BIN = 0.4
_FLOOR = 1e-6
"""Scales are at least this [Eh]: smaller components are noise of the labels."""


def set_statistics(engine: Engine, samples: Sequence[Sample], *, chunk: int = 32) -> None:
    """Sets means and scales of the readouts of an engine from samples.

    Pair components: for each ordered element pair and path the root mean square against the distance, as
    exp(a + b d + c d^2). Atom components: root mean square about the mean block of the element. Energies: atomic
    references by least squares, and the spread of what is left. The potential of the excess charge of ions, as it is
    before the training, is taken off first.
    """
    network = engine.network
    found = _components(engine, samples, _mean_of_spins, chunk)
    _set_pair_statistics(network.pair_readout, found)
    _set_atom_statistics(network.atom_readout, found.diagonal)
    _set_energy_statistics(engine, samples)
    if network.config.open_shells:
        set_spin_statistics(engine, samples, chunk=chunk)


def set_spin_statistics(engine: Engine, samples: Sequence[Sample], *, chunk: int = 32) -> None:
    """Sets the scales of the readouts of (F_alpha - F_beta) / 2 from the samples of open shells; means are zero.

    Raises:
        ValueError: if there is no open shell.
    """
    network = engine.network
    opened = [s for s in samples if s.molecule.spin]
    if not opened:
        raise ValueError("[network] open_shells = true, but no label to train on is open-shell: set it to false")
    found = _components(engine, opened, _difference_of_spins, chunk)
    _set_pair_statistics(network.spin_pair_readout, found)
    network.spin_atom_readout.scale.fill_(_FLOOR)
    _set_atom_statistics(network.spin_atom_readout, found.diagonal, with_mean=False)


def _mean_of_spins(engine: Engine, group: SampleBatch) -> Tensor:
    residual = group.residual.double().mean(1)
    if not engine.network.config.charges or not group.batch.charge.any():
        return residual
    scalars = torch.zeros(len(group.batch.numbers), engine.network.config.natural, dtype=engine.network.dtype)
    element = engine.baseline.slots.element_index(group.batch.numbers)
    potential = engine.network.charge_potential(scalars, element, group.batch).double()
    return residual - potential_matrix(potential, group.overlap.double(), group.batch)


def _difference_of_spins(engine: Engine, group: SampleBatch) -> Tensor:
    return 0.5 * (group.residual[:, 0] - group.residual[:, 1]).double()


@dataclass(frozen=True, eq=False)
class _Components:
    """What the blocks of a target are made of.

    Attributes:
        squares: of the pair components, summed, shape (ordered element pair, bin of distance, path).
        counts: how many there are, shape (ordered element pair, bin of distance).
        span: least and largest distance [bohr], shape (ordered element pair, 2); of pairs that there are none of
            (inf, -inf).
        diagonal: atom blocks of each element, shape (atom, slot, slot).
    """

    squares: Tensor
    counts: Tensor
    span: Tensor
    diagonal: list[Tensor]


def _components(
    engine: Engine, samples: Sequence[Sample], target: Callable[[Engine, SampleBatch], Tensor], chunk: int
) -> _Components:
    network = engine.network
    n = len(engine.elements)
    pair_matrix, pair_path = network.pair_readout.matrix.double(), network.pair_readout.path
    n_paths = int(pair_path.max()) + 1
    n_bins = int(network.config.cutoff / _BIN) + 1
    squares = torch.zeros(n * n, n_bins, n_paths, dtype=torch.float64)
    counts = torch.zeros(n * n, n_bins, dtype=torch.float64)
    least, largest = torch.full((2, n * n), torch.inf, dtype=torch.float64) * torch.tensor([[1.0], [-1.0]])
    diagonal: list[list[Tensor]] = [[] for _ in range(n)]
    share = torch.bincount(pair_path, minlength=n_paths).double()
    for start in range(0, len(samples), chunk):
        group = collate(samples[start : start + chunk], engine)
        batch = group.batch
        blocks = BlockMap.of(batch, engine.baseline.slots).split(target(engine, group), len(batch.numbers))
        frames = BondFrames.of(batch, network.l_max)
        element = engine.baseline.slots.element_index(batch.numbers)
        for row in range(n):
            diagonal[row].append(blocks.diagonal[element == row])
        rotation = frames.slot_rotation(engine.baseline.slots)
        components = (rotation.mT @ blocks.off_diagonal @ rotation).flatten(1) @ pair_matrix.mT
        by_path = torch.zeros(len(components), n_paths, dtype=torch.float64)
        by_path.index_add_(1, pair_path, components**2)
        pair_type = element[batch.pair[0]] * n + element[batch.pair[1]]
        least.scatter_reduce_(0, pair_type, frames.distance, "amin")
        largest.scatter_reduce_(0, pair_type, frames.distance, "amax")
        place = pair_type * n_bins + (frames.distance / _BIN).long()
        squares.view(-1, n_paths).index_add_(0, place, by_path / share)
        counts.view(-1).index_add_(0, place, torch.ones(len(place), dtype=torch.float64))
    return _Components(squares, counts, torch.stack([least, largest], 1), [torch.cat(d) for d in diagonal])


def _set_pair_statistics(readout: PairReadout, found: _Components) -> None:
    readout.log_scale.copy_(_fit_log_scale(found.squares, found.counts))
    seen = found.counts.sum(1) > 0
    readout.span[seen] = found.span[seen].to(readout.span.dtype)


def _fit_log_scale(squares: Tensor, counts: Tensor) -> Tensor:
    """Coefficients (a, b, c) of log rms = a + b d + c d^2, shape (type, path, 3).

    Weighted least squares over the bins with a weak preference for b = -1 / bohr and c = 0, which decides where there
    are few distances; c is never positive.
    """
    n_types, n_bins, n_paths = squares.shape
    distance = (np.arange(n_bins) + 0.5) * _BIN
    out = np.zeros((n_types, n_paths, 3))
    out[..., 0] = np.log(_FLOOR)
    for t in range(n_types):
        weight = counts[t].numpy()
        used = weight > 0
        if not used.any():
            continue
        mean = squares[t].numpy()[used] / weight[used, None]
        target = 0.5 * np.log(mean + _FLOOR**2)
        root = np.sqrt(np.minimum(weight[used], 50.0))
        d = distance[used]
        for terms in (3, 2):
            design = np.stack([d**k for k in range(terms)], axis=1) * root[:, None]
            prior = np.diag([0.0, 0.5, 3.0][:terms])
            wanted = np.zeros((terms, n_paths))
            wanted[1] = -0.5
            lhs = np.vstack([design, prior])
            solution, *_ = np.linalg.lstsq(lhs, np.vstack([target * root[:, None], wanted]), rcond=None)
            if terms == 3:
                out[t] = solution.T
                rising = solution[2] > 0
            else:
                out[t, rising] = np.concatenate([solution.T, np.zeros((n_paths, 1))], axis=1)[rising]
    return torch.from_numpy(out)


def _set_atom_statistics(readout: AtomReadout, blocks: Sequence[Tensor], *, with_mean: bool = True) -> None:
    matrix, path = readout.matrix.double(), readout.path
    # only L = 0 may have a mean: those are the first components, one for each path
    n_scalar = readout.counts[0][0]
    for row, block in enumerate(blocks):
        if not len(block):
            continue
        components = block.flatten(1) @ matrix.mT
        mean = torch.zeros(components.shape[1], dtype=torch.float64)
        if with_mean:
            mean[:n_scalar] = components[:, :n_scalar].mean(0)
        share = torch.bincount(path).double()
        square = torch.zeros(len(share), dtype=torch.float64)
        square.index_add_(0, path, ((components - mean) ** 2).mean(0))
        readout.scale[row] = (square / share).sqrt().clamp(min=_FLOOR).to(readout.scale.dtype)
        readout.mean[row] = (mean @ matrix).view(readout.n_slots, -1).to(readout.mean.dtype)


def _set_energy_statistics(engine: Engine, samples: Sequence[Sample]) -> None:
    counts = element_counts([s.molecule for s in samples], engine.elements)
    target = np.array([s.repulsion for s in samples])
    offsets, *_ = np.linalg.lstsq(counts, target, rcond=None)
    left = target - counts @ offsets
    readout = engine.network.energy_readout
    readout.set_offset(torch.from_numpy(offsets))
    readout.scale.fill_(max(float(np.sqrt(np.mean(left**2 / counts.sum(1)))), _FLOOR))


def element_counts(molecules: Sequence[Molecule], elements: Sequence[int]) -> np.ndarray:
    """Number of atoms of each element in each molecule, shape (molecule, element), float64."""
    return np.array([(m.numbers[:, None] == np.array(elements)).sum(0) for m in molecules], dtype=float)


def refit_to_samples(engine: Engine, samples: Sequence[Sample], *, chunk: int = 32) -> None:
    """Refits the atomic reference energies of a trained engine to samples of another method."""
    network, missing = engine.network, []
    for start in range(0, len(samples), chunk):
        group = collate(samples[start : start + chunk], engine)
        output = network(group.batch, BondFrames.of(group.batch, network.l_max))
        missing.append(group.repulsion - atom_sums(output.atom_energy, group.batch))
    molecules = [s.molecule for s in samples]
    refit_atomic_energies(network.energy_readout, engine.elements, molecules, torch.cat(missing).numpy())


def refit_atomic_energies(
    readout: EnergyReadout, elements: Sequence[int], molecules: Sequence[Molecule], missing: np.ndarray
) -> None:
    """Shifts the atomic reference energies by least squares, so that energies of a new method start near.

    What the compositions of the molecules leave open stays as it was: the shift is that of least norm.

    Args:
        readout: it is changed.
        elements: atomic numbers, in the order of the readout.
        molecules: the molecules of the labels.
        missing: what their energies lack [Eh], shape (molecule,).
    """
    shift, *_ = np.linalg.lstsq(element_counts(molecules, elements), missing, rcond=None)
    readout.set_offset(readout.offset.double().sum(0) + torch.from_numpy(shift).to(readout.offset.device))
