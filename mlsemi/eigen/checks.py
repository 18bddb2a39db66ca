"""What goes into the eigensolver, made clean: symmetric, without padding, and what is wrong by the member's name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

ASYMMETRY_TOLERANCE = 1e-5
"""Largest |F - F^T| / |F| (of the largest elements) that passes as rounding: a float32 network leaves 1e-6."""

EXACT = 1e-13
"""Asymmetry of this size is that of the last digits: the lower triangle serves."""

Errors = Literal["raise", "mark"]


class Report:
    """Collects what is wrong with the members of a batch.

    Args:
        size: number of members.
        names: their names in messages; "molecule k of the batch" by default.
        errors: "raise" at the end, or "mark" and go on.
    """

    def __init__(self, size: int, names: Sequence[str] | None, errors: Errors) -> None:
        if errors not in ("raise", "mark"):
            raise ValueError(f"errors must be 'raise' or 'mark', got {errors!r}")
        if names is not None and len(names) != size:
            raise ValueError(f"names must have one name for each of the {size} members of the batch, got {len(names)}")
        self.names = names
        self.errors = errors
        self.found: dict[int, Exception] = {}
        self.notes: dict[int, str] = {}

    def name(self, member: int) -> str:
        """How messages call a member."""
        return f"molecule {member} of the batch" if self.names is None else self.names[member]

    def add(self, member: int, problem: str, kind: type[Exception] = ValueError) -> None:
        """Notes a problem; the first one of a member stays."""
        self.found.setdefault(member, kind(problem))

    @property
    def messages(self) -> dict[int, str]:
        """Problems, and notes on members that have a solution, by member."""
        every = self.notes | {k: str(x) for k, x in self.found.items()}
        return {k: every[k] for k in sorted(every)}

    def settle(self) -> None:
        """Raises what was found, unless it is to be marked."""
        if not self.found or self.errors == "mark":
            return
        shown = [str(self.found[k]) for k in sorted(self.found)]
        text = "; ".join(shown[:5]) + (f"; and {len(shown) - 5} more" if len(shown) > 5 else "")
        wrong_input = any(isinstance(x, ValueError) for x in self.found.values())
        raise (ValueError if wrong_input else RuntimeError)(text)


def check_shapes(fock: Tensor, overlap: Tensor, ao_mask: Tensor | None, **by_orbital: Tensor | None) -> None:
    """Raises a ValueError unless the arguments fit together.

    Args:
        fock: must have shape (batch, ao, ao).
        overlap: must have the same.
        ao_mask: must have shape (batch, ao), True first.
        by_orbital: must have shape (batch, mo).
    """
    if fock.ndim != 3 or fock.shape[1] != fock.shape[2] or fock.shape[1] == 0:
        raise ValueError(f"fock must have shape (batch, ao, ao), got {tuple(fock.shape)}")
    if overlap.shape != fock.shape:
        raise ValueError(f"overlap must have the shape of fock, {tuple(fock.shape)}, got {tuple(overlap.shape)}")
    for name, value in (*by_orbital.items(), ("ao_mask", ao_mask)):
        if value is not None and value.shape != fock.shape[:2]:
            raise ValueError(f"{name} must have shape {tuple(fock.shape[:2])}, got {tuple(value.shape)}")
    if ao_mask is not None and not bool((ao_mask[:, :-1] | ~ao_mask[:, 1:]).all()):
        raise ValueError("ao_mask must be True for the first AOs of each molecule and False after them")


def both(ao_mask: Tensor) -> Tensor:
    """True for the elements of a matrix that exist, shape (batch, ao, ao)."""
    return ao_mask.unsqueeze(-1) & ao_mask.unsqueeze(-2)


def clean(
    fock: Tensor, overlap: Tensor, ao_mask: Tensor | None, members: Sequence[int], report: Report, probe: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Symmetric F and S without what lies in the padding; members that are wrong become harmless.

    Args:
        fock: shape (batch, ao, ao), float64, no gradient.
        overlap: likewise.
        ao_mask: shape (batch, ao).
        members: numbers of the members in the whole batch.
        report: takes what is wrong.
        probe: a random vector, shape (1, ao).

    Returns:
        F and S, and the norm of each F times the probe, shape (batch,).
    """
    if ao_mask is not None:
        exists = both(ao_mask)
        fock = torch.where(exists, fock, 0.0)
        overlap = torch.where(exists, overlap, 0.0)
        overlap.diagonal(dim1=-2, dim2=-1).masked_fill_(~ao_mask, 1.0)
    symmetric = []
    good = torch.ones(len(fock), dtype=torch.bool, device=fock.device)
    scale = torch.empty(0)
    for matrix in (overlap, fock):
        # x A and A x of a random x tell whether A is finite and symmetric, and take less time than looking at A
        x = probe.expand(len(matrix), -1, -1)
        one, other = x @ matrix, x @ matrix.mT
        scale = torch.linalg.vector_norm(one, dim=(-2, -1))
        if not bool(((one - other).abs().amax((-2, -1)) <= EXACT * scale).all()):
            matrix, fine = _symmetrized(matrix)
            good &= fine
        symmetric.append(matrix)
    overlap, fock = symmetric
    if not bool(good.all()):
        for k in torch.nonzero(~good).flatten().tolist():
            for name, matrix in (("fock", fock[k]), ("overlap", overlap[k])):
                _explain(name, matrix, members[k], report)
        fock, overlap = _neutralized(fock, overlap, good)
        scale = torch.where(good, scale, 1.0)
    return fock, overlap, scale


def _symmetrized(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The symmetric part, and True where there is hardly anything else; members where there is stay as they are."""
    asymmetry = (matrix - matrix.mT).abs().amax((-2, -1))
    fine = asymmetry <= ASYMMETRY_TOLERANCE * matrix.abs().amax((-2, -1))
    return torch.where(fine[:, None, None], (matrix + matrix.mT) / 2, matrix), fine


def _neutralized(fock: Tensor, overlap: Tensor, good: Tensor) -> list[Tensor]:
    """The same with a well-behaved problem where members are wrong."""
    levels = torch.linspace(-1, 1, fock.shape[-1], dtype=fock.dtype, device=fock.device)
    fine = good[:, None, None]
    return [torch.where(fine, fock, levels.diag()), torch.where(fine, overlap, torch.ones_like(levels).diag())]


def _explain(name: str, matrix: Tensor, member: int, report: Report) -> None:
    if not bool(matrix.isfinite().all()):
        report.add(member, f"{name} of {report.name(member)} holds values that are not finite")
        return
    scale, asymmetry = float(matrix.abs().max()), float((matrix - matrix.mT).abs().max())
    if asymmetry > ASYMMETRY_TOLERANCE * scale:
        report.add(
            member,
            f"{name} of {report.name(member)} is not symmetric: elements differ from their transposed ones by up to "
            f"{asymmetry:.1e}, more than {ASYMMETRY_TOLERANCE:.0e} of the largest element, {scale:.3g}; give "
            "(A + A^T) / 2 if that is what you mean",
        )
