"""Batch: molecules of any size and composition as one graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mlsemi.basis import Basis
from mlsemi.molecule import Molecule


@dataclass(frozen=True, eq=False)
class Batch:
    """Molecules side by side: atoms concatenated, pairs as an edge list, AO matrices padded.

    Attributes:
        molecules: the molecules.
        basis: the basis set of their AOs.
        numbers: atomic numbers, shape (atom,), int64.
        positions: nuclear positions [bohr], shape (atom, 3), float64; may require a gradient.
        molecule: molecule of each atom, shape (atom,), int64, ascending.
        charge: total charges [e], shape (molecule,), int64.
        spin: numbers of unpaired electrons, shape (molecule,), int64.
        pair: directed pairs (i, j), i != j, of one molecule within the cutoff, shape (2, pair), int64; sorted by i,
            then j. r_ij = r_j - r_i.
        reverse: index of the pair (j, i) of each pair (i, j), shape (pair,), int64.
        ao_offset: first AO of each atom within its molecule, shape (atom,), int64.
        n_ao: number of AOs, shape (molecule,), int64.
        ao_mask: True where a padded AO exists, shape (molecule, ao).
    """

    molecules: tuple[Molecule, ...]
    basis: Basis
    numbers: Tensor
    positions: Tensor
    molecule: Tensor
    charge: Tensor
    spin: Tensor
    pair: Tensor
    reverse: Tensor
    ao_offset: Tensor
    n_ao: Tensor
    ao_mask: Tensor

    @classmethod
    def of(cls, molecules: Sequence[Molecule], basis: Basis, *, cutoff: float = np.inf) -> Batch:
        """Builds a batch on the CPU.

        Args:
            molecules: at least one.
            basis: must cover every element.
            cutoff: largest distance of a pair [bohr].

        Raises:
            ValueError: for no molecules, or an element that the basis lacks.
        """
        if not molecules:
            raise ValueError("a batch needs at least one molecule")
        numbers = np.concatenate([m.numbers for m in molecules])
        positions = np.concatenate([m.positions for m in molecules])
        sizes = np.array([m.n_atoms for m in molecules])
        molecule = np.repeat(np.arange(len(molecules)), sizes)
        table = np.zeros(int(numbers.max()) + 1, dtype=np.int64)
        for z in np.unique(numbers).tolist():
            table[z] = basis.n_ao(z)
        first = np.cumsum(sizes) - sizes
        n_before = np.cumsum(table[numbers]) - table[numbers]
        n_ao = np.add.reduceat(table[numbers], first)
        ao_mask = np.arange(n_ao.max()) < n_ao[:, None]
        pair = _pairs(positions, molecule, sizes, first, cutoff)
        return cls(
            molecules=tuple(molecules),
            basis=basis,
            numbers=torch.from_numpy(numbers),
            positions=torch.from_numpy(positions),
            molecule=torch.from_numpy(molecule),
            charge=torch.tensor([m.charge for m in molecules]),
            spin=torch.tensor([m.spin for m in molecules]),
            pair=torch.from_numpy(pair),
            reverse=torch.from_numpy(np.lexsort((pair[0], pair[1]))),
            ao_offset=torch.from_numpy(n_before - n_before[first][molecule]),
            n_ao=torch.from_numpy(n_ao),
            ao_mask=torch.from_numpy(ao_mask),
        )

    @property
    def n_molecules(self) -> int:
        return len(self.molecules)

    @property
    def n_electrons(self) -> Tensor:
        """Number of electrons, shape (molecule,), int64."""
        total = torch.zeros(self.n_molecules, dtype=torch.int64, device=self.numbers.device)
        return total.index_add(0, self.molecule, self.numbers) - self.charge

    @property
    def vectors(self) -> Tensor:
        """r_ij of each pair [bohr], shape (pair, 3); differentiable in the positions."""
        i, j = self.pair
        return self.positions.index_select(0, j) - self.positions.index_select(0, i)

    @property
    def ao_atom(self) -> Tensor:
        """Atom of each AO of the batch, molecule after molecule and without padding, shape (ao,), int64."""
        before = torch.cumsum(self.n_ao, 0) - self.n_ao
        starts = before[self.molecule] + self.ao_offset
        marks = torch.zeros(int(self.n_ao.sum()), dtype=torch.int64, device=self.numbers.device)
        return marks.index_add(0, starts, torch.ones_like(starts)).cumsum(0) - 1

    def with_positions(self, positions: Tensor) -> Batch:
        """The same graph at other positions (the pair list is kept)."""
        return replace(self, positions=positions)

    def to(self, device: torch.device | str) -> Batch:
        """The batch with its tensors on a device."""
        moved = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def _pairs(
    positions: np.ndarray, molecule: np.ndarray, sizes: np.ndarray, first: np.ndarray, cutoff: float
) -> np.ndarray:
    """All directed pairs of one molecule within the cutoff, shape (2, pair), sorted."""
    partners = sizes[molecule]
    i = np.repeat(np.arange(molecule.size), partners)
    start = np.cumsum(partners) - partners
    j = np.arange(i.size) - np.repeat(start - first[molecule], partners)
    keep = i != j
    if np.isfinite(cutoff):
        keep &= ((positions[j] - positions[i]) ** 2).sum(1) < cutoff**2
    return np.stack([i[keep], j[keep]])
