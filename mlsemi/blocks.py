"""Blocks: a symmetric AO matrix as atom-pair blocks of one common shape.

Every element of a basis has its shells among `Slots`: for each l as many shells as the richest element has. A block is
a (slot, slot) matrix, zero where an element lacks a shell, so blocks of unlike elements and unlike molecules stack.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlsemi.basis import Basis
from mlsemi.batch import Batch


@dataclass(frozen=True, eq=False)
class Slots:
    """The common shape of the blocks of a set of elements.

    Attributes:
        elements: atomic numbers, ascending.
        n_shells: number of shell slots of each l = 0..l_max.
        l: angular momentum of each slot, shape (slot,).
        m: m of each slot, shape (slot,).
        shell: running index of the shell slot of each slot, shape (slot,).
        of_ao: for each element the slot of each of its AOs, shape (ao of the element,).
    """

    elements: tuple[int, ...]
    n_shells: tuple[int, ...]
    l: np.ndarray
    m: np.ndarray
    shell: np.ndarray
    of_ao: dict[int, np.ndarray]

    @classmethod
    def of(cls, basis: Basis, elements: Iterable[int]) -> Slots:
        """Slots for some elements of a basis."""
        numbers = tuple(sorted(set(elements)))
        count = {z: np.bincount([s.l for s in basis.shells(z)], minlength=basis.l_max(numbers) + 1) for z in numbers}
        n_shells = tuple(int(n) for n in np.max(list(count.values()), axis=0))
        ladder = [(l, k) for l, n in enumerate(n_shells) for k in range(n)]
        rows = np.array([(l, m, i) for i, (l, _) in enumerate(ladder) for m in range(-l, l + 1)])
        start = np.cumsum([0] + [2 * l + 1 for l, _ in ladder])
        of_ao = {}
        for z in numbers:
            seen: dict[int, int] = {}
            slots: list[int] = []
            for s in basis.shells(z):
                k = seen[s.l] = seen.get(s.l, -1) + 1
                at = start[ladder.index((s.l, k))]
                slots.extend(range(at, at + 2 * s.l + 1))
            of_ao[z] = np.array(slots)
        return cls(numbers, n_shells, rows[:, 0], rows[:, 1], rows[:, 2], of_ao)

    @property
    def n_slots(self) -> int:
        return len(self.l)

    @property
    def l_max(self) -> int:
        return len(self.n_shells) - 1

    def mask(self) -> np.ndarray:
        """True where an element has a function, shape (element, slot)."""
        mask = np.zeros((len(self.elements), self.n_slots), dtype=bool)
        for row, z in enumerate(self.elements):
            mask[row, self.of_ao[z]] = True
        return mask

    def element_index(self, numbers: Tensor) -> Tensor:
        """Position of each atomic number among `elements`, shape of `numbers`.

        Raises:
            ValueError: for a number that is not among them.
        """
        table = torch.full((max(int(numbers.max()), *self.elements) + 1,), -1, device=numbers.device)
        table[list(self.elements)] = torch.arange(len(self.elements), device=numbers.device)
        index = table[numbers]
        if (index < 0).any():
            missing = sorted(set(numbers[index < 0].tolist()))
            raise ValueError(f"atomic number(s) {missing} are not among those covered, {list(self.elements)}")
        return index


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of one AO matrix for each molecule of a batch.

    Attributes:
        diagonal: atom blocks, shape (atom, slot, slot).
        off_diagonal: blocks of the directed pairs of the batch, shape (pair, slot, slot); the block of (j, i) is the
            transpose of that of (i, j) in a symmetric matrix.
    """

    diagonal: Tensor
    off_diagonal: Tensor


@dataclass(frozen=True, eq=False)
class BlockMap:
    """Where the elements of padded AO matrices stand in the blocks of a batch; made once for a batch.

    Attributes:
        source: flat index into (diagonal, off_diagonal) of each element that a block holds, shape (element,).
        target: flat index into (molecule, ao, ao) of the same, shape (element,).
        n_molecules: number of molecules.
        n_ao: padded number of AOs.
        n_slots: number of slots.
    """

    source: Tensor
    target: Tensor
    n_molecules: int
    n_ao: int
    n_slots: int

    @classmethod
    def of(cls, batch: Batch, slots: Slots) -> BlockMap:
        """Index tables for a batch."""
        device = batch.numbers.device
        numbers = batch.numbers.cpu().numpy()
        counts = np.array([len(slots.of_ao[z]) for z in numbers.tolist()])
        slot_of_atom = np.full((numbers.size, counts.max()), -1)
        for z in np.unique(numbers).tolist():
            slot_of_atom[numbers == z, : len(slots.of_ao[z])] = slots.of_ao[z]
        n_atoms = numbers.size
        first, second = batch.pair.cpu().numpy()
        block_i = np.concatenate([np.arange(n_atoms), first])
        block_j = np.concatenate([np.arange(n_atoms), second])
        offset = batch.ao_offset.cpu().numpy()
        molecule = batch.molecule.cpu().numpy()
        n_ao = batch.ao_mask.shape[1]
        row_slot, column_slot = slot_of_atom[block_i], slot_of_atom[block_j]
        k = np.arange(counts.max())
        valid = (row_slot >= 0)[:, :, None] & (column_slot >= 0)[:, None, :]
        source = (np.arange(block_i.size)[:, None, None] * slots.n_slots + row_slot[:, :, None]) * slots.n_slots
        source = source + column_slot[:, None, :]
        row = molecule[block_i][:, None] * n_ao + offset[block_i][:, None] + k
        column = offset[block_j][:, None] + k
        target = row[:, :, None] * n_ao + column[:, None, :]
        return cls(
            torch.from_numpy(source[valid]).to(device),
            torch.from_numpy(target[valid]).to(device),
            batch.n_molecules,
            n_ao,
            slots.n_slots,
        )

    def assemble(self, blocks: Blocks) -> Tensor:
        """Padded matrices, shape (molecule, ao, ao); zero where no block is (pairs beyond the cutoff, padding)."""
        values = torch.cat([blocks.diagonal.reshape(-1), blocks.off_diagonal.reshape(-1)]).index_select(0, self.source)
        out = values.new_zeros(self.n_molecules * self.n_ao**2)
        return out.index_copy(0, self.target, values).view(self.n_molecules, self.n_ao, self.n_ao)

    def split(self, matrix: Tensor, n_atoms: int) -> Blocks:
        """Blocks of padded matrices, shape (molecule, ao, ao); inverse of `assemble`."""
        values = matrix.reshape(-1).index_select(0, self.target)
        size = self.n_slots**2
        n_blocks = int(self.source.max()) // size + 1 if self.source.numel() else 0
        out = values.new_zeros(max(n_blocks, n_atoms) * size).index_copy(0, self.source, values)
        out = out.view(-1, self.n_slots, self.n_slots)
        return Blocks(out[:n_atoms], out[n_atoms:])
