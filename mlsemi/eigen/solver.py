"""Energies and coefficients of F C = S C eps for batches; no derivatives here.

On the CPU molecules of one size are solved together, in parts that fit the cache: small ones by BLAS to the standard
problem and back and torch's batched eigh between, large ones one after the other by LAPACK. On a GPU the whole
batch is solved at once, padded. Every solution is verified, and where it fails solved again by LAPACK's sygv, with a
warning.

The verification (Freivalds 1977) takes a few products with vectors instead of matrices. With x of random signs and
sizes between 0.5 and 1.5, (FC - SC eps) x and (C^T S C - 1) x are never small if one orbital is wrong. If several are,
so that an element is wrong by a of the norms, the error hides from one vector with a probability of at most
tolerance / a. One vector that leaves less than `SURE` settles it (1e-11 for a = 1e-4, which is less than a failed
solver leaves); else two vectors must leave less than `RESIDUAL_TOLERANCE` (1e-16). These are probabilities over draws
of x, which is drawn once.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlsemi.eigen.checks import EXACT, Report, both, clean

RESIDUAL_TOLERANCE = 1e-12
"""Largest |(C^T F C - eps) x| / (|F| |C|^2) and |(C^T S C - 1) x| / |C|^2 of a solution that is believed, x being
random: rounding leaves 1e-16, a failed solver 1e-4 or more."""

SURE = 1e-15
"""What is left by a single x at which a solution is believed at once."""

LARGE = 112
"""From this size on solving and checking one member after the other is faster on the CPU than batched operations."""

CACHED = 1 << 20
"""Elements of the matrices that are solved together on the CPU: they fit the last cache, and one call to torch serves
many members."""


class Raw(NamedTuple):
    """Energies (batch, mo), coefficients (batch, ao, mo), their norms (batch,); placeholders in the members `singular`,
    whose overlap has no Cholesky factor.
    """

    energy: Tensor
    coeff: Tensor
    norm: Tensor
    singular: list[int]


def above(bound: Tensor) -> Tensor:
    """Energy of padding orbitals: out of the way by a spectral width, and no further, to lose no digits."""
    return 3 * bound + 1


def solve_batch(
    fock: Tensor, overlap: Tensor, ao_mask: Tensor | None, report: Report, *, group: bool | None, dependence: float
) -> Raw:
    """Solves a batch.

    Args:
        fock: shape (batch, ao, ao), float64.
        overlap: likewise.
        ao_mask: shape (batch, ao), None where all exist.
        report: takes what is wrong.
        group: molecules of one size together (the CPU's way), or all at once with padding.
        dependence: members that fail are among the singular ones if their S has an eigenvalue below this.
    """
    cpu, size = fock.device.type == "cpu", fock.shape[-1]
    probe = _probe(size).to(fock)
    everyone = list(range(len(fock)))
    at_once = cpu and ao_mask is None and (size >= LARGE or fock.numel() <= CACHED)
    if at_once or not (cpu if group is None else group):
        return _solve_members(fock, overlap, ao_mask, everyone, report, probe, dependence)
    energy = fock.new_zeros(fock.shape[:2])
    make = torch.empty if ao_mask is None else torch.zeros
    coeff = make(fock.shape, dtype=fock.dtype, device=fock.device).mT  # the layout in which LAPACK gives them
    norm = torch.zeros_like(energy[:, 0])
    singular: list[int] = []
    sizes = [size] * len(fock) if ao_mask is None else ao_mask.sum(1).tolist()
    for n in sorted(set(sizes)):
        members = [k for k in everyone if sizes[k] == n]
        step = max(1, CACHED // n**2) if cpu and n < LARGE else len(members)
        for part in (members[i : i + step] for i in range(0, len(members), step)):
            at = _range_or_index(part, fock.device)
            out = (energy[at], coeff[at]) if n == size and isinstance(at, slice) else None
            matrices = fock[at, :n, :n], overlap[at, :n, :n], None
            found = _solve_members(*matrices, part, report, probe[:, :n], dependence, out)
            norm[at] = found.norm
            singular += found.singular
            if out is None or found.coeff is not out[1]:
                energy[at, :n] = found.energy
                energy[at, n:] = above(found.energy.abs().amax(1)).unsqueeze(1)
                coeff[at, :n, :n] = found.coeff
    return Raw(energy, coeff, norm, singular)


@cache
def _probe(n: int) -> Tensor:
    """Random vectors without small elements, shape (2, ao): no single wrong orbital can hide from them."""
    x = torch.rand(2, 2, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.where(x[0] < 0.5, -1.0, 1.0) * (0.5 + x[1])


def _range_or_index(members: list[int], device: torch.device) -> slice | Tensor:
    """A slice where the members are neighbours: it copies nothing."""
    if members[-1] - members[0] == len(members) - 1:
        return slice(members[0], members[-1] + 1)
    return torch.tensor(members, device=device)


def _solve_members(
    fock: Tensor,
    overlap: Tensor,
    ao_mask: Tensor | None,
    members: Sequence[int],
    report: Report,
    probe: Tensor,
    dependence: float,
    out: tuple[Tensor, Tensor] | None = None,
) -> Raw:
    """As `solve_batch`, for some members of a batch, `members` being their numbers in it; LAPACK writes to `out`."""
    if ao_mask is not None or fock.device.type != "cpu" or fock.shape[-1] < LARGE:
        return _solve_together(fock, overlap, ao_mask, members, report, probe, dependence, out)
    found, error = _one_by_one(fock, overlap, probe[0], out)
    if bool((error <= SURE).all()):
        return found
    left = torch.nonzero(~(error <= SURE)).flatten()
    numbers = [members[k] for k in left.tolist()]
    rest = _solve_together(fock[left], overlap[left], None, numbers, report, probe, dependence)
    failed = [k for k in left.tolist() if float(error[k]) > RESIDUAL_TOLERANCE]
    failed = [k for k in failed if _is_symmetric(fock[k]) and _is_symmetric(overlap[k])]
    failed = [k for k in failed if not _is_dependent(overlap[k], dependence)]
    if failed:
        _tell([report.name(members[k]) for k in failed], float(error[failed].max()))
    for whole, part in zip(found[:3], rest[:3], strict=True):
        whole[left] = part
    return found._replace(singular=rest.singular)


def _solve_together(
    fock: Tensor,
    overlap: Tensor,
    ao_mask: Tensor | None,
    members: Sequence[int],
    report: Report,
    probe: Tensor,
    dependence: float,
    out: tuple[Tensor, Tensor] | None = None,
) -> Raw:
    """As `_solve_members`, whatever the members are like."""
    f, s, scale = clean(fock, overlap, ao_mask, members, report, probe[:1])
    on_cpu = f.device.type == "cpu" and ao_mask is None
    energy, coeff, info = _reduced(f, s, out) if on_cpu else _batched(f, s, ao_mask)
    error, norm = _relative_error(f, s, energy, coeff, ao_mask, scale, probe[:1])
    if bool((error <= SURE).all()):
        return Raw(energy, coeff, norm, [])
    error, norm = _relative_error(f, s, energy, coeff, ao_mask, scale, probe)
    if bool((error <= RESIDUAL_TOLERANCE).all()):
        return Raw(energy, coeff, norm, [])
    for k in torch.nonzero(~(error <= RESIDUAL_TOLERANCE) & ~info).flatten().tolist():
        info[k] = _is_dependent(s[k], dependence)
    again = torch.nonzero(~(error <= RESIDUAL_TOLERANCE) & ~info).flatten().tolist()
    if again:
        _solve_again(f, s, energy, coeff, error, ao_mask, scale, probe, again, members, report)
    energy[info], coeff[info] = 0.0, 0.0
    norm = torch.linalg.vector_norm(coeff, dim=(-2, -1))
    return Raw(energy, coeff, norm, [members[k] for k in torch.nonzero(info).flatten().tolist()])


def _batched(f: Tensor, s: Tensor, ao_mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Through the standard problem L^-1 F L^-T with S = L L^T; True where there is no L."""
    factor, info = torch.linalg.cholesky_ex(s)
    singular = info != 0
    if bool(singular.any()):
        eye = torch.eye(s.shape[-1], dtype=s.dtype, device=s.device)
        factor = torch.where(singular[:, None, None], eye, factor)
    half = torch.linalg.solve_triangular(factor, f, upper=False)
    standard = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    if ao_mask is not None:
        bound = standard.abs().sum(-1).amax(-1)  # Gershgorin: no eigenvalue is larger
        standard = standard + torch.diag_embed(torch.where(ao_mask, 0.0, above(bound).unsqueeze(-1)))
    try:
        energy, vectors = torch.linalg.eigh(standard)
    except torch.linalg.LinAlgError:  # one member spoils the whole call; the check finds all unsolved
        energy, vectors = torch.full_like(f[..., 0], torch.nan), torch.full_like(f, torch.nan)
    coeff = torch.linalg.solve_triangular(factor.mT, vectors, upper=True)
    return energy, coeff if ao_mask is None else torch.where(both(ao_mask), coeff, 0.0), singular


def _reduced(f: Tensor, s: Tensor, out: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
    """As `_batched`, with BLAS for one member after the other, which works in place and copies nothing."""
    from scipy.linalg.blas import dtrsm
    from scipy.linalg.lapack import dpotrf

    standard = f.clone(memory_format=torch.contiguous_format)
    factors, singular = [], []
    for matrix, metric in zip(standard.numpy(), s.numpy(), strict=True):
        # symmetric, so that the transposed view is the same matrix in Fortran's order
        factor, info = dpotrf(metric.T, 1, 0)
        factors.append(factor)
        singular.append(info != 0)
        if info == 0:
            dtrsm(1.0, factor, matrix.T, lower=1, overwrite_b=1)
            dtrsm(1.0, factor, matrix.T, side=1, lower=1, trans_a=1, overwrite_b=1)
    try:
        energy, coeff = torch.linalg.eigh(standard, out=out)
    except torch.linalg.LinAlgError:  # one member spoils the whole call; the check finds all unsolved
        energy, coeff = torch.full_like(f[..., 0], torch.nan), torch.full_like(standard, torch.nan)
    if not coeff.mT.is_contiguous():
        coeff = coeff.mT.contiguous().mT
    for vectors, factor, bad in zip(coeff.numpy(), factors, singular, strict=True):
        if not bad:
            dtrsm(1.0, factor, vectors, lower=1, trans_a=1, overwrite_b=1)
    return energy, coeff, torch.tensor(singular)


def _one_by_one(fock: Tensor, overlap: Tensor, probe: Tensor, out: tuple[Tensor, Tensor] | None) -> tuple[Raw, Tensor]:
    """One member after the other by LAPACK, checked while it is in the cache.

    Returns:
        Solutions, and the relative error that one vector leaves (large where F or S is not symmetric): NaN where F or S
        is not finite or S not positive definite, inf where LAPACK says that it failed.
    """
    from scipy.linalg.lapack import dsygvd

    energy = fock.new_empty(fock.shape[:2]) if out is None else out[0]
    coeff = fock.new_empty(fock.shape).mT if out is None else out[1]
    x, energies, vectors = probe.numpy(), energy.numpy(), coeff.numpy()
    norm, error = np.ones(len(fock)), np.full(len(fock), np.nan)
    work = np.empty(fock.shape[-2:], order="F")
    for k, (f, s, c) in enumerate(zip(fock.numpy(), overlap.numpy(), vectors, strict=True)):
        # symmetric, so that the transposed view is the same matrix in Fortran's order; LAPACK reads one triangle of it,
        # the products below read both, so that what is not symmetric leaves an error
        c[:], work[:] = f.T, s.T
        size = _square(c)
        if not (size < np.inf and _square(work) < np.inf):
            continue
        e, solved, info = dsygvd(c, work, overwrite_a=1, overwrite_b=1)
        if info:
            error[k] = np.nan if info > len(c) else np.inf
            continue
        if not np.may_share_memory(c, solved):
            c[:] = solved
        right = c @ x
        residual = (f @ right) @ c - e * x
        metric = (s @ right) @ c - x
        square = max(_square(c), 1e-300)
        # the norm of a vector is larger than its largest element
        worst = max(_square(residual) / max(size, 1e-6), _square(metric)) ** 0.5 / square
        error[k] = worst if worst < np.inf else np.inf
        energies[k], norm[k] = e, square**0.5
    return Raw(energy, coeff, torch.from_numpy(norm), []), torch.from_numpy(error)


def _is_dependent(overlap: Tensor, dependence: float) -> bool:
    """Whether S has an eigenvalue that small: it is by rounding alone that it has a Cholesky factor."""
    return bool(torch.linalg.eigvalsh(overlap)[0] < dependence)


def _square(x: np.ndarray) -> float:
    """Sum of the squared elements of an array in C's or Fortran's order."""
    flat = x.ravel(order="K")
    return float(flat @ flat)


def _is_symmetric(matrix: Tensor) -> bool:
    """Whether a matrix is that but for the last digits."""
    return bool((matrix - matrix.mT).abs().max() <= EXACT * matrix.abs().max())


def _relative_error(
    f: Tensor, s: Tensor, energy: Tensor, coeff: Tensor, ao_mask: Tensor | None, scale: Tensor, probe: Tensor
) -> tuple[Tensor, Tensor]:
    """Larger of the scaled |(C^T F C - eps) x| and |(C^T S C - 1) x| for random x, and |C|, shape (batch,).

    The vectors x are rows, which makes thin products fast; F and S are symmetric.
    """
    x = probe.expand(len(f), -1, -1) if ao_mask is None else probe * ao_mask.unsqueeze(-2)
    right = x @ coeff.mT
    found = torch.cat([right @ f, right @ s], -2) @ coeff
    n = len(probe)
    residual = (found[:, :n] - x * energy.unsqueeze(-2)).abs().amax((-2, -1))
    metric = (found[:, n:] - x).abs().amax((-2, -1))
    size = torch.linalg.vector_norm(coeff, dim=(-2, -1))
    return torch.maximum(residual / scale.clamp_min(1e-3), metric) / size**2, size


def _tell(names: list[str], error: float) -> None:
    warnings.warn(
        f"the eigensolver failed for {', '.join(names)} (relative error {error:.1e}); solved again by LAPACK on the "
        "CPU",
        RuntimeWarning,
        stacklevel=3,
    )


def _solve_again(
    f: Tensor,
    s: Tensor,
    energy: Tensor,
    coeff: Tensor,
    error: Tensor,
    ao_mask: Tensor | None,
    scale: Tensor,
    probe: Tensor,
    again: list[int],
    members: Sequence[int],
    report: Report,
) -> None:
    """Solves the members whose error is too large by LAPACK's QR iteration on the CPU, in place."""
    import scipy.linalg

    _tell([report.name(members[k]) for k in again], float(error[again].max()))
    for k in again:
        n = f.shape[-1] if ao_mask is None else int(ao_mask[k].sum())
        name = report.name(members[k])
        coeff[k], energy[k] = 0.0, 0.0
        try:
            e, c = scipy.linalg.eigh(f[k, :n, :n].cpu().numpy(), s[k, :n, :n].cpu().numpy(), driver="gv")
        except np.linalg.LinAlgError as failure:
            report.add(members[k], f"F C = S C eps of {name} cannot be solved: {failure}", RuntimeError)
            continue
        e, c = torch.from_numpy(e), torch.from_numpy(c)
        coeff[k, :n, :n] = c.to(coeff)
        energy[k, :n] = e.to(energy)
        energy[k, n:] = above(e.abs().max())
        one = slice(k, k + 1)
        mask = None if ao_mask is None else ao_mask[one]
        left, _ = _relative_error(f[one], s[one], energy[one], coeff[one], mask, scale[one], probe)
        if not bool(left <= RESIDUAL_TOLERANCE):
            report.add(members[k], f"F C = S C eps of {name} cannot be solved accurately", RuntimeError)
