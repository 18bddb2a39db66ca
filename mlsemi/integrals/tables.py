"""Constant tables of the Gaussian integrals: Cartesian components, harmonics, Hermite expansion; each made once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb

import numpy as np
import torch
from torch import Tensor

from mlsemi.harmonics import solid_harmonics
from mlsemi.integrals.hermite import components, hermite_components


@lru_cache(maxsize=16)
def harmonic_monomials(l: int) -> np.ndarray:
    """Coefficients of r^l Y_lm in the monomials of degree l, shape (2l + 1, monomial), order of `components`."""
    points = np.random.default_rng(0).normal(size=(4 * len(components(l)), 3))
    monomials = np.stack([np.prod(points ** np.array(c), axis=1) for c in components(l)], axis=1)
    values = solid_harmonics(l, torch.from_numpy(points))[l].numpy()
    coefficients = np.linalg.lstsq(monomials, values, rcond=None)[0].T
    return np.where(np.abs(coefficients) < 1e-13, 0.0, coefficients)


@lru_cache(maxsize=64)
def pair_harmonics(l1: int, l2: int, device: torch.device) -> Tensor:
    """Cartesian to spherical for a pair of shells, shape (sph1 * sph2, cart1 * cart2)."""
    return torch.from_numpy(np.kron(harmonic_monomials(l1), harmonic_monomials(l2))).to(device)


@lru_cache(maxsize=64)
def cartesian_rows(l1: int, l2: int, n_j: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows of the one-dimensional tables for each Cartesian pair and axis.

    Returns:
        i * n_j + j and i * (l2 + 1) + j of the powers i and j of an axis, each shape (3, cart1 * cart2).
    """
    pairs = [(c1, c2) for c1 in components(l1) for c2 in components(l2)]
    wide = [[c1[k] * n_j + c2[k] for c1, c2 in pairs] for k in range(3)]
    narrow = [[c1[k] * (l2 + 1) + c2[k] for c1, c2 in pairs] for k in range(3)]
    return torch.tensor(wide, device=device), torch.tensor(narrow, device=device)


@dataclass(frozen=True, eq=False)
class HermiteTerms:
    """The non-zero terms of V_ab = sum_tuv E_t E_u E_v R_tuv for the Cartesian pairs ab of a class.

    Attributes:
        expansion: one-dimensional E_t^ij (2 p)^t from s_ij, shape (row, s_ij).
        rows: row of E of each axis and term, shape (3, term).
        field: component (t, u, v) of each term, shape (term,).
        target: Cartesian pair of each term, shape (term,).
        n_cartesian: number of Cartesian pairs.
    """

    expansion: Tensor
    rows: Tensor
    field: Tensor
    target: Tensor
    n_cartesian: int


@lru_cache(maxsize=64)
def hermite_terms(l1: int, l2: int, device: torch.device) -> HermiteTerms:
    """The terms of a class of shell pairs."""
    row_of: dict[tuple[int, int, int], int] = {}
    expansion = []
    for i in range(l1 + 1):
        for j in range(l2 + 1):
            for t in range(i + j + 1):
                row_of[i, j, t] = len(row_of)
                row = np.zeros((l1 + 1, l2 + 1))
                for k in range(max(0, t - j), min(i, t) + 1):
                    row[i - k, j - t + k] = comb(i, k) * comb(j, t - k)
                expansion.append(row.ravel())
    place = {c: n for n, c in enumerate(hermite_components(l1 + l2))}
    pairs = [(c1, c2) for c1 in components(l1) for c2 in components(l2)]
    rows, field, target = [], [], []
    for n, (c1, c2) in enumerate(pairs):
        tops = [i + j for i, j in zip(c1, c2, strict=True)]
        for tuv in np.ndindex(tops[0] + 1, tops[1] + 1, tops[2] + 1):
            rows.append([row_of[i, j, t] for i, j, t in zip(c1, c2, tuv, strict=True)])
            field.append(place[tuv])
            target.append(n)
    return HermiteTerms(
        torch.from_numpy(np.array(expansion)).to(device),
        torch.tensor(rows, device=device).t().contiguous(),
        torch.tensor(field, device=device),
        torch.tensor(target, device=device),
        len(pairs),
    )
