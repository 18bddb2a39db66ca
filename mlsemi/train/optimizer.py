"""The optimizer: Muon for the weight matrices of dense layers, AdamW for all else.

The steps of both are of the same size, so that they share learning rate and weight decay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mlsemi.train.muon import Muon

SMALLEST_MATRIX = 8
"""Matrices with fewer rows or columns are left to AdamW: there is little to orthogonalize."""


class MuonAdamW:
    """Both optimizers as one.

    Args:
        parameters: of the network, by name; matrices named `...weight` are those of dense layers.
        learning_rate: of both, see `set_learning_rate`.
        weight_decay: decoupled, of both.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], *, learning_rate: float, weight_decay: float) -> None:
        matrices = dense_matrices(parameters)
        others = [p for name, p in parameters.items() if name not in matrices]
        self._parts: list[torch.optim.Optimizer] = []
        if others:
            self._parts.append(
                torch.optim.AdamW(others, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.98))
            )
        if matrices:
            self._parts.append(Muon(matrices.values(), lr=learning_rate, weight_decay=weight_decay))

    def set_learning_rate(self, rate: float) -> None:
        """Sets the learning rate of the next step."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for part in self._parts:
            part.zero_grad(set_to_none=True)

    def step(self) -> None:
        """One step along the gradients that the parameters hold."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of `state_dict`.

        Raises:
            ValueError: if it is that of another network.
        """
        for part, stored in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(stored)


def dense_matrices(parameters: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Those that Muon steps: `...weight`, the name that only dense layers give, with both sides large enough.

    Tables with a row for each element or pair of elements are no maps between channels, whatever their shape.
    """
    return {
        name: p
        for name, p in parameters.items()
        if name.endswith("weight") and p.dim() == 2 and min(p.shape) >= SMALLEST_MATRIX
    }
