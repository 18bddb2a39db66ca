"""Dipole moments of any level of theory by central differences of its energy in a uniform electric field.

The orbitals are relaxed in the field, so that this is the derivative of the energy as it is, with all that a method
without a relaxed density matrix lacks. Each energy starts from what is known: the first of a pair from the state
without the field, the second from its mirror image, whose error is of second order in the field.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from mlsemi.reference.mean_field import NotConvergedError, mean_field, newton_scf, plain_scf

FIELD = 1e-3
"""Field strength [Eh/(e bohr)]. The error of a central difference is F^2/6 times the first hyperpolarizability: 2e-6
e bohr for water; energies converged to 1e-9 Eh add 1e-6 e bohr."""

_HF_TOLERANCE = 2e-4
"""Hartree-Fock dipoles by differences and from the density agree to this [e bohr], unless the state changes."""

_ON_AXIS = 1e-6
"""Spread of the nuclei [bohr], and dipole [e bohr], along a direction that is taken for none at all."""

Amplitudes = tuple[Any, Any]
"""PySCF's t1 and t2; of a UHF reference each is a tuple over the spins."""

Energies = Callable[[Any, Amplitudes | None], tuple[np.ndarray, Amplitudes | None]]
"""Energies [Eh] of a mean-field object, Hartree-Fock's first, and the amplitudes; from amplitudes that may be None."""


def dipoles(
    field,  # noqa: ANN001
    energies: Energies,
    amplitudes: Amplitudes | None,
    *,
    scf_dipole: np.ndarray,
    tolerance: float,
) -> np.ndarray:
    """Dipole moments about the origin [e bohr], one for each energy, shape (energy, 3).

    Args:
        field: PySCF's converged RHF or UHF object.
        energies: the levels of theory.
        amplitudes: those of the state without a field; None for methods without any.
        scf_dipole: the dipole of the Hartree-Fock density about the origin [e bohr].
        tolerance: residual of the SCF in the field [Eh].

    Raises:
        NotConvergedError: if the SCF in the field does not converge, or follows another state.
    """
    mol = field.mol
    centre = mol.atom_coords().mean(axis=0)
    directions, idle = _directions(mol.atom_coords() - centre)
    about_centre = scf_dipole - mol.charge * centre
    if np.abs(idle @ about_centre).max(initial=0.0) > _ON_AXIS:
        directions, idle = np.eye(3), np.zeros((0, 3))
    slopes = [_slope(field, energies, amplitudes, direction, tolerance) for direction in directions]
    # along the normals of a plane or of an axis of the nuclei a molecule has the dipole of its charge alone
    charge_only = idle.T @ (idle @ centre) * mol.charge
    if not slopes:
        levels = energies(field, amplitudes)[0]
        return np.tile(charge_only, (len(levels), 1))
    found = np.asarray(slopes).T @ directions + charge_only
    difference = float(np.abs(found[0] - scf_dipole).max())
    if not difference < _HF_TOLERANCE:
        raise NotConvergedError(
            f"the SCF in the field of {FIELD:g} a.u. follows another state: Hartree-Fock's dipole by differences is "
            f"off by {difference:.1e} e bohr"
        )
    return found


def _directions(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Directions in which the nuclei are spread, and those in which they are not; shapes (direction, 3)."""
    _, spread, axes = np.linalg.svd(np.vstack([positions, np.zeros((3, 3))]))
    return axes[spread > _ON_AXIS], axes[spread <= _ON_AXIS]


def _slope(field, energies: Energies, amplitudes, direction: np.ndarray, tolerance: float) -> np.ndarray:  # noqa: ANN001
    """Minus the derivatives of the energies with respect to a field along a direction, shape (energy,)."""
    density = np.asarray(field.make_rdm1())
    forward, forward_density = _in_field(field, FIELD * direction, density, tolerance)
    frame = _frames(field, forward)
    high, found = energies(forward, None if amplitudes is None else _turn(amplitudes, frame))
    backward, _ = _in_field(field, -FIELD * direction, 2 * density - forward_density, tolerance)
    guess = None
    if amplitudes is not None and found is not None:
        back = _turn(found, [(o.T, v.T) for o, v in frame])
        guess = _turn(_mirror(amplitudes, back), _frames(field, backward))
    low, _ = energies(backward, guess)
    return -(high - low) / (2 * FIELD)


def _in_field(field, vector: np.ndarray, density: np.ndarray, tolerance: float) -> tuple[Any, np.ndarray]:  # noqa: ANN001
    """Mean-field object in a field, converged from a density, and its density."""
    mol = field.mol
    other = mean_field(mol, "hf", 0)
    other._eri = field._eri
    with mol.with_common_orig((0.0, 0.0, 0.0)):
        core = field.get_hcore() + np.einsum("x,xij->ij", vector, mol.intor_symmetric("int1e_r", comp=3))
    of_nuclei = -float(vector @ (mol.atom_charges() @ mol.atom_coords()))
    other.get_hcore = lambda *_: core
    state = plain_scf(other, density, tolerance)
    if not state.residual <= tolerance:
        state = newton_scf(other, density, tolerance)
    if not state.residual <= tolerance:
        raise NotConvergedError(f"SCF in a field of {FIELD:g} a.u. not converged: |FDS-SDF| {state.residual:.1e} Eh")
    other.mo_energy, other.mo_coeff = other.eig(state.fock, other.get_ovlp())
    other.mo_occ = other.get_occ(other.mo_energy, other.mo_coeff)
    other.e_tot, other.converged = state.energy + of_nuclei, True
    return other, state.density


def _frames(field, other) -> list[tuple[np.ndarray, np.ndarray]]:  # noqa: ANN001
    """Rotations of occupied and of virtual orbitals of a state into those of another, for each spin."""
    overlap = field.get_ovlp()
    out = []
    for (c, occ), (other_c, other_occ) in zip(_orbitals(field), _orbitals(other), strict=True):
        metric = c.T @ overlap @ other_c
        occupied = metric[np.ix_(occ > 0, other_occ > 0)]
        virtual = metric[np.ix_(occ == 0, other_occ == 0)]
        out.append((_orthogonal(occupied), _orthogonal(virtual)))
    return out


def _orbitals(field) -> list[tuple[np.ndarray, np.ndarray]]:  # noqa: ANN001
    """Coefficients and occupations for each spin."""
    orbitals, occupations = np.asarray(field.mo_coeff), np.asarray(field.mo_occ)
    if orbitals.ndim == 2:
        return [(orbitals, occupations)]
    return list(zip(orbitals, occupations, strict=True))


def _orthogonal(matrix: np.ndarray) -> np.ndarray:
    """The orthogonal matrix next to one."""
    left, _, right = np.linalg.svd(matrix)
    return left @ right


def _turn(amplitudes: Amplitudes, frames: list[tuple[np.ndarray, np.ndarray]]) -> Amplitudes:
    """Amplitudes in the orbitals of another state; the frozen orbitals are the first ones, and stay apart."""
    t1, t2 = amplitudes
    if len(frames) == 1:
        o, v = _active(frames[0], t1)
        return _turned(t1, [o, v]), _turned(t2, [o, o, v, v])
    (a, va), (b, vb) = (_active(frame, t) for frame, t in zip(frames, t1, strict=True))
    return (
        (_turned(t1[0], [a, va]), _turned(t1[1], [b, vb])),
        (_turned(t2[0], [a, a, va, va]), _turned(t2[1], [a, b, va, vb]), _turned(t2[2], [b, b, vb, vb])),
    )


def _active(frame: tuple[np.ndarray, np.ndarray], t1: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    frozen = len(frame[0]) - len(t1)
    return frame[0][frozen:, frozen:], frame[1]


def _turned(tensor: np.ndarray, matrices: list[np.ndarray]) -> np.ndarray:
    """Each axis contracted with the rows of a matrix."""
    for matrix in matrices:
        # the new axis goes last: after all of them, the order is the old one
        tensor = np.tensordot(tensor, matrix, axes=(0, 0))
    return np.ascontiguousarray(tensor)


def _mirror(middle: Amplitudes, forward: Amplitudes) -> Amplitudes:
    """Twice the middle minus one end: the other end, but for second order."""

    def extrapolated(a: Any, b: Any) -> Any:  # noqa: ANN401
        return tuple(map(extrapolated, a, b)) if isinstance(a, tuple) else 2 * a - b

    return extrapolated(middle[0], forward[0]), extrapolated(middle[1], forward[1])
