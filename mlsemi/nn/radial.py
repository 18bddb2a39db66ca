"""Functions of the distance: radial basis and cutoff."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def envelope(distance: Tensor, cutoff: float) -> Tensor:
    """One at zero, zero with two derivatives at the cutoff: 1 - 6 x^5 + 15 x^4 - 10 x^3, shape of `distance`."""
    x = (distance / cutoff).clamp(max=1.0)
    return 1 - x**3 * (10 - 15 * x + 6 * x * x)


class ExponentialNormal(nn.Module):
    """Gaussians in exp(-a r): dense where bonds are, sparse far out (Unke and Meuwly, PhysNet, 2019).

    Args:
        count: number of functions.
        cutoff: where the last one is centred [bohr].
        decay: a [1/bohr].
    """

    centres: Tensor

    def __init__(self, count: int, cutoff: float, *, decay: float = 0.35) -> None:
        super().__init__()
        last = float(torch.exp(torch.tensor(-decay * cutoff)))
        first = float(torch.exp(torch.tensor(-decay * 0.8)))
        self.decay = decay
        self.register_buffer("centres", torch.linspace(last, first, count), persistent=False)
        self.width = ((first - last) / (count - 1) * 1.2) ** -2

    def forward(self, distance: Tensor) -> Tensor:
        """Shape (pair,) to (pair, count)."""
        x = torch.exp(-self.decay * distance)[:, None] - self.centres
        return torch.exp(-self.width * x * x)
