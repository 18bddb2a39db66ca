"""The D4 term: published numbers, its gradient, what has no parameters."""

import sys

import numpy as np
import pytest

from mlsemi.molecule import Molecule
from mlsemi.reference.dispersion import dispersion

pytest.importorskip("dftd4", reason="extra 'dispersion' is not installed")

# MB16-43/01 of the benchmark set of mindless molecules, the example of dftd4's documentation
NUMBERS = [1, 1, 6, 5, 1, 15, 8, 17, 13, 15, 5, 1, 9, 15, 1, 15]
POSITIONS = [
    [+2.79274810283778, +3.82998228828316, -2.79287054959216],
    [-1.43447454186833, +0.43418729987882, +5.53854345129809],
    [-3.26268343665218, -2.50644032426151, -1.56631149351046],
    [+2.14548759959147, -0.88798018953965, -2.24592534506187],
    [-4.30233097423181, -3.93631518670031, -0.48930754109119],
    [+0.06107643564880, -3.82467931731366, -2.22333344469482],
    [+0.41168550401858, +0.58105573172764, +5.56854609916143],
    [+4.41363836635653, +3.92515871809283, +2.57961724984000],
    [+1.33707758998700, +1.40194471661647, +1.97530004949523],
    [+3.08342709834868, +1.72520024666801, -4.42666116106828],
    [-3.02346932078505, +0.04438199934191, -0.27636197425010],
    [+1.11508390868455, -0.97617412809198, +6.25462847718180],
    [+0.61938955433011, +2.17903547389232, -6.21279842416963],
    [-2.67491681346835, +3.00175899761859, +1.05038813614845],
    [-4.13181080289514, -2.34226739863660, -3.44356159392859],
    [+2.85007173009739, -2.64884892757600, +0.71010806424206],
]
MINDLESS = Molecule(np.array(NUMBERS), np.array(POSITIONS))
FORMATE = Molecule.from_angstrom([6, 1, 8, 8], [[0, 0, 0], [-1.1, 0.1, 0], [0.6, 1.1, 0], [0.6, -1.1, 0.1]], charge=-1)


@pytest.mark.parametrize(("method", "energy"), [("scan", -0.005328888532435093), ("BLYP", -0.06991716314879085)])
def test_published_energies(method, energy):
    """From dftd4's documentation and its own tests (which ask for 1e-7 Eh)."""
    assert dispersion(MINDLESS, method=method).energy == pytest.approx(energy, abs=1e-8)


@pytest.mark.parametrize("molecule", [MINDLESS, FORMATE], ids=["mindless", "formate"])
def test_gradient_is_the_derivative(molecule, rng):
    found = dispersion(molecule, method="b3lyp")
    direction = rng.normal(size=found.gradient.shape)

    def energy(step):
        moved = Molecule(molecule.numbers, molecule.positions + step * direction, charge=molecule.charge)
        return dispersion(moved, method="b3lyp").energy

    h = 1e-3
    slope = (8 * (energy(h) - energy(-h)) - energy(2 * h) + energy(-2 * h)) / (12 * h)
    assert np.sum(found.gradient * direction) == pytest.approx(slope, abs=1e-9)  # of fourth order in h
    np.testing.assert_allclose(found.gradient.sum(axis=0), 0, atol=1e-12)


def test_charge_takes_part_and_names_are_pyscf_s():
    neutral = Molecule(FORMATE.numbers, FORMATE.positions, charge=1)
    assert dispersion(FORMATE, method="pbe").energy != dispersion(neutral, method="pbe").energy
    assert dispersion(FORMATE, method="CAM_B3LYP").energy == dispersion(FORMATE, method="camb3lyp").energy
    # PySCF's wb97x is that of 2008, dftd4's has parameters for the one with non-local correlation left out
    from dftd4.interface import DampingParam, DispersionModel

    model = DispersionModel(FORMATE.numbers, FORMATE.positions, charge=-1.0)
    expected = model.get_dispersion(DampingParam(method="wb97x-2008"), grad=False)["energy"]
    assert dispersion(FORMATE, method="wb97x").energy == pytest.approx(float(expected), abs=1e-14)


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match="method='m06-1999': dftd4 has no D4 parameters of that name"):
        dispersion(FORMATE, method="m06-1999")
    monkeypatch.setitem(sys.modules, "dftd4.interface", None)
    with pytest.raises(ImportError, match=r"needs dftd4 .*install mlsemi\[dispersion\]"):
        dispersion(FORMATE, method="pbe")
