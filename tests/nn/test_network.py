"""The network: exact symmetries, locality, batches, and the bases of its readouts."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mlsemi.basis import load_basis
from mlsemi.batch import Batch
from mlsemi.blocks import BlockMap, Slots
from mlsemi.frames import BondFrames
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.nn.interaction import LIMIT, tempered
from mlsemi.nn.network import FockNetwork, NetworkConfig
from mlsemi.nn.readout import atom_paths, pair_paths
from mlsemi.nn.so2 import bond_widths, feature_channels, from_bond, to_bond

SMALL = NetworkConfig(natural=8, unnatural=4, bond=(16, 6, 8, 8, 4), layers=2, product=4, radial=8, n_radial=8)
# float32 rounding of elements of order one; float64 likewise
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def network(basis: str, elements: list[int], dtype: torch.dtype) -> FockNetwork:
    torch.manual_seed(3)
    return FockNetwork(SMALL, Slots.of(load_basis(basis), elements), dtype=dtype).eval()


def correction(net: FockNetwork, basis: str, molecules: list[Molecule]) -> tuple[list[np.ndarray], np.ndarray]:
    """dF of each molecule without padding, and the atomic energies."""
    batch = Batch.of(molecules, load_basis(basis), cutoff=net.config.cutoff)
    with torch.no_grad():
        output = net(batch, BondFrames.of(batch, net.l_max))
        matrix = BlockMap.of(batch, net.slots).assemble(output.blocks).double().numpy()
    n_ao = batch.n_ao.tolist()
    return [matrix[k, :n, :n] for k, n in enumerate(n_ao)], output.atom_energy.numpy()


HYDROXYLAMINE = Molecule(
    [7, 8, 1, 1, 1], [[0, 0, 0.2], [2.7, 0.1, -0.1], [-0.7, 1.6, 0.9], [-0.6, -1.7, 0.8], [3.4, 0.4, 1.6]]
)
ELEMENTS = [1, 7, 8]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("basis", ["sto-3g", "def2-svp", "def2-tzvp"])
@pytest.mark.parametrize("improper", [False, True])
def test_rotated_and_mirrored(random_rotation, basis, dtype, improper):
    rotation = random_rotation(improper=improper)
    net = network(basis, ELEMENTS, dtype)
    turned = Molecule(HYDROXYLAMINE.numbers, HYDROXYLAMINE.positions @ rotation.T + 1.5)
    (before,), energy = correction(net, basis, [HYDROXYLAMINE])
    (after,), energy_after = correction(net, basis, [turned])
    d = AOLayout(load_basis(basis), HYDROXYLAMINE.numbers).rotation(rotation)
    assert np.abs(before).max() > 0.1
    np.testing.assert_allclose(after, d @ before @ d.T, atol=TOLERANCE[dtype])
    np.testing.assert_allclose(energy_after, energy, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("axis", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, -1]])
def test_linear_molecule_has_finite_gradients(axis):
    net = network("def2-svp", [1, 6, 7], torch.float64)
    direction = np.array(axis, dtype=float)
    hcn = Molecule([1, 6, 7], np.outer([-2.0, 0.0, 2.2], direction))
    batch = Batch.of([hcn], load_basis("def2-svp"))
    blocks = BlockMap.of(batch, net.slots)
    torch.manual_seed(0)
    weight = torch.randn(1, 33, 33, dtype=torch.float64)

    def scalar(positions):
        moved = batch.with_positions(positions)
        return (blocks.assemble(net(moved, BondFrames.of(moved, net.l_max)).blocks) * weight).sum()

    positions = batch.positions.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(scalar(positions), positions)
    step = 1e-4
    for index in np.ndindex(3, 3):
        shift = torch.zeros(3, 3, dtype=torch.float64)
        shift[index] = step
        with torch.no_grad():
            difference = (scalar(positions + shift) - scalar(positions - shift)) / (2 * step)
        # central differences: h^2 times third derivatives of order 10
        assert abs(float(difference - gradient[index])) < 1e-5 * max(1.0, float(gradient.abs().max()))


def test_permuted_atoms_permute_the_matrix():
    net = network("def2-svp", ELEMENTS, torch.float64)
    order = np.array([3, 1, 4, 0, 2])
    shuffled = Molecule(HYDROXYLAMINE.numbers[order], HYDROXYLAMINE.positions[order])
    (before,), _ = correction(net, "def2-svp", [HYDROXYLAMINE])
    (after,), _ = correction(net, "def2-svp", [shuffled])
    offsets = AOLayout(load_basis("def2-svp"), HYDROXYLAMINE.numbers).atom_offsets
    index = np.concatenate([np.arange(offsets[k], offsets[k + 1]) for k in order])
    np.testing.assert_allclose(after, before[np.ix_(index, index)], atol=1e-12)


def test_symmetric_and_batch_equals_singles():
    net = network("def2-svp", ELEMENTS, torch.float64)
    water = Molecule([8, 1, 1], [[0, 0, 0.2], [0, 1.4, -0.9], [0.1, -1.5, -0.9]])
    atom = Molecule([8], [[0, 0, 0]])
    together, _ = correction(net, "def2-svp", [water, HYDROXYLAMINE, atom])
    for matrix, molecule in zip(together, [water, HYDROXYLAMINE, atom], strict=True):
        (alone,), _ = correction(net, "def2-svp", [molecule])
        np.testing.assert_allclose(matrix, alone, atol=1e-13)
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-15)


def test_far_molecules_do_not_see_each_other():
    """Beyond the cutoff a fragment has its own matrix, and the block between fragments is zero."""
    net = network("def2-svp", ELEMENTS, torch.float64)
    far = HYDROXYLAMINE.positions + np.array([0, 0, 40.0])
    pair = Molecule(np.tile(HYDROXYLAMINE.numbers, 2), np.concatenate([HYDROXYLAMINE.positions, far]))
    (both,), _ = correction(net, "def2-svp", [pair])
    (one,), _ = correction(net, "def2-svp", [HYDROXYLAMINE])
    n = len(one)
    np.testing.assert_allclose(both[:n, :n], one, atol=1e-13)
    np.testing.assert_allclose(both[n:, n:], one, atol=1e-13)
    assert np.abs(both[:n, n:]).max() == 0


@pytest.mark.parametrize("cutoff", [SMALL.cutoff, 0.7 * SMALL.cutoff])
def test_cutoff_is_smooth(cutoff):
    """A bond that crosses the cutoff changes nothing by more than the envelope's tail, also with a longer reach."""
    torch.manual_seed(3)
    config = replace(SMALL, cutoff=cutoff)
    assert config.reach == SMALL.cutoff
    net = FockNetwork(config, Slots.of(load_basis("sto-3g"), [1]), dtype=torch.float64).eval()
    values = [
        correction(net, "sto-3g", [Molecule([1, 1], [[0, 0, 0], [0, 0, cutoff + d]])])[0][0] for d in (-1e-3, 1e-3)
    ]
    # the envelope is cubic at the cutoff: (1e-3 / 14)^3 * 10
    np.testing.assert_allclose(values[0], values[1], atol=1e-10)


@pytest.mark.parametrize("name", ["reach", "cutoff"])
def test_energies_and_potentials_do_not_jump_where_a_bond_ends(name):
    torch.manual_seed(3)
    config = replace(SMALL, reach=6.0, cutoff=8.0, partial_charges=True)
    net = FockNetwork(config, Slots.of(load_basis("sto-3g"), [6, 8]), dtype=torch.float64).eval()
    for parameter in net.parameters():  # also what is zero before the training
        torch.nn.init.normal_(parameter, std=0.3)

    end, h = getattr(config, name), 1e-4

    def at(distance: float) -> torch.Tensor:  # beyond the end the pair is not in the list
        batch = Batch.of([Molecule([6, 8], [[0, 0, 0], [0, 0, distance]])], load_basis("sto-3g"), cutoff=end)
        with torch.no_grad():
            output = net(batch, BondFrames.of(batch, net.l_max))
        return torch.stack([output.atom_energy, output.potential])

    a, b, c, d = (at(end + k * h) for k in (-2, -1, 1, 2))
    # what is left of the step over the end after the steps on both sides is of the order h^2
    torch.testing.assert_close(c - b, (b - a) + (d - c), rtol=0, atol=1e-6)
    energy, potential = (at(2.0) - a).abs().amax(1)
    assert energy > 0.01 and potential > 0.01


@pytest.mark.parametrize("basis", ["sto-3g", "def2-svp", "def2-tzvp"])
@pytest.mark.parametrize("paths", [pair_paths, atom_paths])
def test_readout_components_are_an_orthonormal_basis_of_blocks(basis, paths):
    """Of all blocks for pairs, of the symmetric ones for atoms."""
    slots = Slots.of(load_basis(basis), [1, 8])
    _, matrix, path = paths(slots)
    n = slots.n_slots
    assert matrix.shape == (n**2 if paths is pair_paths else n * (n + 1) // 2, n**2)
    assert len(path) == len(matrix)
    # rounding of products of a few coefficients
    torch.testing.assert_close(matrix @ matrix.mT, torch.eye(len(matrix), dtype=matrix.dtype), atol=1e-12, rtol=0)
    if paths is atom_paths:
        blocks = matrix.view(-1, n, n)
        torch.testing.assert_close(blocks, blocks.mT, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reach": -1.0}, "reach=-1.0 must be positive"),
        ({"product": 9}, r"product=9 is more than the channels of m = 1 and m = 2, \[8, 8\]"),
        ({"n_radial": 1}, "n_radial=1 must be 2 at least"),
        ({"neighbours": 0.0}, "neighbours=0.0 must be positive"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FockNetwork(replace(SMALL, **change), Slots.of(load_basis("sto-3g"), ELEMENTS))


def test_bond_state_round_trip(rng):
    channels = feature_channels(4, 3, 2)
    batch = Batch.of([HYDROXYLAMINE], load_basis("sto-3g"))
    wigner = BondFrames.of(batch, 4).wigner
    pairs = batch.pair.shape[1]
    feature = [torch.from_numpy(rng.normal(size=(pairs, 2 * l + 1, sum(c)))) for l, c in enumerate(channels)]
    state = to_bond(feature, wigner, channels)
    assert [x.shape[-1] for x in state] == bond_widths(channels)
    for back, original in zip(from_bond(state, wigner, channels), feature, strict=True):
        torch.testing.assert_close(back, original, atol=1e-13, rtol=0)


def test_tempered_states_are_bounded_turn_alike_and_usual_ones_hardly_change(rng):
    usual = [torch.from_numpy(0.02 * rng.normal(size=shape)) for shape in ((5, 8), (5, 0), (5, 2, 6))]
    for before, after in zip(usual, tempered(usual), strict=True):
        # 1 / sqrt(1 + 0.02^2 / 2^2) is 1 - 5e-5
        torch.testing.assert_close(after, before, rtol=2e-4, atol=0)
    wild = [1e6 * x for x in usual]
    for after in tempered(wild):
        if after.numel():
            mean = (after**2).flatten(1).mean(1)
            torch.testing.assert_close(mean, torch.full_like(mean, LIMIT**2), rtol=1e-6, atol=0)
    angle = 0.7
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    torch.testing.assert_close(tempered([turn @ wild[2]])[0], turn @ tempered([wild[2]])[0])


def test_nothing_runs_away_with_large_weights_where_atoms_nearly_touch():
    """Products of products of unbounded bond states would be of order 1e9 Eh here."""
    net = network("def2-svp", ELEMENTS, torch.float64)
    with torch.no_grad():
        for parameter in net.bonds.parameters():
            parameter.mul_(3)
    squeezed = Molecule(HYDROXYLAMINE.numbers, 0.4 * HYDROXYLAMINE.positions)
    for molecule in (HYDROXYLAMINE, squeezed):
        assert 1 < np.abs(correction(net, "def2-svp", [molecule])[0][0]).max() < 1e3
