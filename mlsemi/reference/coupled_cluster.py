"""Reference labels of correlated methods by PySCF: MP2, CCSD and CCSD(T) on restricted and unrestricted Hartree-Fock.

Closed shells (spin 0) are restricted, all others unrestricted, as in `mlsemi.reference.mean_field`. The dipole is that
of the level itself, by finite field; ionization energies and electron affinities are those of IP- and EA-EOM-CCSD.
A composite level adds the difference of the method to MP2 in a small basis to MP2 in a large one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pyscf import cc, mp
from pyscf.cc import ccsd_t_lambda, eom_rccsd, eom_uccsd
from pyscf.data import elements
from pyscf.grad import ccsd_t as ccsd_t_gradient

from mlsemi.basis import Basis
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.reference.finite_field import Amplitudes, dipoles
from mlsemi.reference.mean_field import InitialDensity, Label, NotConvergedError, solve_with_field

METHODS = {"mp2": "MP2", "ccsd": "CCSD", "ccsd(t)": "CCSD(T)"}
"""Methods, and how they are quoted."""

SCF_TOLERANCE = 1e-7
"""Default of the largest element of |F D S - S D F| [Eh]: a tenth of the mean-field labels'. Single excitations make up
for the rest; second-order SCF comes no nearer in difficult cases (CN)."""

NO_OPEN_SHELL_GRADIENT = (
    "analytic gradients of CCSD(T) for open shells are not available (PySCF's are wrong, see its issue 3305): label "
    "gradients with 'ccsd' or 'mp2', or closed shells only"
)

_ENERGY_TOLERANCE = 1e-9
_AMPLITUDE_TOLERANCE = 1e-6
_FIELD_AMPLITUDE_TOLERANCE = 3e-7
_LAMBDA_TOLERANCE = 1e-7
_EOM_TOLERANCE = 1e-8
_MAX_CYCLES = 60
_DAMPED = 0.6
_DAMPED_CYCLES = 300

_IP_WINDOW = 0.12
_EA_WINDOW = 0.03
"""Orbitals this near to the asked ones [Eh] are looked at too: correlation may reverse their order (N2)."""


@dataclass(frozen=True)
class Correlation:
    """What a label of a correlated method is to have, besides method and basis.

    Attributes:
        frozen_core: the electrons of the noble gas core (none of H to Be, 1s of B to Mg, 1s 2s 2p of Al to Zn, as PySCF
            has it) are not correlated.
        dipole: dipole moment at the full level.
        ip: so many lowest ionization energies.
        ea: so many highest electron affinities.
        small_basis: composite level: MP2 in the basis, plus the method minus MP2 in this one.
    """

    frozen_core: bool = True
    dipole: bool = False
    ip: int = 0
    ea: int = 0
    small_basis: Basis | None = None

    def check(self, method: str) -> None:
        """Refuses what does not go together.

        Raises:
            ValueError: for an unknown method, negative numbers, ionization energies with MP2 or a composite level, or a
                composite level of MP2 with itself.
        """
        if not is_correlated(method):
            raise ValueError(f"method={method!r} must be one of {', '.join(METHODS)} for what correlated methods have")
        for name, value in (("ip", self.ip), ("ea", self.ea)):
            if value < 0:
                raise ValueError(f"{name}={value} must be 0 (none) or the number of states")
            if value and _name(method) == "mp2":
                raise ValueError(f"{name}={value} needs the amplitudes of CCSD: use method 'ccsd' or 'ccsd(t)'")
            if value and self.small_basis is not None:
                raise ValueError(f"{name}={value} is not defined for a composite level: label it in a run of its own")
        if self.small_basis is not None and _name(method) == "mp2":
            raise ValueError("small_basis corrects MP2 by a better method: use method 'ccsd' or 'ccsd(t)'")


def is_correlated(method: str) -> bool:
    """Whether a method is one of this module."""
    return _name(method) in METHODS


def _name(method: str) -> str:
    return method.strip().lower()


def level_name(method: str, basis: Basis, correlation: Correlation) -> str:
    """The level as it is to be quoted, such as 'CCSD(T)/cc-pvtz, frozen core'."""
    quoted = METHODS[_name(method)]
    core = "frozen core" if correlation.frozen_core else "all electrons"
    if correlation.small_basis is None:
        return f"{quoted}/{basis.name}, {core}"
    return f"MP2/{basis.name} + ({quoted} - MP2)/{correlation.small_basis.name}, {core}"


def n_frozen(molecule: Molecule, correlation: Correlation) -> int:
    """Number of orbitals (of each spin) that are not correlated."""
    return sum(elements.chemcore_atm[z] for z in molecule.numbers.tolist()) if correlation.frozen_core else 0


def solve(
    molecule: Molecule,
    basis: Basis,
    *,
    method: str,
    correlation: Correlation | None = None,
    gradient: bool = False,
    residual_tolerance: float = SCF_TOLERANCE,
    initial_density: InitialDensity | None = None,
    stability: bool | None = None,
    max_memory_mb: float = 4000,
) -> Label:
    """Label of a correlated method.

    Args:
        molecule: restricted if its spin is 0, unrestricted otherwise.
        basis: basis set.
        method: 'mp2', 'ccsd' or 'ccsd(t)'.
        correlation: what else is wanted, see `Correlation`.
        gradient: also the nuclear gradient, analytic.
        residual_tolerance: of the SCF, see `mlsemi.reference.mean_field.solve`.
        initial_density: start of the SCF in `basis`; PySCF's minao by default.
        stability: look for a lower SCF solution, see `mlsemi.reference.mean_field.solve`.
        max_memory_mb: memory that PySCF may use [MB].

    Raises:
        ValueError: for settings that do not go together.
        NotConvergedError: if the SCF, the amplitudes or a state of the EOM are not converged.
    """
    start = time.perf_counter()
    correlation = correlation or Correlation()
    correlation.check(method)
    options: dict[str, Any] = {
        "frozen": n_frozen(molecule, correlation),
        "dipole": correlation.dipole,
        "gradient": gradient,
        "scf": {"residual_tolerance": residual_tolerance, "stability": stability, "max_memory_mb": max_memory_mb},
    }
    large_method = _name(method) if correlation.small_basis is None else "mp2"
    large = _Level(molecule, basis, large_method, **options, initial_density=initial_density)
    found = large.observables(ip=correlation.ip, ea=correlation.ea)
    cycles = large.cycles
    if correlation.small_basis is not None:
        small = _Level(molecule, correlation.small_basis, _name(method), **options)
        found, cycles = _composite(found, small), small.cycles
    found = replace(found, seconds=time.perf_counter() - start)
    scf = large.label
    level = level_name(method, basis, correlation)
    return Label(found, level, scf.scheme, scf.fock_builds, scf.degenerate, scf.coarse_builds, cycles)


def _composite(large: Observables, small: _Level) -> Observables:
    """MP2 in the large basis plus a better method minus MP2 in the small one, for each quantity."""
    better, mp2 = small.observables(), small.mp2_observables()

    def combined(name: str) -> Any:  # noqa: ANN401
        values = [getattr(o, name) for o in (large, better, mp2)]
        return None if values[0] is None else values[0] + values[1] - values[2]

    return replace(
        large,
        **{name: combined(name) for name in ("energy", "dipole", "gradient")},
        t1_diagnostic=better.t1_diagnostic,
        warnings=tuple(dict.fromkeys(large.warnings + better.warnings)),
    )


class _Level:
    """One method in one basis: the SCF, the correlation energy, and what follows from them.

    Attributes:
        label: the Hartree-Fock label.
        cycles: iterations of the amplitude equations without a field.
    """

    def __init__(
        self,
        molecule: Molecule,
        basis: Basis,
        method: str,
        *,
        frozen: int,
        dipole: bool,
        gradient: bool,
        scf: dict[str, Any],
        initial_density: InitialDensity | None = None,
    ) -> None:
        self.method, self.frozen, self._gradient = method, frozen, gradient
        self.label, self.field = solve_with_field(molecule, basis, method="hf", initial_density=initial_density, **scf)
        self.tolerance = scf["residual_tolerance"]
        self._memory = scf["max_memory_mb"]
        self.cycles = 0
        self.solver: Any = None
        self.eris: Any = None
        occupied = [int((o > 0).sum()) for o in np.atleast_2d(self.field.mo_occ)]
        if frozen > min(occupied) and max(occupied) > 0:
            raise ValueError(f"{frozen} core orbitals, but only {min(occupied)} occupied ones: label all electrons")
        electrons = sum(occupied) * (3 - len(occupied)) - 2 * frozen
        self.trivial = electrons < 2 or all(n == self.field.mo_occ.shape[-1] for n in occupied)
        self.energies, self.amplitudes = self.evaluate(self.field, None)
        self.dipoles = None
        if dipole:
            scf_dipole = self.label.observables.dipole
            assert scf_dipole is not None
            self.dipoles = dipoles(
                self.field, self.evaluate, self.amplitudes, scf_dipole=scf_dipole, tolerance=self.tolerance
            )

    def evaluate(self, field, guess: Amplitudes | None) -> tuple[np.ndarray, Amplitudes | None]:  # noqa: ANN001
        """Energies [Eh] of Hartree-Fock, MP2, CCSD and the method itself (NaN for what it does not have)."""
        hf = float(field.e_tot)
        if self.trivial:
            return np.full(4, hf), None
        if self.method == "mp2":
            mp2 = hf + float(mp.MP2(field, frozen=self.frozen or None).kernel(with_t2=False)[0])
            return np.array([hf, mp2, np.nan, mp2]), None
        first = self.solver is None
        solver, eris, mp2 = _coupled_cluster(field, self.frozen, guess, self._memory)
        if first:
            self.solver, self.eris, self.cycles = solver, eris, solver.cycles
        ccsd = hf + float(solver.e_corr)
        triples = float(solver.ccsd_t(eris=eris)) if self.method == "ccsd(t)" else 0.0
        return np.array([hf, hf + mp2, ccsd, ccsd + triples]), (solver.t1, solver.t2)

    def observables(self, *, ip: int = 0, ea: int = 0) -> Observables:
        """What the label holds."""
        hf, mp2, ccsd, total = self.energies.tolist()
        scf = self.label.observables
        return Observables(
            energy=total,
            dipole=None if self.dipoles is None else self.dipoles[3],
            gradient=self.gradient(self.method) if self._gradient else None,
            ionization_energies=self.excitations(ip, ionization=True) if ip else None,
            electron_affinities=self.excitations(ea, ionization=False) if ea else None,
            t1_diagnostic=None if self.method == "mp2" else self.t1_diagnostic(),
            scf_total_energy=hf,
            mp2_total_energy=mp2,
            ccsd_total_energy=None if np.isnan(ccsd) else ccsd,
            residual=scf.residual,
            warnings=scf.warnings,
        )

    def mp2_observables(self) -> Observables:
        """MP2 of the same state."""
        return Observables(
            energy=float(self.energies[1]),
            dipole=None if self.dipoles is None else self.dipoles[1],
            gradient=self.gradient("mp2") if self._gradient else None,
        )

    def t1_diagnostic(self) -> float:
        """Norm of the single excitations over the root of the number of correlated electrons."""
        if self.trivial:
            return 0.0
        t1 = self.solver.t1
        if isinstance(t1, tuple):
            electrons = sum(len(t) for t in t1)
            return float(np.sqrt(0.5 * sum(np.vdot(t, t) for t in t1) / electrons))
        return float(np.linalg.norm(t1) / np.sqrt(2 * len(t1)))

    def gradient(self, method: str) -> np.ndarray:
        """Derivative of the energy with respect to the nuclei [Eh/bohr], shape (atom, 3)."""
        if self.trivial:
            derivative = self.field.nuc_grad_method()
            derivative.verbose = 0
            return np.asarray(derivative.kernel())
        if method == "mp2":
            solver = mp.MP2(self.field, frozen=self.frozen or None)
            solver.kernel()
            return np.asarray(solver.nuc_grad_method().kernel())
        solver, eris = self.solver, self.eris
        if method == "ccsd":
            solver.solve_lambda(eris=eris)
            if not solver.converged_lambda:
                raise NotConvergedError("the lambda equations of CCSD are not converged: no gradient")
            return np.asarray(solver.nuc_grad_method().kernel(eris=eris))
        if isinstance(solver.t1, tuple):
            raise ValueError(NO_OPEN_SHELL_GRADIENT)
        converged, l1, l2 = ccsd_t_lambda.kernel(
            solver, eris, solver.t1, solver.t2, max_cycle=_MAX_CYCLES * 2, tol=_LAMBDA_TOLERANCE, verbose=0
        )
        if not converged:
            raise NotConvergedError("the lambda equations of CCSD(T) are not converged: no gradient")
        derivative = ccsd_t_gradient.Gradients(solver)
        derivative.verbose = 0
        return np.asarray(derivative.kernel(solver.t1, solver.t2, l1, l2, eris=eris))

    def excitations(self, count: int, *, ionization: bool) -> np.ndarray:
        """Ionization energies, ascending, or electron affinities, descending [Eh]; all there are if these are fewer."""
        near = _IP_WINDOW if ionization else _EA_WINDOW
        levels = self._levels(occupied=ionization)
        if len(levels) == 0:
            return np.zeros(0)
        roots = int((levels <= levels[min(count, len(levels)) - 1] + near).sum())
        if self.trivial:
            if not ionization:
                raise NotConvergedError("electron affinities of a single electron are not available")
            return levels[:count]
        restricted = not isinstance(self.solver.t1, tuple)
        module = eom_rccsd if restricted else eom_uccsd
        eom = (module.EOMIP if ionization else module.EOMEA)(self.solver)
        eom.verbose, eom.conv_tol, eom.max_cycle = 0, _EOM_TOLERANCE, 100
        eom.max_space = max(eom.max_space, 6 * roots)
        energies, _ = eom.kernel(nroots=roots, koopmans=True, eris=self.eris)
        energies, converged = np.real(np.atleast_1d(energies)), np.atleast_1d(eom.converged)
        order = np.argsort(energies, kind="stable")[:count]
        if not np.all(converged[order]):
            kind = "ionization energies (IP-EOM-CCSD)" if ionization else "electron affinities (EA-EOM-CCSD)"
            raise NotConvergedError(f"{kind} are not converged: {np.round(energies[order], 6).tolist()} Eh")
        return energies[order] if ionization else -energies[order]

    def _levels(self, *, occupied: bool) -> np.ndarray:
        """Koopmans' energies of removal, or of attachment, of active orbitals of all spins [Eh], ascending."""
        out: list[float] = []
        for e, occ in zip(np.atleast_2d(self.field.mo_energy), np.atleast_2d(self.field.mo_occ), strict=True):
            out += (-e[occ > 0][self.frozen :]).tolist() if occupied else e[occ == 0].tolist()
        return np.sort(out)


def _coupled_cluster(
    field,  # noqa: ANN001
    frozen: int,
    guess: Amplitudes | None,
    max_memory_mb: float,
) -> tuple[Any, Any, float]:
    """Converged CCSD object, its integrals, and the MP2 correlation energy [Eh]."""
    solver = cc.CCSD(field, frozen=frozen or None)
    solver.verbose, solver.max_memory = 0, max_memory_mb
    solver.async_io = False
    solver.incore_complete = True
    solver.max_cycle = _MAX_CYCLES
    solver.conv_tol = _ENERGY_TOLERANCE
    solver.conv_tol_normt = _AMPLITUDE_TOLERANCE if guess is None else _FIELD_AMPLITUDE_TOLERANCE
    eris = solver.ao2mo()
    mp2, *start = solver.init_amps(eris)
    attempts: Sequence[tuple[Any, float]] = [(guess, 1.0), (start, 1.0)] if guess else [(start, 1.0)]
    for amplitudes, damping in [*attempts, (start, _DAMPED)]:
        if damping < 1:
            solver.max_cycle = _DAMPED_CYCLES
        solver.iterative_damping = damping
        solver.kernel(*amplitudes, eris=eris)
        if solver.converged and np.isfinite(solver.e_corr):
            return solver, eris, float(mp2)
    raise NotConvergedError(f"CCSD not converged in {_MAX_CYCLES} cycles, nor in {_DAMPED_CYCLES} with damping")
