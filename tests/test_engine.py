"""The whole engine with an untrained network: symmetries, the exact gradient, batches, separability."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mlsemi.checkpoint import engine_of
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])
PEROXIDE = Molecule.from_angstrom(
    [8, 8, 1, 1], [[0.0, 0.73, -0.05], [0.02, -0.73, -0.05], [0.82, 0.88, 0.42], [-0.8, -0.89, 0.43]]
)
HYDROGEN = Molecule.from_angstrom([1, 1], [[0, 0, 0.1], [0, 0, 0.86]])
LINEAR_WATER = Molecule.from_angstrom([1, 8, 1], [[0, 0, -0.95], [0, 0, 0.0], [0, 0, 1.0]])


def _moved(molecule, positions):
    return Molecule(molecule.numbers, positions, charge=molecule.charge, spin=molecule.spin)


def _gradient(engine, molecules):
    batch = engine.batch(molecules)
    batch = batch.with_positions(batch.positions.clone().requires_grad_())
    return torch.autograd.grad(engine(batch).energy.sum(), batch.positions)[0].numpy()


def _fock(engine, molecule):
    return engine(engine.batch([molecule])).state.fock[0, 0].numpy()


@pytest.mark.parametrize("molecule", [WATER, PEROXIDE, HYDROGEN, LINEAR_WATER], ids=lambda m: m.formula)
def test_forces_are_the_derivative_of_the_energy(tiny_engine, molecule):
    step = 1e-3  # bohr: the third derivative leaves about 1e-7, rounding 1e-11
    shifts = step * np.eye(3 * molecule.n_atoms).reshape(-1, molecule.n_atoms, 3)
    ends = [_moved(molecule, molecule.positions + s * d) for d in shifts for s in (1, -1)]
    energy = tiny_engine(tiny_engine.batch(ends)).energy.numpy().reshape(-1, 2)
    expected = ((energy[:, 0] - energy[:, 1]) / (2 * step)).reshape(-1, 3)
    np.testing.assert_allclose(_gradient(tiny_engine, [molecule]), expected, atol=1e-6)


@pytest.mark.parametrize("improper", [False, True])
def test_equivariance(tiny_engine, random_rotation, improper):
    rotation = random_rotation(improper=improper)
    layout = AOLayout(tiny_engine.basis, PEROXIDE.numbers)
    turned = _moved(PEROXIDE, PEROXIDE.positions @ rotation.T + [0.3, -2.0, 1.0])
    d = layout.rotation(rotation)
    # float64 all through: rounding of sums of a few hundred terms
    np.testing.assert_allclose(_fock(tiny_engine, turned), d @ _fock(tiny_engine, PEROXIDE) @ d.T, atol=1e-10)
    gradient = _gradient(tiny_engine, [PEROXIDE])
    np.testing.assert_allclose(_gradient(tiny_engine, [turned]), gradient @ rotation.T, atol=1e-9)
    np.testing.assert_allclose(gradient.sum(0), 0, atol=1e-9)  # translation
    np.testing.assert_allclose(np.cross(PEROXIDE.positions, gradient).sum(0), 0, atol=1e-9)  # rotation


def test_equivariance_in_float32(tiny_header, tiny_engine, random_rotation):
    engine = engine_of(tiny_header, build=False)
    engine.load_state_dict(tiny_engine.state_dict())
    engine.baseline.prepare()
    rotation = random_rotation()
    d = AOLayout(engine.basis, WATER.numbers).rotation(rotation)
    with torch.no_grad():
        turned = _fock(engine, _moved(WATER, WATER.positions @ rotation.T))
        np.testing.assert_allclose(turned, d @ _fock(engine, WATER) @ d.T, atol=1e-5)


def test_permutation(tiny_engine):
    order = np.array([2, 0, 3, 1])
    layout = AOLayout(tiny_engine.basis, PEROXIDE.numbers)
    swapped = Molecule(PEROXIDE.numbers[order], PEROXIDE.positions[order])
    index = np.concatenate([np.flatnonzero(layout.ao_atom == atom) for atom in order])
    np.testing.assert_allclose(
        _fock(tiny_engine, swapped), _fock(tiny_engine, PEROXIDE)[np.ix_(index, index)], atol=1e-10
    )


def test_a_batch_equals_its_members(tiny_engine):
    molecules = [WATER, HYDROGEN, PEROXIDE, LINEAR_WATER, WATER]
    together = tiny_engine(tiny_engine.batch(molecules))
    for k, molecule in enumerate(molecules):
        alone = tiny_engine(tiny_engine.batch([molecule]))
        n = alone.state.fock.shape[-1]
        np.testing.assert_allclose(together.state.fock[k, :, :n, :n], alone.state.fock[0], atol=1e-11)
        np.testing.assert_allclose(together.state.density[k, :, :n, :n], alone.state.density[0], atol=1e-10)
        np.testing.assert_allclose(together.energy[k], alone.energy[0], atol=1e-10)
    gradient = _gradient(tiny_engine, molecules)
    parts = np.split(gradient, np.cumsum([m.n_atoms for m in molecules])[:-1])
    for part, molecule in zip(parts, molecules, strict=True):
        np.testing.assert_allclose(part, _gradient(tiny_engine, [molecule]), atol=1e-9)


def test_linear_molecules_along_the_axes(tiny_engine):
    axes = [np.roll(LINEAR_WATER.positions, k, axis=1) for k in range(3)]
    molecules = [_moved(LINEAR_WATER, sign * x) for x in axes for sign in (1, -1)]
    energy = tiny_engine(tiny_engine.batch(molecules)).energy.numpy()
    np.testing.assert_allclose(energy, energy[0], atol=1e-10)
    gradient = _gradient(tiny_engine, molecules).reshape(6, 3, 3)
    assert np.isfinite(gradient).all()
    for k in range(3):
        np.testing.assert_allclose(gradient[2 * k], np.roll(gradient[0], k, axis=1), atol=1e-9)
        np.testing.assert_allclose(gradient[2 * k + 1], -gradient[2 * k], atol=1e-9)


def test_far_molecules_do_not_feel_each_other(tiny_engine):
    """The atoms of F0 are neutral and the network has a cutoff: energies of separate molecules add up."""
    far = Molecule(
        np.concatenate([WATER.numbers, HYDROGEN.numbers]),
        np.concatenate([WATER.positions, HYDROGEN.positions + [0, 0, 40.0]]),
    )
    states = [tiny_engine(tiny_engine.batch([m])) for m in (WATER, HYDROGEN, far)]
    gap = float(
        min(states[0].state.mo_energy[0, 0, 5], states[1].state.mo_energy[0, 0, 1])
        - max(states[0].state.mo_energy[0, 0, 4], states[1].state.mo_energy[0, 0, 0])
    )
    assert gap > 0  # else electrons would move from one to the other
    np.testing.assert_allclose(states[2].energy[0], states[0].energy[0] + states[1].energy[0], atol=1e-9)


def test_the_baseline_does_not_end_where_the_network_does(tiny_header):
    """Two waters whose oxygen atoms cross the cutoff of a network that sees less far than F0."""
    network = replace(tiny_header.network, cutoff=6.0)
    torch.manual_seed(1)
    engine = engine_of(replace(tiny_header, network=network), dtype=torch.float64).eval().requires_grad_(False)
    numbers = np.concatenate([WATER.numbers, WATER.numbers])
    energy = []
    for distance in (6.0 - 1e-5, 6.0 + 1e-5):
        positions = np.concatenate([WATER.positions, WATER.positions + [0, 0, distance]])
        energy.append(float(engine(engine.batch([Molecule(numbers, positions)])).energy[0]))
    # without the pair the jump is of the order of 1e-3 Eh; forces are below 0.1 Eh/bohr
    assert abs(energy[1] - energy[0]) < 2e-6


def test_an_element_that_is_not_covered(tiny_engine):
    with pytest.raises(ValueError, match="C"):
        tiny_engine.batch([Molecule.from_angstrom([6, 8], [[0, 0, 0], [0, 0, 1.13]])])
