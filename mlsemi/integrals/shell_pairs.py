"""IntegralPlan: what the Gaussian integrals of a batch need besides the positions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mlsemi.basis import Basis
from mlsemi.batch import Batch


@dataclass(frozen=True)
class PairClass:
    """The shell pairs of angular momenta l1 <= l2; `n` of them."""

    l1: int
    l2: int
    n: int


@dataclass(frozen=True, eq=False)
class IntegralPlan:
    """Tables of shell pairs and primitive pairs of a batch; they depend on its elements only.

    Shell pairs are those of one molecule, each pair once, sorted by class, then by molecule. Classes are sorted by
    l1 + l2. Memory grows as the number of primitive pairs (48 bytes each).

    Attributes:
        classes: classes of shell pairs.
        class_ends: end of each class among the primitive pairs, shape (class,).
        pair_atoms: atoms of each shell pair, shape (2, shell pair).
        pair_molecule: molecule of each shell pair, shape (shell pair,).
        within_class: index of each shell pair within its class, shape (shell pair,).
        primitive_pair: shell pair of each primitive pair, shape (primitive pair,).
        a, b: exponents of the primitives of a pair [bohr^-2], shape (primitive pair,).
        mu: a b / (a + b), shape (primitive pair,).
        coefficient: product of the radial coefficients, shape (primitive pair,).
        log_size: logarithm of an estimate of the largest overlap or Coulomb integral at distance zero.
        source: index among the spherical values of all classes (one after the other, then one zero) of each element
            of the padded matrices, shape (molecule * ao * ao,).
        n_molecules: number of molecules.
        n_ao: padded number of AOs.
    """

    classes: tuple[PairClass, ...]
    class_ends: Tensor
    pair_atoms: Tensor
    pair_molecule: Tensor
    within_class: Tensor
    primitive_pair: Tensor
    a: Tensor
    b: Tensor
    mu: Tensor
    coefficient: Tensor
    log_size: Tensor
    source: Tensor
    n_molecules: int
    n_ao: int


@dataclass(frozen=True, eq=False)
class _Shells:
    """Shells as a table: those of the elements of a basis, or those of the atoms of a batch."""

    l: np.ndarray
    ao: np.ndarray
    n_primitives: np.ndarray
    first_primitive: np.ndarray
    atom: np.ndarray

    def take(self, index: np.ndarray, atom: np.ndarray, ao: np.ndarray) -> _Shells:
        return _Shells(self.l[index], self.ao[index] + ao, self.n_primitives[index], self.first_primitive[index], atom)


@lru_cache(maxsize=16)
def _element_shells(
    basis: Basis, elements: tuple[int, ...]
) -> tuple[_Shells, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Shells of some elements one after the other, first shell and number of shells by element; primitives."""
    shells = [s for z in elements for s in basis.shells(z)]
    n_shells = np.array([len(basis.shells(z)) for z in elements])
    l = np.array([s.l for s in shells])
    ao = np.concatenate([np.cumsum([0] + [2 * s.l + 1 for s in basis.shells(z)])[:-1] for z in elements])
    n = np.array([len(s.exponents) for s in shells])
    exponents = np.concatenate([s.exponents for s in shells])
    coefficients = np.concatenate([s.radial_coefficients() for s in shells])
    table = _Shells(l, ao, n, np.cumsum(n) - n, np.zeros_like(l))
    return table, np.cumsum(n_shells) - n_shells, n_shells, exponents, coefficients


def _ragged(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row and position in the row of each element of rows of unlike length."""
    row = np.repeat(np.arange(counts.size), counts)
    return row, np.arange(row.size) - np.repeat(np.cumsum(counts) - counts, counts)


def plan(batch: Batch) -> IntegralPlan:
    """Tables for a batch; the last few compositions are remembered."""
    numbers, molecule = batch.numbers.cpu().numpy(), batch.molecule.cpu().numpy()
    return _plan(batch.basis, numbers.tobytes(), molecule.tobytes(), batch.ao_mask.shape, batch.numbers.device)


@lru_cache(maxsize=8)
def _plan(
    basis: Basis, numbers_bytes: bytes, molecule_bytes: bytes, shape: tuple[int, int], device: torch.device
) -> IntegralPlan:
    numbers = np.frombuffer(numbers_bytes, dtype=np.int64)
    molecule = np.frombuffer(molecule_bytes, dtype=np.int64)
    n_molecules, n_ao = shape
    elements, index = np.unique(numbers, return_inverse=True)
    table, first, n_shells, exponents, coefficients = _element_shells(basis, tuple(elements.tolist()))
    size = np.array([basis.n_ao(z) for z in elements.tolist()])[index]
    before = np.cumsum(size) - size
    start = np.searchsorted(molecule, np.arange(n_molecules))
    atom, k = _ragged(n_shells[index])
    shells = table.take(first[index][atom] + k, atom, (before - before[start][molecule])[atom])
    pairs = _shell_pairs(shells, molecule, n_molecules)
    classes = tuple(PairClass(l1, l2, i.size) for l1, l2, i, _ in pairs)
    i = np.concatenate([p[2] for p in pairs])
    j = np.concatenate([p[3] for p in pairs])
    row, k = _ragged(shells.n_primitives[i] * shells.n_primitives[j])
    n_second = shells.n_primitives[j][row]
    ka, kb = shells.first_primitive[i][row] + k // n_second, shells.first_primitive[j][row] + k % n_second
    a, b, c = exponents[ka], exponents[kb], coefficients[ka] * coefficients[kb]
    ends = np.searchsorted(row, np.cumsum([c.n for c in classes]))
    arrays = {
        "class_ends": ends,
        "pair_atoms": np.stack([shells.atom[i], shells.atom[j]]),
        "pair_molecule": molecule[shells.atom[i]],
        "within_class": np.concatenate([np.arange(c.n) for c in classes]),
        "primitive_pair": row,
        "a": a,
        "b": b,
        "mu": a * b / (a + b),
        "coefficient": c,
        "log_size": np.log(np.abs(c)) + np.log(2 * np.pi / (a + b)).clip(0.0),
        "source": _source(pairs, shells, molecule, n_molecules, n_ao),
    }
    moved = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return IntegralPlan(classes=classes, n_molecules=n_molecules, n_ao=n_ao, **moved)


def _shell_pairs(
    shells: _Shells, molecule: np.ndarray, n_molecules: int
) -> list[tuple[int, int, np.ndarray, np.ndarray]]:
    """For each class (l1, l2), sorted by l1 + l2, the shells of its pairs."""
    l_max = int(shells.l.max())
    of_l = [np.flatnonzero(shells.l == l) for l in range(l_max + 1)]
    classes = sorted(((p, q) for p in range(l_max + 1) for q in range(p, l_max + 1)), key=sum)
    out = []
    for l1, l2 in classes:
        count = np.bincount(molecule[shells.atom[of_l[l2]]], minlength=n_molecules)
        first = np.cumsum(count) - count
        home = molecule[shells.atom[of_l[l1]]]
        row, k = _ragged(count[home])
        i, j = of_l[l1][row], of_l[l2][first[home][row] + k]
        if l1 == l2:
            i, j = i[i <= j], j[i <= j]
        if i.size:
            out.append((l1, l2, i, j))
    return out


def _source(
    pairs: list[tuple[int, int, np.ndarray, np.ndarray]],
    shells: _Shells,
    molecule: np.ndarray,
    n_molecules: int,
    n_ao: int,
) -> np.ndarray:
    """Where each element of the padded matrices comes from; see `IntegralPlan.source`."""
    total = sum((2 * l1 + 1) * (2 * l2 + 1) * i.size for l1, l2, i, _ in pairs)
    source = np.full((n_molecules, n_ao, n_ao), total)
    start = 0
    for l1, l2, i, j in pairs:
        m1, m2 = np.arange(2 * l1 + 1)[:, None, None], np.arange(2 * l2 + 1)[None, :, None]
        index = start + (m1 * (2 * l2 + 1) + m2) * i.size + np.arange(i.size)
        home = np.broadcast_to(molecule[shells.atom[i]], index.shape)
        row, column = np.broadcast_arrays(shells.ao[i] + m1, shells.ao[j] + m2)
        source[home, row, column] = index
        source[home, column, row] = index
        start += index.size
    # a shell with itself: both halves from one of the two, so that matrices are symmetric to the last digit
    return np.minimum(source, source.transpose(0, 2, 1)).ravel()
