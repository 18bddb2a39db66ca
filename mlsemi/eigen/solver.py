"""Energies and coefficients of F C = S C eps for batches; no derivatives here.

On the CPU molecules of one size are solved together, in parts that fit the cache: small ones by batched Cholesky and
eigh, large ones one after the other by LAPACK's sygvd. On a GPU the whole batch is solved at once, padded. Every
solution is verified, and where it fails solved again by LAPACK's sygv, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlsemi.eigen.checks import Report, both, clean

RESIDUAL_TOLERANCE = 1e-10
"""Largest |(FC - SC eps) x| / (|Fx| |C|) and |(C^T S C - 1) x| / |C|^2 of a solution that is believed, x being random:
rounding leaves 1e-15, a failed solver 1e-4 or more, and that passes by chance with a probability of about 1e-6."""

LARGE = 96
"""From this size on LAPACK's sygvd, one member after the other, is faster on the CPU than the batched operations."""

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


def solve_batch(fock: Tensor, overlap: Tensor, ao_mask: Tensor | None, report: Report, *, group: bool | None) -> Raw:
    """Solves a batch.

    Args:
        fock: shape (batch, ao, ao), float64.
        overlap: likewise.
        ao_mask: shape (batch, ao), None where all exist.
        report: takes what is wrong.
        group: molecules of one size together (the CPU's way), or all at once with padding.
    """
    cpu, size = fock.device.type == "cpu", fock.shape[-1]
    probe = _probe(size).to(fock)
    everyone = list(range(len(fock)))
    small = cpu and ao_mask is None and size < LARGE and fock.numel() <= CACHED
    if small or not (cpu if group is None else group):
        return _solve_members(fock, overlap, ao_mask, everyone, report, probe)
    energy = fock.new_zeros(fock.shape[:2])
    coeff = torch.zeros_like(fock).mT  # the layout in which LAPACK gives them
    norm = torch.zeros_like(energy[:, 0])
    singular: list[int] = []
    sizes = [size] * len(fock) if ao_mask is None else ao_mask.sum(1).tolist()
    for n in sorted(set(sizes)):
        members = [k for k in everyone if sizes[k] == n]
        step = max(1, CACHED // n**2) if cpu else len(members)
        for part in (members[i : i + step] for i in range(0, len(members), step)):
            at = _range_or_index(part, fock.device)
            out = (energy[at], coeff[at]) if n == size and isinstance(at, slice) else None
            found = _solve_members(fock[at, :n, :n], overlap[at, :n, :n], None, part, report, probe[:, :n], out)
            norm[at] = found.norm
            singular += found.singular
            if out is None or found.energy is not out[0]:
                energy[at, :n] = found.energy
                energy[at, n:] = above(found.energy.abs().amax(1)).unsqueeze(1)
                coeff[at, :n, :n] = found.coeff
    return Raw(energy, coeff, norm, singular)


@cache
def _probe(n: int) -> Tensor:
    """A random vector without small elements, shape (1, ao): no single wrong orbital can hide from it."""
    x = torch.rand(2, 1, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
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
    out: tuple[Tensor, Tensor] | None = None,
) -> Raw:
    """As `solve_batch`, for some members of a batch, `members` being their numbers in it; LAPACK writes to `out`."""
    f, s, scale = clean(fock, overlap, ao_mask, members, report, probe)
    lapack = f.device.type == "cpu" and ao_mask is None and f.shape[-1] >= LARGE
    energy, coeff, info = _lapack(f, s, out) if lapack else _batched(f, s, ao_mask)
    error, norm = _relative_error(f, s, energy, coeff, ao_mask, scale, probe)
    if bool((error <= RESIDUAL_TOLERANCE).all()):
        return Raw(energy, coeff, norm, [])
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


def _lapack(f: Tensor, s: Tensor, out: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
    """One member after the other; NaN where the iteration fails, and True where there is no Cholesky factor."""
    from scipy.linalg.lapack import dsygvd

    energy, coeff = (torch.empty_like(f[..., 0]), torch.empty_like(f).mT) if out is None else out
    energies, transposed = energy.numpy(), coeff.mT.numpy()
    singular = torch.zeros(len(f), dtype=torch.bool)
    for k, (one, metric) in enumerate(zip(f.numpy(), s.numpy(), strict=True)):
        # symmetric, so that the transposed view is the same matrix in Fortran's order
        e, c, info = dsygvd(one.T, metric.T)
        energies[k], transposed[k] = (e, c.T) if info == 0 else (np.nan, np.nan)
        if info > len(one):
            singular[k] = True
    return energy, coeff, singular


def _relative_error(
    f: Tensor, s: Tensor, energy: Tensor, coeff: Tensor, ao_mask: Tensor | None, scale: Tensor, probe: Tensor
) -> tuple[Tensor, Tensor]:
    """Larger of the scaled |(FC - SC eps) x| and |(C^T S C - 1) x| for a random x, and |C|, shape (batch,).

    The vectors x are rows, which makes thin products fast; F and S are symmetric.
    """
    x = probe.expand(len(f), -1, -1) if ao_mask is None else probe * ao_mask.unsqueeze(-2)
    right = torch.cat([x, x * energy.unsqueeze(-2)], -2) @ coeff.mT
    through = right @ s
    residual = (right[:, :1] @ f - through[:, 1:]).abs().amax((-2, -1))
    metric = (through[:, :1] @ coeff - x).abs().amax((-2, -1))
    size = torch.linalg.vector_norm(coeff, dim=(-2, -1))
    return torch.maximum(residual / (scale.clamp_min(1e-3) * size), metric / size**2), size


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

    warnings.warn(
        f"the eigensolver failed for {', '.join(report.name(members[k]) for k in again)} (relative error "
        f"{float(error[again].max()):.1e}); solved again by LAPACK on the CPU",
        RuntimeWarning,
        stacklevel=2,
    )
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
