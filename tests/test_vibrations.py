"""The Hessian of a model against differences of its gradients, and what is made of it; closed and open shells."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mlsemi.model import NO_FORCES, Model, load
from mlsemi.molecule import Molecule
from mlsemi.vibrations import (
    STATIONARY,
    force_field,
    frequencies,
    hessian,
    in_double_precision,
    relaxed,
    rotational_symmetry_number,
)

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])
HYDROGEN = Molecule.from_angstrom([1, 1], [[0, 0, 0.1], [0.1, 0, 0.86]])
CATION = replace(WATER, charge=1, spin=1)


@pytest.fixture(scope="module")
def model(tiny_header, tiny_engine):
    return Model(tiny_header, tiny_engine)


@pytest.fixture(scope="module")
def open_model(open_header, open_engine):
    return Model(open_header, open_engine)


@pytest.fixture(scope="module")
def relaxed_water(model):
    return relaxed(model, WATER)


def _differences(model, molecule, mode="fast", step=1e-3):
    rows = []
    for k in range(3 * molecule.n_atoms):
        move = np.zeros(3 * molecule.n_atoms)
        move[k] = step
        moved = [replace(molecule, positions=molecule.positions + s * move.reshape(-1, 3)) for s in (1, -1)]
        forth, back = model.predict(moved, mode=mode, forces=True)
        rows.append((forth.gradient - back.gradient) / (2 * step))
    return np.array(rows).reshape(molecule.n_atoms, 3, molecule.n_atoms, 3)


@pytest.mark.parametrize("kind", ["closed", "open"])
def test_hessian_is_the_derivative_of_the_gradient(model, open_model, kind):
    which, molecule = (model, WATER) if kind == "closed" else (open_model, CATION)
    found = hessian(which, molecule)
    # 1e-5 of 1: the third derivative of the gradient at a step of 1e-3
    np.testing.assert_allclose(found, _differences(which, molecule), atol=1e-5)
    np.testing.assert_allclose(found, found.transpose(2, 3, 0, 1), atol=0)
    np.testing.assert_allclose(found.sum(0), np.zeros((3, 3, 3)), atol=1e-10)  # moving all moves nothing
    direction = np.random.default_rng(1).normal(size=(3, 3))
    np.testing.assert_allclose(
        np.einsum("aibj,bj->ai", found, direction), which.hessian_vector_product(molecule, direction), atol=1e-10
    )
    # turning all turns the gradient
    gradient = which.predict(molecule, forces=True).gradient
    for axis in np.eye(3):
        turn = np.cross(axis, molecule.positions)
        np.testing.assert_allclose(np.einsum("aibj,bj->ai", found, turn), np.cross(axis, gradient), atol=1e-9)


def test_other_modes_by_differences(model):
    field = force_field(model, HYDROGEN, mode="variational", step=1e-3)
    # 1e-6: noise of 1e-10 Eh/bohr at a step of 1e-3
    np.testing.assert_allclose(field.hessian, _differences(model, HYDROGEN, "variational"), atol=1e-6)
    np.testing.assert_allclose(field.hessian.sum(0), np.zeros((3, 2, 3)), atol=1e-6)
    # dipole moments are those of the predicted density in both modes
    np.testing.assert_allclose(field.dipole_derivatives, force_field(model, HYDROGEN).dipole_derivatives, atol=1e-5)
    assert field.observables.energy == model.predict(HYDROGEN, mode="variational").energy


def test_dispersion_adds_its_own(model):
    pytest.importorskip("dftd4")
    plain, more = (force_field(model, WATER, dispersion=d) for d in (False, True))
    assert 1e-6 < np.abs(more.hessian - plain.hessian).max() < 1e-2
    together = model.predict(WATER, forces=True, dispersion=True)
    assert more.observables.energy == together.energy
    np.testing.assert_allclose(
        more.hessian - plain.hessian,
        _with_dispersion(model) - _differences(model, WATER),
        atol=1e-6,
    )


def _with_dispersion(model):
    class Added:
        @staticmethod
        def predict(molecules, **options):
            return model.predict(molecules, dispersion=True, **options)

    return _differences(Added, WATER)


def test_the_network_is_taken_in_double_precision(tiny_checkpoint, model):
    rough = load(tiny_checkpoint)
    assert in_double_precision(model) is model
    # 1e-6: the checkpoint holds the weights in float32
    np.testing.assert_allclose(hessian(rough, WATER), hessian(model, WATER), atol=1e-6)
    # 1e-7: constants of the network are rounded to float32 as well
    fine = load(tiny_checkpoint, precision="float64")
    np.testing.assert_allclose(hessian(rough, WATER), hessian(fine, WATER), atol=1e-7)
    assert rough.engine.network.dtype == torch.float32


def test_frequencies_of_a_relaxed_molecule(model, relaxed_water):
    found = frequencies(model, relaxed_water)
    assert np.abs(found.force_field.observables.gradient).max() < STATIONARY
    assert not any("stationary" in text for text in found.warnings)
    assert len(found.vibrations.wavenumbers) == len(found.intensities) == 3
    assert (found.intensities >= 0).all()
    # at a stationary point translations and rotations have no force constant, projected or not
    roots = np.repeat(np.sqrt(found.vibrations.masses), 3)
    values = np.linalg.eigvalsh(found.force_field.hessian.reshape(9, 9) / np.outer(roots, roots))
    values = values[np.argsort(np.abs(values))]
    # 1e-5 Eh/(bohr^2 u): the gradient that is left, 1e-5 Eh/bohr
    np.testing.assert_allclose(values[:6], 0, atol=1e-5)
    assert np.abs(values[6]) > 1e-4
    heavy = frequencies(model, relaxed_water, masses=np.array([15.995, 2.014, 2.014]))
    assert (np.abs(heavy.vibrations.wavenumbers) < np.abs(found.vibrations.wavenumbers)).all()
    average = frequencies(model, relaxed_water, masses="average")
    np.testing.assert_allclose(average.vibrations.wavenumbers, found.vibrations.wavenumbers, rtol=1e-3)
    gas = found.thermochemistry(temperature=300, pressure=1e5)
    assert gas.symmetry_number == 2
    assert gas.electronic_energy == found.force_field.observables.energy
    alone = found.thermochemistry(temperature=300, pressure=1e5, symmetry_number=1)
    assert alone.entropy - gas.entropy == pytest.approx(np.log(2) * 3.1668115634564e-6)


def test_what_is_no_minimum_is_warned_of(model):
    texts = frequencies(model, WATER).warnings
    assert any("no stationary point" in text for text in texts)


def test_intensities_turn_with_the_molecule(model, relaxed_water, random_rotation):
    turned = replace(relaxed_water, positions=relaxed_water.positions @ random_rotation().T + 1.0)
    one, other = frequencies(model, relaxed_water), frequencies(model, turned)
    # 1e-3 cm^-1 and 1e-5 km/mol of 1000: the network is invariant to rounding, in float64
    np.testing.assert_allclose(other.vibrations.wavenumbers, one.vibrations.wavenumbers, atol=1e-3)
    np.testing.assert_allclose(other.intensities, one.intensities, atol=1e-5)


def test_linear_molecules_have_one_mode_more(model):
    line = Molecule.from_angstrom([8, 1, 1], [[0, 0, 0], [0.6, 0.6, 0.5], [-0.6, -0.6, -0.5]])
    found = frequencies(model, line)
    assert found.vibrations.linear and len(found.vibrations.wavenumbers) == 4
    apart = np.abs(found.vibrations.wavenumbers[:, None] - found.vibrations.wavenumbers) + 1e3 * np.eye(4)
    assert apart.min() < 1e-3  # the two bending modes
    assert rotational_symmetry_number(line) == 2


def test_symmetry_numbers():
    turn = [[np.cos(a), np.sin(a)] for a in np.arange(6) * np.pi / 3]
    benzene = [[1.39 * x, 1.39 * y, 0] for x, y in turn] + [[2.48 * x, 2.48 * y, 0] for x, y in turn]
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 0.63
    for expected, numbers, x in (
        (1, [2], [[1, 2, 3]]),
        (1, [8, 1], [[0, 0, 0], [0.1, 0.2, 0.9]]),
        (2, [8, 8], [[0, 0, 0], [0.1, 0.2, 1.1]]),
        (2, [6, 8, 8], [[0, 0, 0], [0, 0, 1.16], [0, 0, -1.16]]),
        (3, [7, 1, 1, 1], [[0, 0, 0], *([0.94 * a, 0.94 * b, 0.4] for a, b in turn[::2])]),
        (6, [6, 1, 1, 1], [[0, 0, 0], *([1.08 * a, 1.08 * b, 0] for a, b in turn[::2])]),
        (12, [6, 1, 1, 1, 1], [[0, 0, 0], *corners]),
        (12, [6] * 6 + [1] * 6, benzene),
        (3, [6, 9, 1, 1, 1], [[0, 0, 0], 2.2 * corners[0], *corners[1:]]),
        (1, [6, 9, 17, 1, 1], [[0, 0, 0], 2.2 * corners[0], 2.6 * corners[1], *corners[2:]]),
    ):
        spin = sum(numbers) % 2
        molecule = Molecule.from_angstrom(numbers, np.array(x, dtype=float), spin=spin)
        assert rotational_symmetry_number(molecule) == expected, molecule.formula


def test_errors(model, open_model):
    with pytest.raises(ValueError, match="step=0"):
        hessian(model, WATER, step=0)
    with pytest.raises(ValueError, match="does not cover"):
        hessian(model, replace(WATER, charge=1, spin=1))
    with pytest.raises(ValueError, match=NO_FORCES):
        hessian(open_model, Molecule.from_angstrom([8, 1], [[0, 0, 0], [0, 0, 1.0]], spin=1))
    with pytest.raises(RuntimeError, match="not relaxed after 1 steps"):
        relaxed(model, WATER, steps=1)
