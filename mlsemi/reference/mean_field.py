"""Reference labels by PySCF: Hartree-Fock and Kohn-Sham, restricted for spin 0 and unrestricted otherwise.

What is returned (F, E, and the residual that proves it) is always evaluated on the reference grid with one density, as
plain PySCF would, whichever scheme found the density.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pyscf import dft, gto, scf
from pyscf.scf.dispersion import parse_dft

from mlsemi.basis import Basis
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule, symbol_of
from mlsemi.observables import Observables
from mlsemi.reference.two_grid import State, commutator, solve_two_grid

InitialDensity = Callable[[Molecule], np.ndarray]
"""Start of the SCF: molecule to density, shape (spin, ao, ao), in mlsemi's AO order."""

GRID_LEVEL = 3
"""Reference grid: PySCF's default level."""

COARSE_LEVEL = 0
RESIDUAL_TOLERANCE = 1e-6
"""Default of the largest element of |F D S - S D F| [Eh]."""

DEGENERACY_GAP = 1e-3
"""Below this HOMO-LUMO gap of one spin [Eh] the occupation is a matter of choice, and so is the label."""


@dataclass(frozen=True, eq=False)
class Label:
    """Result of `solve`.

    Attributes:
        observables: energy, fock, overlap, density, orbitals, dipole, gradient (if asked for), residual, seconds.
        resolved_functional: what the method's name means in this PySCF, see `resolve_functional`.
        scheme: 'two-grid', 'plain' (PySCF's SCF) or 'newton' (second-order SCF).
        fock_builds: Fock matrices built on the reference grid.
        degenerate: the gap of a spin is below `DEGENERACY_GAP`, or negative.
    """

    observables: Observables
    resolved_functional: str
    scheme: str
    fock_builds: int
    degenerate: bool


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
        max_memory_mb: memory that PySCF may use [MB].

    Raises:
        ValueError: for an unknown functional or an element outside of the basis.
        NotConvergedError: if no scheme reaches the tolerance.
    """
    start = time.perf_counter()
    resolved = resolve_functional(method)
    layout = AOLayout(basis, molecule.numbers)
    mol = to_pyscf_mole(molecule, basis)
    mol.max_memory = max_memory_mb
    density = None
    if initial_density is not None:
        density = _start(layout.to_pyscf(np.asarray(initial_density(molecule), dtype=np.float64)), molecule.spin)
    field = mean_field(mol, method, GRID_LEVEL)
    two_grid = isinstance(field, dft.rks.KohnShamDFT) and not field.do_nlc()
    attempts = [_two_grid] * two_grid + [_plain, _newton]
    residuals = []
    for attempt in attempts:
        state = attempt(field, density, residual_tolerance)
        if state.residual <= residual_tolerance:
            observables = _observables(field, state, layout, gradient=gradient, seconds=time.perf_counter() - start)
            return Label(observables, resolved, state.scheme, state.fock_builds, _is_degenerate(observables))
        residuals.append(f"{state.scheme} {state.residual:.1e}")
    raise NotConvergedError(
        f"SCF not converged to a residual of {residual_tolerance:g} Eh; |FDS-SDF| reached: {', '.join(residuals)}"
    )


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
    return solve_two_grid(field, mean_field(field.mol, field.xc, COARSE_LEVEL), density, tolerance)


def _evaluated(field, solver, scheme: str) -> State:  # noqa: ANN001
    """State of a converged PySCF solver with its Fock matrix built from its density."""
    density = np.asarray(solver.make_rdm1())
    core, overlap = field.get_hcore(), field.get_ovlp()
    veff = field.get_veff(field.mol, density)
    fock = np.asarray(core + veff)
    energy = float(field.energy_elec(density, core, veff)[0] + field.mol.energy_nuc())
    residual = float(np.abs(commutator(fock, density, overlap)).max())
    return State(density, fock, energy, residual, scheme, solver.cycles + 2)


def _plain(field, density: np.ndarray | None, tolerance: float) -> State:  # noqa: ANN001
    """PySCF's SCF."""
    field.conv_tol, field.conv_tol_grad, field.max_cycle = 1e-11, tolerance * 0.3, 100
    field.kernel(density)
    return _evaluated(field, field, "plain")


def _newton(field, density: np.ndarray | None, tolerance: float) -> State:  # noqa: ANN001
    """PySCF's second-order SCF, for what does not converge otherwise."""
    solver = field.newton()
    solver.conv_tol, solver.conv_tol_grad, solver.max_cycle = 1e-11, tolerance * 0.3, 50
    solver.kernel(dm0=density)
    return _evaluated(field, solver, "newton")


def _observables(field, state: State, layout: AOLayout, *, gradient: bool, seconds: float) -> Observables:  # noqa: ANN001
    """Everything that is stored, in mlsemi's order and with a spin axis."""
    mol = field.mol
    overlap = field.get_ovlp()
    energies, coefficients = field.eig(state.fock, overlap)
    field.mo_energy, field.mo_coeff = energies, coefficients
    field.mo_occ = occupations = field.get_occ(energies, coefficients)
    forces = None
    if gradient:
        derivative = field.nuc_grad_method()
        derivative.verbose = 0
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
        seconds=seconds,
    )


def _is_degenerate(observables: Observables) -> bool:
    """Whether the gap of a spin is below `DEGENERACY_GAP` (or negative)."""
    energies, occupations = observables.mo_energy, observables.mo_occ
    assert energies is not None and occupations is not None
    for eps, occ in zip(energies, occupations, strict=True):
        filled = occ > 0
        if filled.any() and not filled.all() and eps[~filled].min() - eps[filled].max() < DEGENERACY_GAP:
            return True
    return False
