"""Coupled response by PySCF: what `mlsemi.properties.response` leaves out, the change of F by the density."""

from __future__ import annotations

from typing import Any

import numpy as np
from pyscf import lib

from mlsemi.basis import Basis
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.reference.mean_field import GRID_LEVEL, mean_field, to_pyscf_mole

CONV_TOL_GRAD = 1e-7
"""Convergence of the SCF: the error of the polarizability is of the first order in that of the density."""

_MAX_CYCLE = 60
_MAX_RESTARTS = 3
_LARGEST_RESIDUAL = 1e-5
"""Of the equations of the response [bohr]; the error of the polarizability is of its square."""


def coupled_polarizability(
    molecule: Molecule, basis: Basis, *, method: str, density: np.ndarray | None = None
) -> np.ndarray:
    """Static polarizability by coupled perturbed Hartree-Fock or Kohn-Sham, after an SCF.

    Args:
        molecule: closed or open shell.
        basis: covers its elements.
        method: 'hf' or a functional of PySCF.
        density: start of the SCF in mlsemi's AO order, shape (spin, ao, ao), such as that of a prediction; PySCF's
            default guess otherwise.

    Returns:
        Polarizability [bohr^3], shape (3, 3), symmetric.

    Raises:
        RuntimeError: if SCF or response do not converge.
    """
    field = mean_field(to_pyscf_mole(molecule, basis), method, GRID_LEVEL)
    field.conv_tol, field.conv_tol_grad, field.max_cycle = 1e-11, CONV_TOL_GRAD, 100
    start = None
    if density is not None:
        start = np.asarray(AOLayout(basis, molecule.numbers).to_pyscf(density))
        start = start.sum(0) if molecule.spin == 0 else start if len(start) == 2 else np.repeat(start / 2, 2, axis=0)
    field.kernel(dm0=start)
    if not field.converged:
        raise RuntimeError(
            f"{molecule.name or molecule.formula}: the SCF with {method} did not converge, and there is no response of "
            "its density; give another start as density"
        )
    return polarizability_of(field)


def polarizability_of(field: Any, *, tolerance: float = 1e-7) -> np.ndarray:
    """The same for a mean-field object of PySCF that holds its orbitals.

    Where they are not self-consistent, as those of a prediction, it is the response about them, without proof.

    Args:
        field: RHF, RKS, UHF or UKS object with mo_energy, mo_coeff and mo_occ.
        tolerance: of the equations of the response [bohr].

    Returns:
        Polarizability [bohr^3], shape (3, 3).

    Raises:
        ValueError: for a restricted open shell.
        RuntimeError: if the equations of the response are not solved.
    """
    moments = field.mol.intor_symmetric("int1e_r", comp=3)
    spins = _spins(field)
    drive = _flat([np.einsum("xpq,pa,qi->xai", moments, v, o) for v, o, _ in spins])
    distance = _flat([gaps[None] for _, _, gaps in spins])
    degeneracy = 2.0 if len(spins) == 1 else 1.0
    sizes = np.cumsum([gaps.size for *_, gaps in spins])[:-1]
    response = field.gen_response(hermi=1)

    def induced(turns: np.ndarray) -> np.ndarray:
        """Changes of F between empty and occupied orbitals by rotations of them; shape (direction, pair) both."""
        densities = []
        for part, (v, o, gaps) in zip(np.split(turns, sizes, axis=1), spins, strict=True):
            half = np.einsum("pa,xai,qi->xpq", v, part.reshape(len(part), *gaps.shape), o)
            densities.append(degeneracy * (half + half.transpose(0, 2, 1)))
        change = response(densities[0] if len(spins) == 1 else np.stack(densities))
        changes = [change] if len(spins) == 1 else list(change)
        return _flat([np.einsum("xpq,pa,qi->xai", f, v, o) for f, (v, o, _) in zip(changes, spins, strict=True)])

    turns = np.zeros_like(drive)
    left = drive
    for _ in range(_MAX_RESTARTS):  # it loses its directions to rounding, and starts again with what is left
        turns = turns + lib.krylov(
            lambda x: induced(np.atleast_2d(x)) / distance, -left / distance, tol=tolerance, max_cycle=_MAX_CYCLE
        )
        left = induced(turns) + turns * distance + drive
        if np.abs(left).max(initial=0.0) < tolerance:
            break
    residual = float(np.abs(left).max(initial=0.0))
    if not residual < _LARGEST_RESIDUAL:
        raise RuntimeError(f"the response to a field did not converge: residual {residual:.1e} bohr")
    found = -2 * degeneracy * drive @ turns.T
    return (found + found.T) / 2


def _spins(field: Any) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Empty and occupied orbitals of each spin, and the distances of their energies, shape (empty, occupied)."""
    restricted = np.ndim(field.mo_occ) == 1
    if restricted and (np.asarray(field.mo_occ) == 1).any():
        raise ValueError("restricted open shells have no coupled polarizability here: take UHF or UKS")
    arrays = (field.mo_energy, field.mo_coeff, field.mo_occ)
    each = [arrays] if restricted else list(zip(*arrays, strict=True))
    found = []
    for energies, orbitals, occupations in each:
        filled = np.asarray(occupations) > 0
        found.append((orbitals[:, ~filled], orbitals[:, filled], energies[~filled, None] - energies[filled]))
    return found


def _flat(parts: list[np.ndarray]) -> np.ndarray:
    """Parts of shape (direction, empty, occupied) side by side, shape (direction, pair)."""
    return np.concatenate([part.reshape(len(part), -1) for part in parts], axis=1)
