"""Bond frames: rotations without singular directions."""

import numpy as np
import pytest
import torch

from mlsemi.basis import load_basis
from mlsemi.batch import Batch
from mlsemi.frames import BondFrames
from mlsemi.harmonics import solid_harmonics
from mlsemi.molecule import Molecule

AXES = {"x": [1, 0, 0], "y": [0, 1, 0], "z": [0, 0, 1], "askew": [0.3, -0.5, 0.8]}


def _diatomic(axis: list[float]) -> Batch:
    direction = np.array(axis) / np.linalg.norm(axis)
    return Batch.of([Molecule([6, 8], np.stack([np.zeros(3), 2.1 * direction]))], load_basis("sto-3g"))


@pytest.mark.parametrize("axis", AXES)
def test_first_column_is_the_harmonic_of_the_bond(axis):
    """D^l maps the m = 0 harmonic of the z axis to the harmonics of the bond direction."""
    batch = _diatomic(AXES[axis])
    frames = BondFrames.of(batch, 4)
    harmonics = solid_harmonics(4, batch.vectors / frames.distance[:, None])
    for l, (matrix, harmonic) in enumerate(zip(frames.wigner, harmonics, strict=True)):
        on_z = np.sqrt((2 * l + 1) / (4 * np.pi))
        # rounding of a pseudo-inverse of condition number near one
        torch.testing.assert_close(matrix[:, :, l] * on_z, harmonic, atol=1e-13, rtol=0)


@pytest.mark.parametrize("axis", AXES)
def test_both_derivatives_are_finite_and_right_along_the_axes(axis):
    """Gauge-invariant functions of the frame have correct first and second derivatives, poles included."""
    batch = _diatomic(AXES[axis])
    weight = torch.linspace(0.3, 1.7, 9, dtype=torch.float64)

    def scalar(positions):
        frames = BondFrames.of(batch.with_positions(positions), 4)
        return (frames.wigner[4][:, :, 4] * weight).sum() + (frames.wigner[1][:, :, 1] ** 3).sum()

    positions = batch.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(scalar, positions)
    assert torch.autograd.gradgradcheck(scalar, positions)
