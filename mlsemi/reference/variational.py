"""The energy of the reference method at a given density, E[D], and how far it lies above the minimum.

One Fock build. E[D] is an upper bound of the self-consistent energy whose error is of second order in that of D. To
second order, with F = F[D] and orbitals canonicalized within the occupied and within the virtual space,

    E[D] - E[SCF] ~ dE2 = sum over spins and ia of |F_ia|^2 / (eps_a - eps_i),

which neglects the response of the Fock matrix. It is an estimate, no bound: dE2 / true error is 0.8 (Hartree-Fock) to
1.1 (semilocal functionals) for random errors of F, and larger for smooth ones.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from pyscf import dft

from mlsemi.basis import Basis
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.reference.mean_field import GRID_LEVEL, mean_field, resolve_functional, to_pyscf_mole
from mlsemi.reference.two_grid import commutator

IDEMPOTENCY_TOLERANCE = 1e-6
"""Largest deviation of D S D from D (of one spin) relative to the largest element of D, and of Tr[D S] from the number
of electrons relative to it. Rounding leaves 1e-12."""


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
    """

    energy: float
    error_estimate: float | None
    fock: np.ndarray
    residual: float
    seconds: float


def variational(
    molecule: Molecule, basis: Basis, density: np.ndarray, *, method: str, max_memory_mb: float = 4000
) -> VariationalEnergy:
    """Energy of the reference method at a density.

    Args:
        molecule: restricted if its spin is 0, unrestricted otherwise.
        basis: basis set of the density.
        density: density of a Slater determinant in mlsemi's AO order, shape (spin, ao, ao): one entry, of all
            electrons, if restricted (the axis may be left out); two, alpha and beta, if not.
        method: 'hf' or a functional in PySCF's notation.
        max_memory_mb: memory that PySCF may use [MB].

    Returns:
        The energy on the reference grid, its error estimate, and the Fock matrix.

    Raises:
        ValueError: for an unknown functional, one with non-local correlation, or a density that has not the shape, the
            number of electrons, or the idempotency (D S D = D for each spin) of a determinant of the molecule.
    """
    start = time.perf_counter()
    _check_method(method)
    layout = AOLayout(basis, molecule.numbers)
    n_spins = 1 if molecule.spin == 0 else 2
    density = np.asarray(density, dtype=np.float64)
    density = density[None] if density.ndim == 2 else density
    if density.shape != (n_spins, layout.n_ao, layout.n_ao):
        raise ValueError(
            f"density must have shape ({n_spins}, {layout.n_ao}, {layout.n_ao}) for {molecule.formula} with "
            f"spin={molecule.spin} in {basis.name}, got {density.shape}"
        )
    mol = to_pyscf_mole(molecule, basis)
    mol.max_memory = max_memory_mb
    overlap = mol.intor_symmetric("int1e_ovlp")
    inside = layout.to_pyscf(density)
    _check_determinant(inside, overlap, mol.nelec if n_spins == 2 else (mol.nelectron,))
    in_field = inside if n_spins == 2 else inside[0]
    field = mean_field(mol, method, GRID_LEVEL)
    if isinstance(field, dft.rks.KohnShamDFT):
        field.grids.build(with_non0tab=True)
    core = field.get_hcore()
    veff = field.get_veff(mol, in_field)
    energy = float(field.energy_elec(in_field, core, veff)[0] + mol.energy_nuc())
    fock = np.asarray(core + veff).reshape(inside.shape)
    n_occupied = mol.nelec[:n_spins]
    return VariationalEnergy(
        energy=energy,
        error_estimate=second_order_error(fock, overlap, inside, n_occupied),
        fock=layout.from_pyscf(fock),
        residual=float(np.abs(commutator(fock, inside, overlap)).max()),
        seconds=time.perf_counter() - start,
    )


def second_order_error(
    fock: np.ndarray, overlap: np.ndarray, density: np.ndarray, n_occupied: tuple[int, ...]
) -> float | None:
    """The estimate dE2 of the module's docstring.

    Args:
        fock: F[D] [Eh], shape (spin, ao, ao).
        overlap: overlap matrix, shape (ao, ao).
        density: idempotent densities, shape (spin, ao, ao); one entry for both spins together if restricted.
        n_occupied: number of occupied orbitals of each spin.

    Returns:
        Estimate of E[D] - E[SCF] [Eh]; None if a virtual orbital lies below an occupied one.
    """
    values, vectors = scipy.linalg.eigh(overlap)
    half, inverse_half = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    total = 0.0
    for f, d, n in zip(fock, density, n_occupied, strict=True):
        # eigenvectors of S^1/2 D S^1/2, occupied ones last
        natural = inverse_half @ scipy.linalg.eigh(half @ d @ half)[1]
        virtual, occupied = np.split(natural, [natural.shape[1] - n], axis=1)
        eps_i, u = np.linalg.eigh(occupied.T @ f @ occupied)
        eps_a, v = np.linalg.eigh(virtual.T @ f @ virtual)
        coupling = (occupied @ u).T @ f @ (virtual @ v)
        gap = eps_a - eps_i[:, None]
        if gap.size and gap.min() <= 0:
            return None
        total += float((coupling**2 / gap).sum())
    return total * (2.0 if len(fock) == 1 else 1.0)


def _check_method(method: str) -> None:
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
