"""Hermite Coulomb integrals: derivatives of the potential of spherical charges, averaged over Gaussians.

For a Gaussian exp(-p |x - P|^2) and a centre C that carries the potential sum_k w_k erf(omega_k r) / r, with r = P - C
and theta_k = omega_k^2 / (p + omega_k^2),

    R_000 = (2 pi / p) sum_k w_k theta_k^(1/2) F_0(p theta_k r^2),    R_tuv = d^(t+u+v) R_000 / dx^t dy^u dz^v

(McMurchie and Davidson, J. Comput. Phys. 26, 218 (1978); F_m is the Boys function). The sum over k is taken before
anything else: with c_k = (2 pi / p) w_k theta_k^(1/2), q_k = -2 p theta_k and G_m = sum_k c_k q_k^m F_m(p theta_k r^2)
the recursion of the Boys function becomes

    (2 m + 1) G_m = -r^2 G_(m+1) + sum_k c_k q_k^m exp(-p theta_k r^2),

so that for each k only the highest order and one exponential are evaluated. Far out F_m is its asymptote, and G_m
depends on the sum of the weights only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import pi, prod, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

CELLS_PER_UNIT = 64
DEGREE = 4
"""Cells of the table of the Boys function, and the degree of the polynomial in each; the error is 2e-15."""

CHUNK = 28_000
"""Boys functions evaluated at once, so that temporaries stay in cache."""


def asymptotic(order: int) -> int:
    """T from which on F_0 to F_order, and the derivatives R_tuv made of them, are their asymptotes to 1e-14.

    What is left out is of the order of exp(-T) (2 T)^order / (2 order - 1)!! of the asymptote.
    """
    return 33 + 4 * order


def boys(order: int, t: np.ndarray) -> np.ndarray:
    """Boys function F_m(T) = int_0^1 s^(2m) exp(-T s^2) ds by its series of positive terms, for T up to about 80.

    Args:
        order: m.
        t: T, any shape.
    """
    term = np.full_like(t, 1.0 / (2 * order + 1))
    total = term.copy()
    for i in range(1, 400):
        term = term * 2 * t / (2 * order + 2 * i + 1)
        total += term
    return np.exp(-t) * total


@lru_cache(maxsize=64)
def _boys_table(order: int, device: torch.device) -> tuple[Tensor, ...]:
    """Coefficients of F_m in d, -1 <= d <= 1 across each cell; for each power, lowest first, a tensor (cell,)."""
    nodes = np.cos(pi * (np.arange(DEGREE + 1) + 0.5) / (DEGREE + 1))
    cells = np.arange(asymptotic(order) * CELLS_PER_UNIT + 1)
    values = boys(order, (cells[:, None] + 0.5 + 0.5 * nodes) / CELLS_PER_UNIT)
    coefficients = np.linalg.solve(np.vander(nodes, increasing=True), values.T)
    return tuple(torch.from_numpy(np.ascontiguousarray(row)).to(device) for row in coefficients)


def _boys_below(order: int, t: Tensor) -> Tensor:
    """F_m(T) where T is below `asymptotic`, a bounded number elsewhere."""
    table = _boys_table(order, t.device)
    x = (t * CELLS_PER_UNIT).clamp_(max=asymptotic(order) * CELLS_PER_UNIT)
    cell = x.long()
    d = x.sub_(cell).mul_(2).sub_(1)
    shape = cell.shape
    cell = cell.view(-1)
    out = table[-1].index_select(0, cell).view(shape)
    for row in table[-2::-1]:
        out = torch.addcmul(row.index_select(0, cell).view(shape), out, d)
    return out


@lru_cache(maxsize=16)
def components(degree: int) -> tuple[tuple[int, int, int], ...]:
    """All (t, u, v) of t + u + v = degree, in the order x first."""
    return tuple((t, u, degree - t - u) for t in range(degree, -1, -1) for u in range(degree - t, -1, -1))


@lru_cache(maxsize=16)
def hermite_components(l_max: int) -> tuple[tuple[int, int, int], ...]:
    """All (t, u, v) up to a degree, degree by degree."""
    return tuple(c for n in range(l_max + 1) for c in components(n))


@lru_cache(maxsize=64)
def hermite_degrees(l_max: int, device: torch.device) -> Tensor:
    """t + u + v of the components up to a degree, shape (component,)."""
    return torch.tensor([sum(c) for c in hermite_components(l_max)], device=device)


@lru_cache(maxsize=64)
def _successors(l_max: int, device: torch.device) -> tuple[Tensor, ...]:
    """For x, y, z the position of (t, u, v) + e_i among the components up to l_max + 1, each shape (component,)."""
    place = {c: i for i, c in enumerate(hermite_components(l_max + 1))}
    rows = []
    for axis in range(3):
        dt, du, dv = (int(axis == i) for i in range(3))
        rows.append(
            torch.tensor([place[t + dt, u + du, v + dv] for t, u, v in hermite_components(l_max)], device=device)
        )
    return tuple(rows)


@lru_cache(maxsize=64)
def _falling(degree: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """t - 1 of the components of a degree with t >= 2, and u - 1 of those with t = 0 and u >= 2, as columns."""
    t = [float(c[0] - 1) for c in components(degree) if c[0] >= 2]
    u = [float(c[1] - 1) for c in components(degree) if c[0] == 0 and c[1] >= 2]
    column = {"dtype": torch.float64, "device": device}
    return torch.tensor(t, **column)[:, None], torch.tensor(u, **column)[:, None]


@dataclass(frozen=True, eq=False)
class Kinds:
    """Kinds of centres: the potentials that occur, each a sum of terms, the most diffuse term first.

    Attributes:
        omega2: omega^2 of each term [bohr^-2], shape (term, kind); inf for 1/r.
        weight: weight of each term [e], shape (term, kind); terms of weight zero come last.
        rest: sum of the weights from each term on, shape (term + 1, kind).
    """

    omega2: Tensor
    weight: Tensor
    rest: Tensor

    @classmethod
    def of(cls, omega2: Tensor, weight: Tensor) -> Kinds:
        """From terms in any order, shape (kind, term)."""
        used = weight != 0
        omega2, order = torch.where(used, omega2, torch.inf).sort(1)
        order = order.gather(1, (~used.gather(1, order)).to(torch.uint8).sort(dim=1, stable=True)[1])
        omega2 = torch.where(used.gather(1, order), omega2, torch.inf)
        weight = weight.gather(1, order)
        rest = torch.cat([weight.flip(1).cumsum(1).flip(1), weight.new_zeros(len(weight), 1)], 1)
        return cls(omega2.t().contiguous(), weight.t().contiguous(), rest.t().contiguous())

    def reach(self) -> Tensor:
        """A term is past T where r^2 is at least T (1 / p + this) [bohr^2], shape (term, kind)."""
        return torch.where(self.weight != 0, 1 / self.omega2, -torch.inf)


@dataclass(frozen=True)
class Run:
    """Neighbouring combinations of Gaussian and centre that are evaluated together.

    Attributes:
        start, stop: which.
        n_terms: number of leading terms that are not past their asymptote for at least one of them.
        kind: their common kind, or None.
    """

    start: int
    stop: int
    n_terms: int
    kind: int | None


def _radial(order: int, r2: Tensor, p: Tensor, kinds: Kinds, kind: int | Tensor, n_terms: int) -> Tensor:
    """G_0 to G_order, shape (order + 1, n), for centres of one kind or of a kind each."""
    index = slice(kind, kind + 1) if isinstance(kind, int) else kind
    rest = kinds.rest[n_terms, index]
    prefactor = 2 * pi / p
    tail = r2.clamp(min=1e-20).pow_(-(order + 0.5)).div_(p.sqrt())
    tail.mul_(prod(range(2 * order - 1, 0, -2)) * (-1) ** order * sqrt(pi) / 2)
    if not n_terms:
        tail.mul_(rest).mul_(prefactor)
        return torch.stack(_downward(order, tail, r2, None, prefactor)[::-1])
    omega2, weight = kinds.omega2[:n_terms, index], kinds.weight[:n_terms, index]
    scaled = p / (p / omega2 + 1)  # p theta, also for omega = inf
    t = scaled * r2
    past = t >= asymptotic(order)
    factor = (scaled / p).sqrt_().mul_(weight)
    saturated = (weight * past).sum(0).add_(rest)
    decay = torch.exp(-t).mul_(factor)
    top = _boys_below(order, t).mul_(factor).masked_fill_(past, 0.0)
    scaled.mul_(-2)
    sums = []
    for _ in range(order):
        sums.append(decay.sum(0))
        decay.mul_(scaled)
        top.mul_(scaled)
    g = top.sum(0).addcmul_(tail, saturated).mul_(prefactor)
    return torch.stack(_downward(order, g, r2, sums, prefactor)[::-1])


def _downward(order: int, g: Tensor, r2: Tensor, sums: list[Tensor] | None, prefactor: Tensor) -> list[Tensor]:
    """G_order to G_0 from G_order and the sums over k of the exponentials."""
    out = [g]
    for m in range(order - 1, -1, -1):
        if sums is None:
            g = (g * r2).div_(-(2 * m + 1))
        else:
            g = torch.addcmul(sums[m] * prefactor, g, r2, value=-1).div_(2 * m + 1)
        out.append(g)
    return out


def _hermite(g: Tensor, r: Tensor, l_max: int, out: Tensor | None = None) -> Tensor:
    """R_tuv up to degree l_max from G_0 to G_l_max, shape (component, n).

    R^m_(t+1)uv = x R^(m+1)_tuv + t R^(m+1)_(t-1)uv. With x first in the order of components, the parents of all
    components with t >= 1 are the whole lower degree in its own order, so that each degree takes a few products.
    """
    if out is None:
        out = g.new_empty(len(hermite_components(l_max)), r.shape[1])
    out[0] = g[0]
    older, old = None, g[: l_max + 1, None]
    first = 1
    for degree in range(1, l_max + 1):
        n_lower, n = degree * (degree + 1) // 2, (degree + 1) * (degree + 2) // 2
        orders = l_max - degree + 1
        new = out[None, first : first + n] if orders == 1 else g.new_empty(orders, n, r.shape[1])
        torch.mul(old[1:], r[0], out=new[:, :n_lower])
        torch.mul(old[1:, n_lower - degree :], r[1], out=new[:, n_lower : n - 1])
        torch.mul(old[1:, -1], r[2], out=new[:, -1])
        if older is not None:
            t, u = _falling(degree, g.device)
            n_older = t.shape[0]
            upper = older[1 : orders + 1]
            new[:, :n_older].addcmul_(upper, t)
            new[:, n_lower : n_lower + degree - 1].addcmul_(upper[:, n_older - degree + 1 :], u)
            new[:, -1].add_(upper[:, -1], alpha=degree - 1)
        if orders > 1:
            out[first : first + n] = new[0]
        older, old = old, new
        first += n
    return out


class _HermiteCoulomb(torch.autograd.Function):
    """R_tuv as a function of r. The derivative is R of the next degree, so any number of derivatives exists."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, p: Tensor, kinds: Kinds, kind: Tensor, runs: list[Run], l_max: int) -> Tensor:
        order = l_max + int(ctx.needs_input_grad[0])
        g = r.new_empty(order + 1, r.shape[1])
        out = r.new_empty(len(hermite_components(l_max)), r.shape[1])
        for run in runs:
            part = slice(run.start, run.stop)
            x = r[:, part]
            of = kind[part] if run.kind is None else run.kind
            g[:, part] = _radial(order, (x * x).sum(0), p[part], kinds, of, run.n_terms)
            _hermite(g[:, part], x, l_max, out[:, part])
        ctx.kinds, ctx.runs, ctx.l_max = kinds, runs, l_max
        ctx.save_for_backward(r, p, kind, g)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        r, p, kind, g = ctx.saved_tensors
        successors = _successors(ctx.l_max, r.device)
        if torch.is_grad_enabled():
            higher = _HermiteCoulomb.apply(r, p, ctx.kinds, kind, ctx.runs, ctx.l_max + 1)
            out = torch.stack([(grad * higher.index_select(0, index)).sum(0) for index in successors])
        else:
            out = torch.empty_like(r)
            for run in ctx.runs:
                part = slice(run.start, run.stop)
                higher = _hermite(g[:, part], r[:, part], ctx.l_max + 1)
                for axis, index in enumerate(successors):
                    torch.sum(higher.index_select(0, index).mul_(grad[:, part]), 0, out=out[axis, part])
        return out, None, None, None, None, None


def hermite_coulomb(r: Tensor, p: Tensor, kinds: Kinds, kind: Tensor, runs: list[Run], *, l_max: int) -> Tensor:
    """Hermite Coulomb integrals R_tuv, differentiable in r to any order.

    Args:
        r: P - C [bohr], shape (3, n).
        p: exponents [bohr^-2], shape (n,).
        kinds: the potentials.
        kind: kind of each centre, shape (n,), int64.
        runs: a partition of the n combinations.
        l_max: highest t + u + v.

    Returns:
        In the order of `hermite_components`, shape (component, n).
    """
    return _HermiteCoulomb.apply(r, p, kinds, kind, runs, l_max)
