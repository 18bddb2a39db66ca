"""The eigenproblem F C = S C eps for batches of unlike molecules, and the density with its closed derivative.

Everything is float64. AO matrices are padded; an explicit mask says which AOs exist. The padding has no orbitals: it
takes no part in the result, and gradients with respect to it are zero.

The derivative of the density D = C f C^T needs no derivative of an orbital (Daleckii and Krein 1965): with
G = dL/dD symmetrized and M = C^T G C

    dL/dF =  C (K o M) C^T,    K_pq   = (f_p - f_q) / (eps_p - eps_q),              0 where f_p = f_q
    dL/dS = -C (K_S o M) C^T,  K_S,pq = (f_p eps_p - f_q eps_q) / (eps_p - eps_q),  f_p where f_p = f_q

so that degenerate orbitals of equal occupation do no harm; only a closing gap does.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

RESIDUAL_TOLERANCE = 1e-10
"""Largest |FC - SC eps| / (|F| |C|) and |C^T S C - 1| / |C|^2 (of the largest elements) of a solution that is believed:
rounding leaves 1e-14, a solver that failed leaves 1e-3 or more."""

LEVEL = 1.0
"""Energy [Eh] at which `lift_near_dependencies` puts combinations of AOs without norm: well above any LUMO."""


@dataclass(frozen=True, eq=False)
class EigenSolution:
    """Orbitals of a batch.

    There are as many orbitals as AOs. Beyond the AOs of a molecule stands padding: a finite energy above all others,
    coefficients zero.

    Attributes:
        mo_energy: orbital energies [Eh], ascending, shape (batch, mo). Differentiable; of a degenerate set only
            symmetric functions (a sum, a power sum) have a derivative.
        mo_coeff: coefficients with C^T S C = 1, shape (batch, ao, mo). No gradient passes through them: a phase and a
            degenerate set have none. Differentiate the density.
    """

    mo_energy: Tensor
    mo_coeff: Tensor


def solve(fock: Tensor, overlap: Tensor, ao_mask: Tensor | None = None, *, group: bool | None = None) -> EigenSolution:
    """Solves F C = S C eps.

    Each solution is verified; a member that failed is solved again by LAPACK on the CPU, with a warning.

    Args:
        fock: Fock matrices [Eh], shape (batch, ao, ao); the symmetric part is used.
        overlap: overlap matrices, shape (batch, ao, ao); the symmetric part is used.
        ao_mask: True where an AO exists, shape (batch, ao); the AOs of a molecule come first. All exist by default.
        group: solve molecules of one size together and without padding (right on the CPU, which solves one matrix
            after the other), or all at once with padding (right on a GPU). By default as the device wants it.

    Returns:
        Orbitals; energies are differentiable.

    Raises:
        ValueError: for shapes that do not fit, values that are not finite, or an overlap that is not positive definite.
        RuntimeError: if LAPACK fails as well.
    """
    occupation = fock.new_zeros(fock.shape[:-1], dtype=torch.float64)
    return solve_density(fock, overlap, occupation, ao_mask, group=group)[0]


def density(
    fock: Tensor, overlap: Tensor, occupation: Tensor, ao_mask: Tensor | None = None, *, group: bool | None = None
) -> Tensor:
    """Density D = C f C^T, shape (batch, ao, ao); see `solve_density`."""
    return solve_density(fock, overlap, occupation, ao_mask, group=group)[1]


def solve_density(
    fock: Tensor, overlap: Tensor, occupation: Tensor, ao_mask: Tensor | None = None, *, group: bool | None = None
) -> tuple[EigenSolution, Tensor]:
    """Orbitals and the density D = C f C^T from one diagonalization.

    Density and orbital energies are differentiable once in F and S; occupations are constants. A second derivative
    raises an error.

    Args:
        fock: as in `solve`.
        overlap: as in `solve`.
        occupation: occupations of the orbitals, ascending in energy, shape (batch, mo).
        ao_mask: as in `solve`.
        group: as in `solve`.

    Returns:
        Orbitals, and densities of shape (batch, ao, ao).

    Raises:
        ValueError: as `solve`.
        RuntimeError: as `solve`.
    """
    _check_shapes(fock, overlap, occupation, ao_mask)
    energy, coeff, matrix = _Density.apply(fock.double(), overlap.double(), occupation.double(), ao_mask, group)
    return EigenSolution(energy, coeff), matrix


class _Density(torch.autograd.Function):
    """(F, S, f) to (eps, C, C f C^T)."""

    @staticmethod
    def forward(
        ctx: Any, fock: Tensor, overlap: Tensor, occupation: Tensor, ao_mask: Tensor | None, group: bool | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        energy, coeff = _solve_batch(fock, overlap, ao_mask, group)
        ctx.save_for_backward(energy, coeff, occupation)
        ctx.mark_non_differentiable(coeff)
        ctx.set_materialize_grads(False)
        return energy, coeff, (coeff * occupation.unsqueeze(-2)) @ coeff.mT

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_energy: Tensor | None, _: Tensor | None, g_density: Tensor | None) -> tuple:
        energy, coeff, f = ctx.saved_tensors
        need_fock, need_overlap = ctx.needs_input_grad[:2]
        if g_energy is None and g_density is None:
            return None, None, None, None, None
        in_fock = in_overlap = torch.zeros_like(coeff)
        if g_density is not None:
            m = coeff.mT @ ((g_density + g_density.mT) / 2) @ coeff
            same = f.unsqueeze(-1) == f.unsqueeze(-2)
            difference = (energy.unsqueeze(-1) - energy.unsqueeze(-2)).masked_fill(same, 1.0)
            k = (f.unsqueeze(-1) - f.unsqueeze(-2)) / difference
            in_fock = k * m
            if need_overlap:
                # (f_p eps_p - f_q eps_q) / (eps_p - eps_q) = f_p + eps_q K_pq, in its symmetric form
                mean = (f.unsqueeze(-1) + f.unsqueeze(-2)) / 2
                in_overlap = -(mean + k * (energy.unsqueeze(-1) + energy.unsqueeze(-2)) / 2) * m
        if g_energy is not None:
            # d eps_p = C_p^T (dF - eps_p dS) C_p
            in_fock = in_fock + torch.diag_embed(g_energy)
            in_overlap = in_overlap - torch.diag_embed(g_energy * energy)
        d_fock = coeff @ in_fock @ coeff.mT if need_fock else None
        d_overlap = coeff @ in_overlap @ coeff.mT if need_overlap else None
        return d_fock, d_overlap, None, None, None


def lift_near_dependencies(fock: Tensor, overlap: Tensor, ao_mask: Tensor, floor: float) -> Tensor:
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

    Returns:
        F' [Eh], same shape.
    """
    if floor == 0.0:
        return fock
    padding = torch.diag_embed((~ao_mask).to(overlap.dtype))
    eye = torch.eye(overlap.shape[-1], dtype=overlap.dtype, device=overlap.device)
    power = torch.linalg.matrix_power(floor * torch.linalg.inv(overlap + padding), 4)
    keep = torch.linalg.inv(eye + power)
    lifted = keep @ (fock - LEVEL * overlap) @ keep + LEVEL * overlap
    return 0.5 * (lifted + lifted.mT)


def square_root(overlap: Tensor, ao_mask: Tensor | None = None) -> Tensor:
    """S^1/2, differentiable once; degenerate eigenvalues do no harm.

    With S = V s V^T and X = S^1/2 the derivative follows from X dX + dX X = dS:
    dX = V (V^T dS V / (s_p^1/2 + s_q^1/2)) V^T.

    Args:
        overlap: overlap matrices, shape (batch, ao, ao); the symmetric part is used.
        ao_mask: True where an AO exists, shape (batch, ao).

    Returns:
        Symmetric matrices, float64, shape (batch, ao, ao); zero in the padding.

    Raises:
        ValueError: for an overlap that is not positive definite.
    """
    return _SquareRoot.apply(overlap.double(), ao_mask)


class _SquareRoot(torch.autograd.Function):
    """S to S^1/2."""

    @staticmethod
    def forward(ctx: Any, overlap: Tensor, ao_mask: Tensor | None) -> Tensor:
        s = (overlap + overlap.mT) / 2
        exists = None
        if ao_mask is not None:
            exists = ao_mask.unsqueeze(-1) & ao_mask.unsqueeze(-2)
            s = torch.where(exists, s, torch.eye(s.shape[-1], dtype=s.dtype, device=s.device))
        values, vectors = torch.linalg.eigh(s)
        if not bool((values > 0).all()):
            _refuse_indefinite(s, ~(values > 0).all(-1), torch.arange(len(s)))
        root = values.sqrt()
        ctx.save_for_backward(root, vectors, exists)
        x = (vectors * root.unsqueeze(-2)) @ vectors.mT
        return x if exists is None else torch.where(exists, x, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        root, vectors, exists = ctx.saved_tensors
        if exists is not None:
            gradient = torch.where(exists, gradient, 0.0)
        m = vectors.mT @ ((gradient + gradient.mT) / 2) @ vectors / (root.unsqueeze(-1) + root.unsqueeze(-2))
        result = vectors @ m @ vectors.mT
        return result if exists is None else torch.where(exists, result, 0.0), None


def _check_shapes(fock: Tensor, overlap: Tensor, occupation: Tensor, ao_mask: Tensor | None) -> None:
    if fock.ndim != 3 or fock.shape[1] != fock.shape[2] or fock.shape[1] == 0:
        raise ValueError(f"fock must have shape (batch, ao, ao), got {tuple(fock.shape)}")
    if overlap.shape != fock.shape:
        raise ValueError(f"overlap must have the shape of fock, {tuple(fock.shape)}, got {tuple(overlap.shape)}")
    for name, value in (("occupation", occupation), ("ao_mask", ao_mask)):
        if value is not None and value.shape != fock.shape[:2]:
            raise ValueError(f"{name} must have shape {tuple(fock.shape[:2])}, got {tuple(value.shape)}")


def _solve_batch(fock: Tensor, overlap: Tensor, ao_mask: Tensor | None, group: bool | None) -> tuple[Tensor, Tensor]:
    """Energies (batch, mo) and coefficients (batch, ao, mo)."""
    index = torch.arange(len(fock))
    if ao_mask is None or bool(ao_mask.all()):
        return _solve_members(fock, overlap, None, index)
    n_ao = ao_mask.sum(1)
    if not torch.equal(torch.arange(ao_mask.shape[1], device=ao_mask.device) < n_ao.unsqueeze(1), ao_mask):
        raise ValueError("ao_mask must be True for the first AOs of each molecule and False after them")
    if group is None:
        group = fock.device.type == "cpu"
    if not group:
        return _solve_members(fock, overlap, ao_mask, index)
    energy = fock.new_zeros(fock.shape[:2])
    coeff = torch.zeros_like(fock)
    sizes = n_ao.cpu()
    for n in sorted(set(sizes.tolist())):
        members = torch.nonzero(sizes == n).squeeze(1)
        at = members.to(fock.device)
        e, c = _solve_members(fock[at, :n, :n], overlap[at, :n, :n], None, members)
        energy[at, :n] = e
        energy[at, n:] = _above(e.abs().amax(1)).unsqueeze(1)
        coeff[at, :n, :n] = c
    return energy, coeff


def _above(bound: Tensor) -> Tensor:
    """Energy of padding orbitals: out of the way by a spectral width, and no further, to lose no digits."""
    return 3 * bound + 1


def _solve_members(fock: Tensor, overlap: Tensor, ao_mask: Tensor | None, members: Tensor) -> tuple[Tensor, Tensor]:
    """Energies and coefficients of some members of a batch, `members` being their numbers in it."""
    f, s = (fock + fock.mT) / 2, (overlap + overlap.mT) / 2
    if ao_mask is not None:
        exists = ao_mask.unsqueeze(-1) & ao_mask.unsqueeze(-2)
        f = torch.where(exists, f, 0.0)
        s = torch.where(exists, s, torch.eye(s.shape[-1], dtype=s.dtype, device=s.device))
    for name, value in (("fock", f), ("overlap", s)):
        if not bool(value.sum().isfinite()):
            bad = members[~value.isfinite().flatten(1).all(1).cpu()].tolist()
            raise ValueError(f"{name} of molecule(s) {bad} of the batch holds values that are not finite")
    factor, info = torch.linalg.cholesky_ex(s)
    if bool(info.any()):
        _refuse_indefinite(s, info, members)
    half = torch.linalg.solve_triangular(factor, f, upper=False)
    standard = torch.linalg.solve_triangular(factor, half.mT, upper=False)
    if ao_mask is not None:
        bound = standard.abs().sum(-1).amax(-1)  # Gershgorin: no eigenvalue is larger
        standard = standard + torch.diag_embed(torch.where(ao_mask, 0.0, _above(bound).unsqueeze(-1)))
    try:
        energy, vectors = torch.linalg.eigh(standard)
    except torch.linalg.LinAlgError:  # one member spoils the whole call; the check below finds all unsolved
        energy, vectors = torch.full_like(f[..., 0], torch.nan), torch.full_like(f, torch.nan)
    coeff = torch.linalg.solve_triangular(factor.mT, vectors, upper=True)
    if ao_mask is not None:
        coeff = torch.where(exists, coeff, 0.0)
    error = _relative_error(f, s, energy, coeff, ao_mask)
    if not bool((error <= RESIDUAL_TOLERANCE).all()):
        _solve_again(f, s, energy, coeff, error, ao_mask, members)
    return energy, coeff


def _relative_error(f: Tensor, s: Tensor, energy: Tensor, coeff: Tensor, ao_mask: Tensor | None) -> Tensor:
    """Larger of the scaled |FC - SC eps| and |C^T S C - 1| of each member, shape (batch,)."""
    overlap_coeff = s @ coeff
    residual = torch.baddbmm(overlap_coeff * energy.unsqueeze(-2), f, coeff, beta=-1).abs().amax((-2, -1))
    metric = coeff.mT @ overlap_coeff
    metric.diagonal(dim1=-2, dim2=-1).sub_(1.0 if ao_mask is None else ao_mask.double())
    size = coeff.abs().amax((-2, -1))
    scale = f.abs().amax((-2, -1)).clamp_min(1e-3) * size
    return torch.maximum(residual / scale, metric.abs().amax((-2, -1)) / size**2)


def _refuse_indefinite(s: Tensor, info: Tensor, members: Tensor) -> None:
    bad = int(torch.nonzero(info)[0])
    smallest = float(torch.linalg.eigvalsh(s[bad].cpu())[0])
    raise ValueError(
        f"overlap of molecule {int(members[bad])} of the batch is not positive definite: its smallest eigenvalue is "
        f"{smallest:.3e}; atoms lie on top of each other, the basis set is (nearly) linearly dependent at this "
        "geometry, or the matrix is not an overlap"
    )


def _solve_again(
    f: Tensor, s: Tensor, energy: Tensor, coeff: Tensor, error: Tensor, ao_mask: Tensor | None, members: Tensor
) -> None:
    """Solves the members whose error is too large by LAPACK on the CPU, in place."""
    import scipy.linalg

    bad = torch.nonzero(~(error <= RESIDUAL_TOLERANCE)).squeeze(1).tolist()
    warnings.warn(
        f"the eigensolver failed for molecule(s) {members[bad].tolist()} of the batch (relative error "
        f"{float(error[bad].max()):.1e}); solved again by LAPACK on the CPU",
        RuntimeWarning,
        stacklevel=2,
    )
    for i in bad:
        n = f.shape[-1] if ao_mask is None else int(ao_mask[i].sum())
        try:
            e, c = scipy.linalg.eigh(f[i, :n, :n].cpu().numpy(), s[i, :n, :n].cpu().numpy(), driver="gv")
        except np.linalg.LinAlgError as failure:
            raise RuntimeError(
                f"F C = S C eps of molecule {int(members[i])} of the batch cannot be solved: {failure}"
            ) from failure
        e, c = torch.from_numpy(e), torch.from_numpy(c)
        coeff[i] = 0.0
        coeff[i, :n, :n] = c.to(coeff)
        energy[i, :n] = e.to(energy)
        energy[i, n:] = _above(e.abs().max())
        if not bool(
            _relative_error(
                f[i : i + 1],
                s[i : i + 1],
                energy[i : i + 1],
                coeff[i : i + 1],
                None if ao_mask is None else ao_mask[i : i + 1],
            )
            <= RESIDUAL_TOLERANCE
        ):
            raise RuntimeError(f"F C = S C eps of molecule {int(members[i])} of the batch cannot be solved accurately")
