"""The square root of an overlap."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mlsemi.eigen.adjoint import NO_THIRD, Refuse
from mlsemi.eigen.checks import both
from mlsemi.eigen.dependencies import indefinite


def square_root(overlap: Tensor, ao_mask: Tensor | None = None) -> Tensor:
    """S^1/2, differentiable twice; degenerate eigenvalues do no harm.

    With S = V s V^T and X = S^1/2 the derivatives follow from X dX + dX X = dS and X d2X + d2X X = -(dX dX' + dX' dX):
    in the basis V both are divided by s_p^1/2 + s_q^1/2.

    Args:
        overlap: overlap matrices, shape (batch, ao, ao); the symmetric part is used.
        ao_mask: True where an AO exists, shape (batch, ao).

    Returns:
        Symmetric matrices, float64, shape (batch, ao, ao); zero in the padding.

    Raises:
        ValueError: for an overlap that is not positive definite, or holds values that are not finite.
    """
    return _SquareRoot.apply(overlap.double(), ao_mask)


class _SquareRoot(torch.autograd.Function):
    """S to S^1/2."""

    @staticmethod
    def forward(ctx: Any, overlap: Tensor, ao_mask: Tensor | None) -> Tensor:
        s = (overlap + overlap.mT) / 2
        exists = None
        if ao_mask is not None:
            exists = both(ao_mask)
            s = torch.where(exists, s, torch.eye(s.shape[-1], dtype=s.dtype, device=s.device))
        bad = ~s.isfinite().flatten(1).all(1)
        if bool(bad.any()):
            k = int(bad.nonzero()[0])
            raise ValueError(f"overlap of molecule {k} of the batch holds values that are not finite")
        values, vectors = torch.linalg.eigh(s)
        smallest = values[:, 0]
        if not bool((smallest > 0).all()):
            k = int((smallest <= 0).nonzero()[0])
            raise ValueError(indefinite(f"molecule {k} of the batch", float(smallest[k])))
        root = values.sqrt()
        ctx.save_for_backward(overlap)
        ctx.root, ctx.vectors, ctx.exists = root, vectors, exists
        x = (vectors * root.unsqueeze(-2)) @ vectors.mT
        return x if exists is None else torch.where(exists, x, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple:
        return _SquareRootAdjoint.apply(*ctx.saved_tensors, gradient, ctx.root, ctx.vectors, ctx.exists), None


class _SquareRootAdjoint(torch.autograd.Function):
    """(S, G) to the derivative of S^1/2 along G, which is its own adjoint; S only carries the graph."""

    @staticmethod
    def forward(
        ctx: Any, overlap: Tensor, gradient: Tensor, root: Tensor, vectors: Tensor, exists: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(overlap, gradient)
        ctx.root, ctx.vectors, ctx.exists = root, vectors, exists
        return _back(_along(gradient, root, vectors, exists), vectors, exists)

    @staticmethod
    def backward(ctx: Any, w: Tensor) -> tuple:
        overlap, gradient = ctx.saved_tensors
        root, vectors, exists = ctx.root, ctx.vectors, ctx.exists
        with torch.no_grad():
            first, other = _along(w, root, vectors, exists), _along(gradient, root, vectors, exists)
            product = first @ other
            second = -(product + product.mT) / (root.unsqueeze(-1) + root.unsqueeze(-2))
            found = _back(second, vectors, exists), _back(first, vectors, exists)
        if torch.is_grad_enabled():
            sources = [x for x in (overlap, gradient, w) if x.requires_grad]
            found = tuple(Refuse.apply(NO_THIRD, x, *sources) for x in found)
        return *found, None, None, None


def _along(direction: Tensor, root: Tensor, vectors: Tensor, exists: Tensor | None) -> Tensor:
    """The derivative of S^1/2 along a direction, in the basis V."""
    if exists is not None:
        direction = torch.where(exists, direction, 0.0)
    turned = vectors.mT @ ((direction + direction.mT) / 2) @ vectors
    return turned / (root.unsqueeze(-1) + root.unsqueeze(-2))


def _back(x: Tensor, vectors: Tensor, exists: Tensor | None) -> Tensor:
    x = vectors @ x @ vectors.mT
    return x if exists is None else torch.where(exists, x, 0.0)
