"""Whether a self-consistent solution is a minimum: the lowest eigenvalue of its orbital Hessian.

Internal stability: real rotations of occupied into virtual orbitals of the same spin, restricted if the solution is.
Only the sign is wanted, so the iteration (Davidson, J. Comput. Phys. 17, 87 (1975)) ends as soon as the residual says
that the eigenvalue is positive: after four to eight products with the Hessian, where its convergence takes twenty.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from pyscf.scf.hf import unpack_uniq_var
from pyscf.soscf.newton_ah import expmat, gen_g_hop_rhf, gen_g_hop_uhf

UNSTABLE = -1e-3
"""An eigenvalue of the orbital Hessian below this is no rounding and no matter of the grid [Eh]."""

_MAX_PRODUCTS = 60
_START_POWER = 6
_CERTAIN = 0.2
"""The residual over the eigenvalue at which the sign is believed."""


def lowest_curvature(field: Any, fock: np.ndarray | None = None) -> tuple[float, np.ndarray]:
    """Lowest eigenvalue of the orbital Hessian, as far as its sign is certain.

    Args:
        field: PySCF's RHF, UHF, RKS or UKS object with mo_coeff and mo_occ of the solution.
        fock: Fock matrix of the solution [Eh], in PySCF's shape; built if it is not given.

    Raises:
        ArithmeticError: if the sign is still open after the most products that are allowed.

    Returns:
        Curvature of the energy [Eh] along a rotation of orbitals (angles in rad, both orbitals of a pair), inf if there
        is nothing to rotate; and the direction, shape (rotation,), as PySCF packs it.
    """
    unrestricted = np.asarray(field.mo_occ).ndim == 2
    generate = gen_g_hop_uhf if unrestricted else gen_g_hop_rhf
    _, product, diagonal = generate(field, field.mo_coeff, field.mo_occ, fock_ao=fock, with_symmetry=False)
    if not diagonal.size:
        return float("inf"), diagonal
    return _lowest_eigenpair(lambda x: 2 * product(x).ravel(), 2 * diagonal.ravel())


def rotated(field: Any, direction: np.ndarray) -> np.ndarray:
    """Orbitals after a rotation, in PySCF's shape.

    Args:
        field: as in `lowest_curvature`.
        direction: angles [rad], shape (rotation,).
    """
    occupations, orbitals = np.asarray(field.mo_occ), np.asarray(field.mo_coeff)
    if occupations.ndim == 1:
        return orbitals @ expmat(unpack_uniq_var(direction, occupations))
    n_alpha = int((occupations[0] > 0).sum() * (occupations[0] == 0).sum())
    parts = np.split(direction, [n_alpha])
    return np.stack([c @ expmat(unpack_uniq_var(x, o)) for c, o, x in zip(orbitals, occupations, parts, strict=True)])


def _lowest_eigenpair(product: Callable[[np.ndarray], np.ndarray], diagonal: np.ndarray) -> tuple[float, np.ndarray]:
    """Davidson's iteration for the lowest eigenvalue of a symmetric matrix, until its sign is certain."""
    # all rotations take part from the start, whatever their symmetry, and the low ones most
    weights = (max(diagonal.min(), 0.1) / np.maximum(diagonal, 0.1)) ** _START_POWER
    new = weights * np.random.default_rng(0).choice([-1.0, 1.0], diagonal.size)
    basis: list[np.ndarray] = []
    images: list[np.ndarray] = []
    value, vector, size = float("inf"), new, float("inf")
    for _ in range(min(_MAX_PRODUCTS, diagonal.size)):
        for _ in range(2):  # once more for what rounding leaves
            for b in basis:
                new = new - b * (b @ new)
        norm = float(np.linalg.norm(new))
        if norm < 1e-10:
            break
        basis.append(new / norm)
        images.append(product(basis[-1]))
        small = np.array(basis) @ np.array(images).T
        values, vectors = np.linalg.eigh((small + small.T) / 2)
        value, vector = float(values[0]), vectors[:, 0] @ np.array(basis)
        residual = vectors[:, 0] @ np.array(images) - value * vector
        size = float(np.linalg.norm(residual))
        if size < _CERTAIN * abs(value) and (value > 0 or value < UNSTABLE):
            break
        shifted = diagonal - value
        new = residual / np.where(np.abs(shifted) < 1e-2, 1e-2, shifted)
    # what is found is an upper bound: if negative it stands whatever the residual, if not there may be a lower one
    if not (value < UNSTABLE or size <= max(_CERTAIN * abs(value), -UNSTABLE)):
        raise ArithmeticError(
            f"the lowest eigenvalue of the orbital Hessian, {value:.1e} Eh after {len(basis)} products, "
            f"is uncertain by {size:.1e} Eh"
        )
    return value, vector
