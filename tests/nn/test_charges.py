"""Partial charges: neutral fragments, a potential without cutoff, nothing before the training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mlsemi.basis import load_basis
from mlsemi.batch import Batch
from mlsemi.blocks import Slots
from mlsemi.checkpoint import engine_of
from mlsemi.frames import BondFrames
from mlsemi.molecule import Molecule
from mlsemi.nn.charges import atom_potential
from mlsemi.nn.network import FockNetwork, NetworkConfig

SMALL = NetworkConfig(8, 4, (12, 4, 8, 6), layers=1, product=4, radial=8, n_radial=8, partial_charges=True)
BASIS = load_basis("sto-3g")
WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])


@pytest.fixture
def network():
    torch.manual_seed(2)
    made = FockNetwork(SMALL, Slots.of(BASIS, [1, 8]), dtype=torch.float64).eval().requires_grad_(False)
    made.charge_transfer.slope.normal_(std=0.3)
    return made


def two(distance):
    """A water molecule and another one turned over, at a distance along x [bohr]."""
    other = WATER.positions * [1, -1, 1] + [distance, 0, 0]
    return Molecule([8, 1, 1, 8, 1, 1], np.concatenate([WATER.positions, other]))


def batch_of(*molecules):
    return Batch.of(list(molecules), BASIS, cutoff=SMALL.cutoff)


def charges(network, batch):
    frames = BondFrames.of(batch, network.l_max)
    seen = network.represent(batch, frames)
    return network.charge_transfer.charge(seen.state[0], seen.pair_type, seen.near, batch)


def test_molecules_are_neutral_and_distant_ones_each_for_itself(network):
    found = charges(network, batch_of(WATER, two(5.0), two(40.0)))
    alone, near, far = found.split([3, 6, 6])
    assert float(alone.abs().max()) > 0.01
    assert float(near.sum()) == pytest.approx(0, abs=1e-14)
    assert abs(float(near[:3].sum())) > 1e-4  # neighbours may exchange charge
    # beyond the reach a molecule does not know of the other one
    torch.testing.assert_close(far[:3], alone, rtol=0, atol=1e-12)
    assert float(far[3:].sum()) == pytest.approx(0, abs=1e-14)


def test_the_potential_is_that_of_the_charges_however_far(network):
    batch = batch_of(two(40.0), WATER)
    q = charges(network, batch)
    output = network(batch, BondFrames.of(batch, network.l_max))
    alone = network(batch_of(WATER), BondFrames.of(batch_of(WATER), network.l_max))
    x, a = batch.positions, 2.5  # the softening of all elements before the training [bohr]
    expected = [sum(-q[k] / torch.sqrt(((x[i] - x[k]) ** 2).sum() + a**2) for k in range(6)) for i in range(6)]
    torch.testing.assert_close(output.potential[:6], torch.stack(expected), rtol=0, atol=1e-12)
    torch.testing.assert_close(output.potential[6:], alone.potential, rtol=0, atol=1e-12)
    # the tail of the other molecule, which the rest of the network does not see
    tail = output.potential[:3] - alone.potential
    assert float(tail.abs().min()) > 1e-6


def test_padding_changes_nothing():
    batch = batch_of(WATER, Molecule([8], [[0.0, 0.0, 0.0]]), two(9.0))
    q, a = torch.linspace(-1, 1, 10, dtype=torch.float64), torch.linspace(0.5, 3, 10, dtype=torch.float64)
    together = atom_potential(q, a, batch)
    parts = [batch_of(m) for m in batch.molecules]
    single = [
        atom_potential(*of, part) for *of, part in zip(q.split([3, 1, 6]), a.split([3, 1, 6]), parts, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat(single), rtol=0, atol=1e-14)


def test_nothing_before_the_training():
    """The weights are zero, so that a model without partial charges can get them and gives the same."""
    batch = batch_of(WATER, two(6.0))
    frames = BondFrames.of(batch, 2 * Slots.of(BASIS, [1, 8]).l_max)
    outputs = []
    for config in (SMALL, replace(SMALL, partial_charges=False)):
        torch.manual_seed(2)
        outputs.append(FockNetwork(config, Slots.of(BASIS, [1, 8])).eval()(batch, frames))
    assert outputs[1].potential is None
    assert outputs[0].potential.abs().max() == 0
    assert torch.equal(outputs[0].blocks.off_diagonal, outputs[1].blocks.off_diagonal)


def test_the_engine_is_equivariant_and_its_forces_exact(tiny_header, random_rotation):
    torch.manual_seed(5)
    header = replace(tiny_header, network=replace(tiny_header.network, partial_charges=True))
    engine = engine_of(header, dtype=torch.float64).eval().requires_grad_(False)
    engine.network.charge_transfer.slope.normal_(std=0.3)
    molecule, rotation = two(6.0), random_rotation(improper=True)

    def energies(positions):
        return engine(engine.batch([Molecule(molecule.numbers, x) for x in positions])).energy

    batch = engine.batch([molecule])
    positions = batch.positions.clone().requires_grad_()
    energy = engine(batch.with_positions(positions)).energy
    gradient = torch.autograd.grad(energy.sum(), positions)[0].numpy()
    # the third derivative leaves about 1e-7 at this step [bohr], rounding 1e-11
    shifts = 1e-3 * np.eye(18).reshape(18, 6, 3)
    up, down = (energies([molecule.positions + sign * d for d in shifts]) for sign in (1, -1))
    np.testing.assert_allclose(gradient, ((up - down) / 2e-3).reshape(6, 3), atol=2e-6)
    np.testing.assert_allclose(energies([molecule.positions @ rotation.T + 1.0]), energy.detach(), atol=1e-10)
