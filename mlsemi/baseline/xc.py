"""The local-density functional of the baseline: Slater exchange and Perdew-Wang 1992 correlation, unpolarized."""

from __future__ import annotations

from math import pi

import numpy as np

_FLOOR = 1e-30


def lda(density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Energy density and potential.

    Sources: Dirac/Slater exchange; J. P. Perdew, Y. Wang, Phys. Rev. B 45, 13244 (1992), equation 10 and table I.

    Args:
        density: electrons per bohr^3, any shape.

    Returns:
        Exchange-correlation energy per volume [Eh/bohr^3] and its derivative [Eh], of the same shape.
    """
    rho = np.maximum(density, _FLOOR)
    exchange = -0.75 * (3 / pi) ** (1 / 3) * rho ** (1 / 3)
    rs = (3 / (4 * pi * rho)) ** (1 / 3)
    a, a1, b1, b2, b3, b4 = 0.0310907, 0.21370, 7.5957, 3.5876, 1.6382, 0.49294
    root = np.sqrt(rs)
    poly = 2 * a * (b1 * root + b2 * rs + b3 * rs * root + b4 * rs * rs)
    slope = a * (b1 / root + 2 * b2 + 3 * b3 * root + 4 * b4 * rs)
    logarithm = np.log1p(1 / poly)
    correlation = -2 * a * (1 + a1 * rs) * logarithm
    d_correlation = -2 * a * a1 * logarithm + 2 * a * (1 + a1 * rs) * slope / (poly * (poly + 1))
    potential = 4 / 3 * exchange + correlation - rs / 3 * d_correlation
    return rho * (exchange + correlation), potential
