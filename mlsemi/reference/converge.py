"""The SCF of the reference method from a predicted density: the exact answer, and what it cost.

Kohn-Sham methods converge on a coarse grid with corrections from finer ones (`mlsemi.reference.two_grid`), the first of
them computed with the predicted density: two Fock matrices on the reference grid, for nearly all molecules.
Hartree-Fock, and what fails there, takes PySCF's own SCF, then its second-order one.

A start decides which solution an SCF finds. What is returned is therefore looked at:

- the occupied orbitals are the lowest ones of each spin (aufbau); if they are not, the next scheme is tried, and what
  no scheme finds is a warning;
- it is a minimum, no saddle point: the lowest eigenvalue of its orbital Hessian (internal stability); from a saddle
  point the energy is followed down, and one that cannot be left is a warning;
- it is the solution that the prediction meant: no more than `ELECTRONS_MOVED` electrons left the predicted occupied
  space. If more did, PySCF's default guess is converged too, and the lower solution of the two is returned,
  or this one with a warning if that SCF fails.

Each of these that strikes is a warning. Another minimum that lies lower but beyond the prediction's reach is noticed
with `compare=True` only, which always converges from PySCF's default guess as well: it costs what an SCF costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlsemi.basis import Basis
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.reference.degeneracy import electrons_moved
from mlsemi.reference.gradients import explicit_gradient
from mlsemi.reference.mean_field import (
    GRID_LEVEL,
    Label,
    NotConvergedError,
    mean_field,
    resolve_functional,
    solve,
    to_pyscf_mole,
)
from mlsemi.reference.second_order import second_order
from mlsemi.reference.variational import checked_density

CONV_TOL = 1e-9
"""Default convergence of the energy [Eh]: PySCF's."""

ELECTRONS_MOVED = 0.1
"""Electrons that may leave the predicted occupied space of a spin: predictions of trained models lose 0.001, another
determinant is 0.5 and more away."""

SAME_SOLUTION = 1e-6
"""Solutions whose energies differ by more are different ones [Eh]; grids and convergence leave 1e-9."""

RESIDUAL_PER_SQRT_ENERGY = 0.3
"""Residual |FDS - SDF| [Eh] that is asked for, over the root of the error of the energy [Eh]: what is left then is
about a tenth of that error (measured: dE2 of 7e-12 Eh and less at a residual of 1e-6 Eh)."""

_MAX_CYCLES = 100


@dataclass(frozen=True, eq=False)
class DefaultStart:
    """PySCF's SCF from its default guess, for comparison.

    Attributes:
        energy: converged energy [Eh].
        cycles: Fock matrices built.
        seconds: wall time.
    """

    energy: float
    cycles: int
    seconds: float


@dataclass(frozen=True, eq=False)
class Converged:
    """The self-consistent solution, and what it took.

    Attributes:
        observables: energy, fock, overlap, density, orbitals, dipole, residual, seconds; energy_error_estimate is dE2
            of what is left to converge; warnings say if the solution is another one than the start suggested.
        scheme: 'two-grid', 'plain' (PySCF's SCF) or 'newton' (second-order SCF).
        cycles: Fock matrices built on the reference grid, for all solutions that the returned one was found by.
        coarse_cycles: Fock matrices built on the coarse grid besides.
        electrons_moved: electrons of one spin that left the predicted occupied space.
        default_start: PySCF's SCF from its default guess, if it was run and converged. Its time and its cycles are in
            those above only if its solution is the one that is returned.
    """

    observables: Observables
    scheme: str
    cycles: int
    coarse_cycles: int
    electrons_moved: float
    default_start: DefaultStart | None


def converge(
    molecule: Molecule,
    basis: Basis,
    density: np.ndarray,
    *,
    method: str,
    conv_tol: float = CONV_TOL,
    stability: bool = True,
    compare: bool = False,
    gradient: bool = False,
    max_memory_mb: float = 4000,
) -> Converged:
    """Self-consistent field from a predicted density.

    Args:
        molecule: restricted if its spin is 0, unrestricted otherwise.
        basis: basis set of the density.
        density: density of a determinant in mlsemi's AO order, shape (spin, ao, ao); see
            `mlsemi.reference.variational.variational`.
        method: 'hf' or a functional in PySCF's notation.
        conv_tol: error of the energy that is accepted [Eh].
        stability: look whether the solution is a minimum, and go down if it is not.
        compare: converge from PySCF's default guess too, and return the lower solution.
        gradient: the gradient of the energy too, that of the quadrature grid included.
        max_memory_mb: memory that PySCF may use [MB].

    Raises:
        ValueError: for an unknown functional, a tolerance that is not positive, or a density of something else.
        NotConvergedError: if no scheme converges.
    """
    start = time.perf_counter()
    resolve_functional(method)
    if not conv_tol > 0:
        raise ValueError(f"conv_tol={conv_tol!r} must be a positive energy [Eh]")
    layout = AOLayout(basis, molecule.numbers)
    mol = to_pyscf_mole(molecule, basis)
    mol.max_memory = max_memory_mb
    overlap = mol.intor_symmetric("int1e_ovlp")
    predicted = layout.from_pyscf(checked_density(molecule, layout, density, overlap))

    def solved(initial: np.ndarray) -> Label:
        return solve(
            molecule,
            basis,
            method=method,
            residual_tolerance=RESIDUAL_PER_SQRT_ENERGY * conv_tol**0.5,
            initial_density=lambda _: initial,
            stability=stability,
            max_memory_mb=max_memory_mb,
        )

    def moved_by(solution: Label) -> float:
        assert solution.observables.density is not None
        return electrons_moved(predicted, solution.observables.density, layout.from_pyscf(overlap))

    label = solved(predicted)
    moved = moved_by(label)
    seconds = time.perf_counter() - start
    default, compared = None, ()
    if compare or moved > ELECTRONS_MOVED:
        try:
            default, lower, compared = _compared(mol, method, conv_tol, label, lambda d: solved(layout.from_pyscf(d)))
        except (NotConvergedError, np.linalg.LinAlgError) as error:
            if compare:
                raise
            lower = None
            compared = (f"a lower solution may exist: the SCF from PySCF's default guess failed, {error}",)
        if lower is not None:
            label, moved, seconds = lower, moved_by(lower), time.perf_counter() - start
    warnings = label.observables.warnings
    if moved > ELECTRONS_MOVED:
        warnings += (f"the SCF ended {moved:.2f} electrons of one spin away from the predicted state, in another one",)
    start = time.perf_counter()
    slopes = _gradient(mol, method, layout, label.observables) if gradient else None
    observables = replace(
        label.observables,
        gradient=slopes,
        energy_error_estimate=_left(label.observables),
        seconds=seconds + time.perf_counter() - start,
        warnings=warnings + compared,
    )
    return Converged(observables, label.scheme, label.fock_builds, label.coarse_builds, moved, default)


def _compared(
    mol: Any, method: str, conv_tol: float, label: Label, solved: Callable[[np.ndarray], Label]
) -> tuple[DefaultStart, Label | None, tuple[str, ...]]:
    """PySCF's SCF from its default guess, its solution with all the work on both if it is lower, and a warning."""
    assert label.observables.energy is not None
    default, other = _from_default(mol, method, conv_tol)
    difference = default.energy - label.observables.energy
    if abs(difference) <= SAME_SOLUTION:
        return default, None, ()
    which = "lower, and returned" if difference < 0 else "higher"
    warning = f"PySCF's default guess leads to another solution, {abs(difference):.1e} Eh {which}"
    if difference > 0:
        return default, None, (warning,)
    lower = solved(other if other.ndim == 3 else other[None])
    lower = replace(
        lower,
        fock_builds=label.fock_builds + default.cycles + lower.fock_builds,
        coarse_builds=label.coarse_builds + lower.coarse_builds,
    )
    return default, lower, (warning,)


def _left(observables: Observables) -> float | None:
    """dE2 of a converged state: what is left to converge [Eh]."""
    fock, overlap, density, occupation = (
        observables.fock, observables.overlap, observables.density, observables.mo_occ
    )  # fmt: skip
    assert fock is not None and overlap is not None and density is not None and occupation is not None
    left = second_order(fock, overlap, density, tuple(int((o > 0).sum()) for o in occupation))
    return None if left is None else left.energy


def default_start(molecule: Molecule, basis: Basis, *, method: str, conv_tol: float = CONV_TOL) -> DefaultStart:
    """PySCF's SCF from its default guess with its default settings, but for the tolerance.

    Raises:
        ValueError: for an unknown functional.
        NotConvergedError: if it does not converge.
    """
    resolve_functional(method)
    return _from_default(to_pyscf_mole(molecule, basis), method, conv_tol)[0]


def _gradient(mol: Any, method: str, layout: AOLayout, observables: Observables) -> np.ndarray:
    """Derivative of the converged energy by the nuclei [Eh/bohr], shape (atom, 3).

    At fixed D in the AO basis, and -Tr[W dS] with the energy-weighted density W = D F D (per spin).
    """
    assert observables.density is not None and observables.fock is not None
    density, fock = layout.to_pyscf(observables.density), layout.to_pyscf(observables.fock)
    gradient = explicit_gradient(mean_field(mol, method, GRID_LEVEL), density if mol.spin else density[0])
    weighted = (density @ fock @ density).sum(axis=0) / (1 if mol.spin else 2)
    slopes = mol.intor("int1e_ipovlp", comp=3)
    for atom, (first, last) in enumerate(mol.aoslice_by_atom()[:, 2:]):
        gradient[atom] += 2 * np.einsum("xij,ij->x", slopes[:, first:last], weighted[first:last])
    return gradient


def _from_default(mol: Any, method: str, conv_tol: float) -> tuple[DefaultStart, np.ndarray]:
    """PySCF's SCF from its default guess, and its density in PySCF's order and shape."""
    start = time.perf_counter()
    field = mean_field(mol, method, GRID_LEVEL)
    field.conv_tol, field.max_cycle = conv_tol, _MAX_CYCLES
    energy = float(field.kernel())
    if not field.converged:
        raise NotConvergedError(f"PySCF's SCF from its default guess did not converge in {_MAX_CYCLES} cycles")
    return DefaultStart(energy, field.cycles + 1, time.perf_counter() - start), np.asarray(field.make_rdm1())
