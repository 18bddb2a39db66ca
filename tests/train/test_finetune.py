"""Fine-tuning: the terms are what they say, gradients reach the network, and a model comes out that says what it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mlsemi.checkpoint import load, read_header
from mlsemi.data.store import LabelStore, write_store
from mlsemi.observables import Observables
from mlsemi.train.config import FinetuneConfig, read_config
from mlsemi.train.evaluate import evaluate, select
from mlsemi.train.finetune import ionization_energy, observable_terms, observables_objective
from mlsemi.train.loop import train

WEIGHTS = FinetuneConfig(energy=1.0, dipole=0.5, fock=0.1)


@pytest.fixture
def objective(engine, water_labels):
    with LabelStore.open(water_labels) as store:
        return observables_objective(engine, [store], [([0, 1, 2, 3], [4, 5])], WEIGHTS, "cpu")


def configuration(folder, labels, finetune, **training):
    settings = {"steps": 6, "batch": 4, "warmup": 1, "validate_every": 3, "threads": 1} | training
    lines = [
        'output = "tuned"',
        "[data]",
        f'labels = ["{labels}"]',
        "limit = 6",
        "validation = 0.34",
        "[finetune]",
        *(f"{k} = {v!r}" for k, v in finetune.items()),
        "[training]",
        *(f"{k} = {v}" for k, v in settings.items()),
    ]
    path = folder / "tune.toml"
    path.write_text("\n".join(lines))
    return read_config(path)


def test_terms_are_the_errors_of_the_engine(engine, objective, water_labels):
    with torch.no_grad():
        terms = {k: v.mean() for k, v in objective.terms(objective.samples).items()}
    with LabelStore.open(water_labels) as store:
        records = [store.record(i) for i in range(4)]
    batch = engine.batch([r.molecule for r in records])
    with torch.no_grad():
        found = engine(batch, dipole=True)
    energy = torch.tensor([r.observables.energy for r in records], dtype=torch.float64)
    # float64 sums of the same float32 network
    assert float(terms["energy"]) == pytest.approx(1e3 * float((found.energy - energy).abs().mean()), rel=1e-9)
    # the atomic energies were refitted to the labels that are trained on: one composition, so the mean vanishes
    assert abs(float((found.energy - energy).mean())) < 1e-9
    # nothing has moved away yet; the Fock matrices of the base are kept in float32
    assert float(terms["fock"]) < 1e-4
    assert float(terms["dipole"]) > 0.1
    assert float(objective.total(terms)) == pytest.approx(
        sum(getattr(WEIGHTS, k) * float(v) for k, v in terms.items()), rel=1e-12
    )


def test_the_gradient_of_the_terms_is_that_of_central_differences(engine, objective):
    """Through density and eigenproblem: the derivative along a direction of the weights of a readout."""
    engine.double().requires_grad_(True)
    parameter = next(p for name, p in engine.network.named_parameters() if name.startswith("pair_readout"))
    samples = objective.samples[:2]
    direction = torch.randn(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def loss(name):
        return observable_terms(engine, samples, {name}, "cpu")[name].mean()

    for name in ("energy", "dipole"):
        (gradient,) = torch.autograd.grad(loss(name), parameter)
        slope = 0.0
        for sign in (1, -1):
            with torch.no_grad():
                parameter += sign * 1e-5 * direction
                slope += sign * float(loss(name)) / 2e-5
                parameter -= sign * 1e-5 * direction
        # central differences of a step of 1e-5: relative error 1e-6 and better
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4), name


@pytest.fixture
def labels_with_ionization(tmp_path, water_labels):
    """Energies and ionization energies only, as of a correlated method."""
    path = tmp_path / "ip.h5"
    with LabelStore.open(water_labels) as store:
        attrs = dict(store.attrs) | {"method": "ccsd", "level": "CCSD/def2-svp"}
        records = [store.record(i) for i in range(6)]
        energies = [np.array([0.46 + 0.001 * k, 0.54]) for k in range(6)]
        bare = [
            replace(r, observables=Observables(energy=r.observables.energy, ionization_energies=e))
            for r, e in zip(records, energies, strict=True)
        ]
        write_store(path, bare, attrs=attrs, fock_encoding="none")
    return path


def test_orbital_energies_are_counted_from_where_the_ionization_energies_want_it(
    base, tmp_path, labels_with_ionization, engine
):
    settings = FinetuneConfig(energy=1.0, ionization=1.0, fock=1.0)
    with LabelStore.open(labels_with_ionization) as store:
        batch = engine.batch([store.molecule(i) for i in range(4)])
        with torch.no_grad():
            before = engine(batch, dipole=True)
        objective = observables_objective(engine, [store], [([0, 1, 2, 3], [4, 5])], settings, "cpu")
    with torch.no_grad():
        after = engine(batch, dipole=True)
        terms = {k: v.mean() for k, v in objective.terms(objective.samples).items()}
    wanted = torch.tensor([0.46, 0.461, 0.462, 0.463], dtype=torch.float64)
    error = ionization_energy(after) - wanted
    assert abs(float(error.mean())) < 1e-12
    assert float(terms["ionization"]) == pytest.approx(1e3 * float(error.abs().mean()), rel=1e-6)
    # float32 copies of the Fock matrices, with the shift
    assert float(terms["fock"]) < 2e-4
    # density and all that follows from it do not change, and no energy but by the refit, which is of all the same
    torch.testing.assert_close(after.state.density, before.state.density, rtol=0, atol=1e-12)
    change = after.energy - before.energy
    torch.testing.assert_close(change, change[:1].expand(4), rtol=0, atol=1e-10)
    config = configuration(tmp_path, labels_with_ionization, {"energy": 1.0, "ionization": 0.1})
    path = train(config, start=base)
    header = read_header(path)
    assert header.energy_method == "CCSD/def2-svp"
    assert header.orbital_shift < 0
    rows = evaluate_of(path, labels_with_ionization)
    assert {"energy_fast_error", "ionization_error"} <= set(rows[0])
    assert "h_mae" not in rows[0]


def evaluate_of(path, labels):
    header, engine = load(path)
    with LabelStore.open(labels) as store:
        return evaluate(header, engine, store, select(store)).rows


def test_labels_without_fock_matrices_want_finetune(tmp_path, labels_with_ionization):
    (tmp_path / "plain.toml").write_text(f'[data]\nlabels = ["{labels_with_ionization}"]\n')
    with pytest.raises(ValueError, match="are of CCSD/def2-svp and have no Fock matrices: fine-tune a model on them"):
        train(read_config(tmp_path / "plain.toml"))


def test_labels_of_another_level_than_the_fast_energies_are_not_evaluated(base, labels_with_ionization):
    with pytest.raises(ValueError, match="holds energies of CCSD/def2-svp, but those of .* are of pbe"):
        evaluate_of(base, labels_with_ionization)


def test_a_model_is_tuned_and_says_so(base, tmp_path, water_labels, make_engine, monkeypatch):
    config = configuration(
        tmp_path,
        water_labels,
        {"energy": 1.0, "dipole": 0.3, "fock": 0.05},
        steps=30,
        validate_every=10,
        learning_rate=2e-3,
    )
    path = train(config, start=base)
    header = read_header(path)
    assert header.energy_method == "pbe/def2-svp"
    assert header.method == "pbe"
    assert header.training["started_from"]["name"] == "base"
    assert set(header.training["validation"]) == {"energy_meh", "dipole_mebohr", "fock_meh"}
    rows = (path.parent / "curves.csv").read_text().splitlines()
    names = rows[0].split(",")
    first, last = (dict(zip(names, row.split(","), strict=True)) for row in (rows[1], rows[-1]))
    assert float(last["train_energy_meh"]) < float(first["train_energy_meh"])


def test_only_the_chosen_part_changes(base, tmp_path, water_labels):
    config = configuration(tmp_path, water_labels, {"energy": 1.0}, trained="'head'", learning_rate=1e-2)
    from safetensors.torch import load_file

    after, before = load_file(train(config, start=base)), load_file(base)
    changed = {k for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed
    assert all(name.startswith("network.energy_readout.") for name in changed)


def test_patience_ends_a_run_and_takes_the_best(base, tmp_path, water_labels):
    # a learning rate that destroys: the first validation stays the best
    config = configuration(
        tmp_path, water_labels, {"energy": 1.0}, steps=50, validate_every=1, learning_rate=0.5, patience=2, warmup=20
    )
    path = train(config, start=base)
    steps = [int(row.split(",")[0]) for row in (path.parent / "curves.csv").read_text().splitlines()[1:]]
    assert steps[-1] < 50
    assert read_header(path).training["steps"] == steps[-1] - 2


def test_wrong_use_is_refused(base, tmp_path, water_labels, engine):
    config = configuration(tmp_path, water_labels, {"energy": 1.0})
    with pytest.raises(ValueError, match="needs a trained model to start from: give one with --from"):
        train(config)
    none = replace(config, finetune=FinetuneConfig(fock=1.0))
    with pytest.raises(ValueError, match="sets no weight: give one of energy, gradient, dipole, ionization"):
        train(none, start=base)
    lacking = replace(config, finetune=FinetuneConfig(gradient=1.0))
    with pytest.raises(
        ValueError, match="gradient has the weight 1, but none of the 4 labels for training has it: set the weight"
    ):
        train(lacking, start=base)
    with pytest.raises(ValueError, match="trained = 'tail' must be one of head, readout, all"):
        configuration(tmp_path, water_labels, {"energy": 1.0}, trained="'tail'")
    (tmp_path / "both.toml").write_text('[data]\nlabels = "x.h5"\n[loss]\nao = 1.0\n[finetune]\nenergy = 1.0\n')
    with pytest.raises(ValueError, match="loss beside .finetune.: its weights take the place"):
        read_config(tmp_path / "both.toml")
