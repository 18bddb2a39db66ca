"""The energy of the reference method at a given density, E[D], and how far it lies above the minimum.

One Fock build. E[D] is an upper bound of the self-consistent energy whose error is of second order in that of D. The
same Fock matrix gives an estimate dE2 of that error (`mlsemi.reference.second_order`): no bound, dE2 / true error is
0.8 (Hartree-Fock) to 1.1 (semilocal functionals) for random errors of F, and larger for smooth ones. E[D] - c dE2 with
a c that was fitted on validation molecules is the better energy where the errors are like those.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from pyscf import dft

from mlsemi.basis import Basis
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.reference.gradients import explicit_gradient
from mlsemi.reference.mean_field import GRID_LEVEL, mean_field, resolve_functional, to_pyscf_mole
from mlsemi.reference.second_order import SecondOrder, second_order
from mlsemi.reference.two_grid import commutator

IDEMPOTENCY_TOLERANCE = 1e-6
"""Largest deviation of D S D from D (of one spin) relative to the largest element of D, and of Tr[D S] from the number
of electrons relative to it. Rounding leaves 1e-12."""

DIRECTION_STEP = 1e-3
"""Largest element of the change of D in the differences along a direction: between rounding and curvature."""

NO_ESTIMATE = (
    "mode='corrected': an orbital without electrons lies below one with electrons in the Fock matrix of the predicted "
    "density, so that there is no error estimate to correct with: take mode='variational' or 'scf'"
)


@dataclass(frozen=True, eq=False)
class Derivative:
    """Partial derivatives of an energy E(R, D, S), for the chain rule with D and S as functions of R.

    Attributes:
        explicit: by the nuclei at fixed D and S in the AO basis [Eh/bohr], shape (atom, 3).
        density: by D [Eh] in mlsemi's AO order, shape (spin, ao, ao).
        overlap: by S [Eh] in mlsemi's AO order, shape (ao, ao); None if E does not depend on S.
    """

    explicit: np.ndarray
    density: np.ndarray
    overlap: np.ndarray | None


@dataclass(frozen=True, eq=False)
class VariationalEnergy:
    """E[D] and its error estimate.

    Attributes:
        energy: E[D] [Eh].
        error_estimate: dE2, an estimate of E[D] - E[SCF] [Eh]. None if a virtual orbital lies below an occupied one:
            the density is not that of a ground state of its own Fock matrix, and the estimate means nothing.
        fock: F[D] [Eh] in mlsemi's AO order, shape (spin, ao, ao).
        residual: largest element of |F D S - S D F| [Eh].
        seconds: wall time spent.
        correction: c of the corrected energy; zero leaves E[D].
        derivative: of the corrected energy, if it was asked for.
    """

    energy: float
    error_estimate: float | None
    fock: np.ndarray
    residual: float
    seconds: float
    correction: float = 0.0
    derivative: Derivative | None = None

    @property
    def corrected_energy(self) -> float:
        """E[D] - c dE2 [Eh].

        Raises:
            ValueError: if c is not zero and there is no estimate.
        """
        if self.correction == 0:
            return self.energy
        if self.error_estimate is None:
            raise ValueError(NO_ESTIMATE)
        return self.energy - self.correction * self.error_estimate


def variational(
    molecule: Molecule,
    basis: Basis,
    density: np.ndarray,
    *,
    method: str,
    correction: float = 0.0,
    derivative: bool = False,
    max_memory_mb: float = 4000,
) -> VariationalEnergy:
    """Energy of the reference method at a density.

    Args:
        molecule: restricted if its spin is 0, unrestricted otherwise.
        basis: basis set of the density.
        density: density of a Slater determinant in mlsemi's AO order, shape (spin, ao, ao): one entry, of all
            electrons, if restricted (the axis may be left out); two, alpha and beta, if not.
        method: 'hf' or a functional in PySCF's notation.
        correction: c of the corrected energy E[D] - c dE2.
        derivative: the partial derivatives of the (corrected) energy too; with a correction they take two more Fock
            builds and gradients.
        max_memory_mb: memory that PySCF may use [MB].

    Returns:
        The energy on the reference grid, its error estimate, and the Fock matrix.

    Raises:
        ValueError: for an unknown functional, one with non-local correlation, or a density that has not the shape, the
            number of electrons, or the idempotency (D S D = D for each spin) of a determinant of the molecule; for
            derivatives of a corrected energy that does not exist.
    """
    start = time.perf_counter()
    check_method(method)
    layout = AOLayout(basis, molecule.numbers)
    mol = to_pyscf_mole(molecule, basis)
    mol.max_memory = max_memory_mb
    overlap = mol.intor_symmetric("int1e_ovlp")
    inside = checked_density(molecule, layout, density, overlap)
    field = mean_field(mol, method, GRID_LEVEL)
    if isinstance(field, dft.rks.KohnShamDFT):
        field.grids.build(with_non0tab=True)
    core = field.get_hcore()
    veff = field.get_veff(mol, _in_field(inside))
    energy = float(field.energy_elec(_in_field(inside), core, veff)[0] + mol.energy_nuc())
    fock = np.asarray(core + veff).reshape(inside.shape)
    estimate = second_order(fock, overlap, inside, mol.nelec[: len(inside)])
    if derivative and correction and estimate is None:
        raise ValueError(NO_ESTIMATE)
    return VariationalEnergy(
        energy=energy,
        error_estimate=None if estimate is None else estimate.energy,
        fock=layout.from_pyscf(fock),
        residual=float(np.abs(commutator(fock, inside, overlap)).max()),
        correction=correction,
        derivative=_derivative(field, layout, inside, fock, estimate, correction) if derivative else None,
        seconds=time.perf_counter() - start,
    )


def _in_field(density: np.ndarray) -> np.ndarray:
    """A density with a spin axis in the shape that PySCF's objects want."""
    return density[0] if len(density) == 1 else density


def _derivative(
    field: Any,
    layout: AOLayout,
    density: np.ndarray,
    fock: np.ndarray,
    estimate: SecondOrder | None,
    correction: float,
) -> Derivative:
    """Partial derivatives of E[D] - c dE2; matrices in PySCF's order go in, in mlsemi's come out.

    dE2 depends on R through F[D, R] as well. With Z = d dE2 / dF that part is Tr[Z dF], and as F = dE/dD it is the
    derivative of dE by D in the direction Z: a difference of two explicit gradients (and of two Fock matrices, for its
    change with D).
    """
    explicit = explicit_gradient(field, _in_field(density))
    if not correction or estimate is None:
        return Derivative(explicit, layout.from_pyscf(fock), None)
    step = DIRECTION_STEP / max(float(np.abs(estimate.by_fock).max()), 1e-12)
    gradients, focks = [], []
    for sign in (1, -1):
        shifted = _in_field(density + sign * step * estimate.by_fock)
        gradients.append(explicit_gradient(field, shifted))
        focks.append(np.asarray(field.get_hcore() + field.get_veff(field.mol, shifted)).reshape(fock.shape))
    along = (gradients[0] - gradients[1]) / (2 * step)
    kernel = (focks[0] - focks[1]) / (2 * step)
    return Derivative(
        explicit - correction * along,
        layout.from_pyscf(fock - correction * (kernel + estimate.by_density)),
        layout.from_pyscf(-correction * estimate.by_overlap),
    )


def checked_density(molecule: Molecule, layout: AOLayout, density: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """A density with its spin axis in PySCF's order, if it is that of a determinant of the molecule.

    Args:
        molecule: restricted if its spin is 0, unrestricted otherwise.
        layout: AO layout of the molecule.
        density: in mlsemi's order, shape (spin, ao, ao), or (ao, ao) if restricted.
        overlap: in PySCF's order, shape (ao, ao).

    Returns:
        Density, shape (spin, ao, ao).

    Raises:
        ValueError: if it has not the shape, the number of electrons or the idempotency.
    """
    n_spins = 1 if molecule.spin == 0 else 2
    density = np.asarray(density, dtype=np.float64)
    density = density[None] if density.ndim == 2 else density
    if density.shape != (n_spins, layout.n_ao, layout.n_ao):
        raise ValueError(
            f"density must have shape ({n_spins}, {layout.n_ao}, {layout.n_ao}) for {molecule.formula} with "
            f"spin={molecule.spin} in {layout.basis.name}, got {density.shape}"
        )
    inside = layout.to_pyscf(density)
    n_electrons = int(molecule.numbers.sum()) - molecule.charge
    n_alpha = (n_electrons + molecule.spin) // 2
    _check_determinant(inside, overlap, (n_electrons,) if n_spins == 1 else (n_alpha, n_electrons - n_alpha))
    return inside


def check_method(method: str) -> None:
    """Refuses methods without E[D]: unknown ones, and those with non-local correlation."""
    resolve_functional(method)
    if method.strip().lower() != "hf" and dft.libxc.is_nlc(method):
        raise ValueError(f"method={method!r} has non-local correlation, which the variational mode does not cover")


def _check_determinant(density: np.ndarray, overlap: np.ndarray, electrons: tuple[int, ...]) -> None:
    """Refuses densities that are not those of a determinant with these numbers of electrons."""
    per_orbital = 2.0 if len(density) == 1 else 1.0
    for spin, (d, expected) in enumerate(zip(density, electrons, strict=True)):
        counted = float(np.sum(d * overlap))
        if not abs(counted - expected) <= IDEMPOTENCY_TOLERANCE * max(expected, 1):
            raise ValueError(
                f"density[{spin}] holds {counted:.6f} electrons, expected {expected}: does it belong to this molecule, "
                "basis and AO order (mlsemi's)?"
            )
        deviation = float(np.abs(d @ overlap @ d / per_orbital - d).max())
        if not deviation <= IDEMPOTENCY_TOLERANCE * max(float(np.abs(d).max()), 1.0):
            raise ValueError(
                f"density[{spin}] is not idempotent: |D S D - D| reaches {deviation:.1e}; it must be that of a single "
                "determinant with integer occupations"
            )
