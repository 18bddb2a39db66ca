"""Differences between methods: what is learned is label minus variational energy, and nothing else of a model moves."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mlsemi.checkpoint import load
from mlsemi.data.store import LabelStore, write_store
from mlsemi.engine import Engine
from mlsemi.model import Model
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.reference import mean_field
from mlsemi.reference import variational as variational_module
from mlsemi.reference.variational import variational
from mlsemi.train.calibrate import calibrate, with_members
from mlsemi.train.config import FinetuneConfig, read_config
from mlsemi.train.difference import differences_objective, energy_differences
from mlsemi.train.evaluate import evaluate, select
from mlsemi.train.loop import train

SETTINGS = FinetuneConfig(energy=1.0, difference_to="variational")
N_LABELS = 5


def variational_energy(engine, molecule):
    with torch.no_grad():
        density = engine(engine.batch([molecule])).state.density[0].numpy()
    return variational(molecule, engine.basis, density, method="pbe").energy


def smooth(molecule):
    """What the method of the labels differs by [Eh]."""
    return -0.3 + 0.02 * np.linalg.norm(molecule.positions[1:] - molecule.positions[0], axis=1).sum()


@pytest.fixture(scope="session")
def coupled_cluster_labels(tmp_path_factory, water_labels, water_engine):
    """Energies and gradients only, as of a correlated method: variational energies and a smooth difference."""
    path = tmp_path_factory.mktemp("labels") / "cc.h5"
    with LabelStore.open(water_labels) as store:
        attrs = dict(store.attrs) | {"method": "ccsd(t)", "level": "CCSD(T)/cc-pvtz"}
        records = [store.record(i) for i in range(N_LABELS)]
        random = np.random.default_rng(0)
        bare = [
            replace(
                r,
                observables=Observables(
                    energy=variational_energy(water_engine, r.molecule) + smooth(r.molecule),
                    gradient=random.normal(size=(3, 3)),
                ),
            )
            for r in records
        ]
        write_store(path, bare, attrs=attrs, fock_encoding="none")
    return path


@pytest.fixture
def own_engine(water_engine) -> Engine:
    """An engine that may be changed."""
    made = Engine(water_engine.basis, water_engine.elements, water_engine.network.config, build=False)
    made.load_state_dict(water_engine.state_dict())
    made.baseline.prepare()
    return made


def objective_of(engine, labels, settings=SETTINGS):
    with LabelStore.open(labels) as store:
        parts = [([0, 1, 2], [3, 4])]
        return differences_objective(engine, [store], parts, settings, "cpu", method="pbe")


def test_the_error_is_that_of_variational_energy_plus_difference(own_engine, coupled_cluster_labels):
    objective = objective_of(own_engine, coupled_cluster_labels)
    assert objective.trains == "energy_network"
    with LabelStore.open(coupled_cluster_labels) as store:
        records = [store.record(i) for i in range(3)]
    with torch.no_grad():
        differences = own_engine.method_difference(own_engine.batch([r.molecule for r in records]))
        found = objective.terms(objective.samples)["energy"]
        signed = energy_differences(own_engine, own_engine.energy_network, objective.samples, gradients=False)[0]
    errors = [
        variational_energy(own_engine, r.molecule) + float(d) - r.observables.energy
        for r, d in zip(records, differences, strict=True)
    ]
    # the same float32 network on batches of other sizes
    assert found.numpy() == pytest.approx(1e3 * np.abs(errors), abs=2e-4)
    # one composition: the refitted atomic energies take the mean
    assert float(signed.mean()) == pytest.approx(0, abs=2e-4)


def test_the_fast_energy_has_the_difference_and_the_fock_matrix_has_not(own_engine, coupled_cluster_labels):
    with LabelStore.open(coupled_cluster_labels) as store:
        batch = own_engine.batch([store.molecule(i) for i in range(3)])
    with torch.no_grad():
        before = own_engine(batch)
        objective_of(own_engine, coupled_cluster_labels)
        for parameter in own_engine.energy_network.parameters():
            parameter += 0.01
        after, difference = own_engine(batch), own_engine.method_difference(batch)
    assert torch.equal(after.state.fock, before.state.fock)
    torch.testing.assert_close(after.energy, before.energy + difference, rtol=0, atol=1e-9)
    # what the refit puts in is the same for all three geometries, what the weights put in is not
    assert float(difference.std()) > 1e-6


def test_residuals_are_the_weighted_errors_and_their_gradients_are_derivatives(own_engine, coupled_cluster_labels):
    objective = objective_of(own_engine, coupled_cluster_labels, replace(SETTINGS, energy=2.0, gradient=0.5))
    samples = objective.samples[:2]
    network = own_engine.double().energy_network
    found = objective.residuals(samples).detach().reshape(2, 10)
    energies, gradients = energy_differences(own_engine, network, samples, gradients=True)
    torch.testing.assert_close(found[:, 0], 2.0 * energies.detach())
    torch.testing.assert_close(found[:, 1:], 0.5 * torch.stack(gradients).detach().flatten(1))
    terms = objective.terms(samples)
    torch.testing.assert_close(terms["gradient"].detach(), torch.stack(gradients).abs().mean((1, 2)).detach())

    # the error of a gradient is the derivative of the error of the energy, up to what the labels hold
    direction = np.random.default_rng(1).normal(size=(3, 3))
    molecule, step = samples[0].molecule, 1e-3
    slope = 0.0
    for sign in (1, -1):
        moved = replace(samples[0], molecule=replace(molecule, positions=molecule.positions + sign * step * direction))
        slope += sign * energy_differences(own_engine, network, [moved], gradients=False)[0].item() / (2 * step)
    wanted = 1e3 * float((samples[0].gradient * torch.from_numpy(direction)).sum())
    assert float((gradients[0].detach() * torch.from_numpy(direction)).sum()) == pytest.approx(slope - wanted, rel=1e-4)


def configuration(folder, labels, *, finetune="energy = 1.0\ndifference_to = 'variational'", **training):
    settings = {"optimizer": "'gauss-newton'", "steps": 4, "validate_every": 1, "threads": 1} | training
    path = folder / "tune.toml"
    text = f'output = "tuned"\n[data]\nlabels = ["{labels}"]\nvalidation = 0.4\n[finetune]\n{finetune}\n[training]\n'
    path.write_text(text + "\n".join(f"{k} = {v}" for k, v in settings.items()))
    return read_config(path)


@pytest.fixture
def tuned(base, tmp_path, coupled_cluster_labels):
    """A model that was fine-tuned to the labels."""
    return train(configuration(tmp_path, coupled_cluster_labels), start=base)


def test_a_model_with_a_difference_says_so_and_predicts_in_the_composite_mode(tuned, base, coupled_cluster_labels, rng):
    header, engine = load(tuned)
    assert (header.method, header.energy_method) == ("pbe", "CCSD(T)/cc-pvtz")
    assert [header.level(mode) for mode in ("fast", "composite")] == ["CCSD(T)/cc-pvtz"] * 2
    assert header.level("variational") == "pbe/def2-svp"
    own, tensors = load(base)[1].state_dict(), engine.state_dict()
    assert all(torch.equal(tensors[name], value) for name, value in own.items())

    with LabelStore.open(coupled_cluster_labels) as store:
        molecule = store.molecule(0)
        rows = evaluate(header, engine, store, select(store), variational=True).rows
    model = Model(header, engine)
    plain, found = (model.predict(molecule, mode=mode, forces=True) for mode in ("variational", "composite"))
    with torch.no_grad():
        difference = float(engine.method_difference(engine.batch([molecule])))
    assert found.energy == pytest.approx(plain.energy + difference, abs=1e-9)
    assert found.energy_error_estimate is None
    assert "pbe/def2-svp energy" in found.notes[0]
    assert rows[0]["energy_composite"] == pytest.approx(found.energy, abs=1e-9)
    # the three labels that are trained on are met
    assert sorted(abs(row["energy_composite_error"]) for row in rows)[2] < 1e-5
    assert "energy_variational_error" not in rows[0]

    direction = rng.normal(size=(3, 3))
    network = Model(header, engine.double())

    def energy(step):
        return network.predict(replace(molecule, positions=molecule.positions + step * direction), mode="composite")

    step = 1e-3
    gradient = network.predict(molecule, mode="composite", forces=True).gradient
    slope = (energy(step).energy - energy(-step).energy) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, abs=1e-5)


def test_it_resumes_to_the_same_weights(base, tmp_path, coupled_cluster_labels, tuned):
    again = tmp_path / "again"
    again.mkdir()
    train(configuration(again, coupled_cluster_labels, steps=2), start=base)
    path = train(configuration(again, coupled_cluster_labels), start=base)
    one, other = (load(p)[1].state_dict() for p in (tuned, path))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_wrong_use_is_refused(base, tuned, tmp_path, coupled_cluster_labels):
    with pytest.raises(ValueError, match="dipole = 1 must be 0 with difference_to"):
        configuration(
            tmp_path, coupled_cluster_labels, finetune="energy = 1.0\ndipole = 1.0\ndifference_to = 'variational'"
        )
    with pytest.raises(ValueError, match="needs a positive weight for energy"):
        configuration(tmp_path, coupled_cluster_labels, finetune="gradient = 1.0\ndifference_to = 'variational'")
    with pytest.raises(ValueError, match="difference_to = 'scf' must be one of variational, fast"):
        configuration(tmp_path, coupled_cluster_labels, finetune="energy = 1.0\ndifference_to = 'scf'")
    config = configuration(tmp_path, coupled_cluster_labels)
    with pytest.raises(ValueError, match="by a network of their own, which is not trained further"):
        train(replace(config, output=tmp_path / "twice"), start=tuned)
    with pytest.raises(ValueError, match="mode='composite': the model base has not learned what another"):
        Model(*load(base)).check([], mode="composite")
    with pytest.raises(ValueError, match="dispersion is of pbe, but the composite energies of tune are of CCSD"):
        Model(*load(tuned)).check([], mode="composite", dispersion=True)


def test_the_difference_to_fast_energies_needs_no_fock_build(own_engine, coupled_cluster_labels, monkeypatch):
    monkeypatch.setattr(variational_module, "variational", lambda *_, **__: pytest.fail("a Fock build"))
    settings = FinetuneConfig(energy=1.0, gradient=1.0, difference_to="fast")
    objective = objective_of(own_engine, coupled_cluster_labels, settings)
    with LabelStore.open(coupled_cluster_labels) as store:
        records = [store.record(i) for i in range(3)]
    batch = own_engine.batch([r.molecule for r in records])
    batch = batch.with_positions(batch.positions.clone().requires_grad_())
    energy = own_engine(batch).energy
    (gradient,) = torch.autograd.grad(energy.sum(), batch.positions)
    energies, gradients = energy_differences(own_engine, own_engine.energy_network, objective.samples, gradients=True)
    labels = torch.tensor([r.observables.energy for r in records], dtype=torch.float64)
    torch.testing.assert_close(energies.detach(), 1e3 * (energy.detach() - labels), rtol=0, atol=1e-3)
    wanted = gradient - torch.as_tensor(np.concatenate([r.observables.gradient for r in records]))
    torch.testing.assert_close(torch.cat(gradients).detach(), 1e3 * wanted, rtol=1e-4, atol=1e-2)


def test_what_follows_from_the_fock_matrix_keeps_its_domain(base, tuned, coupled_cluster_labels, water_labels):
    header, engine = load(tuned)
    wide = replace(header, domain=dict(header.domain) | {"max_heavy_atoms": 5, "charges": [0, 1], "states": []})
    model = Model(wide, engine)
    assert header.domain == load(base)[0].domain
    assert header.difference_domain["formulas"] == ["H2O"]
    hydronium = Molecule.from_angstrom(
        [8, 1, 1, 1], [[0, 0, 0.1], [0.9, 0, -0.2], [-0.45, 0.8, -0.2], [-0.45, -0.8, -0.2]], charge=1
    )
    model.check([hydronium], mode="variational")
    for mode in ("fast", "composite"):
        with pytest.raises(ValueError, match="has charge 1, which the model tune does not cover; it covers charge 0"):
            model.check([hydronium], mode=mode)
    peroxide = Molecule.from_angstrom(
        [8, 8, 1, 1], [[0, 0.7, 0], [0, -0.7, 0], [0.9, 0.9, 0.3], [-0.9, -0.9, 0.3]], name="HOOH"
    )
    assert any("trained on H2O only" in text for text in model.predict(peroxide).warnings)
    assert not any("trained on H2O only" in text for text in model.predict(peroxide, mode="variational").warnings)


def test_members_and_labels_of_the_other_method_do_not_calibrate(base, tuned, coupled_cluster_labels):
    with pytest.raises(ValueError, match="has learned a difference to another method, which members do not have"):
        with_members(tuned, [base])
    header, engine = load(tuned)
    with LabelStore.open(coupled_cluster_labels) as store, pytest.raises(ValueError, match="calibrate on those of pbe"):
        calibrate(header, engine, [store], split="all")


def test_a_method_that_means_something_else_is_refused(base, tmp_path, coupled_cluster_labels, monkeypatch):
    monkeypatch.setattr(mean_field, "resolve_functional", lambda _: "another one")
    with pytest.raises(ValueError, match="pbe means another one in this PySCF"):
        train(configuration(tmp_path, coupled_cluster_labels), start=base)


@pytest.mark.parametrize("trained", ["head", "all"])
def test_the_first_order_optimizer_trains_it_too(base, tmp_path, coupled_cluster_labels, trained):
    config = configuration(
        tmp_path, coupled_cluster_labels, optimizer="'muon'", steps=3, batch=2, warmup=1, trained=f"'{trained}'"
    )
    tensors = load(train(config, start=base))[1].state_dict()
    changed = {name for name, value in tensors.items() if name.startswith("energy_network.")} - {
        f"energy_network.{name.removeprefix('network.')}"
        for name, value in load(base)[1].state_dict().items()
        if torch.equal(value, tensors.get(f"energy_network.{name.removeprefix('network.')}", torch.zeros(0)))
    }
    assert changed
    only_head = all(name.startswith("energy_network.energy_readout.") for name in changed)
    assert only_head == (trained == "head")
