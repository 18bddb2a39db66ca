"""AOLayout: the one owner of the order of atomic orbitals.

mlsemi keeps PySCF's order of atoms and shells (within an atom: by angular momentum, then as in the basis set) and has
m = -l..l in each shell. PySCF has the same but for p, which it orders (x, y, z) where mlsemi has (y, z, x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from mlsemi.basis import Basis
from mlsemi.harmonics import wigner_d
from mlsemi.molecule import symbol_of

AO_ORDER = "mlsemi-1: atoms; shells by l, then as in the basis; m = -l..l"
"""Stored with every matrix on disk; another value is refused."""

_L_NAMES = "spdf"
_P_IN_PYSCF = np.array([2, 0, 1])  # x, y, z among (y, z, x)
_M_NAMES = {
    0: [""],
    1: ["y", "z", "x"],
    2: ["xy", "yz", "z^2", "xz", "x2-y2"],
    3: ["-3", "-2", "-1", "+0", "+1", "+2", "+3"],
}


@dataclass(frozen=True, eq=False)
class AOLayout:
    """Where each atomic orbital of a molecule stands.

    Attributes:
        basis: the basis set.
        numbers: atomic numbers, shape (atom,).
    """

    basis: Basis
    numbers: tuple[int, ...]

    def __init__(self, basis: Basis, numbers: Sequence[int] | np.ndarray) -> None:
        object.__setattr__(self, "basis", basis)
        object.__setattr__(self, "numbers", tuple(int(z) for z in numbers))

    @cached_property
    def _rows(self) -> np.ndarray:
        """One row (atom, shell of the atom, l, m) for each AO, shape (ao, 4)."""
        rows = [
            (atom, k, s.l, m)
            for atom, z in enumerate(self.numbers)
            for k, s in enumerate(self.basis.shells(z))
            for m in range(-s.l, s.l + 1)
        ]
        return np.array(rows, dtype=np.int64)

    @property
    def n_ao(self) -> int:
        return len(self._rows)

    @property
    def ao_atom(self) -> np.ndarray:
        """Atom of each AO, shape (ao,)."""
        return self._rows[:, 0]

    @property
    def ao_shell(self) -> np.ndarray:
        """Index of the shell within its atom, for each AO, shape (ao,)."""
        return self._rows[:, 1]

    @property
    def ao_l(self) -> np.ndarray:
        """Angular momentum of each AO, shape (ao,)."""
        return self._rows[:, 2]

    @property
    def ao_m(self) -> np.ndarray:
        """m of each AO, shape (ao,)."""
        return self._rows[:, 3]

    @cached_property
    def atom_offsets(self) -> np.ndarray:
        """First AO of each atom, and the number of AOs at the end, shape (atom + 1,)."""
        return np.concatenate([[0], np.cumsum([self.basis.n_ao(z) for z in self.numbers])])

    @cached_property
    def pyscf_order(self) -> np.ndarray:
        """Our index of each of PySCF's AOs, shape (ao,): matrix[order][:, order] is in PySCF's order."""
        order = np.arange(self.n_ao)
        start = 0
        for z in self.numbers:
            for s in self.basis.shells(z):
                if s.l == 1:
                    order[start : start + 3] = start + _P_IN_PYSCF
                start += 2 * s.l + 1
        return order

    def to_pyscf(self, array: np.ndarray, axes: Sequence[int] = (-2, -1)) -> np.ndarray:
        """An array with its AO axes brought from our order to PySCF's."""
        for axis in axes:
            array = np.take(array, self.pyscf_order, axis=axis)
        return array

    def from_pyscf(self, array: np.ndarray, axes: Sequence[int] = (-2, -1)) -> np.ndarray:
        """An array with its AO axes brought from PySCF's order to ours."""
        inverse = np.argsort(self.pyscf_order)
        for axis in axes:
            array = np.take(array, inverse, axis=axis)
        return array

    def labels(self) -> list[str]:
        """A name for each AO in our order, such as '0 C 2px'."""
        names = []
        for atom, k, l, m in self._rows.tolist():
            shells = self.basis.shells(self.numbers[atom])
            n = l + 1 + sum(s.l == l for s in shells[:k])
            names.append(f"{atom} {symbol_of(self.numbers[atom])} {n}{_L_NAMES[l]}{_M_NAMES[l][m + l]}")
        return names

    def rotation(self, rotation: np.ndarray) -> np.ndarray:
        """Matrix D of an orthogonal 3 x 3 matrix R in the AO basis: M(R x) = D M(x) D^T.

        Args:
            rotation: orthogonal matrix, shape (3, 3); improper ones allowed.

        Returns:
            Block-diagonal orthogonal matrix, shape (ao, ao).
        """
        blocks = wigner_d(max(self.ao_l), torch.as_tensor(rotation, dtype=torch.float64))
        out = np.zeros((self.n_ao, self.n_ao))
        start = 0
        for z in self.numbers:
            for s in self.basis.shells(z):
                stop = start + 2 * s.l + 1
                out[start:stop, start:stop] = blocks[s.l].numpy()
                start = stop
        return out
