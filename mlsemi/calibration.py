"""What an estimate of an energy error is worth: found by comparison with true errors of molecules not trained on.

An estimate ranks molecules. How large the errors are that go with it, is measured on validation molecules: the factors
within which 68 and 95 % of the true errors lie (split conformal prediction, J. Lei et al., J. Am. Stat. Assoc. 113,
1094 (2018), with |error| / estimate as the score). That holds for molecules like those, and for no others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import numpy as np

NOISE = 1e-9
"""Errors and estimates below this [Eh] are rounding of the labels: no ratio is taken with them."""

FEWEST = 20
"""Errors that an interval is found from: a quantile of 95 % needs that many."""


@dataclass(frozen=True)
class Interval:
    """Multiples of an estimate within which errors lie.

    Attributes:
        scale_68: 68 % of the errors are smaller than this times their estimate.
        scale_95: 95 % of the errors are.
        count: number of errors that it was found from.
        largest: largest estimate among them [Eh]: beyond it nothing is known.
    """

    scale_68: float
    scale_95: float
    count: int
    largest: float

    def to_json(self) -> dict[str, Any]:
        """As plain data, as a checkpoint holds it."""
        return asdict(self)


def stored_interval(calibration: Mapping[str, Any], mode: str) -> Interval | None:
    """The interval of a mode in the calibration of a checkpoint; None if it has none."""
    stored = calibration.get(mode)
    return None if stored is None else Interval(**stored)


def spread(energy: np.ndarray, member_energy: np.ndarray) -> np.ndarray:
    """Root mean square distance of the members' energies from the prediction, the raw estimate of the fast mode.

    Args:
        energy: predictions [Eh], shape (molecule,).
        member_energy: of the further members [Eh], shape (member, molecule).

    Returns:
        Shape (molecule,) [Eh].
    """
    return np.sqrt(((member_energy - energy) ** 2).mean(0))


def fit_interval(errors: Sequence[float] | np.ndarray, estimates: Sequence[float] | np.ndarray) -> Interval:
    """Intervals from errors of molecules that were not trained on.

    Args:
        errors: true errors [Eh]; their sign does not matter.
        estimates: of each [Eh]; entries that are not finite or not positive are left out.

    Raises:
        ValueError: for lengths that differ, or fewer than `FEWEST` pairs.
    """
    error, estimate = _usable(errors, estimates)
    ratio = np.sort(error / estimate)
    if len(ratio) < FEWEST:
        raise ValueError(f"{len(ratio)} errors with an estimate are too few to calibrate with: {FEWEST} at least")

    def quantile(share: float) -> float:
        return float(ratio[min(ceil(share * (len(ratio) + 1)), len(ratio)) - 1])

    return Interval(quantile(0.68), quantile(0.95), len(ratio), float(estimate.max()))


def agreement(
    errors: Sequence[float] | np.ndarray, estimates: Sequence[float] | np.ndarray, interval: Interval | None = None
) -> dict[str, float]:
    """How estimates and true errors agree.

    Args:
        errors: true errors [Eh]; their sign does not matter.
        estimates: of each [Eh], as `fit_interval` takes them.
        interval: calibration, if there is one.

    Returns:
        `median_ratio` of estimate (times `scale_68`, if calibrated) to error, `rank_correlation` (Spearman) for three
        pairs or more, and, with an interval, `coverage_68` and `coverage_95`: the share of the errors within it. Empty
        without pairs.
    """
    from scipy.stats import rankdata

    error, estimate = np.abs(np.asarray(errors, dtype=float)), np.asarray(estimates, dtype=float)
    used = np.isfinite(error) & np.isfinite(estimate) & (error > NOISE)
    error, estimate = error[used], estimate[used]
    if not len(error):
        return {}
    scale = interval.scale_68 if interval else 1.0
    out = {"median_ratio": float(np.median(scale * estimate / error))}
    ranks = np.array([rankdata(estimate), rankdata(error)])
    if len(error) > 2 and (np.ptp(ranks, axis=1) > 0).all():
        out["rank_correlation"] = float(np.corrcoef(ranks)[0, 1])
    if interval:
        out["coverage_68"] = float((error <= interval.scale_68 * estimate).mean())
        out["coverage_95"] = float((error <= interval.scale_95 * estimate).mean())
    return out


def _usable(
    errors: Sequence[float] | np.ndarray, estimates: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Absolute errors and estimates, without those that allow no ratio."""
    error, estimate = np.abs(np.asarray(errors, dtype=float)), np.asarray(estimates, dtype=float)
    if error.shape != estimate.shape or error.ndim != 1:
        raise ValueError(f"errors and estimates must be of one length, got shapes {error.shape} and {estimate.shape}")
    used = np.isfinite(error) & np.isfinite(estimate) & (estimate > NOISE)
    return error[used], estimate[used]
