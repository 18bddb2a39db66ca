"""The whole engine for ions and open shells, with an untrained network: symmetries, exact gradients, mixed batches."""

import numpy as np
import pytest
import torch

from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.nn.charges import atom_potential

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])
HYDROGEN = Molecule.from_angstrom([1, 1], [[0, 0, 0.1], [0, 0, 0.86]])
RADICAL = Molecule.from_angstrom([8, 8, 1], [[0.0, 0.66, 0.0], [0.1, -0.66, 0.0], [0.9, 0.92, 0.1]], spin=1)
TRIPLET = Molecule.from_angstrom([8, 8], [[0.0, 0.02, 0.6], [0.1, 0.0, -0.6]], spin=2)
CATION = Molecule.from_angstrom(WATER.numbers, WATER.positions_angstrom, charge=1, spin=1)
HYDRONIUM = Molecule.from_angstrom(
    [8, 1, 1, 1], [[0.0, 0.0, 0.1], [0.94, 0.05, -0.2], [-0.47, 0.81, -0.2], [-0.47, -0.83, -0.25]], charge=1
)
ANION = Molecule.from_angstrom([8, 8, 1], [[0.0, 0.7, 0.0], [0.1, -0.7, 0.0], [0.9, 0.95, 0.1]], charge=-1)
IONS = [HYDRONIUM, ANION]


def _named(molecule):
    return f"{molecule.formula}{molecule.charge:+d}"


def _moved(molecule, positions):
    return Molecule(molecule.numbers, positions, charge=molecule.charge, spin=molecule.spin)


def _gradient(engine, molecules):
    batch = engine.batch(molecules)
    batch = batch.with_positions(batch.positions.clone().requires_grad_())
    return torch.autograd.grad(engine(batch).energy.sum(), batch.positions)[0].numpy()


def _fock(engine, molecule):
    """Shape (spin, ao, ao)."""
    return engine(engine.batch([molecule])).state.fock[0].numpy()


@pytest.mark.parametrize("improper", [False, True])
@pytest.mark.parametrize("molecule", [RADICAL, CATION, HYDRONIUM], ids=_named)
def test_equivariance(open_engine, random_rotation, improper, molecule):
    rotation = random_rotation(improper=improper)
    turned = _moved(molecule, molecule.positions @ rotation.T + [0.3, -2.0, 1.0])
    d = AOLayout(open_engine.basis, molecule.numbers).rotation(rotation)
    before = _fock(open_engine, molecule)
    assert len(before) == (2 if molecule.spin else 1)
    if molecule.spin:
        assert np.abs(before[0] - before[1]).max() > 0.01
    # float64 all through: rounding of sums of a few hundred terms
    np.testing.assert_allclose(_fock(open_engine, turned), d @ before @ d.T, atol=1e-10)
    gradient = _gradient(open_engine, [molecule])
    np.testing.assert_allclose(_gradient(open_engine, [turned]), gradient @ rotation.T, atol=1e-8)


def test_permutation(open_engine):
    order = np.array([2, 0, 1])
    layout = AOLayout(open_engine.basis, RADICAL.numbers)
    swapped = Molecule(RADICAL.numbers[order], RADICAL.positions[order], spin=1)
    index = np.concatenate([np.flatnonzero(layout.ao_atom == atom) for atom in order])
    expected = _fock(open_engine, RADICAL)[:, index][:, :, index]
    np.testing.assert_allclose(_fock(open_engine, swapped), expected, atol=1e-10)


def test_a_neutral_closed_shell_is_as_without_charge_and_spin(tiny_engine, open_engine):
    molecules = [WATER, HYDROGEN]
    before, after = (engine(engine.batch(molecules)) for engine in (tiny_engine, open_engine))
    assert after.state.n_spins == 1
    assert torch.equal(before.energy, after.energy)
    assert torch.equal(before.state.fock, after.state.fock)
    charged, without = (engine(engine.batch(IONS)).state.fock for engine in (open_engine, tiny_engine))
    assert float((charged - without).abs().max()) > 0.1


def test_a_batch_of_all_kinds_equals_its_members(open_engine):
    molecules = [WATER, RADICAL, HYDRONIUM, TRIPLET, HYDROGEN, CATION, ANION]
    together = open_engine(open_engine.batch(molecules))
    assert together.state.n_spins == 2
    for k, molecule in enumerate(molecules):
        alone = open_engine(open_engine.batch([molecule]))
        assert alone.state.n_spins == (2 if molecule.spin else 1)
        n = alone.state.fock.shape[-1]
        fock = together.state.fock[k, :, :n, :n]
        np.testing.assert_allclose(fock, alone.state.fock[0].expand_as(fock), atol=1e-11)
        # a density is the less certain the smaller the gap
        total = together.state.total_density[k, :n, :n]
        np.testing.assert_allclose(total, alone.state.total_density[0], atol=1e-9)
        np.testing.assert_allclose(together.state.spin_density[k, :n, :n], alone.state.spin_density[0], atol=1e-9)
        np.testing.assert_allclose(together.energy[k], alone.energy[0], atol=1e-10)
    gradient = _gradient(open_engine, molecules)
    parts = np.split(gradient, np.cumsum([m.n_atoms for m in molecules])[:-1])
    for part, molecule in zip(parts, molecules, strict=True):
        np.testing.assert_allclose(part, _gradient(open_engine, [molecule]), atol=1e-8)


@pytest.mark.parametrize("molecule", [RADICAL, TRIPLET, CATION, *IONS], ids=_named)
def test_forces_are_the_derivative_of_the_energy(open_engine, molecule):
    step = 1e-3  # bohr: the third derivative leaves about 1e-7, rounding 1e-11
    shifts = step * np.eye(3 * molecule.n_atoms).reshape(-1, molecule.n_atoms, 3)
    ends = [_moved(molecule, molecule.positions + s * d) for d in shifts for s in (1, -1)]
    with torch.no_grad():
        energy = open_engine(open_engine.batch(ends)).energy.numpy().reshape(-1, 2)
    expected = ((energy[:, 0] - energy[:, 1]) / (2 * step)).reshape(-1, 3)
    np.testing.assert_allclose(_gradient(open_engine, [molecule]), expected, atol=2e-6)


def test_the_potential_of_a_charge_has_no_cutoff(open_engine):
    batch = open_engine.batch([Molecule([8, 1], [[0, 0, 0], [0, 0, 60.0]], charge=-1), WATER])
    network = open_engine.network
    element = network.slots.element_index(batch.numbers)
    excess = torch.tensor([-1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    felt = atom_potential(excess, network.charge_potential.softening[element], batch)
    # electrons are repelled by the excess electron
    assert float(felt[1]) == pytest.approx(1 / np.hypot(60.0, 2.5), rel=1e-12)
    # neutral molecules have no such term, whatever their features
    scalars = torch.randn(5, network.config.natural, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    felt = network.charge_potential(scalars, element, batch)
    assert float(felt[:2].abs().min()) > 0.01
    assert felt[2:].tolist() == [0, 0, 0]
