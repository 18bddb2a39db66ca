"""Kohn-Sham SCF on a coarse grid with the reference grid's answer.

The quadrature of the exchange-correlation functional is most of the cost of a Kohn-Sham SCF, and most of it is spent on
densities that are not the answer. So the SCF is converged on a coarse grid with the correction

    dV_k = V_xc[D_k; reference grid] - V_xc[D_k; coarse grid]

held fixed; its density is D_k+1, and so on. The fixed point is the SCF on the reference grid. Each step costs one
quadrature on it and shrinks the error by two to three orders of magnitude. The history of DIIS (Pulay, Chem. Phys.
Lett. 73, 393 (1980)) goes from one step to the next: Fock matrices and their errors are linear in the correction.

From a good start, such as a predicted density, the first correction comes from a grid between the two, with a third of
the points of the reference grid: it takes the density so near to the answer that two steps suffice.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

_MAX_FINE_BUILDS = 6
_MAX_CYCLES = 30
_HISTORY = 8
_FIRST_THRESHOLD = 1e-3
_GOOD_START_THRESHOLD = 1e-4
_MIDDLE_LEVEL = 1
_LAST = 0.5
"""The last SCF on the coarse grid from a good start ends at this times the residual that is asked for; what it does not
see, the change of the correction, is smaller still."""

_UNSORTED = 16
"""Up to so many atoms sorting the points of a grid takes longer than two quadratures gain by leaving blocks out."""


@dataclass(frozen=True, eq=False)
class State:
    """Density and what the reference method makes of it, in PySCF's order and shapes.

    Attributes:
        density: shape (ao, ao), or (2, ao, ao) if unrestricted.
        fock: Fock matrix of this density [Eh], same shape.
        energy: energy of this density [Eh].
        residual: largest element of |F D S - S D F| [Eh].
        scheme: how it was found.
        fock_builds: Fock matrices built on the reference grid.
        coarse_builds: Fock matrices built on the coarse grid besides.
    """

    density: np.ndarray
    fock: np.ndarray
    energy: float
    residual: float
    scheme: str
    fock_builds: int
    coarse_builds: int = 0


def commutator(fock: np.ndarray, density: np.ndarray, overlap: np.ndarray) -> np.ndarray:
    """F D S - S D F [Eh], shape (..., ao, ao)."""
    product = fock @ density @ overlap
    return product - np.swapaxes(product, -1, -2)


def solve_two_grid(
    fine,  # noqa: ANN001
    coarse,  # noqa: ANN001
    density: np.ndarray | None,
    tolerance: float,
    *,
    good_start: bool = False,
) -> State:
    """The scheme of the module's docstring.

    Args:
        fine: PySCF's RKS or UKS object with the reference grid.
        coarse: the same with the coarse grid.
        density: start; PySCF's guess by default.
        tolerance: residual that ends it; the residual of what is returned may be larger [Eh].
        good_start: the start is so near that a first correction, from the grid in the middle, is worth computing there,
            before any cycle: one quadrature on the reference grid less. The values of the orbitals on that grid are
            then not kept, as they are needed twice.
    """
    mol = fine.mol
    good_start = good_start and density is not None
    for field in (coarse, fine):
        _build(field.grids, sort=not good_start)
        if field is coarse or not good_start:
            keep_orbital_values(field, mol.max_memory / 8)
    solver = _CoarseSolver(coarse)
    density = coarse.get_init_guess() if density is None else density
    fine_builds, threshold, last = 0, _FIRST_THRESHOLD, 0.1
    if good_start:
        middle = fine.grids.__class__(mol)
        middle.level = _MIDDLE_LEVEL
        _build(middle, sort=False)
        solver.correct(_beyond_coarse(fine, middle, coarse, density)[1])
        threshold, last = _GOOD_START_THRESHOLD, _LAST
    while True:
        density, veff, converged = solver.converge(density, threshold)
        exc, correction = _beyond_coarse(fine, fine.grids, coarse, density)
        fock = np.asarray(solver.core + veff + correction)
        residual = float(np.abs(commutator(fock, np.asarray(density), solver.overlap)).max())
        fine_builds += 1
        if residual <= tolerance or not converged or fine_builds == _MAX_FINE_BUILDS:
            break
        solver.correct(correction)
        # the next step gains two orders or more: its SCF must not be what limits it
        threshold = max(min(threshold, residual) * 1e-3, tolerance * last)
    energy = float(coarse.energy_elec(density, solver.core, veff)[0] + exc + mol.energy_nuc())
    fine._eri = coarse._eri
    for field in (coarse, fine):  # the replaced method holds the object that holds it: gigabytes for the collector
        field._numint.__dict__.pop("block_loop", None)
    return State(np.asarray(density), fock, energy, residual, "two-grid", fine_builds, solver.builds)


def _build(grids, *, sort: bool) -> None:  # noqa: ANN001
    """Points and weights of a grid, and where which orbitals are zero."""
    grids.build(with_non0tab=True, sort_grids=sort or grids.mol.natm > _UNSORTED)


def _beyond_coarse(fine, grids, coarse, density: np.ndarray) -> tuple[float, np.ndarray]:  # noqa: ANN001
    """What a grid adds to the exchange-correlation energy [Eh] and potential [Eh] of the coarse one, for a density."""
    mol = fine.mol
    quadrature = fine._numint.nr_rks if mol.spin == 0 else fine._numint.nr_uks
    _, exc_fine, vxc_fine = quadrature(mol, grids, fine.xc, density)
    _, exc_coarse, vxc_coarse = quadrature(mol, coarse.grids, fine.xc, density)
    return float(exc_fine - exc_coarse), np.asarray(vxc_fine - vxc_coarse)


class _CoarseSolver:
    """SCF on the coarse grid with a correction to the Fock matrix that may change."""

    def __init__(self, field) -> None:  # noqa: ANN001
        self.field = field
        self.overlap, self.core = field.get_ovlp(), field.get_hcore()
        values, vectors = np.linalg.eigh(self.overlap)
        kept = values > 1e-9
        self._orthogonal = vectors[:, kept] / np.sqrt(values[kept])
        self._correction = np.zeros_like(self.overlap)
        self._veff = np.zeros_like(self.overlap)
        self.builds = 0
        self._densities: deque[np.ndarray] = deque(maxlen=_HISTORY)
        self._focks: deque[np.ndarray] = deque(maxlen=_HISTORY)
        self._errors: deque[np.ndarray] = deque(maxlen=_HISTORY)

    def converge(self, density: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, bool]:
        """A density whose commutator with the corrected Fock matrix is below a threshold.

        Returns:
            The density, PySCF's effective potential of it (coarse grid, not corrected), and whether it is converged.
        """
        field = self.field
        for _ in range(_MAX_CYCLES):
            if not self._densities or self._densities[-1] is not density:
                self._veff = field.get_veff(field.mol, density)
                self.builds += 1
                self._append(density, np.asarray(self.core + self._veff))
            error = commutator(self._focks[-1] + self._correction, np.asarray(density), self.overlap)
            if np.abs(error).max() < threshold:
                return density, self._veff, True
            energies, coefficients = field.eig(self._extrapolated(), self.overlap)
            density = field.make_rdm1(coefficients, field.get_occ(energies, coefficients))
        return self._densities[-1], self._veff, False

    def correct(self, correction: np.ndarray) -> None:
        """Replace the correction, shape of the Fock matrix [Eh]."""
        self._correction = correction
        for i, (fock, density) in enumerate(zip(self._focks, self._densities, strict=True)):
            self._errors[i] = self._error(fock, density)

    def _append(self, density: np.ndarray, fock: np.ndarray) -> None:
        self._densities.append(density)
        self._focks.append(fock)
        self._errors.append(self._error(fock, density))

    def _error(self, fock: np.ndarray, density: np.ndarray) -> np.ndarray:
        """Commutator in the orthonormal basis, flat [Eh]."""
        error = commutator(fock + self._correction, np.asarray(density), self.overlap)
        return (self._orthogonal.T @ error @ self._orthogonal).ravel()

    def _extrapolated(self) -> np.ndarray:
        """Combination of the Fock matrices whose error is smallest."""
        n = len(self._errors)
        errors = np.array(self._errors)
        scale = 1 / max(np.abs(errors[-1]).max(), 1e-300)
        matrix = np.zeros((n + 1, n + 1))
        matrix[:n, :n] = (errors * scale) @ (errors * scale).T
        matrix[n, :n] = matrix[:n, n] = 1
        target = np.zeros(n + 1)
        target[n] = 1
        weights = np.linalg.lstsq(matrix, target, rcond=1e-14)[0][:n]
        weights /= weights.sum()
        return np.tensordot(weights, np.array(self._focks), axes=1) + self._correction


def keep_orbital_values(field, max_memory_mb: float) -> None:  # noqa: ANN001
    """Evaluate the atomic orbitals on the grid once, if they fit into the memory that is given for them [MB]."""
    components = 1 if field._numint._xc_type(field.xc) == "LDA" else 4
    if field.grids.size * field.mol.nao * components * 8e-6 > max_memory_mb:
        return
    numint, evaluate, kept = field._numint, field._numint.block_loop, {}

    def block_loop(mol, grids, nao=None, deriv=0, *args, **kwargs):  # noqa: ANN001, ANN002, ANN003, ANN202
        if grids is not field.grids or deriv > int(components > 1):
            return evaluate(mol, grids, nao, deriv, *args, **kwargs)
        if deriv not in kept:
            # PySCF evaluates every block into the same memory
            kept[deriv] = [(ao.copy("K"), *rest) for ao, *rest in evaluate(mol, grids, nao, deriv, *args, **kwargs)]
        return iter(kept[deriv])

    numint.block_loop = block_loop
