"""Scales of the readouts against the distance."""

import numpy as np
import pytest
import torch

from mlsemi.train.statistics import _BIN, _fit_log_scale


def fitted(log_rms):
    """Coefficients (a, b, c) of one component in ten bins of 50 pairs each."""
    counts = torch.full((1, 10), 50.0, dtype=torch.float64)
    squares = counts[..., None] * torch.from_numpy(np.exp(2 * log_rms)).reshape(1, 10, 1)
    return _fit_log_scale(squares, counts)[0, 0].tolist()


def test_scales_never_rise_at_long_distance():
    """What curves upwards among the distances of the labels is fitted by an exponential: c = 0."""
    d = (np.arange(10) + 0.5) * _BIN
    assert fitted(-1 - 1.5 * d + 0.2 * d**2)[2] == 0
    a, b, c = fitted(-1 - 1.5 * d + 0.2 * d**2)
    # the straight line through the points, but for the weak preference for b = -1 / bohr
    slope, start = np.polyfit(d, -1 - 1.5 * d + 0.2 * d**2, 1)
    assert (a, b, c) == pytest.approx((start, slope, 0.0), abs=2e-2)


def test_scales_that_fall_ever_faster_keep_their_curvature():
    d = (np.arange(10) + 0.5) * _BIN
    # the weak preference for c = 0 takes a few percent of it
    assert fitted(-1 - 0.5 * d - 0.2 * d**2) == pytest.approx((-1, -0.5, -0.2), abs=3e-2)
