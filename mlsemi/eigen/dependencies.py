"""Overlaps that are nearly singular: combinations of AOs without norm, dropped or lifted out of the way."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mlsemi.eigen.adjoint import Solved
from mlsemi.eigen.solver import RESIDUAL_TOLERANCE, above
from mlsemi.eigen.spectrum import GivenOccupations

if TYPE_CHECKING:
    from mlsemi.eigen.solution import Problem

LINEAR_DEPENDENCE = 1e-7
"""Eigenvalue of S, of normalized AOs, below which its eigenvector is dropped: digits beyond the eighth of F decide on
orbital energies there. Other programs take 1e-6 to 1e-8."""

LEVEL = 1.0
"""Energy [Eh] at which `lift_near_dependencies` puts combinations of AOs without norm: well above any LUMO."""


def drop_dependencies(problem: Problem, norm: Tensor, singular: list[int], threshold: float) -> None:
    """Canonical orthogonalization of the members that need it, in place.

    With Q the projector onto the eigenvectors of S below the threshold and P = 1 - Q, the problem becomes

        F' = P F P + level Q,    S' = P S P + Q

    whose lowest orbitals are those of the kept space, and whose others lie at `level`, above them. Q is a function of S
    with closed derivatives, being the density of the "Fock matrix" S, so that derivatives are exact to second order.

    Args:
        problem: the batch; energies, coefficients, matrices and the numbers of dropped functions change.
        norm: |C| of each member, shape (batch,).
        singular: members without a Cholesky factor.
        threshold: see `LINEAR_DEPENDENCE`.
    """
    report = problem.report
    # Tr S^-1 = |C|^2 bounds the smallest eigenvalue from below: mostly it shows that there is nothing to do
    suspect = set((norm**2 * threshold >= 1).nonzero().flatten().tolist()) | set(singular)
    dropped = {}
    for k in sorted(suspect - set(report.found)):
        n = problem.fock.shape[-1] if problem.ao_mask is None else int(problem.ao_mask[k].sum())
        overlap = problem.overlap[k, :n, :n]
        values, vectors = torch.linalg.eigh((overlap.detach() + overlap.detach().mT) / 2)
        count, smallest = int((values < threshold).sum()), float(values[0])
        if smallest < -threshold or count == n:
            report.add(k, indefinite(report.name(k), smallest))
        elif count:
            dropped[k] = (count, smallest)
            _drop(problem, k, values, vectors, count)
        elif k in singular:
            report.add(k, f"S of {report.name(k)} has no Cholesky factor, but positive eigenvalues", RuntimeError)
    if dropped:
        listed = ", ".join(f"{c} of {report.name(k)} (smallest eigenvalue {s:.1e})" for k, (c, s) in dropped.items())
        warnings.warn(
            f"S is nearly singular: dropped combinations of AOs with eigenvalues below {threshold:.0e}: {listed}",
            RuntimeWarning,
            stacklevel=4,
        )


def _drop(problem: Problem, k: int, values: Tensor, vectors: Tensor, count: int) -> None:
    """Drops the first `count` eigenvectors of S of member k."""
    n, padding = len(values), problem.fock.shape[-1] - len(values)
    fock, overlap = problem.fock[k, :n, :n], problem.overlap[k, :n, :n]
    basis = vectors[:, count:] * values[count:] ** -0.5
    reduced = basis.mT @ ((fock.detach() + fock.detach().mT) / 2) @ basis
    try:
        energy, turn = torch.linalg.eigh(reduced)
    except torch.linalg.LinAlgError as failure:
        problem.report.add(k, f"F C = S C eps of {problem.report.name(k)} cannot be solved: {failure}", RuntimeError)
        return
    error = (reduced @ turn - turn * energy).abs().max() / reduced.abs().max().clamp_min(1e-3)
    if not bool(error <= RESIDUAL_TOLERANCE):
        problem.report.add(k, f"F C = S C eps of {problem.report.name(k)} cannot be solved accurately", RuntimeError)
        return
    level = above(energy.abs().max())
    problem.energy[k] = level
    problem.energy[k, : n - count] = energy
    problem.coeff[k] = 0.0
    problem.coeff[k, :n, :n] = torch.cat([basis @ turn, vectors[:, :count]], 1)
    problem.n_dropped[k] = count

    eye = torch.eye(n, dtype=values.dtype, device=values.device)
    lost = (torch.arange(n, device=values.device) < count).to(values)[None]
    # eigenvalues on both sides of the threshold within rounding have no derivative
    spectrum = GivenOccupations(values[None], lost, torch.ones_like(lost, dtype=torch.bool), problem.report.name, 1e-14)
    q = Solved.apply(overlap[None], eye[None], lost, spectrum, vectors[None], False, True)[2][0]
    p = eye - q
    at = torch.tensor([k], device=values.device)
    pad = (0, padding, 0, padding)
    new = torch.nn.functional.pad(p @ fock @ p + level * q, pad), torch.nn.functional.pad(p @ overlap @ p + q, pad)
    problem.fock = problem.fock.index_copy(0, at, new[0][None])
    problem.overlap = problem.overlap.index_copy(0, at, new[1][None])


def indefinite(name: str, smallest: float) -> str:
    """The message for an overlap that is none."""
    return (
        f"overlap of {name} is not positive definite: its smallest eigenvalue is {smallest:.3e}; atoms lie on top of "
        "each other, the basis set is linearly dependent at this geometry, or the matrix is not an overlap"
    )


def dependency_filter(overlap: Tensor, ao_mask: Tensor, floor: float) -> Tensor:
    """The filter P = (1 + (floor S^-1)^4)^-1 of `lift_near_dependencies`, for several Fock matrices with one S.

    Args:
        overlap: overlap matrices, shape (batch, ao, ao), positive definite.
        ao_mask: True where an AO exists, shape (batch, ao).
        floor: where the filter is one half.

    Returns:
        Shape (batch, ao, ao).
    """
    padding = torch.diag_embed((~ao_mask).to(overlap.dtype))
    eye = torch.eye(overlap.shape[-1], dtype=overlap.dtype, device=overlap.device)
    x = floor * torch.linalg.inv(overlap + padding)
    # 1 + x^4 in two factors, each of which has half as many digits to lose
    even, odd = eye + x @ x, 2**0.5 * x
    return torch.linalg.inv(even + odd) @ torch.linalg.inv(even - odd)


def lift_near_dependencies(
    fock: Tensor, overlap: Tensor, ao_mask: Tensor, floor: float, *, keep: Tensor | None = None
) -> Tensor:
    """Takes combinations of AOs with hardly any norm out of the way of the occupied orbitals, smoothly.

    The error of an orbital energy is that of F divided by the eigenvalue s of S. Where s is as small as the error of a
    predicted F, the orbital energy is arbitrary, and can come to lie below the occupied ones. With the filter
    P = (1 + (floor S^-1)^4)^-1, which is one for s >> floor and zero for s << floor,

        F' = P F P + LEVEL (S - P S P)

    leaves the rest of F as it is and puts these combinations at LEVEL, among the virtual orbitals. It is a smooth
    function of S, so that energies stay differentiable, and does not change what it does under rotation.

    Args:
        fock: Fock matrices [Eh], shape (batch, ao, ao).
        overlap: overlap matrices, same shape, positive definite.
        ao_mask: True where an AO exists, shape (batch, ao).
        floor: where the filter is one half; zero leaves F as it is.
        keep: the filter, if it is at hand (`dependency_filter`).

    Returns:
        F' [Eh], same shape.
    """
    if floor == 0.0:
        return fock
    keep = dependency_filter(overlap, ao_mask, floor) if keep is None else keep
    lifted = keep @ (fock - LEVEL * overlap) @ keep + LEVEL * overlap
    return 0.5 * (lifted + lifted.mT)
