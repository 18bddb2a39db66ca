"""Whether a converged density is unique: the gap of the occupation, and the symmetry of the nuclei.

A spatially degenerate state (OH and NO: one hole or electron in two equal pi orbitals) has no unique density. An
unrestricted SCF breaks the symmetry, puts the hole into one orbital of arbitrary direction and opens a gap, so that
orbital energies do not tell. But the density then has less symmetry than the nuclei: an operation that leaves the
nuclei where they are makes another density of the same energy out of it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mlsemi.domain import DEGENERACY_GAP
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables

FRAME_TOLERANCE = 0.01
"""An operation is one of the nuclei if it brings each within this distance of an equal one [bohr]."""

ELECTRONS_TOLERANCE = 0.02
"""Electrons of one spin that an operation may move, see `electrons_moved`: degenerate states move 0.3 and more,
convergence to 1e-5 Eh, the orientation of the grid and a frame within its tolerance 1e-3 and less."""

_GENERIC = 1.0
"""An angle that generates all rotations about an axis [rad]: no small fraction of a turn."""


def reasons(molecule: Molecule, layout: AOLayout, observables: Observables) -> tuple[str, ...]:
    """Why the density is not unique, in words; empty if it is.

    Args:
        molecule: geometry.
        layout: AO order of the arrays.
        observables: mo_energy, mo_occ, density and overlap of the converged state.
    """
    found = []
    gap = smallest_gap(observables)
    if gap < DEGENERACY_GAP:
        found.append(f"degenerate: the HOMO-LUMO gap of a spin is {gap:.1e} Eh, the occupation is a matter of choice")
    assert observables.density is not None and observables.overlap is not None
    moved, name = 0.0, ""
    for operation, permutation, label in symmetry_operations(molecule):
        carried = carried_along(layout, observables.density, operation, permutation)
        electrons = electrons_moved(observables.density, carried, observables.overlap)
        if electrons > max(moved, ELECTRONS_TOLERANCE):
            moved, name = electrons, label
    if name:
        found.append(
            f"degenerate: the density lacks the symmetry of the nuclei, a {name} moves {moved:.2f} electrons of one "
            "spin; other densities of the same energy exist"
        )
    return tuple(found)


def smallest_gap(observables: Observables) -> float:
    """Lowest empty minus highest occupied orbital energy of the spin where it is smallest [Eh]; inf without any."""
    energies, occupations = observables.mo_energy, observables.mo_occ
    assert energies is not None and occupations is not None
    gaps = [
        float(eps[occ == 0].min() - eps[occ > 0].max())
        for eps, occ in zip(energies, occupations, strict=True)
        if (occ > 0).any() and (occ == 0).any()
    ]
    return min(gaps, default=float("inf"))


def electrons_moved(before: np.ndarray, after: np.ndarray, overlap: np.ndarray) -> float:
    """Electrons of one spin that left the occupied space: n - Tr[D S D' S], the larger figure of the two spins.

    Measured as half of |S^1/2 (D' - D) S^1/2|^2, which is the same for idempotent densities and does not cancel.

    Args:
        before: densities of a determinant, shape (spin, ao, ao); both spins together if there is one.
        after: another one's.
        overlap: shape (ao, ao).
    """
    per_spin = 0.5 if len(before) == 1 else 1.0
    differences = [per_spin * (a - b) @ overlap for b, a in zip(before, after, strict=True)]
    return max(0.5 * float(np.einsum("ij,ji->", d, d)) for d in differences)


def carried_along(layout: AOLayout, density: np.ndarray, operation: np.ndarray, permutation: np.ndarray) -> np.ndarray:
    """A density that an operation carries along, shape (spin, ao, ao) like `density`.

    Args:
        layout: AO order of the matrices.
        density: shape (spin, ao, ao).
        operation: orthogonal matrix, shape (3, 3).
        permutation: the atom that each atom is brought to, shape (atom,).
    """
    offsets = layout.atom_offsets.tolist()
    target = np.concatenate([np.arange(offsets[p], offsets[p + 1]) for p in permutation.tolist()])
    matrix = np.empty((layout.n_ao, layout.n_ao))
    matrix[target] = layout.rotation(operation)
    return matrix @ density @ matrix.T


def symmetry_operations(
    molecule: Molecule, *, tolerance: float = FRAME_TOLERANCE
) -> Iterator[tuple[np.ndarray, np.ndarray, str]]:
    """Operations that bring the nuclei onto equal ones; of a linear molecule or an atom, enough to generate them.

    Yields:
        Orthogonal matrix about the centre of nuclear charge, shape (3, 3), the atom that each atom is brought to,
        shape (atom,), and a name. The identity is left out.
    """
    numbers = molecule.numbers
    x = molecule.positions - numbers @ molecule.positions / numbers.sum()
    values, axes = np.linalg.eigh(x.T @ x)
    if values[1] <= tolerance**2:  # linear, or an atom
        turns = [axes[:, 2]] if values[2] > tolerance**2 else [axes[:, 2], axes[:, 0]]
        candidates = [(rotation(axis, _GENERIC), "rotation about the axis") for axis in turns]
        candidates.append((-np.eye(3), "inversion"))
        candidates.append((np.eye(3) - 2 * np.outer(axes[:, 0], axes[:, 0]), "reflection"))
    else:
        candidates = [(r, _name(r)) for r in _candidates(numbers, x, tolerance)]
    for operation, name in candidates:
        permutation = _permutation(numbers, x, operation, tolerance)
        if permutation is not None and np.abs(operation - np.eye(3)).max() > 1e-6:
            yield operation, permutation, name


def rotation(axis: np.ndarray, angle: float) -> np.ndarray:
    """Rotation by an angle [rad] about a unit vector (Rodrigues), shape (3, 3)."""
    cross = np.cross(np.eye(3), axis)
    return np.eye(3) - np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def _candidates(numbers: np.ndarray, x: np.ndarray, tolerance: float) -> Iterator[np.ndarray]:
    """All orthogonal matrices that bring two chosen atoms, not in line with the centre, onto equal ones.

    An operation is known from where it brings two atoms, and whether it is proper. Equal: same element and distance
    from the centre; the two are chosen so that few pairs are. Each is refined by a fit of all atoms.
    """
    radius = np.linalg.norm(x, axis=1)
    alike = (numbers[:, None] == numbers) & (np.abs(radius[:, None] - radius) < tolerance)
    size = np.where(radius > 20 * tolerance, alike.sum(axis=1), len(x) + 1)
    first = int(np.lexsort((-radius, size))[0])
    sine = np.linalg.norm(np.cross(x, x[first]), axis=1) / np.maximum(radius * radius[first], 1e-12)
    second = int(np.lexsort((-sine, np.where(sine > 0.1, size, len(x) + 2)))[0])
    start = _frame(x[first], x[second])
    for i in np.flatnonzero(alike[first]):
        for j in np.flatnonzero(alike[second]):
            if i != j and abs(np.linalg.norm(x[i] - x[j]) - np.linalg.norm(x[first] - x[second])) < 2 * tolerance:
                end = _frame(x[i], x[j])
                yield end @ start.T
                yield end @ np.diag([1.0, 1.0, -1.0]) @ start.T


def _frame(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Orthonormal axes as columns: along u, towards v, normal to both."""
    e1 = u / np.linalg.norm(u)
    e3 = np.cross(u, v)
    e3 /= np.linalg.norm(e3)
    return np.stack([e1, np.cross(e3, e1), e3], axis=1)


def _permutation(numbers: np.ndarray, x: np.ndarray, operation: np.ndarray, tolerance: float) -> np.ndarray | None:
    """The atom that each atom is brought to, shape (atom,); None if one is brought to a place without an equal one."""
    distance = np.linalg.norm((x @ operation.T)[:, None] - x[None], axis=2)
    distance[numbers[:, None] != numbers] = np.inf
    permutation = distance.argmin(axis=1)
    close = distance.min(axis=1) < 2 * tolerance
    return permutation if close.all() and len(set(permutation.tolist())) == len(x) else None


def _name(operation: np.ndarray) -> str:
    """What an orthogonal matrix is called."""
    proper = np.linalg.det(operation) > 0
    cosine = (np.trace(operation) - (1 if proper else -1)) / 2
    angle = np.degrees(np.arccos(np.clip(cosine, -1, 1)))
    if proper:
        return f"rotation by {angle:.0f} degrees"
    return "reflection" if angle < 1 else "inversion" if angle > 179 else f"rotary reflection by {angle:.0f} degrees"
