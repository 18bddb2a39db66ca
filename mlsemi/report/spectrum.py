"""The infrared spectrum as a drawing."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from mlsemi.properties.vibrations import broadened
from mlsemi.report.markup import Safe
from mlsemi.report.orbitals import number

T = TypeVar("T", float, np.ndarray)

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 1140, 220, 14, 34, 16
_BAND = 15.0
"""Full width at half maximum of the bands that are drawn [cm^-1]."""

_INVISIBLE = 0.01
"""Intensities of no mode above this are rounding: the molecule does not absorb [km/mol]."""


def infrared_spectrum(wavenumbers: np.ndarray, intensities: np.ndarray) -> Safe:
    """Sticks and bands, high wavenumbers to the left as spectroscopists have it (SVG); nothing if no mode absorbs."""
    real = wavenumbers > 0
    if not intensities[real].max(initial=0.0) > _INVISIBLE:
        return Safe("")
    high = float(np.ceil((wavenumbers.max() * 1.04 + 100) / 500) * 500)
    grid = np.linspace(0.0, high, 900)
    bands = broadened(wavenumbers, intensities, grid, width=_BAND)
    floor = _HEIGHT - _BOTTOM

    def x(wavenumber: T) -> T:
        return _LEFT + (1 - wavenumber / high) * (_WIDTH - 2 * _LEFT)

    def y(part: T) -> T:
        return floor - part * (floor - _TOP)

    curve = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x(grid), y(bands / bands.max()), strict=True))
    parts = [
        f'<svg class="spectrum" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Infrared spectrum; the table '
        'has its numbers">',
        f'<polyline class="curve" points="{curve}"/>',
        f'<path class="frame" d="M{_LEFT} {floor}H{_WIDTH - _LEFT}"/>',
    ]
    for tick in np.arange(0.0, high + 1, 500.0):
        parts.append(f'<path class="frame" d="M{x(tick):.1f} {floor}v5"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{floor + 18}" text-anchor="middle">{tick:.0f}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 2}" text-anchor="middle">wavenumber/cm⁻¹</text>')
    most = float(intensities[real].max())
    for k in np.flatnonzero(real).tolist():
        at, height = float(wavenumbers[k]), float(intensities[k])
        parts.append(
            f'<g data-mode="{k}" class="stick"><title>{number(at, 1)} cm⁻¹, {height:.1f} km/mol</title>'
            f'<path d="M{x(at):.1f} {floor}V{min(y(height / most), floor - 2.0):.1f}"/></g>'
        )
    return Safe("".join([*parts, "</svg>"]))
