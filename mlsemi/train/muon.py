"""Muon: momentum whose matrices are made orthogonal before each step.

K. Jordan et al., https://kellerjordan.github.io/posts/muon (2024); steps scaled to the size of those of AdamW by
J. Liu et al., arXiv:2502.16982. `torch.optim.Muon` is the same, one matrix after the other in bfloat16, which a CPU
multiplies slowly: here the matrices of one shape go together, in their own precision, in a fifth of the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

_QUINTIC = 3.4445, -4.7750, 2.0315
"""a, b, c of x -> a x + b x^3 + c x^5, which sends all of (0.003, 1) near 1 in five rounds (Jordan)."""
_ROUNDS = 5
_RMS_OF_ADAMW = 0.2
"""Usual root mean square of a step of AdamW over its learning rate (Liu)."""
_SMALLEST_NORM = 1e-7


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum.

    Args:
        params: matrices.
        lr: learning rate, that of AdamW.
        weight_decay: decoupled.
        momentum: share of the mean of the gradients that each step keeps.

    Raises:
        ValueError: for a parameter that is no matrix.
    """

    def __init__(
        self, params: Iterable[nn.Parameter], *, lr: float, weight_decay: float, momentum: float = 0.95
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for p in group["params"]:
                if p.dim() != 2:
                    raise ValueError(f"Muon takes matrices only, not a parameter of shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step along the gradients that the parameters hold."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append(p)
            for matrices in alike.values():
                self._step_of(matrices, group)

    def _step_of(self, matrices: list[Tensor], group: dict[str, Any]) -> None:
        """A step of matrices of one shape."""
        gradients = [p.grad for p in matrices if p.grad is not None]
        means = [self._mean(p) for p in matrices]
        torch._foreach_lerp_(means, gradients, 1 - group["momentum"])
        ahead = torch.stack(gradients).lerp(torch.stack(means), group["momentum"])
        steps = list(orthogonalized(ahead).unbind())
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, steps, alpha=-group["lr"] * _RMS_OF_ADAMW * sqrt(max(matrices[0].shape)))

    def _mean(self, parameter: Tensor) -> Tensor:
        """Moving average of the gradients of a parameter."""
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def orthogonalized(matrices: Tensor) -> Tensor:
    """Nearly U V^T of each matrix U diag(s) V^T: its singular values are 0.6 to 1.25, but for tiny ones.

    Newton-Schulz iteration of fifth order.

    Args:
        matrices: shape (matrix, row, column).

    Returns:
        The same shape.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=_SMALLEST_NORM)
    a, b, c = _QUINTIC
    for _ in range(_ROUNDS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x
