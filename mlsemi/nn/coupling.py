"""Real Clebsch-Gordan coefficients: how two real spherical harmonics couple to a third."""

from __future__ import annotations

from functools import lru_cache
from math import factorial, sqrt

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=256)
def _coefficients(l1: int, l2: int, l3: int) -> np.ndarray:
    complex_to_real = [_complex_rows(l) for l in (l1, l2, l3)]  # noqa: E741
    condon_shortley = np.zeros((2 * l1 + 1, 2 * l2 + 1, 2 * l3 + 1))
    for m1 in range(-l1, l1 + 1):
        for m2 in range(max(-l2, -l3 - m1), min(l2, l3 - m1) + 1):
            condon_shortley[l1 + m1, l2 + m2, l3 + m1 + m2] = _racah(l1, m1, l2, m2, l3)
    a, b, c = complex_to_real
    real = np.einsum("pi,qj,rk,pqr->ijk", a, b, c.conj(), condon_shortley).real
    return real / np.linalg.norm(real)


def clebsch_gordan(l1: int, l2: int, l3: int) -> Tensor:
    """The invariant tensor of three real irreducible representations, m = -l..l, of norm one.

    With D the rotation matrices of the real harmonics, sum_ijk D1_ai D2_bj D3_ck C_ijk = C_abc. The sign is that of the
    Condon-Shortley coefficients with harmonics that carry a factor (-i)^l (that of e3nn's `wigner_3j`).

    Args:
        l1: first angular momentum.
        l2: second one.
        l3: what they couple to, |l1 - l2| <= l3 <= l1 + l2.

    Returns:
        Shape (2 l1 + 1, 2 l2 + 1, 2 l3 + 1), float64.

    Raises:
        ValueError: if the three violate the triangle inequality.
    """
    if not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"l1={l1} and l2={l2} couple to {abs(l1 - l2)}..{l1 + l2}, not to l3={l3}")
    return torch.from_numpy(_coefficients(l1, l2, l3).copy())


def _complex_rows(l: int) -> np.ndarray:  # noqa: E741
    """(-i)^l times the complex harmonics (rows) in terms of the real ones (columns), m = -l..l."""
    rows = np.zeros((2 * l + 1, 2 * l + 1), dtype=complex)
    rows[l, l] = 1.0
    for m in range(1, l + 1):
        sign = (-1) ** m
        rows[l - m, [l + m, l - m]] = np.array([1, -1j]) / sqrt(2)
        rows[l + m, [l + m, l - m]] = np.array([sign, sign * 1j]) / sqrt(2)
    return (-1j) ** l * rows


def _racah(j1: int, m1: int, j2: int, m2: int, j: int) -> float:
    """<j1 m1 j2 m2 | j m1 + m2> by Racah's formula (Varshalovich et al., Quantum Theory of Angular Momentum, 8.2.1)."""
    f, m = factorial, m1 + m2
    triangle = f(j1 + j2 - j) * f(j + j1 - j2) * f(j + j2 - j1) / f(j1 + j2 + j + 1)
    size = triangle * (2 * j + 1) * f(j + m) * f(j - m) * f(j1 + m1) * f(j1 - m1) * f(j2 + m2) * f(j2 - m2)
    total = 0.0
    for k in range(max(0, j2 - j - m1, j1 + m2 - j), min(j1 + j2 - j, j1 - m1, j2 + m2) + 1):
        down = f(k) * f(j1 + j2 - j - k) * f(j1 - m1 - k) * f(j2 + m2 - k) * f(j - j2 + m1 + k) * f(j - j1 - m2 + k)
        total += (-1) ** k / down
    return sqrt(size) * total
