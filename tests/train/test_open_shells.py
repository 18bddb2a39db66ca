"""Training on ions and open shells: labels, statistics, losses, a few steps, and what comes out."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from mlsemi import checkpoint
from mlsemi.blocks import BlockMap
from mlsemi.data.pack import pack_residuals
from mlsemi.data.store import LabelStore, Record, write_store
from mlsemi.frames import BondFrames
from mlsemi.layout import AO_ORDER
from mlsemi.model import load
from mlsemi.molecule import Molecule
from mlsemi.reference.mean_field import solve
from mlsemi.train.evaluate import evaluate, select
from mlsemi.train.loop import train
from mlsemi.train.loss import loss_terms
from mlsemi.train.samples import collate, prepare
from mlsemi.train.statistics import set_statistics

SHAPES = {
    "O": ([8, 1, 1], [[0.0, 0.06, 0.0], [-0.78, -0.49, 0.0], [0.76, -0.52, 0.0]], 0, 0),
    "[OH3+]": ([8, 1, 1, 1], [[0.0, 0.0, 0.1], [0.94, 0.0, -0.2], [-0.47, 0.81, -0.2], [-0.47, -0.81, -0.2]], 1, 0),
    "[O]O": ([8, 8, 1], [[0.0, 0.66, 0.0], [0.1, -0.66, 0.0], [0.9, 0.92, 0.0]], 0, 1),
    "[OH2+]": ([8, 1, 1], [[0.0, 0.05, 0.0], [-0.83, -0.46, 0.0], [0.84, -0.47, 0.0]], 1, 1),
    "[O][O]": ([8, 8], [[0.0, 0.0, 0.6], [0.0, 0.1, -0.6]], 0, 2),
    "[OH]": ([8, 1], [[0.0, 0.0, 0.0], [0.5, 0.5, 0.66]], 0, 1),
}


def molecule(name, random):
    numbers, positions, charge, spin = SHAPES[name]
    positions = np.array(positions) + random.normal(scale=0.03, size=(len(numbers), 3))
    return Molecule.from_angstrom(np.array(numbers), positions, charge=charge, spin=spin, name=name)


@pytest.fixture(scope="module")
def labels(tiny_header, tmp_path_factory):
    """Hartree-Fock in STO-3G of water, ions and radicals, four geometries each; that of OH is not unique."""
    random, basis = np.random.default_rng(5), tiny_header.basis
    records = []
    for name in [*SHAPES] * 4:
        shaken = molecule(name, random)
        found = solve(shaken, basis, method="hf", stability=False)
        records.append(Record(shaken, found.observables, degenerate=name == "[OH]"))
    attrs = {"method": "hf", "resolved_functional": "HF", "basis_name": basis.name, "gradient": False}
    attrs |= {"basis_json": json.dumps(basis.to_json()), "basis_hash": basis.content_hash(), "ao_order": AO_ORDER}
    path = tmp_path_factory.mktemp("labels") / "open.h5"
    write_store(path, records, attrs)
    return path


@pytest.fixture(scope="module")
def samples(labels, open_engine):
    with LabelStore.open(labels) as store:
        return prepare(store, [i for i in range(len(store)) if not store.is_degenerate(i)], open_engine)


def test_samples_hold_both_spins(samples, labels):
    with LabelStore.open(labels) as store:
        kept = [store.record(i) for i in range(len(store)) if not store.is_degenerate(i)]
    assert len(samples) == len(kept) == 20
    for sample, record in zip(samples, kept, strict=True):
        spins = 2 if record.molecule.spin else 1
        assert sample.residual.shape[0] == sample.mo_coeff.shape[0] == len(sample.n_occupied) == spins
        electrons = sum(sample.n_occupied) * (3 - spins)
        assert electrons == record.molecule.n_electrons
        s = sample.overlap.double()
        # float32 matrices
        torch.testing.assert_close(
            sample.inverse_root.double() @ s @ sample.inverse_root.double(),
            torch.eye(len(s), dtype=s.dtype),
            atol=1e-5,
            rtol=0,
        )


def test_losses_of_a_mixed_batch_are_the_mean_of_its_members(samples, open_engine):
    """A closed shell that is there twice because of an open one counts as if it were alone."""

    def terms(members):
        group = collate(members, open_engine)
        output = open_engine.network(group.batch, BondFrames.of(group.batch, open_engine.network.l_max))
        return loss_terms(output, BlockMap.of(group.batch, open_engine.baseline.slots), group)

    members = samples[:5]
    assert {s.molecule.spin for s in members} == {0, 1, 2}
    together, alone = terms(members), [terms([s]) for s in members]
    for name, value in together.items():
        # the network is float64, the samples are float32
        assert value.tolist() == pytest.approx([float(t[name]) for t in alone], rel=1e-6), name


def test_statistics_of_the_spin_readout(samples, open_header, open_engine):
    engine = fresh(open_header, open_engine)
    with torch.no_grad():
        set_statistics(engine, samples)
    group = collate([s for s in samples if s.molecule.spin], engine)
    difference = 0.5 * (group.residual[:, 0] - group.residual[:, 1]).double()
    blocks = BlockMap.of(group.batch, engine.baseline.slots).split(difference, len(group.batch.numbers))
    readout = engine.network.spin_atom_readout
    assert not readout.mean.any()
    element = engine.baseline.slots.element_index(group.batch.numbers)
    for row in (0, 1):
        components = blocks.diagonal[element == row].flatten(1) @ readout.matrix.double().mT
        square = torch.zeros(readout.scale.shape[1], dtype=torch.float64)
        square.index_add_(0, readout.path, (components**2).mean(0))
        root = (square / torch.bincount(readout.path)).sqrt()
        used = root > 1e-5
        torch.testing.assert_close(readout.scale[row].double()[used], root[used], rtol=1e-5, atol=0)
    with torch.no_grad(), pytest.raises(ValueError, match="open_shells = true, but no label to train on is open"):
        set_statistics(engine, [s for s in samples if not s.molecule.spin])


def fresh(header, engine):
    """An engine of a header without computing the tables of the baseline again."""
    made = checkpoint.engine_of(header, build=False)
    made.baseline.load_state_dict(engine.baseline.state_dict())
    made.baseline.prepare()
    return made


@pytest.fixture
def build_quickly(monkeypatch, open_engine):
    """Tables of the baseline are those of `open_engine`."""
    inside = checkpoint.engine_of

    def engine_of(header, *, dtype=torch.float32, build=True):
        engine = inside(header, dtype=dtype, build=False)
        if build:
            engine.baseline.load_state_dict(open_engine.baseline.state_dict())
            engine.baseline.prepare()
        return engine

    def install():
        monkeypatch.setattr(checkpoint, "engine_of", engine_of)

    return install


OPEN = {"charges": True, "open_shells": True}


def test_training_on_ions_and_radicals(configure, build_quickly, labels):
    config = configure(
        labels=labels, limit=24, network=OPEN, steps=60, validate_every=30, batch=6, learning_rate=1e-2, ema=0.9
    )
    build_quickly()
    reports = []
    path = train(config, report=reports.append)
    notes = [r.note for r in reports if r.note]
    assert notes == ["4 labels of states that are not unique (degenerate frontier orbitals) are left out"]
    header = checkpoint.read_header(path)
    assert header.training["labels_degenerate_left_out"] == 4
    assert header.domain["states"] == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1]]
    rows = [r.row for r in reports if r.row]
    # fresh weights start at the size of the target; 60 steps halve that
    assert rows[-1]["validation_ao_meh"] < 0.7 * rows[0]["validation_ao_meh"]
    model = load(path)
    random = np.random.default_rng(8)
    results = model.predict([molecule(name, random) for name in SHAPES][:5], forces=True)
    for o, name in zip(results, SHAPES, strict=False):
        assert o.fock.shape[0] == (2 if SHAPES[name][3] else 1)
        assert np.isfinite(o.gradient).all()
    with LabelStore.open(labels) as store:
        found = evaluate(header, model.engine, store, select(store))
    assert len(found.rows) == 20
    assert any("4 labels of states that are not unique" in text for text in found.warnings)
    assert {name: values["count"] for name, values in found.groups.items()} == {
        "closed shells": 8, "open shells": 12, "neutral": 12, "charged": 8,
    }  # fmt: skip
    assert found.metrics["s2_mae"] < 0.1


def test_charges_of_both_kinds_and_open_shells_can_be_added_to_a_model(configure, build_quickly, labels, tmp_path):
    with LabelStore.open(labels) as store:
        water = [store.record(i) for i in range(len(store)) if store.molecule(i).name == "O"]
        attrs = dict(store.attrs)
    write_store(tmp_path / "water.h5", water, attrs)
    first_config = configure("first", labels=tmp_path / "water.h5", limit=4)
    network = {**OPEN, "partial_charges": True}
    config = configure(
        "second", labels=labels, limit=24, network=network, steps=1, validate_every=1, learning_rate=1e-12
    )
    build_quickly()
    first = train(first_config)
    second = train(config, start=first)
    base, grown = load(first, precision="float64"), load(second, precision="float64")
    before, after = base.engine.state_dict(), grown.engine.state_dict()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value, atol=1e-9, rtol=1e-6)
    assert {key.split(".")[1] for key in set(after) - set(before)} == {
        "state_embedding", "charge_potential", "charge_transfer", "spin_pair_readout", "spin_atom_readout",
    }  # fmt: skip
    random = np.random.default_rng(1)
    shaken = molecule("O", random)
    # one step with a vanishing learning rate
    assert grown.predict(shaken).energy == pytest.approx(base.predict(shaken).energy, abs=1e-6)
    scale = grown.engine.network.spin_atom_readout.scale
    assert 1e-4 < float(scale.max()) < 1
    with pytest.raises(
        ValueError, match="they must agree, but for charges, partial_charges and open_shells, which may be added"
    ):
        train(
            configure("third", labels=labels, limit=24, network={"open_shells": True, "charges": True, "layers": 0}),
            start=second,
        )


def test_matrices_that_do_not_fit_the_spin_are_refused(labels, open_engine, tmp_path):
    with LabelStore.open(labels) as store:
        record, attrs = store.record(2), dict(store.attrs)
    assert record.molecule.spin == 1
    first = {name: getattr(record.observables, name)[:1] for name in ("fock", "mo_energy")}
    one = replace(record, observables=replace(record.observables, **first))
    write_store(tmp_path / "one.h5", [one], attrs)
    with LabelStore.open(tmp_path / "one.h5") as store:
        with pytest.raises(ValueError, match=r"\[O\]O has spin 1 and 1 Fock matrices: .* open shells unrestricted"):
            prepare(store, [0], open_engine)


def test_labels_that_the_network_cannot_tell_apart_are_refused(configure, build_quickly, labels):
    configurations = [
        configure(name, labels=labels, limit=24, network=network)
        for name, network in (("a", {}), ("b", {"open_shells": True}))
    ]
    build_quickly()
    for config, message in zip(configurations, ("12 of 20 labels are open shells", r"charges \[0, 1\]"), strict=True):
        with pytest.raises(ValueError, match=f"{message}.*: set .network. "):
            train(config)


def test_packed_labels_of_open_shells_are_the_same(labels, samples, open_engine, tmp_path):
    quantum = 1e-6
    with LabelStore.open(labels) as store:
        kept = [i for i in range(len(store)) if not store.is_degenerate(i)]
        pack_residuals(store, tmp_path / "packed.h5", open_engine, quantum=quantum)
    with LabelStore.open(tmp_path / "packed.h5") as packed:
        restored = prepare(packed, kept, open_engine)
    for a, b in zip(samples, restored, strict=True):
        # half a quantum, and float32
        torch.testing.assert_close(a.residual, b.residual, atol=quantum / 2 + 1e-7, rtol=0)
