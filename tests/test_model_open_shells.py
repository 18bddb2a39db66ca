"""Model: ions and open shells in predictions, what is refused, and what is warned of."""

from dataclasses import replace

import numpy as np
import pytest

from mlsemi.model import Model
from mlsemi.molecule import Molecule
from mlsemi.reference.variational import variational

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]], name="w")
CATION = replace(WATER, charge=1, spin=1, name="cation")
RADICAL = Molecule.from_angstrom(
    [8, 8, 1], [[0.0, 0.66, 0.0], [0.1, -0.66, 0.0], [0.9, 0.92, 0.1]], spin=1, name="radical"
)
HYDROXYL = Molecule.from_angstrom([8, 1], [[0, 0.1, 0], [0.5, 0.5, 0.66]], spin=1, name="OH")
TRIPLET = Molecule.from_angstrom([8, 8], [[0, 0, 0.6], [0, 0.1, -0.6]], spin=2, name="triplet")


@pytest.fixture(scope="module")
def model(open_header, open_engine) -> Model:
    return Model(open_header, open_engine)


def test_what_a_prediction_holds(model):
    o = model.predict(RADICAL)
    n = 11
    assert o.fock.shape == o.density.shape == o.mo_coeff.shape == (2, n, n)
    assert o.mo_energy.shape == o.mo_occ.shape == (2, n)
    for f, c, e, occ, d, electrons in zip(o.fock, o.mo_coeff, o.mo_energy, o.mo_occ, o.density, (9, 8), strict=True):
        np.testing.assert_allclose(f @ c, o.overlap @ c * e, atol=1e-10)
        np.testing.assert_allclose((c * occ) @ c.T, d, atol=1e-12)
        assert occ.sum() == electrons
        assert np.sum(d * o.overlap) == pytest.approx(electrons, abs=1e-11)
    assert o.homo == max(o.mo_energy[0, 8], o.mo_energy[1, 7])
    assert o.lumo == min(o.mo_energy[0, 9], o.mo_energy[1, 8])
    assert o.spin_gap == min(o.mo_energy[0, 9] - o.mo_energy[0, 8], o.mo_energy[1, 8] - o.mo_energy[1, 7])
    assert o.charges_mulliken.sum() == pytest.approx(0, abs=1e-11)
    assert o.spins_mulliken.sum() == pytest.approx(1, abs=1e-11)
    assert o.spins_loewdin.sum() == pytest.approx(1, abs=1e-11)
    assert 0.75 <= o.spin_square < 1.75
    assert model.predict(CATION).charges_loewdin.sum() == pytest.approx(1, abs=1e-11)


def test_a_mixed_list_equals_its_members_and_closed_shells_are_restricted(model):
    molecules = [RADICAL, WATER, CATION, WATER, TRIPLET]
    results = model.predict(molecules, forces=True)
    for molecule, o in zip(molecules, results, strict=True):
        alone = model.predict(molecule, forces=True)
        assert len(o.fock) == (2 if molecule.spin else 1)
        for name in ("energy", "fock", "mo_energy", "spin_square", "spins_mulliken", "spins_loewdin", "gradient"):
            np.testing.assert_allclose(getattr(o, name), getattr(alone, name), atol=1e-8, err_msg=name)
    assert results[1].spin_square == 0
    assert not results[1].spins_mulliken.any()


def test_a_closed_shell_beside_an_open_one_in_one_batch_is_restricted(model):
    beside = model._predict_batch([WATER, RADICAL], False, False)[0][0]
    alone = model.predict(WATER)
    for name in ("fock", "density", "mo_energy", "mo_occ", "mo_coeff"):
        assert beside[name].shape == getattr(alone, name).shape, name
    for name in ("fock", "density", "mo_energy", "mo_occ", "charges_mulliken", "spin_square", "spins_loewdin"):
        np.testing.assert_allclose(beside[name], getattr(alone, name), atol=1e-10, err_msg=name)


def test_variational_energy_of_an_open_shell(model):
    o = model.predict(RADICAL, mode="variational")
    expected = variational(RADICAL, model.header.basis, model.predict(RADICAL).density, method="hf")
    assert o.energy == pytest.approx(expected.energy, abs=1e-9)


def test_a_degenerate_state_is_warned_of_and_has_no_forces(model):
    """No equivariant network can fill one of the two pi orbitals of OH and leave the other empty."""
    alone, beside = model.predict(HYDROXYL, forces=True), model.predict([RADICAL, HYDROXYL], forces=True)
    for o in (alone, beside[1]):
        assert o.spin_gap < 1e-10
        assert np.isfinite(o.energy)
        assert any("density is not unique; energy, forces, dipole and charges are doubtful" in w for w in o.warnings)
        assert o.gradient is None
        assert any("there are no forces" in w for w in o.warnings)
    np.testing.assert_allclose(beside[0].gradient, model.predict(RADICAL, forces=True).gradient, atol=1e-8)
    assert not any("not unique" in w for w in beside[0].warnings)


@pytest.mark.parametrize(
    ("molecule", "message"),
    [
        (replace(WATER, charge=2), "w has charge 2, which the model open does not cover; it covers charge -1, 0, 1"),
        (replace(WATER, spin=4), r"w has spin \(2S\) 4, which the model open does not cover; it covers spin"),
        (replace(WATER, charge=-1, spin=1), r"charge -1 and spin \(2S\) 1, .* not cover together; it covers .*0 and 1"),
        (Molecule([1], [[0, 0, 0]], charge=-1), r"2 electrons of one spin|has charge -1"),
    ],
)
def test_what_is_not_covered_is_refused(model, open_header, monkeypatch, molecule, message):
    domain = {**open_header.domain, "states": [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]}
    strict = Model(replace(open_header, domain=domain), model.engine)
    with pytest.raises(ValueError, match=message):
        strict.predict(molecule)


def test_too_many_electrons_of_one_spin_are_refused(model, open_header):
    lenient = Model(replace(open_header, domain={}), model.engine)
    hydrogen = Molecule([1], [[0, 0, 0]], charge=-2, spin=3, name="H2-")
    with pytest.raises(ValueError, match="H2- .* has 3 electrons of one spin, but the basis sto-3g only 1 orbitals"):
        lenient.predict(hydrogen)


def test_a_model_of_closed_shells_refuses_open_ones(tiny_header, tiny_engine):
    lenient = Model(replace(tiny_header, domain={}), tiny_engine)
    with pytest.raises(ValueError, match="radical has spin .*, which the model tiny does not cover: it is for closed"):
        lenient.predict(RADICAL)


def test_atoms(model):
    """One orbital and no orbital: there are no pairs, no virtual orbitals, no beta electrons."""
    hydrogen = Molecule([1], [[0, 0, 0]], spin=1)
    proton = Molecule([1], [[0, 0, 0]], charge=1)
    atom, nothing = model.predict([hydrogen, proton], forces=True)
    assert (atom.spin_square, atom.homo) == (pytest.approx(0.75), atom.mo_energy[0, 0])
    assert atom.lumo == atom.mo_energy[1, 0]
    np.testing.assert_allclose(atom.gradient, 0, atol=1e-12)
    assert not nothing.density.any()
    assert np.isfinite(nothing.energy)
