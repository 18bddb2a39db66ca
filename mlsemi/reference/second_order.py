"""The second-order estimate dE2 of how far E[D] lies above the self-consistent energy, its derivatives, and its use.

With F = F[D] and orbitals canonicalized within the occupied and within the virtual space of D

    dE2 = sum over spins and ia of |F_ia|^2 / (eps_a - eps_i),

twice the spatial sum for closed shells. It neglects the response of F to the orbitals. With X_ai = F_ai / (eps_a -
eps_i) its derivative with respect to F is the matrix Z, in these orbitals

    Z_ai = Z_ia = X_ai,    Z_ab = -(X X^T)_ab,    Z_ij = (X^T X)_ij,

and those with respect to D and S follow from how C changes with them; dE2 does not feel what happens within the
occupied or within the virtual space, so that degenerate orbitals do no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg

LARGEST_CORRECTION = 2.0
"""Bound of c in E[D] - c dE2: beyond it the estimate is none."""


@dataclass(frozen=True, eq=False)
class SecondOrder:
    """dE2 and its partial derivatives.

    Attributes:
        energy: dE2 [Eh].
        by_fock: d dE2 / dF at fixed D and S, shape (spin, ao, ao).
        by_density: d dE2 / dD at fixed F and S [Eh], same shape.
        by_overlap: d dE2 / dS at fixed F and D [Eh], shape (ao, ao).
    """

    energy: float
    by_fock: np.ndarray
    by_density: np.ndarray
    by_overlap: np.ndarray


def second_order(
    fock: np.ndarray, overlap: np.ndarray, density: np.ndarray, n_occupied: tuple[int, ...]
) -> SecondOrder | None:
    """dE2 of the module's docstring, with its derivatives.

    Args:
        fock: F[D] [Eh], shape (spin, ao, ao).
        overlap: overlap matrix, shape (ao, ao).
        density: idempotent densities, shape (spin, ao, ao); one entry for both spins together if restricted.
        n_occupied: number of occupied orbitals of each spin.

    Returns:
        The estimate of E[D] - E[SCF]; None if a virtual orbital lies below an occupied one: the density is not that of
        a ground state of its own Fock matrix, and the estimate means nothing.
    """
    values, vectors = scipy.linalg.eigh(overlap)
    half, inverse_half = ((vectors * values**power) @ vectors.T for power in (0.5, -0.5))
    per_orbital = 2.0 if len(fock) == 1 else 1.0
    energy, by_overlap = 0.0, np.zeros_like(overlap)
    by_fock, by_density = np.zeros_like(fock), np.zeros_like(fock)
    for s, (f, d, n) in enumerate(zip(fock, density, n_occupied, strict=True)):
        # eigenvectors of S^1/2 D S^1/2, occupied ones last
        natural = inverse_half @ scipy.linalg.eigh(half @ d @ half)[1]
        virtual, occupied = np.split(natural, [natural.shape[1] - n], axis=1)
        eps_i, u = np.linalg.eigh(occupied.T @ f @ occupied)
        eps_a, v = np.linalg.eigh(virtual.T @ f @ virtual)
        c = np.concatenate([occupied @ u, virtual @ v], axis=1)
        orbital_fock = c.T @ f @ c
        gap = eps_a[:, None] - eps_i
        if gap.size and gap.min() <= 0:
            return None
        x = orbital_fock[n:, :n] / gap
        z = np.block([[x.T @ x, x.T], [x, -x @ x.T]])
        energy += per_orbital * float((orbital_fock[n:, :n] * x).sum())
        by_fock[s] = per_orbital * c @ z @ c.T
        # an orbital change C -> C (1 + U) changes dE2 by 2 sum_pq U_pq (F Z)_pq; U_ai follows D, the rest S
        product = orbital_fock @ z
        rotation = np.zeros_like(product)
        rotation[n:, :n] = product[n:, :n] - product[:n, n:].T
        dual = overlap @ c
        by_density[s] = dual @ (rotation + rotation.T) @ dual.T
        metric = product.copy()
        metric[n:, :n] = product[:n, n:].T
        by_overlap -= per_orbital * 0.5 * c @ (metric + metric.T) @ c.T
    return SecondOrder(energy, by_fock, by_density, by_overlap)


@dataclass(frozen=True)
class Correction:
    """How dE2 is used: E[D] - factor dE2 is the corrected energy.

    Attributes:
        factor: c of the corrected energy.
        count: number of molecules that it was fitted on.
    """

    factor: float
    count: int


def fit_correction(true_errors: Sequence[float] | np.ndarray, estimates: Sequence[float] | np.ndarray) -> Correction:
    """The correction with the least sum of |true error - c estimate|.

    Its c is the median of true error / estimate, each weighted with its estimate: single molecules with a bad estimate
    do not move it, and those with a negligible one do not count.

    Args:
        true_errors: E[D] - E[SCF] of molecules that were not trained on [Eh].
        estimates: dE2 of these [Eh]; entries that are not finite (no estimate) are left out.

    Raises:
        ValueError: for lengths that differ, or nothing to fit on.
    """
    errors, found = np.asarray(true_errors, dtype=np.float64), np.asarray(estimates, dtype=np.float64)
    if errors.shape != found.shape or errors.ndim != 1:
        raise ValueError(f"true_errors and estimates must be of one length, got shapes {errors.shape}, {found.shape}")
    used = np.isfinite(errors) & np.isfinite(found) & (found > 0)
    if not used.any():
        raise ValueError(f"estimates: none of {found.size} is finite and positive: there is nothing to fit c on")
    ratios, weights = errors[used] / found[used], found[used]
    order = np.argsort(ratios)
    below = np.cumsum(weights[order])
    median = ratios[order][np.searchsorted(below, 0.5 * below[-1])]
    factor = float(np.clip(median, 0.0, LARGEST_CORRECTION))
    return Correction(factor, int(used.sum()))
