"""Orbitals and densities of a batch as differentiable functions of F, S and the occupations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mlsemi.eigen.adjoint import Solved
from mlsemi.eigen.checks import Errors, Report, both, check_shapes
from mlsemi.eigen.dependencies import LINEAR_DEPENDENCE, drop_dependencies
from mlsemi.eigen.occupations import check_electrons, chemical_potential
from mlsemi.eigen.solver import solve_batch
from mlsemi.eigen.spectrum import FermiOccupations, GivenOccupations


@dataclass(frozen=True, eq=False)
class EigenSolution:
    """Orbitals of a batch.

    There are as many orbitals as AOs. Beyond the orbitals of a molecule, as many as its AOs less those that were
    dropped, stands padding: a finite energy above all others, coefficients zero.

    Attributes:
        mo_energy: orbital energies [Eh], ascending, shape (batch, mo). Differentiable; of a degenerate set only
            symmetric functions (a sum, a power sum) have a derivative (others get that of the set as it was returned,
            without NaN), and only sums with constant weights a second one; others raise an error.
        mo_coeff: coefficients with C^T S C = 1, shape (batch, ao, mo). No gradient passes through them unless
            `orbital_gradient` was asked for: a phase and a degenerate set have none. Differentiate the density.
        n_dropped: combinations of AOs that were dropped because S is nearly singular, shape (batch,).
        gap: least distance of levels of unlike occupation [Eh], infinite where there are none, shape (batch,); no
            gradient. Below `CLOSED_GAP` the density has no derivative.
        problems: with errors="mark", what is wrong with which members.
    """

    mo_energy: Tensor
    mo_coeff: Tensor
    n_dropped: Tensor
    gap: Tensor
    problems: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SmearedDensity:
    """A density with occupations by Fermi's function.

    Attributes:
        orbitals: orbitals.
        density: D = C f C^T, shape (batch, ao, ao).
        occupation: f, shape (batch, mo); constants, `fermi_occupations` gives differentiable ones.
        chemical_potential: mu [Eh], shape (batch,).
        entropy_energy: -T S [Eh], not positive, shape (batch,): E + this is the free energy (Mermin 1965), whose
            derivative has no term of changing occupations.
    """

    orbitals: EigenSolution
    density: Tensor
    occupation: Tensor
    chemical_potential: Tensor
    entropy_energy: Tensor


def solve(
    fock: Tensor,
    overlap: Tensor,
    ao_mask: Tensor | None = None,
    *,
    group: bool | None = None,
    linear_dependence: float = LINEAR_DEPENDENCE,
    errors: Errors = "raise",
    names: Sequence[str] | None = None,
    orbital_gradient: bool = False,
) -> EigenSolution:
    """Solves F C = S C eps in float64.

    Each solution is verified; a member that failed is solved again by LAPACK on the CPU, with a warning.

    Args:
        fock: Fock matrices [Eh], shape (batch, ao, ao), float64 or float32; asymmetry by rounding is
            averaged, more is an error.
        overlap: overlap matrices, shape (batch, ao, ao), likewise.
        ao_mask: True where an AO exists, shape (batch, ao); the AOs of a molecule come first. All exist by default.
        group: solve molecules of one size together and without padding (right on the CPU, which solves one matrix
            after the other), or all at once with padding (right on a GPU). By default as the device wants it.
        linear_dependence: eigenvalue of S (of normalized AOs) below which its eigenvector is dropped, with a warning
            (canonical orthogonalization). Derivatives include the turning of the space that is kept.
        errors: "raise" for members that cannot be solved, or "mark" them: their results are NaN, their gradients zero,
            and `EigenSolution.problems` says why; all other members are right.
        names: names of the members in messages; "molecule k of the batch" by default.
        orbital_gradient: let gradients pass through the coefficients, once; a loss that depends on the choice of
            degenerate orbitals is an error then.

    Returns:
        Orbitals; energies are differentiable.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, matrices that are not symmetric, or an
            overlap with an eigenvalue below -linear_dependence.
        RuntimeError: if LAPACK fails as well.
    """
    occupation = fock.new_zeros(fock.shape[:-1], dtype=torch.float64)
    return solve_density(
        fock,
        overlap,
        occupation,
        ao_mask,
        group=group,
        linear_dependence=linear_dependence,
        errors=errors,
        names=names,
        orbital_gradient=orbital_gradient,
    )[0]


def density(fock: Tensor, overlap: Tensor, occupation: Tensor, ao_mask: Tensor | None = None, **options: Any) -> Tensor:
    """Density D = C f C^T, shape (batch, ao, ao); see `solve_density`, also for the options."""
    return solve_density(fock, overlap, occupation, ao_mask, **options)[1]


def solve_density(
    fock: Tensor,
    overlap: Tensor,
    occupation: Tensor,
    ao_mask: Tensor | None = None,
    *,
    group: bool | None = None,
    linear_dependence: float = LINEAR_DEPENDENCE,
    errors: Errors = "raise",
    names: Sequence[str] | None = None,
    orbital_gradient: bool = False,
) -> tuple[EigenSolution, Tensor]:
    """Orbitals and the density D = C f C^T from one diagonalization.

    Density and orbital energies are differentiable twice in F and S, the density once in the occupations. Where levels
    of unlike occupation are degenerate (closer than `CLOSED_GAP`) the density has no derivative: asking for one raises
    a ValueError; with errors="mark" the density of that member carries no gradient, and `problems` says so.

    Args:
        fock: as in `solve`.
        overlap: as in `solve`.
        occupation: occupations of the orbitals, ascending in energy, shape (batch, mo); integers or fractions.
        ao_mask: as in `solve`.
        group: as in `solve`.
        linear_dependence: as in `solve`.
        errors: as in `solve`.
        names: as in `solve`.
        orbital_gradient: as in `solve`.

    Returns:
        Orbitals, and densities of shape (batch, ao, ao).

    Raises:
        ValueError: as `solve`; for occupations that are not finite, or of orbitals that do not exist.
        RuntimeError: as `solve`.
    """
    check_shapes(fock, overlap, ao_mask, occupation=occupation)
    report = Report(len(fock), names, errors)
    problem = Problem(fock, overlap, ao_mask, report, group, linear_dependence)
    f = occupation.to(problem.energy)
    fixed = f.detach()
    wrong = ~((fixed == 0) | (problem.exists & fixed.isfinite()))
    if bool(wrong.any()):
        for k in wrong.any(1).nonzero().flatten().tolist():
            report.add(
                k,
                f"occupations of {report.name(k)} are not finite, or not zero beyond its "
                f"{int(problem.exists[k].sum())} orbitals",
            )
        fixed = torch.where(wrong, 0.0, fixed)
    report.settle()
    spectrum = GivenOccupations(problem.energy, fixed, problem.exists, report.name)
    gap = spectrum.gap()
    energy, coeff, matrix, _, _ = Solved.apply(
        problem.fock, problem.overlap, f, spectrum, problem.coeff, orbital_gradient, errors == "raise"
    )
    if errors == "mark" and bool((closed := gap < spectrum.closed).any()):
        for k in closed.nonzero().flatten().tolist():
            report.notes[k] = (
                f"orbitals of {report.name(k)} of unlike occupation lie {float(gap[k]):.1e} Eh apart: its density has "
                "no derivative, and none is passed on"
            )
        matrix = torch.where(closed[:, None, None], matrix.detach(), matrix)
    return problem.orbitals(energy, coeff, gap), problem.marked(matrix)


def solve_smeared(
    fock: Tensor,
    overlap: Tensor,
    n_electrons: Tensor,
    kt: float,
    ao_mask: Tensor | None = None,
    *,
    capacity: float = 2.0,
    group: bool | None = None,
    linear_dependence: float = LINEAR_DEPENDENCE,
    errors: Errors = "raise",
    names: Sequence[str] | None = None,
) -> SmearedDensity:
    """Orbitals and density with occupations by Fermi's function at a given number of electrons.

    Density, chemical potential and entropy are differentiable twice in F and S, degenerate levels and the change of the
    chemical potential included; there is no gap that could close. kT and the number of electrons are constants.

    Args:
        fock: as in `solve`.
        overlap: as in `solve`.
        n_electrons: number of electrons, which may be fractional, shape (batch,).
        kt: temperature [Eh], positive.
        ao_mask: as in `solve`.
        capacity: electrons of a full orbital: 2 for spatial orbitals, 1 for those of one spin.
        group: as in `solve`.
        linear_dependence: as in `solve`.
        errors: as in `solve`.
        names: as in `solve`.

    Returns:
        Orbitals, density, occupations, chemical potential and entropy.

    Raises:
        ValueError: as `solve`; for a temperature that is not positive, or electrons that do not fit.
        RuntimeError: as `solve`.
    """
    check_shapes(fock, overlap, ao_mask)
    report = Report(len(fock), names, errors)
    problem = Problem(fock, overlap, ao_mask, report, group, linear_dependence)
    electrons = n_electrons.detach().to(problem.energy, copy=True)
    if n_electrons.requires_grad:
        raise ValueError("n_electrons requires a gradient, but the density is differentiable in F and S only")
    exists = problem.exists
    for k, message in check_electrons(electrons, kt, capacity, exists, report.name).items():
        report.add(k, message)
        electrons[k] = 0.0
    report.settle()
    mu = chemical_potential(problem.energy, electrons, kt, capacity=capacity, exists=exists)
    spectrum = FermiOccupations(problem.energy, mu, kt, capacity, exists)
    energy, coeff, matrix, free, potential = Solved.apply(
        problem.fock, problem.overlap, spectrum.occupation, spectrum, problem.coeff, False, True
    )
    entropy = free - (matrix * problem.inside()).sum((-2, -1))
    gap = torch.full_like(mu, torch.inf)
    return SmearedDensity(
        problem.orbitals(energy, coeff, gap),
        problem.marked(matrix),
        problem.marked(spectrum.occupation),
        problem.marked(potential),
        problem.marked(entropy),
    )


class Problem:
    """A batch, solved: matrices that carry the graph, and energies and coefficients that do not."""

    def __init__(
        self,
        fock: Tensor,
        overlap: Tensor,
        ao_mask: Tensor | None,
        report: Report,
        group: bool | None,
        linear_dependence: float,
    ) -> None:
        self.ao_mask = None if ao_mask is None or bool(ao_mask.all()) else ao_mask
        self.report = report
        self.fock, self.overlap = fock.double(), overlap.double()
        with torch.no_grad():
            matrices = self.fock.detach(), self.overlap.detach(), self.ao_mask
            raw = solve_batch(*matrices, report, group=group, dependence=linear_dependence)
        self.energy, self.coeff = raw.energy, raw.coeff
        self.n_dropped = torch.zeros(len(fock), dtype=torch.int64, device=fock.device)
        drop_dependencies(self, raw.norm, raw.singular, linear_dependence)
        self.exists = torch.ones_like(self.energy, dtype=torch.bool) if self.ao_mask is None else self.ao_mask
        if bool(self.n_dropped.any()):
            n_mo = self.exists.sum(1) - self.n_dropped
            self.exists = torch.arange(fock.shape[-1], device=fock.device) < n_mo.unsqueeze(1)

    def failed(self) -> Tensor | None:
        """True for members that have no solution, shape (batch,); None if all have one."""
        if not self.report.found:
            return None
        bad = torch.zeros(len(self.fock), dtype=torch.bool)
        bad[list(self.report.found)] = True
        return bad.to(self.fock.device)

    def marked(self, value: Tensor) -> Tensor:
        """NaN for members that have no solution; no gradient reaches them, not even from NaN."""
        bad = self.failed()
        return value if bad is None else torch.where(bad.view(-1, *[1] * (value.ndim - 1)), torch.nan, value)

    def inside(self) -> Tensor:
        """F without what lies in the padding and without members that have no solution."""
        bad = self.failed()
        if bad is None and self.ao_mask is None:
            return self.fock
        valid = torch.ones_like(self.fock, dtype=torch.bool) if self.ao_mask is None else both(self.ao_mask)
        return torch.where(valid if bad is None else valid & ~bad[:, None, None], self.fock, 0.0)

    def orbitals(self, energy: Tensor, coeff: Tensor | None, gap: Tensor) -> EigenSolution:
        """The solution as callers see it."""
        coeff = self.coeff if coeff is None else coeff
        if bool(self.n_dropped.any()):
            coeff = torch.where(self.exists.unsqueeze(-2), coeff, 0.0)
        return EigenSolution(
            self.marked(energy), self.marked(coeff), self.n_dropped, self.marked(gap), self.report.messages
        )
