"""Gauss-Newton for few labels: the fit to all of them at once that changes the weights least.

What is minimized is |r(w)|^2 + damping |w - w0|^2, with the errors r of all labels and the weights w0 of the start. A
step solves the problem that is linear in w about the present weights. There are far fewer labels than weights, so that
it is solved among the labels: with the derivatives J of the errors,

    w = w0 + J^T a,    (J J^T + damping) a = J (w_now - w0) - r(w_now),

which is regression with the tangent kernel J J^T of the trained network, repeated until it is consistent. Where the
full step does not lower the loss, the step is kept short as by Levenberg and Marquardt.

The energy hangs on the Fock matrix so much more than on the atomic energies that the steps of a first-order optimizer
change it by more than what is left to be learned; here that does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlsemi.memory import SHARE, available_bytes

_CHUNK = 16
_COLUMNS = 65536
_TRIES = 12
_CONVERGED = 1e-3


class GaussNewton:
    """Steps of all labels at once.

    Args:
        parameters: that are fitted, by name; their present values are w0.
        residuals: of some samples, one after the other, their weighted errors, shape (component,).
        damping: weight of the squared distance from w0.

    Attributes:
        caution: weight of the squared distance from the present weights, for the next step.
        converged: whether the last step lowered the loss by less than a thousandth of it, or not at all.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        residuals: Callable[[Sequence[Any]], Tensor],
        *,
        damping: float,
    ) -> None:
        self.parameters = list(parameters.values())
        self.residuals, self.damping = residuals, damping
        self.start = self._weights()
        self.caution = 0.0
        self.converged = False

    def step(self, samples: Sequence[Any]) -> None:
        """One step to the solution of the linear problem, or less far where that does not lower the loss.

        Raises:
            RuntimeError: if errors or their derivatives are not finite.
            MemoryError: if the derivatives do not fit into memory.
        """
        now = self._weights()
        errors = self._all_errors(samples)
        before = self._loss(errors, now)
        derivative = self._derivative(samples, len(errors))
        kernel = _gram(derivative)
        if not bool(torch.isfinite(kernel).all() and torch.isfinite(errors).all()):
            raise RuntimeError("an error of the labels, or its derivative by the weights, is not finite")
        after = math.inf
        for _ in range(_TRIES):
            self._set(self._solution(derivative, kernel, errors, now))
            after = self._loss(self._all_errors(samples), self._weights())
            if after < before:
                break
            self.caution = max(10 * self.caution, self.damping)
        else:
            self._set(now)
            after = before
        self.converged = before - after < _CONVERGED * before
        self.caution = 0.1 * self.caution if self.caution > self.damping else 0.0

    def _solution(self, derivative: Tensor, kernel: Tensor, errors: Tensor, now: Tensor) -> Tensor:
        """Weights that minimize the linear problem with `caution` times their squared distance from the present ones.

        Both distances together are that from a point between start and present.
        """
        both = self.damping + self.caution
        centre = (self.damping * self.start + self.caution * now) / both
        wanted = (derivative @ (now - centre).to(derivative)).double() - errors
        regular = kernel + both * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
        solution = torch.linalg.solve(regular, wanted)
        return centre + (derivative.T @ solution.to(derivative)).double()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"start": self.start, "caution": self.caution, "converged": self.converged}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the state of `state_dict`."""
        self.start, self.caution, self.converged = state["start"], state["caution"], state["converged"]

    def _weights(self) -> Tensor:
        """All parameters, shape (weight,), float64."""
        return torch.cat([p.detach().double().flatten() for p in self.parameters])

    def _set(self, weights: Tensor) -> None:
        with torch.no_grad():
            for p, values in zip(self.parameters, weights.split([p.numel() for p in self.parameters]), strict=True):
                p.copy_(values.view_as(p))

    def _loss(self, errors: Tensor, weights: Tensor) -> float:
        return float(errors @ errors + self.damping * (weights - self.start).square().sum())

    def _all_errors(self, samples: Sequence[Any]) -> Tensor:
        """Weighted errors of all samples, in their order, shape (component,), float64."""
        with torch.no_grad():
            chunks = [self.residuals(samples[k : k + _CHUNK]) for k in range(0, len(samples), _CHUNK)]
        return torch.cat(chunks).double()

    def _derivative(self, samples: Sequence[Any], n_components: int) -> Tensor:
        """J, shape (component, weight), in the precision of the weights."""
        first = self.parameters[0]
        n_weights = sum(p.numel() for p in self.parameters)
        needed, free = n_components * n_weights * first.element_size(), available_bytes(first.device)
        if needed > SHARE * free:
            raise MemoryError(
                f"Gauss-Newton needs {needed / 2**30:.1f} GB for {n_components} components of labels times {n_weights} "
                f"weights, of {free / 2**30:.1f} GB that are free: take fewer labels, leave out their gradients, set "
                "[training] trained = 'readout', or optimizer = 'muon'"
            )
        out = first.new_empty(n_components, n_weights)
        row = 0
        for sample in samples:
            errors = self.residuals([sample])
            for k in range(len(errors)):
                keep = k < len(errors) - 1
                parts = torch.autograd.grad(errors[k], self.parameters, retain_graph=keep, materialize_grads=True)
                torch.cat([part.flatten() for part in parts], out=out[row])
                row += 1
        return out


def _gram(rows: Tensor) -> Tensor:
    """J J^T in float64, shape (component, component), without a copy of J in float64."""
    out = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    for part in rows.split(_COLUMNS, dim=1):
        wide = part.double()
        out.addmm_(wide, wide.T)
    return out
