"""Muon against torch's own, and what its steps are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mlsemi.train.muon import Muon, orthogonalized

SHAPES = [(16, 16), (16, 16), (12, 30), (30, 12), (12, 30)]


def matrices(seed: int, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in SHAPES]


def gradients(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [p.detach() for p in matrices(seed, dtype)]


def steps(optimizer: Any, parameters: list[nn.Parameter], count: int) -> list[Tensor]:
    for step in range(count):
        for p, g in zip(parameters, gradients(100 + step), strict=True):
            p.grad = g.to(p.dtype).clone()
        optimizer.step()
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("shape", [(5, 20, 20), (3, 12, 40), (3, 40, 12)])
def test_orthogonalized_keeps_singular_vectors_and_levels_singular_values(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(x, full_matrices=False)
    inner = u.mT @ orthogonalized(x) @ vh.mT
    values = torch.diagonal(inner, dim1=-2, dim2=-1)
    large = s / torch.linalg.matrix_norm(x)[:, None] > 0.01
    assert (values[large] > 0.6).all() and (values < 1.25).all()
    torch.testing.assert_close(inner, torch.diag_embed(values), atol=1e-12, rtol=0)


def test_a_matrix_of_zeros_stays() -> None:
    assert (orthogonalized(torch.zeros(2, 3, 4)) == 0).all()


def test_steps_are_those_of_torch_but_for_its_rounding_to_bfloat16() -> None:
    ours, theirs, start = matrices(0), matrices(0), matrices(0)
    moved = steps(Muon(ours, lr=1e-2, weight_decay=0.1), ours, 4)
    reference = torch.optim.Muon(theirs, lr=1e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    wanted = steps(reference, theirs, 4)
    for a, b, begun in zip(moved, wanted, start, strict=True):
        step = (b - begun.detach()).norm()
        assert (a - b).norm() < 0.03 * step
        assert (a - begun.detach()).norm() > 0.5 * step


def test_resumed_steps_are_those_of_an_uninterrupted_run() -> None:
    whole, cut = matrices(1, torch.float64), matrices(1, torch.float64)
    steps(Muon(whole, lr=1e-2, weight_decay=0.1), whole, 4)
    first = Muon(cut, lr=1e-2, weight_decay=0.1)
    steps(first, cut, 2)
    second = Muon(cut, lr=1e-2, weight_decay=0.1)
    second.load_state_dict(first.state_dict())
    for step in (2, 3):
        for p, g in zip(cut, gradients(100 + step), strict=True):
            p.grad = g.to(p.dtype)
        second.step()
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_parameters_without_a_gradient_stay() -> None:
    parameters = matrices(2)
    parameters[1].grad = torch.ones_like(parameters[1])
    Muon(parameters, lr=1e-2, weight_decay=0.1).step()
    for k, (p, begun) in enumerate(zip(parameters, matrices(2), strict=True)):
        assert torch.equal(p, begun) == (k != 1)


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match=r"matrices only, not a parameter of shape \(3,\)"):
        Muon([nn.Parameter(torch.zeros(3))], lr=1e-3, weight_decay=0.0)
