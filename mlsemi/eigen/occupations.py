"""Fermi's function on orbital energies: the chemical potential, and divided differences that lose no digits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SPREAD = 0.5
"""Spread of three levels [2 kT] from which a quotient of differences is as good as a closed form."""

_TINY = 400.0
"""Distance from the chemical potential [2 kT] from which Fermi's function is a step in float64."""


def fermi(x: Tensor) -> Tensor:
    """1 / (1 + e^x)."""
    return torch.sigmoid(-x)


def fermi_difference(x: Tensor, y: Tensor) -> Tensor:
    """Divided difference of h(x) = 1 / (1 + e^2x).

    h[x,y] = -sinh(x - y) / (x - y) / (2 cosh x cosh y), in exponentials that cannot overflow.
    """
    d, ax, ay = (x - y).abs(), x.abs(), y.abs()
    twice = 2 * d
    shape = torch.where(twice == 0, 1.0, -torch.expm1(-twice) / torch.where(twice == 0, 1.0, twice))
    return -2 * torch.exp(d - ax - ay) * shape / ((1 + torch.exp(-2 * ax)) * (1 + torch.exp(-2 * ay)))


def fermi_second_difference(x: Tensor, y: Tensor, z: Tensor, xy: Tensor, yz: Tensor, xz: Tensor) -> Tensor:
    """Second divided difference h[x,y,z] of h(x) = 1 / (1 + e^2x).

    Args:
        x: first argument; all six are broadcast.
        y: second argument.
        z: third argument.
        xy: first difference h[x,y].
        yz: first difference h[y,z].
        xz: first difference h[x,z].
    """
    dxy, dyz, dxz = x - y, y - z, x - z
    # any two of the first differences will do: those whose quotient has the largest divisor lose the least
    by_xz = (dxz.abs() >= dxy.abs()) & (dxz.abs() >= dyz.abs())
    by_xy = dxy.abs() >= dyz.abs()
    divisor = torch.where(by_xz, dxz, torch.where(by_xy, dxy, dyz))
    difference = torch.where(by_xz, xy - yz, torch.where(by_xy, xz - yz, xy - xz))
    near = divisor.abs() <= _SPREAD
    out = difference / divisor.masked_fill(near, 1.0)
    at = near.nonzero(as_tuple=True)
    if len(at[0]):
        levels = torch.stack([t.expand(out.shape)[at] for t in (x, y, z)])
        low, middle, high = torch.sort(levels, dim=0)[0]
        out[at] = _near(high, middle, low)
    return out


def _near(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """h[x,y,z] where the three lie close together.

    With g(d) = sinh(d) / d, tanh[x,y] = g(x - y) sech x sech y, and the difference of two of these splits into those of
    g, an entire function with a short series, and of sech, a product of hyperbolic functions. With a = x - y, b = z - y

        tanh[x,y,z] = sech y (g[a,b] (sech x + sech z) / 2
                              - (g(a) + g(b)) / 2 g((x - z) / 2) sinh((x + z) / 2) sech x sech z).
    """
    a, b = (x - y).clamp(0, _SPREAD), (z - y).clamp(-_SPREAD, 0)
    x, y, z = (t.clamp(-_TINY, _TINY) for t in (x, y, z))
    sech_x, sech_y, sech_z = (1 / torch.cosh(t) for t in (x, y, z))
    # sinh((x + z) / 2) sech x alone could overflow
    slope = torch.sinh((x + z) / 2) * sech_x * sech_z
    first = _entire_difference(a, b) * (sech_x + sech_z) / 2
    second = (_entire(a) + _entire(b)) / 2 * _entire((a - b) / 2) * slope
    return -sech_y * (first - second) / 2


def _entire(d: Tensor) -> Tensor:
    """g(d) = sinh(d) / d for |d| <= 1 by its series."""
    s = d * d
    total = torch.ones_like(d)
    for k in range(9, 0, -1):
        total = 1 + s / (2 * k * (2 * k + 1)) * total
    return total


def _entire_difference(a: Tensor, b: Tensor) -> Tensor:
    """g[a,b] = (a + b) sum_k (a^2k-2 + a^2k-4 b^2 + ... + b^2k-2) / (2k+1)! for |a|, |b| <= 1."""
    a2, b2 = a * a, b * b
    homogeneous, power, factorial = torch.ones_like(a), torch.ones_like(a), 6.0
    total = homogeneous / factorial
    for k in range(2, 10):
        power = power * b2
        homogeneous = homogeneous * a2 + power
        factorial *= 2 * k * (2 * k + 1)
        total = total + homogeneous / factorial
    return (a + b) * total


def level_weights(x: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the levels in a change of the chemical potential, and sum of sech^2.

    Args:
        x: (energy - mu) / (2 kT), shape (batch, mo).
        exists: True where there is an orbital, shape (batch, mo).

    Returns:
        sech^2 x_p / sum_q sech^2 x_q, defined even where all underflow; and that sum.
    """
    size = x.abs()
    logarithm = (-2 * size - 2 * torch.log1p(torch.exp(-2 * size))).masked_fill(~exists, -torch.inf)
    return torch.softmax(logarithm, -1), 4 * torch.exp(logarithm).sum(-1)


def chemical_potential(
    mo_energy: Tensor, n_electrons: Tensor, kt: float, *, capacity: float = 2.0, exists: Tensor | None = None
) -> Tensor:
    """The chemical potential that holds a number of electrons.

    Newton's method and bisection in turn, on the difference of the electrons above and the holes below, which keeps its
    relative precision when both are tiny; it lies in the middle of the gap where both vanish.

    Args:
        mo_energy: orbital energies [Eh], ascending, shape (batch, mo); no gradient.
        n_electrons: number of electrons, from none to all orbitals full, shape (batch,).
        kt: temperature [Eh], positive.
        capacity: electrons of a full orbital.
        exists: True where there is an orbital, the first ones of each member, shape (batch, mo).

    Returns:
        mu [Eh], shape (batch,); far below (above) all levels where all are empty (full).
    """
    exists = torch.ones_like(mo_energy, dtype=torch.bool) if exists is None else exists
    first, last = mo_energy[:, 0], mo_energy.masked_fill(~exists, -torch.inf).amax(1)
    n_full = torch.floor(n_electrons / capacity)
    rest = n_electrons - capacity * n_full
    below = torch.arange(mo_energy.shape[-1], device=mo_energy.device) < n_full.unsqueeze(1)
    low, high = first - 60 * kt - 1, last + 60 * kt + 1
    at = n_full.long().clamp(1, mo_energy.shape[-1] - 1) if mo_energy.shape[-1] > 1 else torch.zeros_like(n_full).long()
    level = mo_energy.gather(1, at.unsqueeze(1)).squeeze(1)
    under = mo_energy.gather(1, (at - 1).clamp_min(0).unsqueeze(1)).squeeze(1)
    mu = torch.where(rest == 0, (level + under) / 2, level)
    full = n_electrons == capacity * exists.sum(1)
    edge = full | (n_electrons == 0)
    for step in range(400):
        x = (mo_energy - mu.unsqueeze(1)) / kt
        electrons = (capacity * fermi(x)).masked_fill(below | ~exists, 0.0).sum(1)
        holes = (capacity * fermi(-x)).masked_fill(~below | ~exists, 0.0).sum(1)
        excess = electrons - holes - rest
        narrow = high - low <= 4e-16 * (high.abs() + low.abs())
        done = edge | narrow | (excess.abs() <= 1e-14 * (electrons + holes + rest))
        if bool(done.all()):
            break
        low, high = torch.where(excess < 0, mu, low), torch.where(excess > 0, mu, high)
        middle = (low + high) / 2
        newton = middle
        if step % 2 == 0:
            slope = (capacity * fermi(x) * fermi(-x)).masked_fill(~exists, 0.0).sum(1) / kt
            newton = mu - excess / slope
            newton = torch.where((newton > low) & (newton < high), newton, middle)
        mu = torch.where(done, mu, newton)
    mu = torch.where(n_electrons == 0, first - 800 * kt, mu)
    return torch.where(full, last + 800 * kt, mu)


def fermi_occupations(
    mo_energy: Tensor, n_electrons: Tensor, kt: float, *, capacity: float = 2.0, exists: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Occupations by Fermi's function (Mermin 1965), differentiable in the energies, twice and more.

    Args:
        mo_energy: orbital energies [Eh], ascending, shape (batch, mo).
        n_electrons: number of electrons, which may be fractional, shape (batch,); a constant.
        kt: temperature [Eh], positive; a constant.
        capacity: electrons of a full orbital: 2 for spatial orbitals, 1 for those of one spin.
        exists: True where there is an orbital, shape (batch, mo).

    Returns:
        Occupations, shape (batch, mo), and the chemical potential [Eh], shape (batch,).

    Raises:
        ValueError: for a temperature that is not positive, or a number of electrons that the orbitals cannot hold.
    """
    energy = mo_energy.double()
    there = torch.ones_like(energy, dtype=torch.bool) if exists is None else exists
    n_electrons = n_electrons.detach().to(energy)
    wrong = check_electrons(n_electrons, kt, capacity, there, lambda k: f"molecule {k} of the batch")
    if wrong:
        raise ValueError("; ".join(wrong.values()))
    mu = chemical_potential(energy.detach(), n_electrons, kt, capacity=capacity, exists=there)
    if energy.requires_grad:
        # Newton's method doubles the orders of the derivative that are right with each step: three orders after two
        for _ in range(2):
            x = (energy - mu.unsqueeze(1)) / kt
            f = capacity * fermi(x) * there
            slope = (f * fermi(-x)).sum(1) / kt
            change = (n_electrons - f.sum(1)) / torch.where(slope > 0, slope, 1.0)
            mu = mu + torch.where(slope > 0, change, 0.0)
    return capacity * fermi((energy - mu.unsqueeze(1)) / kt) * there, mu


def check_electrons(
    n_electrons: Tensor, kt: float, capacity: float, exists: Tensor, name: Callable[[int], str]
) -> dict[int, str]:
    """What is wrong with the numbers of electrons, by member.

    Raises:
        ValueError: for a temperature that is not positive, or a shape that does not fit.
    """
    if not (kt > 0 and kt < float("inf")):
        raise ValueError(f"kt must be a positive energy [Eh], got {kt}; without smearing take solve_density")
    if n_electrons.shape != exists.shape[:1]:
        raise ValueError(f"n_electrons must have shape {tuple(exists.shape[:1])}, got {tuple(n_electrons.shape)}")
    room = capacity * exists.sum(1)
    wrong = ~((n_electrons >= 0) & (n_electrons <= room))
    return {
        k: f"{name(k)} has {float(n_electrons[k]):g} electrons, but its orbitals hold 0 to {float(room[k]):g}: take a "
        "larger basis or check the charge"
        for k in wrong.nonzero().flatten().tolist()
    }
