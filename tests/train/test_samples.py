"""Samples, losses and statistics against identities and hand computations."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from mlsemi.baseline.tables import LONGEST
from mlsemi.blocks import BlockMap
from mlsemi.data.pack import pack_residuals
from mlsemi.data.store import LabelStore, Record, write_store
from mlsemi.engine import Engine
from mlsemi.frames import BondFrames
from mlsemi.nn.network import NetworkOutput
from mlsemi.train.config import LossConfig
from mlsemi.train.loss import loss_terms
from mlsemi.train.objective import fock_objective
from mlsemi.train.samples import collate, prepare
from mlsemi.train.statistics import set_statistics


@pytest.fixture(scope="session")
def samples(water_labels, water_engine):
    with LabelStore.open(water_labels) as store:
        return prepare(store, range(24), water_engine)


@pytest.fixture
def group(samples, water_engine):
    group = collate(samples[:3], water_engine)
    return group, BlockMap.of(group.batch, water_engine.baseline.slots)


def output_at_the_labels(group, blocks):
    """What a perfect network would give."""
    n_atoms = len(group.batch.numbers)
    counts = torch.bincount(group.batch.molecule).double()
    energy = (group.repulsion / counts)[group.batch.molecule]
    return NetworkOutput(blocks.split(group.residual.double()[:, 0], n_atoms), energy)


def test_losses_vanish_at_the_labels(group):
    terms = loss_terms(output_at_the_labels(*group), group[1], group[0])
    assert set(terms) == set(vars(LossConfig())) - {"gradient"}
    # 1e-6 mEh is the floor under the square root of the occupied-virtual term
    assert all(0 <= float(value.min()) and float(value.max()) < 2e-6 for value in terms.values())


def test_losses_equal_a_hand_computation(group, samples, water_engine):
    batch, blocks = group
    output = output_at_the_labels(batch, blocks)
    noise = torch.from_numpy(np.random.default_rng(0).normal(scale=1e-3, size=batch.residual.shape))
    noise = noise + noise.mT
    changed = blocks.split(batch.residual.double()[:, 0] + noise[:, 0], len(batch.batch.numbers))
    terms = loss_terms(NetworkOutput(changed, output.atom_energy + 0.002), blocks, batch)
    expected = {"ao": [], "orthonormal": [], "occupied_virtual": [], "energy": [], "fast": []}
    for k, sample in enumerate(samples[:3]):
        error = noise[k, 0].numpy()
        root, c, n = sample.inverse_root.double().numpy(), sample.mo_coeff[0].double().numpy(), sample.n_occupied[0]
        expected["ao"].append(np.abs(error).mean())
        expected["orthonormal"].append(np.abs(root @ error @ root).mean())
        expected["occupied_virtual"].append(np.sqrt(((c[:, :n].T @ error @ c[:, n:]) ** 2).mean()))
        expected["energy"].append(0.002)
        first_order = float((sample.energy_gradient[0].double().numpy() * error).sum())
        expected["fast"].append(abs(0.002 + first_order / 3))
    for name, values in expected.items():
        # matrices of the samples are float32
        assert terms[name].tolist() == pytest.approx([1e3 * value for value in values], rel=1e-5), name
    weights = LossConfig(ao=1.0, orthonormal=2.0, occupied_virtual=3.0, energy=4.0)
    means = {name: float(value.mean()) for name, value in terms.items()}
    wanted = sum(getattr(weights, name) * value for name, value in means.items())
    objective = fock_objective(water_engine, samples, samples[:1], weights, "cpu")
    assert objective.total(means) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_samples_hold_the_fast_energy_and_its_gradient(water_labels, water_engine, floor):
    """What the engine makes of the F of a label and the repulsive energy are the energy of the label, floor or not."""
    engine = Engine(water_engine.basis, (1, 8), water_engine.network.config, overlap_floor=floor, build=False)
    engine.baseline.load_state_dict(water_engine.baseline.state_dict())
    engine.baseline.prepare()
    with LabelStore.open(water_labels) as store:
        samples = prepare(store, range(3), engine)
        energy = torch.tensor([store.record(k).observables.energy for k in range(3)], dtype=torch.float64)
    group = collate(samples, engine)
    with torch.no_grad():
        exact = engine.integrals(group.batch)
        keep = engine.dependency_filter(group.batch, exact.overlap)

        def error(change):
            fock = exact.baseline.fock.unsqueeze(1) + group.residual.double() + change
            electronic = engine.solve(fock, group.batch, exact, keep)[1]
            return electronic + exact.baseline.energy + group.repulsion - energy

        noise = torch.from_numpy(np.random.default_rng(1).normal(scale=1e-5, size=group.residual.shape))
        noise = noise + noise.mT
        # the residuals are float32, 1e-9 Eh an element
        assert float(error(0.0).abs().max()) < 1e-7
        slope = 0.5 * (error(noise) - error(-noise))
        first_order = (group.energy_gradient.double() * noise).sum((-3, -2, -1))
    assert float(first_order.abs().min()) > 1e-6
    torch.testing.assert_close(first_order, slope, rtol=1e-4, atol=1e-9)


def test_padding_does_not_enter_the_losses(water_labels, water_engine, samples, tmp_path):
    """A loss of a batch of unlike molecules is the mean of the losses of each."""
    with LabelStore.open(water_labels) as store:
        molecule = samples[0].molecule
        pair = molecule.numbers[:2].tolist(), molecule.positions[:2]
        assert store.fock_encoding == "residual:atoms/1"
    n = sum(water_engine.basis.n_ao(z) for z in pair[0])
    small = replace(
        samples[0],
        molecule=replace(molecule, numbers=molecule.numbers[:2], positions=molecule.positions[:2], charge=-1),
        residual=samples[0].residual[:, :n, :n],
        overlap=samples[0].overlap[:n, :n],
        inverse_root=samples[0].inverse_root[:n, :n],
        mo_coeff=samples[0].mo_coeff[:, :n, :n],
        energy_gradient=samples[0].energy_gradient[:, :n, :n],
    )

    def terms(members):
        batch = collate(members, water_engine)
        frames = BondFrames.of(batch.batch, water_engine.network.l_max)
        output = water_engine.network(batch.batch, frames)
        return loss_terms(output, BlockMap.of(batch.batch, water_engine.baseline.slots), batch)

    both, first, second = terms([samples[0], small]), terms(samples[:1]), terms([small])
    for name, value in both.items():
        # the network is float32, and sums go in another order
        assert value.tolist() == pytest.approx([float(first[name]), float(second[name])], rel=1e-4), name


def test_gradient_loss_is_that_of_the_fast_mode(samples, water_engine):
    """Against the engine's own gradient, and its derivative along a direction of the weights by differences."""
    engine = deepcopy(water_engine).double().requires_grad_(True)
    chosen = samples[:3]
    gradients = []
    for sample in chosen:
        batch = engine.batch([sample.molecule])
        batch = batch.with_positions(batch.positions.clone().requires_grad_())
        gradients.append(torch.autograd.grad(engine(batch).energy.sum(), batch.positions)[0])
    shift = torch.from_numpy(np.random.default_rng(2).normal(scale=1e-2, size=(3, 3, 3)))
    with_gradients = [replace(chosen[k], gradient=gradients[k] + shift[k]) for k in (0, 2)]
    mixed = [with_gradients[0], chosen[1], with_gradients[1]]
    objective = fock_objective(engine, mixed, mixed, LossConfig(gradient=0.5), "cpu")
    assert objective.units["gradient"] == "meh_per_bohr"
    terms = objective.terms(mixed)
    assert len(terms["ao"]) == 3  # and of the gradients, the two that there are
    wanted = 1e3 * shift[[0, 2]].abs().mean((1, 2))
    torch.testing.assert_close(terms["gradient"], wanted, rtol=1e-9, atol=0)
    assert len(objective.terms([chosen[1]])["gradient"]) == 0

    parameter = engine.network.energy_readout.pair_out
    direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(terms["gradient"].mean(), parameter)
    change = 0.0
    for sign in (1, -1):
        with torch.no_grad():
            parameter += sign * 1e-4 * direction
        change += sign * objective.terms(mixed)["gradient"].mean().item() / 2e-4
        with torch.no_grad():
            parameter -= sign * 1e-4 * direction
    assert abs(change) > 1e-3
    assert float((slope * direction).sum()) == pytest.approx(change, rel=1e-6)


def test_a_gradient_loss_without_gradients_is_refused(samples, water_engine):
    with pytest.raises(ValueError, match="none of the 2 labels for training has a gradient: label with --gradient"):
        fock_objective(water_engine, samples[:2], samples[:1], LossConfig(gradient=0.5), "cpu")


def test_samples_belong_to_the_labels(water_labels, water_engine, samples):
    with LabelStore.open(water_labels) as store:
        for i in (0, 7):
            sample, label = samples[i], store.observables(i, baseline=np.zeros((24, 24)))
            # half of the quantum of the packed labels, and rounding to float32 of 0.1 Eh
            assert np.allclose(sample.residual[0].numpy(), store.fock_values(i)[0], atol=1e-8)
            baseline = water_engine.integrals(water_engine.batch([sample.molecule])).baseline
            fock = baseline.fock[0].numpy() + store.fock_values(i)[0]
            orbital = sample.mo_coeff[0].double().numpy()
            energies = np.diag(orbital.T @ fock @ orbital)
            # orbital energies were stored beside; 0.5e-7 Eh of packing and float32 coefficients at -18.8 Eh remain
            assert np.allclose(energies, label.mo_energy[0], atol=2e-5)
            assert sample.n_occupied == (5,)
            # the repulsive energy is what the atoms have beside their electrons in the molecule: some Eh
            assert -80 < sample.repulsion < -50


def test_an_open_shell_is_refused_by_a_network_of_closed_shells(water_labels, water_engine, tmp_path):
    with LabelStore.open(water_labels) as store:
        record, attrs = store.record(0), {**store.attrs, "gradient": False}
    observables = replace(
        record.observables,
        fock=np.repeat(record.observables.fock, 2, axis=0),
        mo_energy=np.repeat(record.observables.mo_energy, 2, axis=0),
    )
    triplet = replace(record, molecule=replace(record.molecule, spin=2), observables=observables)
    write_store(tmp_path / "open.h5", [triplet], attrs, fock_encoding="residual:atoms/1")
    with LabelStore.open(tmp_path / "open.h5") as store:
        group = collate(prepare(store, [0], water_engine), water_engine)
    with pytest.raises(ValueError, match="2 unpaired electrons, but this network is for closed shells only"):
        water_engine.network(group.batch, BondFrames.of(group.batch, water_engine.network.l_max))


def test_residuals_to_another_baseline_are_refused(water_labels, water_engine):
    sap = Engine(water_engine.basis, (1, 8), water_engine.network.config, baseline="sap")
    with (
        LabelStore.open(water_labels) as store,
        pytest.raises(ValueError, match="'residual:atoms/1'.*'residual:sap/1'"),
    ):
        prepare(store, [0], sap)


def test_statistics_bring_components_to_order_one(samples, water_engine):
    """Divided by its scale, every path of the pair and atom components has a root mean square near one."""
    engine = Engine(water_engine.basis, (1, 8), water_engine.network.config, build=False)
    engine.baseline.load_state_dict(water_engine.baseline.state_dict())
    engine.baseline.prepare()
    with torch.no_grad():
        set_statistics(engine, samples)
    group = collate(samples, engine)
    blocks = BlockMap.of(group.batch, engine.baseline.slots).split(
        group.residual.double()[:, 0], len(group.batch.numbers)
    )
    readout = engine.network.pair_readout
    frames = BondFrames.of(group.batch, engine.network.l_max)
    rotation = frames.slot_rotation(engine.baseline.slots)
    components = (rotation.mT @ blocks.off_diagonal @ rotation).flatten(1) @ readout.matrix.double().mT
    element = engine.baseline.slots.element_index(group.batch.numbers)
    kind = element[group.batch.pair[0]] * 2 + element[group.batch.pair[1]]
    d = frames.distance[:, None]
    fit = readout.log_scale.double()[kind]
    scale = (fit[..., 0] + fit[..., 1] * d + fit[..., 2] * d**2).exp()
    scaled = components / scale[:, readout.path]
    for pair_type in (0, 1, 2):  # H-H, H-O, O-H: there is one oxygen only
        root = root_mean_square(scaled[kind == pair_type], readout.path)
        # components that symmetry forbids vanish, and their scale is the floor
        present = root_mean_square(components[kind == pair_type], readout.path) > 1e-5
        assert 10 < present.sum() < len(present)
        # the fit has three parameters over a range of distances
        assert ((root[present] > 0.5) & (root[present] < 2.0)).all()
    # beyond the distances of the samples a scale stays what it is at their end, whatever the fit does there
    low, high = readout.span[1].tolist()
    of_pair = frames.distance[kind == 1]
    assert (low, high) == pytest.approx((float(of_pair.min()), float(of_pair.max())), abs=1e-5)
    ends = readout.scale(torch.tensor([1, 1, 1]), torch.tensor([high + 2.0, high + 4.0, high + 9.0]))
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-4, atol=0)
    torch.testing.assert_close(ends[1], ends[2], rtol=1e-4, atol=0)
    offsets = engine.network.energy_readout
    with torch.no_grad():
        output = engine.network(group.batch, frames)
    error = torch.zeros_like(group.repulsion).index_add(0, group.batch.molecule, output.atom_energy) - group.repulsion
    # fresh weights give corrections of the order of the spread, on top of the right mean
    assert float(error.abs().max()) < 100 * float(offsets.scale)


def root_mean_square(components, path):
    """Over pairs and the components of each path, shape (path,)."""
    square = torch.zeros(int(path.max()) + 1, dtype=torch.float64).index_add_(0, path, (components**2).mean(0))
    return (square / torch.bincount(path)).sqrt()


def test_packing_keeps_everything_within_half_a_quantum(water_labels, water_engine, tmp_path):
    with LabelStore.open(water_labels) as store:
        records = [store.record(i) for i in range(4)]
        attrs = {**store.attrs, "gradient": True}
    gradient = np.arange(9.0).reshape(3, 3)
    whole = []
    for record in records:
        baseline = water_engine.integrals(water_engine.batch([record.molecule])).baseline.fock.numpy()
        observables = replace(record.observables, fock=record.observables.fock + baseline, gradient=gradient)
        whole.append(replace(record, observables=observables))
    failed = Record(replace(whole[0].molecule, charge=2), failure="no SCF")
    write_store(tmp_path / "whole.h5", [*whole, failed], attrs)
    # a network that sees less far has the same F0
    short = Engine(water_engine.basis, (1, 8), replace(water_engine.network.config, cutoff=2.0), build=False)
    short.baseline.load_state_dict(water_engine.baseline.state_dict())
    short.baseline.prepare()
    assert short.network.config.cutoff < LONGEST
    quantum = 1e-5
    with LabelStore.open(tmp_path / "whole.h5") as store:
        deviation = pack_residuals(store, tmp_path / "packed.h5", short, quantum=quantum)
        assert 0 < deviation <= quantum / 2 + 1e-10
        with pytest.raises(ValueError, match="quantum=0"):
            pack_residuals(store, tmp_path / "other.h5", short, quantum=0)
        with pytest.raises(ValueError, match="choose another name"):
            pack_residuals(store, tmp_path / "whole.h5", short, quantum=quantum)
        plain = prepare(store, range(4), water_engine)
    with LabelStore.open(tmp_path / "packed.h5") as packed:
        assert (len(packed), packed.n_failures) == (4, 1)
        assert packed.observables(1).gradient is None
        assert packed.observables(1).energy == whole[1].observables.energy
        assert packed.record(2).molecule.name == whole[2].molecule.name
        restored = prepare(packed, range(4), short)
        with pytest.raises(ValueError, match="encoding"):
            pack_residuals(packed, tmp_path / "again.h5", short, quantum=quantum)
    for a, b in zip(plain, restored, strict=True):
        # float32 samples on top of the quantum
        assert torch.allclose(a.residual, b.residual, rtol=0, atol=quantum / 2 + 1e-7)
