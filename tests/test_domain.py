"""Warnings about results that cannot be right."""

import numpy as np

from mlsemi.domain import implausible
from mlsemi.molecule import Molecule


def test_plausible_and_implausible_results() -> None:
    hydrogen = Molecule(np.array([1, 1]), np.array([[0, 0, 0], [0, 0, 1.4]]))
    assert implausible(hydrogen, change=-0.2, gap=0.5) == ()
    assert implausible(hydrogen, change=None, gap=None) == ()
    (warning,) = implausible(hydrogen, change=-60.0, gap=0.5)
    assert "0.5 Eh an atom" in warning and "do not use" in warning
    (warning,) = implausible(hydrogen, change=-0.2, gap=0.0)
    assert "gap" in warning and "open shell" in warning
