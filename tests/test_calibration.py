"""Intervals and their agreement, on errors whose distribution is known."""

import numpy as np
import pytest

from mlsemi.calibration import Interval, agreement, fit_interval, spread, stored_interval


def normal_errors(rng, n):
    """Errors that are normal with the estimate as their standard deviation, 0.1 to 10 mEh."""
    estimate = 10 ** rng.uniform(-4, -2, n)
    return estimate * rng.standard_normal(n), estimate


def test_interval_of_normal_errors_is_that_of_the_normal_distribution(rng):
    found = fit_interval(*normal_errors(rng, 20000))
    # 0.994 and 1.960 standard deviations; the quantile of 20000 scatters by 1 %
    assert found.scale_68 == pytest.approx(0.994, rel=0.03)
    assert found.scale_95 == pytest.approx(1.960, rel=0.03)
    assert found.count == 20000


def test_coverage_holds_on_other_errors(rng):
    interval = fit_interval(*normal_errors(rng, 2000))
    quality = agreement(*normal_errors(rng, 2000), interval)
    # binomial scatter of 2000 in both sets: 1.5 %
    assert quality["coverage_68"] == pytest.approx(0.68, abs=0.05)
    assert quality["coverage_95"] == pytest.approx(0.95, abs=0.03)
    assert quality["rank_correlation"] > 0.7


def test_estimates_of_wrong_size_are_scaled_right(rng):
    errors, estimates = normal_errors(rng, 500)
    once, tenfold = fit_interval(errors, estimates), fit_interval(errors, 10 * estimates)
    assert tenfold.scale_68 == pytest.approx(once.scale_68 / 10)
    assert agreement(errors, 10 * estimates, tenfold) == pytest.approx(agreement(errors, estimates, once))


def test_small_samples_are_on_the_safe_side():
    errors = np.arange(1, 21) * 1e-3
    found = fit_interval(errors, np.ones(20))
    # ceil(0.68 * 21) = 15th, ceil(0.95 * 21) = 20th of twenty
    assert (found.scale_68, found.scale_95) == pytest.approx((0.015, 0.020))


def test_what_has_no_estimate_is_left_out():
    errors, estimates = np.ones(30) * 1e-3, np.r_[np.ones(25) * 1e-3, np.nan, 0, -1, np.inf, np.nan]
    assert fit_interval(errors, estimates).count == 25
    with pytest.raises(ValueError, match="19 errors with an estimate are too few"):
        fit_interval(errors[:19], estimates[:19])
    with pytest.raises(ValueError, match=r"one length, got shapes \(30,\) and \(29,\)"):
        fit_interval(errors, estimates[1:])
    assert agreement([np.nan], [1.0]) == {}


def test_spread_is_the_distance_from_the_prediction():
    energy = np.array([-1.0, -2.0])
    np.testing.assert_allclose(spread(energy, energy + np.array([[3e-3, 0.0], [-4e-3, 0.0]])), [np.sqrt(12.5e-6), 0])


def test_stored_interval_round_trip():
    interval = Interval(1.2, 3.4, 56, 0.01)
    assert stored_interval({"fast": interval.to_json()}, "fast") == interval
    assert stored_interval({}, "fast") is None
