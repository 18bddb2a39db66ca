"""First and second derivatives of the density, in closed form, as a torch function whose derivative is one again.

In the basis of its own orbitals a problem is S = 1, F = diag(eps): derivatives there are products of small matrices and
tables of divided differences, no derivative of an orbital, a Cholesky factor or an inverse root is needed. With N the
changes of F and S in that basis,

    x1  = -N_S / 2                   S^-1/2 = 1 + x1 + ...
    A1  = N_F + x1 eps + eps x1      S^-1/2 F S^-1/2 = eps + A1 + ...
    P1  = phi[p,q] o pi(A1)          occupations; pi takes out a shift of the chemical potential
    D1  = P1 + x1 f + f x1

and the second derivatives are those of these lines. Cotangents of orbital energies, chemical potential and free energy
are diagonal ones of A1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mlsemi.eigen.spectrum import CLOSED_GAP, FermiOccupations, Spectrum

_LARGE = 64
"""From this size on NumPy's products, one after the other, are faster on the CPU than torch's batched ones."""


@dataclass(frozen=True, eq=False)
class Cotangents:
    """Derivatives of the loss by what was computed; None where it does not depend on it.

    Attributes:
        density: shape (batch, ao, ao).
        energy: by the orbital energies, shape (batch, mo).
        free: by sum_p f_p eps_p - T S, shape (batch,).
        mu: by the chemical potential, shape (batch,).
        coeff: by the coefficients, shape (batch, ao, mo).
    """

    density: Tensor | None = None
    energy: Tensor | None = None
    free: Tensor | None = None
    mu: Tensor | None = None
    coeff: Tensor | None = None


NO_THIRD = (
    "a third derivative of the density, of orbital energies or of S^1/2 was asked; there are closed forms here for the "
    "first and the second"
)
NO_MIXED = (
    "a second derivative of the density was asked while the occupations require a gradient: only the first derivative "
    "knows the occupations as a variable; detach them, or take solve_smeared, whose occupations follow the energies"
)


class Solved(torch.autograd.Function):
    """(F, S, f) to (eps, C, C f C^T, sum_p f_p eps_p - T S, mu), given the solution; the last two with smearing."""

    @staticmethod
    def forward(
        ctx: Any,
        fock: Tensor,
        overlap: Tensor,
        occupation: Tensor,
        spectrum: Spectrum,
        coeff: Tensor,
        orbital_gradient: bool,
        refuse_closed: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.spectrum, ctx.coeff, ctx.refuse_closed = spectrum, coeff, refuse_closed
        ctx.save_for_backward(fock, overlap, occupation)
        density = _density(coeff[..., : spectrum.columns], spectrum.occupation[:, None, : spectrum.columns])
        free = mu = None
        if isinstance(spectrum, FermiOccupations):
            free, mu = spectrum.free_energy(), spectrum.mu.clone()
        return spectrum.energy.clone(), coeff.clone() if orbital_gradient else None, density, free, mu

    @staticmethod
    def backward(
        ctx: Any,
        energy: Tensor | None,
        in_coeff: Tensor | None,
        density: Tensor | None,
        free: Tensor | None,
        mu: Tensor | None,
    ) -> tuple:
        fock, overlap, occupation = ctx.saved_tensors
        need_fock, need_overlap, need_occupation = ctx.needs_input_grad[:3]
        if all(x is None for x in (energy, in_coeff, density, free, mu)):
            return (None,) * 7
        d_fock = d_overlap = d_occupation = None
        if need_fock or need_overlap:
            if ctx.refuse_closed and density is not None:
                ctx.spectrum.refuse_closed(density.detach().flatten(1).any(1))
            d_fock, d_overlap = Adjoint.apply(
                fock, overlap, density, energy, free, mu, in_coeff, ctx.spectrum, ctx.coeff, need_overlap
            )
        if need_occupation and density is not None:
            d_occupation = ((density @ ctx.coeff) * ctx.coeff).sum(-2)
            if torch.is_grad_enabled():
                sources = [x for x in (fock, overlap, occupation, density) if x.requires_grad]
                d_occupation, d_fock, d_overlap = (
                    None if x is None else Refuse.apply(NO_MIXED, x, *sources)
                    for x in (d_occupation.detach(), d_fock, d_overlap)
                )
        return d_fock if need_fock else None, d_overlap, d_occupation, None, None, None, None


def _density(occupied: Tensor, occupation: Tensor) -> Tensor:
    """C f C^T, shape (batch, ao, ao)."""
    if occupied.device.type != "cpu" or occupied.shape[-2] < _LARGE:
        return (occupied * occupation) @ occupied.mT
    density = occupied.new_empty(*occupied.shape[:-1], occupied.shape[-2])
    for c, f, d in zip(occupied.numpy(), occupation.numpy(), density.numpy(), strict=True):
        np.matmul(c * f, c.T, out=d)
    return density


class Adjoint(torch.autograd.Function):
    """(F, S, cotangents) to (dL/dF, dL/dS); F and S only carry the graph."""

    @staticmethod
    def forward(
        ctx: Any,
        fock: Tensor,
        overlap: Tensor,
        density: Tensor | None,
        energy: Tensor | None,
        free: Tensor | None,
        mu: Tensor | None,
        in_coeff: Tensor | None,
        spectrum: Spectrum,
        coeff: Tensor,
        need_overlap: bool,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.spectrum, ctx.coeff = spectrum, coeff
        ctx.save_for_backward(fock, overlap, density, energy, free, mu, in_coeff)
        given = Cotangents(density, energy, free, mu, in_coeff)
        return first_order(spectrum, coeff, given, need_overlap=need_overlap)

    @staticmethod
    def backward(ctx: Any, w_fock: Tensor | None, w_overlap: Tensor | None) -> tuple:
        if w_fock is None and w_overlap is None:
            return (None,) * 10
        with torch.no_grad():
            given = Cotangents(*ctx.saved_tensors[2:])
            varies = ctx.needs_input_grad[3]
            found = second_order(ctx.spectrum, ctx.coeff, given, w_fock, w_overlap, energy_varies=varies)
        if torch.is_grad_enabled():
            sources = [x for x in (*ctx.saved_tensors, w_fock, w_overlap) if x is not None and x.requires_grad]
            found = tuple(x if x is None else Refuse.apply(NO_THIRD, x, *sources) for x in found)
        return *found, None, None, None, None


class Refuse(torch.autograd.Function):
    """The identity on `value`; its derivative by any of `sources` is an error that says why."""

    @staticmethod
    def forward(ctx: Any, why: str, value: Tensor, *sources: Tensor) -> Tensor:
        ctx.why = why
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple:
        raise RuntimeError(ctx.why)


def first_order(
    spectrum: Spectrum, coeff: Tensor, g: Cotangents, *, need_overlap: bool = True
) -> tuple[Tensor, Tensor | None]:
    """dL/dF and, where needed, dL/dS, symmetric, shape (batch, ao, ao) each."""
    e, f = spectrum.energy, spectrum.occupation
    n = e.shape[-1]
    diagonal = _diagonal(spectrum, g)
    # without cotangents on the diagonal, pairs of empty orbitals have no part: only columns of occupied ones are needed
    columns = n if diagonal is not None or g.coeff is not None else spectrum.columns
    occupied = coeff[..., :columns]
    in_a = e.new_zeros(*e.shape, columns)
    in_metric = e.new_zeros(*e.shape, columns)
    if g.density is not None:
        m = coeff.mT @ (_symmetric(g.density) @ occupied)
        in_a = spectrum.difference(columns) * (spectrum.project(m) if columns == n else m)
        in_metric = m * ((f.unsqueeze(-1) + f[:, None, :columns]) / 2)
    if diagonal is not None:
        in_a = in_a + torch.diag_embed(diagonal)
    if g.coeff is not None:
        turned, metric = _orbital_adjoint(e, coeff.mT @ g.coeff)
        in_a, in_metric = in_a + turned, in_metric + metric
    if not need_overlap:
        return _turned_back(in_a, coeff, occupied), None
    in_overlap = in_a * ((e.unsqueeze(-1) + e[:, None, :columns]) / -2) - in_metric
    return _turned_back(in_a, coeff, occupied), _turned_back(in_overlap, coeff, occupied)


def _turned_back(x: Tensor, coeff: Tensor, occupied: Tensor) -> Tensor:
    """C X C^T with symmetric X, of which some columns are given; what has its partner among them counts half."""
    x = x.clone()
    x[:, : occupied.shape[-1]] *= 0.5
    half = (coeff @ x) @ occupied.mT
    return half + half.mT


def _symmetric(x: Tensor) -> Tensor:
    return torch.add(x, x.mT).mul_(0.5)


def _diagonal(spectrum: Spectrum, g: Cotangents) -> Tensor | None:
    """Cotangents of the diagonal of A1, shape (batch, mo)."""
    total = g.energy
    if g.free is not None:
        term = g.free.unsqueeze(-1) * spectrum.occupation
        total = term if total is None else total + term
    if g.mu is not None:
        assert isinstance(spectrum, FermiOccupations)
        term = g.mu.unsqueeze(-1) * spectrum.weights
        total = term if total is None else total + term
    return total


def _orbital_adjoint(e: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Adjoints of A1 and of the metric from b = C^T dL/dC, by dC_p = sum_q C_q A1_qp / (eps_p - eps_q) + C x1.

    Raises:
        ValueError: where the loss changes with a rotation of degenerate orbitals.
    """
    turn = (b - b.mT) / 2
    apart = e.unsqueeze(-2) - e.unsqueeze(-1)
    close = apart.abs() < CLOSED_GAP
    undefined = (turn.abs() * close).amax((-2, -1)) > 1e-9 * b.abs().amax((-2, -1))
    if bool(undefined.any()):
        raise ValueError(
            f"the loss depends on the choice of degenerate orbitals of member(s) {_numbers(undefined)} of the batch, "
            "which have no derivative; use the density, or a function that is the same for every choice"
        )
    return turn.masked_fill(close, 0.0) / apart.masked_fill(close, 1.0), (b + b.mT) / 4


def second_order(
    spectrum: Spectrum,
    coeff: Tensor,
    g: Cotangents,
    w_fock: Tensor | None,
    w_overlap: Tensor | None,
    *,
    energy_varies: bool,
) -> tuple[Tensor | None, ...]:
    """Derivatives of <w_fock, dL/dF> + <w_overlap, dL/dS> by F, S and the cotangents of density, energies, free, mu.

    Args:
        spectrum: energies and occupations.
        coeff: coefficients, shape (batch, ao, mo).
        g: cotangents of the first derivative.
        w_fock: cotangent of dL/dF.
        w_overlap: cotangent of dL/dS.
        energy_varies: `g.energy` may depend on the energies.

    Raises:
        RuntimeError: where the second derivative is not defined by what is known here.
    """
    if g.coeff is not None:
        raise RuntimeError("a second derivative through orbital coefficients is not implemented; use the density")
    e, f = spectrum.energy.unsqueeze(-2), spectrum.occupation.unsqueeze(-2)  # act as matrices from the right
    n_fock, n_metric = (
        torch.zeros_like(coeff) if w is None else coeff.mT @ _symmetric(w) @ coeff for w in (w_fock, w_overlap)
    )
    x1 = n_metric / -2
    a1 = n_fock + _twice(x1 * e)
    difference = spectrum.difference(e.shape[-1])
    p1 = difference * spectrum.project(a1)
    m = torch.zeros_like(a1) if g.density is None else coeff.mT @ _symmetric(g.density) @ coeff

    # adjoints: in_a of A (both first and second order), in_a2 of the change of A along the second direction
    m_inner = spectrum.project(m)
    if g.mu is not None:
        assert isinstance(spectrum, FermiOccupations)
        m_inner = m_inner + torch.diag_embed((g.mu / spectrum.slope).unsqueeze(-1).expand_as(spectrum.energy))
    in_a = difference * spectrum.project(m)
    diagonal = _diagonal(spectrum, g)
    if diagonal is not None:
        in_a = in_a + torch.diag_embed(diagonal)
    in_a2 = spectrum.project_adjoint(spectrum.second(spectrum.project(a1), m_inner))
    in_a2 = in_a2 + difference * spectrum.project(_twice(m @ x1))
    if g.free is not None:
        in_a2 = in_a2 + g.free[:, None, None] * p1
    if g.energy is not None:
        in_a2 = in_a2 + _energy_differences(spectrum.energy, g.energy, a1, energy_varies) * a1

    in_x2 = _twice(in_a2 * e + in_a @ n_fock + in_a @ (x1 * e) + m @ p1 + m @ (x1 * f))
    in_x12 = _twice(in_a * e + m * f)
    d_fock = in_a2 + _twice(in_a @ x1)
    d_overlap = in_x2 / -2 + 0.375 * _twice(in_x12 @ n_metric)
    d1 = p1 + _twice(x1 * f)
    on_diagonal = a1.diagonal(dim1=-2, dim2=-1)
    d_mu = None
    if g.mu is not None and isinstance(spectrum, FermiOccupations):
        d_mu = (on_diagonal * spectrum.weights).sum(-1)
    return (
        coeff @ d_fock @ coeff.mT,
        coeff @ d_overlap @ coeff.mT,
        None if g.density is None else coeff @ d1 @ coeff.mT,
        None if g.energy is None else on_diagonal.clone(),
        None if g.free is None else (on_diagonal * spectrum.occupation).sum(-1),
        d_mu,
    )


def _numbers(flags: Tensor) -> list[int]:
    return flags.nonzero().flatten().tolist()


def _twice(x: Tensor) -> Tensor:
    return x + x.mT


def _energy_differences(e: Tensor, g: Tensor, a1: Tensor, varies: bool) -> Tensor:
    """(g_p - g_q) / (eps_p - eps_q): times A1_pq, a part of the second derivative of a function of the energies."""
    dg = g.unsqueeze(-1) - g.unsqueeze(-2)
    de = e.unsqueeze(-1) - e.unsqueeze(-2)
    close = (de.abs() < CLOSED_GAP) & ~torch.eye(e.shape[-1], dtype=torch.bool, device=e.device)
    asked = close & (a1.abs() > 1e-12 * a1.abs().amax((-2, -1), keepdim=True))
    if not varies:
        asked = asked & (dg != 0)
    undefined = asked.flatten(1).any(1)
    if bool(undefined.any()):
        raise RuntimeError(
            f"member(s) {_numbers(undefined)} of the batch have degenerate orbitals, whose energies have no second "
            "derivative by themselves, except in sums with constant weights that are equal within each degenerate set; "
            "use functions of the density, such as Tr[DF] for the sum of the occupied energies, or traces of S^-1 F"
        )
    return torch.where(dg == 0, 0.0, dg / de.masked_fill(close | (de == 0), 1.0))
