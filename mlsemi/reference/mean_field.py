"""Reference labels by PySCF: Hartree-Fock and Kohn-Sham, restricted for spin 0 and unrestricted otherwise.

What is returned (F, E, and the residual that proves it) is always evaluated on the reference grid with one density, as
plain PySCF would, whichever scheme found the density.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pyscf import dft, gto, scf
from pyscf.scf.dispersion import parse_dft

from mlsemi.basis import Basis
from mlsemi.domain import DEGENERACY_GAP
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule, symbol_of
from mlsemi.observables import Observables
from mlsemi.reference.degeneracy import reasons
from mlsemi.reference.stability import UNSTABLE, lowest_curvature, rotated
from mlsemi.reference.two_grid import State, commutator, keep_orbital_values, solve_two_grid

InitialDensity = Callable[[Molecule], np.ndarray]
"""Start of the SCF: molecule to density, shape (spin, ao, ao), in mlsemi's AO order."""

GRID_LEVEL = 3
"""Reference grid: PySCF's default level."""

COARSE_LEVEL = 0
RESIDUAL_TOLERANCE = 1e-6
"""Default of the largest element of |F D S - S D F| [Eh]."""

_MAX_DESCENTS = 3
_FOLLOWED = "+lower"
_DESCENT = 1e-7
"""A solution is taken for another, lower one if its energy is this much lower [Eh]: turning a degenerate state about
its axis is no descent."""

_CLEARLY_NEGATIVE = -1e-2
"""A curvature below this is no matter of the coarse grid [Eh]: turning a degenerate state about its axis, which is
exactly zero, comes out as -3e-3 and above (OH, NO, C2H2+, O, B, Cl with PBE and B3LYP)."""

_NEWTON_RESTARTS = 3
_MOVED = 0.01
"""Electrons of one spin between a density and the aufbau density of its Fock matrix: nothing (1e-6 and less) if the
state is converged, one if it is excited. A sum of atoms, which is no determinant at all but by symmetry commutes with
its Fock matrix (H2 in a minimal basis), is 0.02 away."""

_FAILURES = (ArithmeticError, AssertionError, LookupError, RuntimeError, ValueError)
"""What linear algebra and PySCF raise on an SCF that goes astray (numpy's LinAlgError is a ValueError)."""


@dataclass(frozen=True, eq=False)
class Label:
    """Result of `solve`.

    Attributes:
        observables: energy, fock, overlap, density, orbitals, dipole, gradient (if asked for), residual, seconds,
            warnings (why it is degenerate, whether a lower solution was found than the first or is missing, and
            whether an occupied orbital lies above an empty one).
        resolved_functional: what the method's name means in this PySCF, see `resolve_functional`.
        scheme: 'two-grid', 'plain' (PySCF's SCF) or 'newton' (second-order SCF); '+lower' after it if the first
            solution was unstable.
        fock_builds: Fock matrices built on the reference grid.
        degenerate: the density is not unique, see `mlsemi.reference.degeneracy`; the reason is in the warnings.
        coarse_builds: Fock matrices built on the coarse grid besides.
        amplitude_cycles: iterations of the coupled-cluster equations, if any.
    """

    observables: Observables
    resolved_functional: str
    scheme: str
    fock_builds: int
    degenerate: bool
    coarse_builds: int = 0
    amplitude_cycles: int = 0


class NotConvergedError(RuntimeError):
    """No scheme reached the residual that was asked for."""


def to_pyscf_mole(molecule: Molecule, basis: Basis) -> gto.Mole:
    """The molecule as PySCF's Mole, with the functions of our basis (not PySCF's of the same name)."""
    shells = {
        symbol_of(z): [[s.l, *map(list, zip(s.exponents, s.coefficients, strict=True))] for s in basis.shells(z)]
        for z in sorted(set(molecule.numbers.tolist()))
    }
    return gto.M(
        atom=[
            (symbol_of(z), xyz) for z, xyz in zip(molecule.numbers.tolist(), molecule.positions.tolist(), strict=True)
        ],
        basis=shells,
        unit="B",
        charge=molecule.charge,
        spin=molecule.spin,
        cart=False,
        symmetry=False,
        verbose=0,
    )


def resolve_functional(method: str) -> str:
    """What a method's name means: 'HF', or components with factors and libxc numbers, and the exact exchange.

    Names are not enough: 'b3lyp' changed its correlation from VWN5 to VWN3 in PySCF 2.3.

    Raises:
        ValueError: if PySCF does not know the functional.
    """
    if method.strip().lower() == "hf":
        return "HF"
    if parse_dft(method)[2]:
        raise ValueError(f"method={method!r} has a dispersion correction, which is no part of F: label without it")
    try:
        _, terms = dft.libxc.parse_xc(method)
        dft.libxc.xc_type(method)
    except (KeyError, ValueError, IndexError) as error:
        raise ValueError(f"method={method!r} is neither 'hf' nor a functional that PySCF knows: {error}") from error
    names = {int(number): name for name, number in dft.libxc.available_libxc_functionals().items()}
    parts = " + ".join(f"{factor:.10g}*{names.get(int(number), 'libxc')}[{number}]" for number, factor in terms)
    omega, long_range, short_range = dft.numint.NumInt().rsh_and_hybrid_coeff(method)
    exchange = f"exact exchange {short_range:.10g}"
    if omega:
        exchange += f" (short range), {long_range:.10g} (long range), omega {omega:.10g}"
    return f"{parts}; {exchange}"


def grid_description(method: str) -> str:
    """The reference grid in words."""
    return "none" if method.strip().lower() == "hf" else f"PySCF level {GRID_LEVEL}, Becke, NWChem pruning"


def solve(
    molecule: Molecule,
    basis: Basis,
    *,
    method: str,
    gradient: bool = False,
    residual_tolerance: float = RESIDUAL_TOLERANCE,
    initial_density: InitialDensity | None = None,
    stability: bool | None = None,
    max_memory_mb: float = 4000,
) -> Label:
    """Self-consistent field of one molecule.

    Args:
        molecule: restricted if its spin is 0, unrestricted otherwise.
        basis: basis set.
        method: 'hf' or a functional in PySCF's notation.
        gradient: also the nuclear gradient.
        residual_tolerance: largest element of |F D S - S D F| that is accepted [Eh].
        initial_density: start of the SCF; PySCF's minao by default.
        stability: look for a lower solution of the same spin along the orbital rotations (internal stability) and
            follow it; by default for open shells only.
        max_memory_mb: memory that PySCF may use [MB].

    Raises:
        ValueError: for an unknown functional or an element outside of the basis.
        NotConvergedError: if no scheme reaches the tolerance.
    """
    return solve_with_field(
        molecule,
        basis,
        method=method,
        gradient=gradient,
        residual_tolerance=residual_tolerance,
        initial_density=initial_density,
        stability=stability,
        max_memory_mb=max_memory_mb,
    )[0]


def solve_with_field(
    molecule: Molecule,
    basis: Basis,
    *,
    method: str,
    gradient: bool = False,
    residual_tolerance: float = RESIDUAL_TOLERANCE,
    initial_density: InitialDensity | None = None,
    stability: bool | None = None,
    max_memory_mb: float = 4000,
) -> tuple[Label, Any]:
    """As `solve`, and PySCF's object of the state with its orbitals and integrals, for methods that build on it."""
    start = time.perf_counter()
    resolved = resolve_functional(method)
    layout = AOLayout(basis, molecule.numbers)
    mol = to_pyscf_mole(molecule, basis)
    mol.max_memory = max_memory_mb
    density = None
    if initial_density is not None:
        density = _start(layout.to_pyscf(np.asarray(initial_density(molecule), dtype=np.float64)), molecule.spin)
    solution = _solution(mol, method, density, residual_tolerance)
    warnings: tuple[str, ...] = ()
    if stability or (stability is None and mol.spin > 0):
        solution, warnings = _stable(method, solution, residual_tolerance)
    field, state = solution
    observables = _observables(field, state, layout, gradient=gradient)
    degenerate = reasons(molecule, layout, observables)
    moved = _not_aufbau(field, state)
    if moved > _MOVED:
        warnings += (f"the SCF solution is not aufbau: {moved:.2f} electrons of one spin above empty orbitals",)
    observables = replace(observables, warnings=degenerate + warnings, seconds=time.perf_counter() - start)
    label = Label(observables, resolved, state.scheme, state.fock_builds, bool(degenerate), state.coarse_builds)
    field.e_tot, field.converged = state.energy, True
    return label, field


def _solution(mol: gto.Mole, method: str, density: np.ndarray | None, tolerance: float) -> tuple[Any, State]:
    """Mean-field object and its self-consistent state, by the first scheme that reaches the tolerance.

    A state that is not aufbau is for when no scheme finds another: the lowest of them is then returned.
    """
    field = mean_field(mol, method, GRID_LEVEL)
    two_grid = isinstance(field, dft.rks.KohnShamDFT) and not field.do_nlc()
    reached: list[str] = []
    excited: list[tuple[Any, State]] = []
    for attempt in [_two_grid] * two_grid + [plain_scf, newton_scf]:
        scheme = attempt.__name__.removesuffix("_scf").strip("_").replace("_", "-")
        try:
            state = attempt(field, density, tolerance)
            aufbau = state.residual > tolerance or _not_aufbau(field, state) <= _MOVED
        except _FAILURES as error:
            # what it left in the object is of no use, and may be memory
            field = mean_field(mol, method, GRID_LEVEL)
            reached.append(f"{scheme} {type(error).__name__}: {error}")
            continue
        if not aufbau:
            excited.append((field, state))
            reached.append(f"{scheme} not aufbau")
            continue
        if state.residual <= tolerance:
            return field, state
        reached.append(f"{scheme} {state.residual:.1e}")
    if excited:
        return min(excited, key=lambda each: each[1].energy)
    raise NotConvergedError(
        f"SCF not converged to a residual of {tolerance:g} Eh; |FDS-SDF| reached: {', '.join(reached)}"
    )


def _stable(method: str, solution: tuple[Any, State], tolerance: float) -> tuple[tuple[Any, State], tuple[str, ...]]:
    """A solution without a lower one next to it, and a warning if it is not the one that was given.

    The orbital Hessian is that of the coarse grid, whose exchange-correlation kernel is the same to a few percent at a
    tenth of the cost; what is found is converged as any other, and taken if its energy is lower.
    """
    first, doubts = solution[1], ()
    for descents in range(_MAX_DESCENTS + 1):
        field, state = solution
        try:
            curvature, start = _descent(field, method, state)
        except _FAILURES as error:
            doubts = (f"whether the SCF solution is stable could not be checked: {type(error).__name__}: {error}",)
            break
        if start is None:
            break
        found = f"(negative orbital Hessian on the coarse grid, {curvature:.1e} Eh) and no lower solution was reached"
        if descents == _MAX_DESCENTS:
            doubts = (f"the SCF solution is a saddle point {found}: given up after {descents} descents",)
            break
        try:
            lower = _solution(field.mol, method, start, tolerance)
        except NotConvergedError as error:
            doubts = (f"the SCF solution is a saddle point {found}: {error}",)
            break
        if lower[1].energy > state.energy - _DESCENT:
            if curvature < _CLEARLY_NEGATIVE:
                doubts = (f"the SCF solution may be a saddle point {found}: the descent ended no lower",)
            break
        scheme = lower[1].scheme + _FOLLOWED
        builds = state.fock_builds + lower[1].fock_builds
        solution = lower[0], replace(lower[1], scheme=scheme, fock_builds=builds)
    drop = first.energy - solution[1].energy
    unstable = (f"the first SCF solution was unstable, by {drop:.1e} Eh",) if drop else ()
    return solution, unstable + doubts


def _descent(field, method: str, state: State) -> tuple[float, np.ndarray | None]:  # noqa: ANN001
    """Lowest curvature [Eh], and a density beyond which the energy falls, in PySCF's shape; None if it is stable."""
    coarse = mean_field(field.mol, method, COARSE_LEVEL)
    coarse._eri = field._eri
    kohn_sham = isinstance(coarse, dft.rks.KohnShamDFT)
    if kohn_sham:
        coarse.grids.build(with_non0tab=True)
        keep_orbital_values(coarse, field.mol.max_memory / 8)
    coarse.mo_energy, coarse.mo_coeff, coarse.mo_occ = _orbitals(coarse, state)
    try:
        curvature, direction = lowest_curvature(coarse, state.fock)
    finally:
        if kohn_sham:
            coarse._numint.__dict__.pop("block_loop", None)  # holds the object that holds it
    if curvature > UNSTABLE:
        return curvature, None
    return curvature, np.asarray(coarse.make_rdm1(rotated(coarse, direction), coarse.mo_occ))


def _not_aufbau(field, state: State) -> float:  # noqa: ANN001
    """Electrons of one spin that are not in the lowest orbitals; 0 if these are a matter of choice."""
    overlap = field.get_ovlp()
    energies, orbitals = field.eig(state.fock, overlap)
    occupations = field.get_occ(energies, orbitals)
    for e, o in zip(np.atleast_2d(energies), np.atleast_2d(occupations), strict=True):
        if (o > 0).any() and (o == 0).any() and e[o == 0].min() - e[o > 0].max() < DEGENERACY_GAP:
            return 0.0
    change = (np.asarray(field.make_rdm1(orbitals, occupations)) - state.density) / (2 if field.mol.spin == 0 else 1)
    moved = change @ overlap
    return float(np.atleast_1d(0.5 * np.einsum("...ij,...ji->...", moved, moved)).max())


def _orbitals(field, state: State) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # noqa: ANN001
    """Energies [Eh], coefficients and occupations of a state, aufbau or not, in PySCF's shapes."""
    overlap = field.get_ovlp()
    energies, orbitals = field.eig(state.fock, overlap)
    occupations = field.get_occ(energies, orbitals)
    if _not_aufbau(field, state) > _MOVED:
        held = np.einsum("...pi,...pi->...i", overlap @ orbitals, state.density @ overlap @ orbitals)
        order = np.argsort(np.argsort(-held, axis=-1, kind="stable"), axis=-1)
        occupations = np.take_along_axis(-np.sort(-occupations, axis=-1), order, axis=-1)
    return energies, orbitals, occupations


def mean_field(mol: gto.Mole, method: str, level: int):  # noqa: ANN202 (PySCF has no useful types)
    """PySCF's mean-field object."""
    if method.strip().lower() == "hf":
        field = scf.RHF(mol) if mol.spin == 0 else scf.UHF(mol)
    else:
        field = dft.RKS(mol, xc=method) if mol.spin == 0 else dft.UKS(mol, xc=method)
        field.grids.level = level
    field.conv_check = False
    field.chkfile = None
    return field


def _start(density: np.ndarray, spin: int) -> np.ndarray:
    """A density with a spin axis in the shape that PySCF wants."""
    if spin == 0:
        return density.sum(axis=0) if len(density) == 2 else density[0]
    return density if len(density) == 2 else np.stack([density[0] / 2] * 2)


def _two_grid(field, density: np.ndarray | None, tolerance: float) -> State:  # noqa: ANN001
    """Coarse grid with corrections from the reference grid."""
    coarse = mean_field(field.mol, field.xc, COARSE_LEVEL)
    return solve_two_grid(field, coarse, density, tolerance, good_start=density is not None)


def _evaluated(field, solver, scheme: str) -> State:  # noqa: ANN001
    """State of a converged PySCF solver with its Fock matrix built from its density."""
    density = np.asarray(solver.make_rdm1())
    core, overlap = field.get_hcore(), field.get_ovlp()
    veff = field.get_veff(field.mol, density)
    fock = np.asarray(core + veff)
    energy = float(field.energy_elec(density, core, veff)[0] + field.mol.energy_nuc())
    residual = float(np.abs(commutator(fock, density, overlap)).max())
    return State(density, fock, energy, residual, scheme, solver.cycles + 2)


def plain_scf(field, density: np.ndarray | None, tolerance: float) -> State:  # noqa: ANN001
    """PySCF's SCF; the residual of what is returned may be larger than the tolerance."""
    field.conv_tol, field.conv_tol_grad, field.max_cycle = 1e-11, tolerance * 0.3, 100
    field.kernel(density)
    return _evaluated(field, field, "plain")


def newton_scf(field, density: np.ndarray | None, tolerance: float) -> State:  # noqa: ANN001
    """PySCF's second-order SCF, for what does not converge otherwise."""
    solver = field.newton()
    solver.conv_tol, solver.conv_tol_grad, solver.max_cycle = 1e-11, tolerance * 0.3, 50
    solver.kernel(dm0=density)
    state = _evaluated(field, solver, "newton")
    for _ in range(_NEWTON_RESTARTS):  # it stops where the energy has no more digits, which the residual still has
        if state.residual <= tolerance:
            break
        solver.kernel(solver.mo_coeff, solver.mo_occ)
        state = _evaluated(field, solver, "newton")
    return state


def _observables(field, state: State, layout: AOLayout, *, gradient: bool) -> Observables:  # noqa: ANN001
    """Everything that is stored, in mlsemi's order and with a spin axis."""
    mol = field.mol
    overlap = field.get_ovlp()
    energies, coefficients, occupations = _orbitals(field, state)
    field.mo_energy, field.mo_coeff, field.mo_occ = energies, coefficients, occupations
    forces = None
    if gradient:
        derivative = field.nuc_grad_method()
        derivative.verbose = 0
        if isinstance(field, dft.rks.KohnShamDFT):
            # the grid moves with the atoms: without it PBE is off by 5e-6 Eh/bohr; PySCF lacks it for non-local xc
            derivative.grid_response = not field.do_nlc()
        forces = np.asarray(derivative.kernel(energies, coefficients, occupations))
    with mol.with_common_orig((0.0, 0.0, 0.0)):
        positions = mol.intor_symmetric("int1e_r", comp=3)
    total = state.density if mol.spin == 0 else state.density.sum(axis=0)
    dipole = mol.atom_charges() @ mol.atom_coords() - np.einsum("xij,ij->x", positions, total)

    def spin(array: np.ndarray, ndim: int) -> np.ndarray:
        return array[None] if array.ndim == ndim else array

    return Observables(
        energy=state.energy,
        fock=layout.from_pyscf(spin(state.fock, 2)),
        overlap=layout.from_pyscf(overlap),
        density=layout.from_pyscf(spin(state.density, 2)),
        mo_energy=spin(np.asarray(energies), 1),
        mo_coeff=layout.from_pyscf(spin(np.asarray(coefficients), 2), axes=(-2,)),
        mo_occ=spin(np.asarray(occupations), 1),
        dipole=dipole,
        gradient=forces,
        residual=state.residual,
    )
