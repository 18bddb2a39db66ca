"""Masses of the nuclei, with their electrons."""

from __future__ import annotations

from typing import Literal

import numpy as np

# fmt: off
_MOST_ABUNDANT = (
    1.0078250322, 4.0026032541, 7.0160034366, 9.012183065, 11.00930536, 12.0, 14.003074004, 15.99491462, 18.998403163,
    19.992440176, 22.989769282, 23.985041697, 26.98153853, 27.976926535, 30.973761998, 31.972071174, 34.968852682,
    39.962383124, 38.963706486, 39.962590863, 44.95590828, 47.94794198, 50.94395704, 51.94050623, 54.93804391,
    55.93493633, 58.93319429, 57.93534241, 62.92959772, 63.92914201, 68.9255735, 73.921177761, 74.92159457,
    79.9165218, 78.9183376, 83.911497728, 84.911789738, 87.9056125, 88.9058403, 89.9046977, 92.906373, 97.90540482,
    96.9063667, 101.9043441, 102.905498, 105.9034804, 106.9050916, 113.90336509, 114.90387878, 119.90220163,
    120.903812, 129.90622275, 126.9044719, 131.90415509,
)

_AVERAGE = (
    1.008, 4.002602, 6.94, 9.0121831, 10.81, 12.011, 14.007, 15.999, 18.998403163, 20.1797, 22.98976928, 24.305,
    26.9815385, 28.085, 30.973761998, 32.06, 35.45, 39.948, 39.0983, 40.078, 44.955908, 47.867, 50.9415, 51.9961,
    54.938044, 55.845, 58.933194, 58.6934, 63.546, 65.38, 69.723, 72.63, 74.921595, 78.971, 79.904, 83.798, 85.4678,
    87.62, 88.90584, 91.224, 92.90637, 95.95, 97.90721, 101.07, 102.9055, 106.42, 107.8682, 112.414, 114.818, 118.71,
    121.76, 127.6, 126.90447, 131.293,
)
# fmt: on

MassKind = Literal["most-abundant", "average"]
_TABLES: dict[str, np.ndarray] = {"most-abundant": np.array(_MOST_ABUNDANT), "average": np.array(_AVERAGE)}


def atomic_masses(numbers: np.ndarray, *, kind: MassKind = "most-abundant") -> np.ndarray:
    """Masses of atoms.

    Molecules vibrate and rotate as isotopologues, and spectra show the most abundant one: that is the default here, as
    in Gaussian and Psi4. PySCF and ASE take the average over the isotopes, which is what thermochemistry of bulk
    matter and of the tables of other programs may want; the two differ by 1 % in Cl and Br.

    Args:
        numbers: atomic numbers, 1 (H) to 54 (Xe), shape (atom,).
        kind: 'most-abundant': of the most abundant isotope (NIST, Atomic Weights and Isotopic Compositions, version
            4.1; Tc: of Tc-98). 'average': standard atomic weights (IUPAC 2016, conventional values).

    Returns:
        Masses [u], shape (atom,).

    Raises:
        ValueError: for another kind, or an element that has no mass here.
    """
    if kind not in _TABLES:
        raise ValueError(f"kind={kind!r} must be one of {', '.join(_TABLES)}")
    table, numbers = _TABLES[kind], np.asarray(numbers)
    if numbers.size and not (1 <= numbers.min() and numbers.max() <= len(table)):
        raise ValueError(f"numbers must be atomic numbers from 1 to {len(table)}, got {numbers.tolist()}")
    return table[numbers - 1]
