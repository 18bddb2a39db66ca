"""Two-centre exchange-correlation of superposed free atoms, tabulated against the distance (Slater-Koster tables).

In the frame of a bond, A at the origin and B on +z, a spherical pair has elements for equal m only, and +m equals -m.
"""

from __future__ import annotations

from math import pi

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.special import erf

from mlsemi.baseline.atoms import FreeAtom, free_atom, radial_function
from mlsemi.baseline.xc import lda
from mlsemi.basis import Basis
from mlsemi.blocks import Slots
from mlsemi.harmonics import solid_harmonics

SPACING = 0.1
SHORTEST = 0.4
LONGEST = 14.0
_N_RADIAL, _N_POLAR = 60, 32


def block_entries(slots: Slots) -> np.ndarray:
    """Slot pairs of equal m >= 0, shape (entry, 2)."""
    same = (slots.m[:, None] == slots.m[None, :]) & (slots.m[:, None] >= 0)
    return np.argwhere(same)


def spread(slots: Slots, entries: np.ndarray) -> np.ndarray:
    """0/1 matrix that puts the entries into a block, the ones of m > 0 also at -m; shape (entry, slot * slot)."""
    place = {(int(s), int(m)): i for i, (s, m) in enumerate(zip(slots.shell, slots.m, strict=True))}
    out = np.zeros((len(entries), slots.n_slots, slots.n_slots))
    for k, (a, b) in enumerate(entries.tolist()):
        out[k, a, b] = 1.0
        m = int(slots.m[a])
        out[k, place[int(slots.shell[a]), -m], place[int(slots.shell[b]), -m]] = 1.0
    return out.reshape(len(entries), -1)


def two_centre_knots(basis: Basis, slots: Slots) -> np.ndarray:
    """Tabulates every ordered pair of the elements of `slots` (seconds for four elements).

    Returns:
        Values at the distances SHORTEST, SHORTEST + SPACING, ... LONGEST, shape (element, element, knot, column). The
        columns are the elements <a_A|v_xc[A+B]|b_B> [Eh], then <a_A|v_xc[A+B] - v_xc[A]|a'_A> [Eh], one each for the
        entries of `block_entries`, then the pair energy [Eh]. At the end of the table all of them are zero.
    """
    distances = np.linspace(SHORTEST, LONGEST, round((LONGEST - SHORTEST) / SPACING) + 1)
    entries = block_entries(slots)
    atoms = [free_atom(basis, z) for z in slots.elements]
    rows = [[np.stack([_pair_row(basis, slots, entries, a, b, d) for d in distances]) for b in atoms] for a in atoms]
    return np.array(rows) * _taper(distances)[:, None]


def spline_coefficients(knots: np.ndarray) -> np.ndarray:
    """Cubic splines through the knots, highest power first, shape (element, element, interval, 4, column).

    Zero slope at the far end, where the tables end.
    """
    distances = np.linspace(SHORTEST, LONGEST, knots.shape[2])
    spline = CubicSpline(distances, np.moveaxis(knots, 2, 0), axis=0, bc_type=("not-a-knot", "clamped"))
    return np.ascontiguousarray(np.transpose(spline.c, (2, 3, 1, 0, 4)))


def _taper(d: np.ndarray) -> np.ndarray:
    """One up to two bohr before the end of the table, then smoothly to zero."""
    x = np.clip((d - (LONGEST - 2.0)) / 2.0, 0.0, 1.0)
    return 1 - x**3 * (10 - 15 * x + 6 * x * x)


def _half_grid(distance: float, radius: float, other_radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (rho, z) about the atom at the origin, and weights including its Becke cell against the one at +z.

    Gauss-Chebyshev of the second kind in the radius (Becke's map), Gauss-Legendre in cos theta; the weight holds 2 pi.
    """
    i = np.arange(1, _N_RADIAL + 1)
    x = np.cos(pi * i / (_N_RADIAL + 1))
    r = radius * (1 + x) / (1 - x)
    w = pi / (_N_RADIAL + 1) * np.sin(pi * i / (_N_RADIAL + 1)) * 2 * radius / (1 - x) ** 2 * r**2
    cosine, wt = np.polynomial.legendre.leggauss(_N_POLAR)
    z = np.multiply.outer(r, cosine).ravel()
    rho = np.multiply.outer(r, np.sqrt(1 - cosine**2)).ravel()
    weight = 2 * pi * np.multiply.outer(w, wt).ravel()
    mu = (np.hypot(rho, z) - np.hypot(rho, z - distance)) / distance
    chi = radius / other_radius
    u = (chi - 1) / (chi + 1)
    mu = mu + np.clip(u / (u * u - 1), -0.5, 0.5) * (1 - mu * mu)
    for _ in range(3):
        mu = 1.5 * mu - 0.5 * mu**3
    return rho, z, weight * 0.5 * (1 - mu)


def _ao_values(basis: Basis, slots: Slots, number: int, rho: np.ndarray, z: np.ndarray) -> np.ndarray:
    """AOs of m >= 0 in the plane phi = 0, by slot; zero where the element lacks one; shape (slot, point)."""
    r = np.hypot(rho, z)
    points = torch.from_numpy(np.stack([rho, np.zeros_like(rho), z], axis=-1))
    harmonics = [h.numpy() for h in solid_harmonics(slots.l_max, points)]
    out = np.zeros((slots.n_slots, rho.size))
    ao = 0
    for shell in basis.shells(number):
        radial = radial_function(shell, r) / np.maximum(r, 1e-12) ** shell.l
        for m in range(-shell.l, shell.l + 1):
            if m >= 0:
                out[slots.of_ao[number][ao]] = radial * harmonics[shell.l][:, m + shell.l]
            ao += 1
    return out


def _pair_row(
    basis: Basis, slots: Slots, entries: np.ndarray, first: FreeAtom, second: FreeAtom, distance: float
) -> np.ndarray:
    """One row of the table, shape (column,)."""
    radius = [1.0 if atom.number <= 2 else 1.6 if atom.number <= 10 else 2.2 for atom in (first, second)]
    rho_1, z_1, w_1 = _half_grid(distance, radius[0], radius[1])
    rho_2, z_2, w_2 = _half_grid(distance, radius[1], radius[0])
    rho, z, weight = np.append(rho_1, rho_2), np.append(z_1, distance - z_2), np.append(w_1, w_2)
    n_first = first.radial_density(basis, np.hypot(rho, z))
    n_second = second.radial_density(basis, np.hypot(rho, z - distance))
    energy, potential = lda(n_first + n_second)
    energy_1, potential_1 = lda(n_first)
    energy_2, _ = lda(n_second)
    a = _ao_values(basis, slots, first.number, rho, z)
    b = _ao_values(basis, slots, second.number, rho, z - distance)
    # integral over phi: 2 pi (in the weight) for m = 0, half of it for m > 0
    share = np.where(slots.m == 0, 1.0, 0.5)[entries[:, 0]]
    off = (a * (weight * potential)) @ b.T
    on = (a * (weight * (potential - potential_1))) @ a.T
    row, column = entries.T
    pair_energy = weight @ (energy - energy_1 - energy_2) + _electrostatic(first, second, distance)
    return np.concatenate([share * off[row, column], share * on[row, column], [pair_energy]])


def _electrostatic(first: FreeAtom, second: FreeAtom, distance: float) -> float:
    """Interaction of two neutral atoms with their fitted charges [Eh]."""
    z_1, z_2 = first.number, second.number
    total = z_1 * z_2
    total -= z_1 * float(second.charges @ erf(np.sqrt(second.exponents) * distance))
    total -= z_2 * float(first.charges @ erf(np.sqrt(first.exponents) * distance))
    mixed = np.sqrt(
        np.multiply.outer(first.exponents, second.exponents) / np.add.outer(first.exponents, second.exponents)
    )
    total += float(first.charges @ erf(mixed * distance) @ second.charges)
    return total / distance


def on_site_xc(basis: Basis, number: int) -> np.ndarray:
    """<a|v_xc[rho_A]|a'> of the free atom alone, shape (ao, ao); radial quadrature."""
    i = np.arange(1, 201)
    x = np.cos(pi * i / 201)
    r = 1.5 * (1 + x) / (1 - x)
    w = pi / 201 * np.sin(pi * i / 201) * 3.0 / (1 - x) ** 2 * r**2
    _, potential = lda(free_atom(basis, number).radial_density(basis, r))
    shells = basis.shells(number)
    start = np.cumsum([0] + [2 * s.l + 1 for s in shells])
    out = np.zeros((start[-1], start[-1]))
    radial = [radial_function(s, r) for s in shells]
    for p, a in enumerate(shells):
        for q, b in enumerate(shells):
            if a.l == b.l:
                value = np.sum(w * potential * radial[p] * radial[q])
                out[start[p] : start[p + 1], start[q] : start[q + 1]] = value * np.eye(2 * a.l + 1)
    return out
