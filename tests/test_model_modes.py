"""Model: the modes with PySCF, their forces, the correction and its domain, dispersion."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from mlsemi.calibration import Interval
from mlsemi.model import Model
from mlsemi.molecule import Molecule
from mlsemi.reference import modes
from mlsemi.reference.converge import default_start
from mlsemi.reference.mean_field import solve
from mlsemi.reference.modes import stored_correction
from mlsemi.reference.second_order import Correction, fit_correction

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]], name="w")
RADICAL = Molecule.from_angstrom([8, 8, 1], [[0.0, 0.66, 0.0], [0.1, -0.66, 0.0], [0.9, 0.92, 0.1]], spin=1, name="r")
FIT = Correction(factor=0.8, count=50)
INTERVAL = Interval(scale_68=0.3, scale_95=0.7, count=50, largest=1e3)


@pytest.fixture(scope="module")
def model(open_header, open_engine) -> Model:
    return Model(
        replace(open_header, calibration={"correction": asdict(FIT), "corrected": INTERVAL.to_json()}), open_engine
    )


def _slope(model, molecule, direction, **options):
    h = 1e-3

    def energy(step):
        return model.predict(replace(molecule, positions=molecule.positions + step * direction), **options).energy

    return (8 * (energy(h) - energy(-h)) - energy(2 * h) + energy(-2 * h)) / (12 * h)


@pytest.mark.parametrize(
    ("mode", "molecule"),
    # the untrained network has no gap for the radical: nothing to correct
    [(mode, m) for mode in ("fast", "variational", "scf") for m in (WATER, RADICAL)] + [("corrected", WATER)],
    ids=lambda x: x if isinstance(x, str) else x.formula,
)
def test_forces_are_the_derivative_of_the_energy_of_the_mode(model, rng, mode, molecule):
    options = {"conv_tol": 1e-12} if mode == "scf" else {}
    o = model.predict(molecule, mode=mode, forces=True, **options)
    direction = rng.normal(size=o.gradient.shape)
    slope = _slope(model, molecule, direction, mode=mode, **options)
    # fourth order in 1e-3; the scf mode's residual of 3e-7 Eh enters the gradient in first order
    assert np.sum(o.gradient * direction) == pytest.approx(slope, abs=1e-6 if mode == "scf" else 5e-8)


def test_corrected_is_below_variational_by_what_was_fitted(model):
    plain, corrected = (model.predict(WATER, mode=mode) for mode in ("variational", "corrected"))
    assert corrected.energy == pytest.approx(plain.energy - 0.8 * plain.energy_error_estimate, abs=1e-10)
    assert corrected.energy_error_estimate == pytest.approx(0.3 * plain.energy_error_estimate, rel=1e-6)


@pytest.mark.parametrize("molecule", [WATER, RADICAL], ids=["closed", "open"])
def test_scf_is_the_reference_method(model, molecule):
    o = model.predict(molecule, mode="scf", conv_tol=1e-11, compare=True)
    truth = solve(molecule, model.header.basis, method="hf", residual_tolerance=1e-8).observables
    assert o.energy == pytest.approx(truth.energy, abs=1e-8)
    np.testing.assert_allclose(o.dipole, truth.dipole, atol=1e-5)  # of first order in a residual of 1e-6
    np.testing.assert_allclose(o.mo_energy, truth.mo_energy, atol=1e-5)
    assert o.charges_mulliken.sum() == pytest.approx(0, abs=1e-9)
    assert o.spins_loewdin.sum() == pytest.approx(molecule.spin, abs=1e-9)
    assert o.energy_error_estimate < 1e-10
    default = default_start(molecule, model.header.basis, method="hf", conv_tol=1e-11)
    assert f"PySCF's default guess: {default.cycles} in" in o.notes[0]


def test_the_scf_mode_has_no_doubts_of_the_prediction(model, open_engine, monkeypatch):
    """What is unlike the training concerns the start of the SCF only; what the solution is like is still said."""
    narrow = Model(replace(model.header, domain=model.header.domain | {"formulas": ["HO"]}), open_engine)
    assert "trained on HO only" in narrow.predict(WATER).warnings[0]
    assert narrow.predict(WATER, mode="scf").warnings == ()
    monkeypatch.setattr(modes, "SMALLEST_GAP", 5.0)
    (warning,) = narrow.predict(WATER, mode="scf").warnings
    assert "a state of another spin may be lower" in warning


def test_the_corrected_mode_is_for_the_domain_only(model, open_engine):
    narrow = Model(replace(model.header, domain=model.header.domain | {"formulas": ["H2O"]}), open_engine)
    assert narrow.predict(WATER, mode="corrected").energy < 0
    with pytest.raises(ValueError, match="r is not within it: the model was trained on H2O only, this is HO2"):
        narrow.predict(RADICAL, mode="corrected")
    assert narrow.predict(RADICAL, mode="variational").warnings
    # nor where the result itself is doubtful
    stretched = Molecule.from_angstrom([1, 1], [[0, 0, 0], [0, 0, 3.0]], name="far")
    with pytest.raises(ValueError, match="far is not within it: 2 fragments"):
        model.predict(stretched, mode="corrected")


def test_a_model_without_a_correction_has_no_corrected_mode(open_header, open_engine):
    with pytest.raises(ValueError, match="the model open has no correction"):
        Model(open_header, open_engine).predict(WATER, mode="corrected")
    assert stored_correction(open_header) is None


def test_fit_of_the_correction(rng):
    estimates = rng.lognormal(-8, 1, 200)
    errors = 0.9 * estimates * (1 + 0.1 * rng.normal(size=200))
    found = fit_correction(errors, estimates)
    assert found.factor == pytest.approx(0.9, abs=0.03)
    assert found.count == 200
    # a few that went astray, and one without estimate, change little
    errors[:10] *= 50
    estimates[10] = np.nan
    again = fit_correction(errors, estimates)
    assert again.factor == pytest.approx(0.9, abs=0.05) and again.count == 199
    # it is the least sum of deviations
    used = np.isfinite(estimates)
    around = [np.abs(errors - c * estimates)[used].sum() for c in again.factor + np.array([-0.02, 0.0, 0.02])]
    assert np.argmin(around) == 1
    assert fit_correction([1e-3], [1e-5]).factor == 2  # bounded
    with pytest.raises(ValueError, match="must be of one length"):
        fit_correction([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="there is nothing to fit c on"):
        fit_correction([1.0], [np.nan])


def test_dispersion_is_added_to_energy_and_gradient(model):
    pytest.importorskip("dftd4", reason="extra 'dispersion' is not installed")
    from mlsemi.reference.dispersion import dispersion

    term = dispersion(WATER, method="hf")
    for mode in ("fast", "variational"):
        without, whole = (model.predict(WATER, mode=mode, forces=True, dispersion=d) for d in (False, True))
        assert whole.energy - without.energy == pytest.approx(term.energy, abs=1e-10)
        np.testing.assert_allclose(whole.gradient - without.gradient, term.gradient, atol=1e-9)
        assert "D4 dispersion included" in whole.notes[0] and not without.notes
    unknown = Model(replace(model.header, method="b97-9"), model.engine)
    with pytest.raises(ValueError, match="no D4 parameters"):
        unknown.predict(WATER, dispersion=True)


def test_options_of_the_scf_mode_are_for_it_only(model):
    for options in ({"compare": True}, {"conv_tol": 1e-10}):
        with pytest.raises(ValueError, match="are options of mode='scf', and the mode is 'variational'"):
            model.predict(WATER, mode="variational", **options)
    with pytest.raises(ValueError, match="conv_tol=-1 must be a positive energy"):
        model.predict(WATER, mode="scf", conv_tol=-1)
