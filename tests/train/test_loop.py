"""The training loop: it learns, it splits cleanly, and it resumes exactly."""

import csv
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from mlsemi import checkpoint
from mlsemi.checkpoint import read_header
from mlsemi.data.store import LabelStore, write_store
from mlsemi.nn.network import NetworkConfig
from mlsemi.train import loop, objective
from mlsemi.train.config import read_config
from mlsemi.train.loop import train
from mlsemi.train.objective import Objective
from mlsemi.train.plots import plot_curves
from mlsemi.train.setup import split_labels


def weights(folder):
    return load_file(folder / "model.safetensors")


def curves(folder):
    """All columns but the times."""
    with (folder / "curves.csv").open() as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def assert_same(a, b):
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]), key


def test_training_reduces_the_loss_and_writes_all(configure):
    config = configure(limit=10, steps=24, validate_every=8, batch=8, learning_rate=5e-2)
    reports = []
    path = train(config, report=reports.append)
    rows = curves(config.output)
    assert [int(row["step"]) for row in rows] == [8, 16, 24]
    first, last = (float(rows[k]["train_ao_meh"]) for k in (0, -1))
    assert last < 0.8 * first
    assert float(rows[-1]["validation_ao_meh"]) < float(rows[0]["validation_ao_meh"])
    header = read_header(path)
    assert header.training["steps"] == 24
    assert header.training["labels_train"] == 8
    assert header.training["config"]["data"]["labels"] == ["water_pbe_def2svp_500.h5"]
    assert header.resolved_functional.startswith("1*GGA_X_PBE")
    assert (config.output / "best.safetensors").is_file()
    assert {r.stage for r in reports} == {"prepare", "train"}
    assert reports[-1].done == reports[-1].total == 24
    assert plot_curves(config.output / "curves.csv", config.output / "curves.png")
    assert (config.output / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert not list(config.output.glob("*.part"))


@pytest.fixture
def uninterrupted(configure):
    """A run of six steps, with validations after three and six."""
    config = configure("whole")
    train(config)
    return config


def run_until(config, step, action):
    """Trains and does something after a step."""

    def report(progress):
        if progress.stage == "train" and progress.done == step:
            action()

    train(config, report=report)


@pytest.mark.parametrize(("number", "step"), [(signal.SIGINT, 2), (signal.SIGTERM, 3)])
def test_a_stopped_run_resumes_exactly(configure, uninterrupted, number, step):
    config = configure("stopped")
    with pytest.raises(KeyboardInterrupt, match=f"step {step} is done and saved"):
        run_until(config, step, lambda: os.kill(os.getpid(), number))
    assert not list(config.output.glob("*.part"))
    train(config)
    # one thread, the same order of operations: the same bits
    assert_same(weights(uninterrupted.output), weights(config.output))
    assert curves(uninterrupted.output) == curves(config.output)


class Killed(BaseException):
    """Ends a run without its consent."""


def test_a_killed_run_resumes_exactly(configure, uninterrupted):
    """The state is that of the last validation; what was written after it is done again."""
    config = configure("killed")

    def kill():
        raise Killed

    with pytest.raises(Killed):
        run_until(config, 5, kill)
    with (config.output / "curves.csv").open("a") as file:
        file.write(",".join(["6"] * len(curves(config.output)[0])) + ",6\n6,0.1")
    train(config)
    assert_same(weights(uninterrupted.output), weights(config.output))
    assert curves(uninterrupted.output) == curves(config.output)


def test_curves_without_a_state_are_those_of_another_run(configure, uninterrupted):
    """As when a run is killed between its first row and its first state, or its state is removed to begin anew."""
    before = curves(uninterrupted.output)
    (uninterrupted.output / "state.pt").unlink()
    train(uninterrupted)
    assert curves(uninterrupted.output) == before


def test_a_second_signal_ends_at_once(configure):
    config = configure("twice")

    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="^$"):
        run_until(config, 2, twice)
    assert not (config.output / "state.pt").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_full_disk_leaves_the_state_before(configure, monkeypatch):
    config = configure("full")
    save = torch.save

    def fail_second(state, path):
        if state["numbers"]["step"] == 6:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", fail_second)
    with pytest.raises(OSError, match="No space left"):
        train(config)
    assert torch.load(config.output / "state.pt", weights_only=True)["numbers"]["step"] == 3
    assert not list(config.output.glob("*.part"))


def relabelled(path, source, *, shift=0.0, factor=1.0, count=10, **attributes):
    """Labels with other energies [Eh] and residuals of F, and other attributes."""
    with LabelStore.open(source) as store:
        records, attrs = [store.record(i) for i in range(count)], dict(store.attrs) | attributes
    changed = [
        replace(r, observables=replace(o, energy=o.energy + shift, fock=factor * o.fock))
        for r, o in ((r, r.observables) for r in records)
    ]
    write_store(path, changed, attrs, fock_encoding="residual:atoms/1")
    return path


HARTREE_FOCK = {"method": "hf", "resolved_functional": "HF"}


@pytest.mark.parametrize(
    ("others", "differing"),
    [
        (HARTREE_FOCK, "method"),
        ({"shift": 1e-9}, "label_contents"),
        ({"factor": 0.999}, "label_contents"),
        ({"shift": 0.5, **HARTREE_FOCK}, "label_contents, method"),
    ],
)
def test_other_labels_are_refused_but_the_same_written_anew_are_not(
    configure, water_labels, tmp_path, others, differing
):
    labels = relabelled(tmp_path / "l.h5", water_labels)
    train(configure(labels=labels))
    relabelled(labels, water_labels)
    config = configure(labels=labels, steps=7)
    train(config)
    assert [row["step"] for row in curves(config.output)] == ["3", "6", "7"]
    relabelled(labels, water_labels, **others)
    with pytest.raises(ValueError, match=f"run of another configuration or other labels: {differing} differ"):
        train(configure(labels=labels, steps=8))


def test_another_overlap_floor_is_refused(configure):
    train(replace(configure(), overlap_floor=1e-3))
    with pytest.raises(ValueError, match="overlap_floor differ"):
        train(replace(configure(steps=7), overlap_floor=1e-4))


def test_states_of_before_labels_were_compared_are_resumed(configure, uninterrupted):
    path = uninterrupted.output / "state.pt"
    state = torch.load(path, weights_only=True)
    stored = json.loads(state["fingerprint"])
    for name in ("method", "basis", "baseline_identity", "overlap_floor", "label_contents"):
        assert stored.pop(name) is not None
    del state["numbers"]["skipped"]
    torch.save(state | {"fingerprint": json.dumps(stored, sort_keys=True)}, path)
    with pytest.raises(ValueError, match="other labels: loss differ"):
        train(configure("whole", loss={"ao": 2.0}))
    train(configure("whole", steps=7))
    assert set(json.loads(torch.load(path, weights_only=True)["fingerprint"])) > set(stored)


def test_another_configuration_is_refused_but_more_steps_are_not(configure, uninterrupted):
    with pytest.raises(ValueError, match="run of another configuration"):
        train(configure("whole", loss={"ao": 2.0}))
    with pytest.raises(ValueError, match="run of another configuration"):
        train(configure("whole", limit=9))
    train(configure("whole", steps=7))
    assert [row["step"] for row in curves(uninterrupted.output)] == ["3", "6", "7"]


def test_a_finished_run_is_left_as_it_is(uninterrupted):
    before = (uninterrupted.output / "curves.csv").read_bytes(), weights(uninterrupted.output)
    train(uninterrupted)
    assert (uninterrupted.output / "curves.csv").read_bytes() == before[0]
    assert_same(weights(uninterrupted.output), before[1])


def test_a_damaged_state_is_refused(configure):
    config = configure("damaged")
    config.output.mkdir()
    (config.output / "state.pt").write_bytes(b"PK not a state")
    with pytest.raises(ValueError, match="state.pt cannot be read .* remove it"):
        train(config)


def test_a_loss_that_is_not_finite_ends_the_run(configure, monkeypatch):
    config = configure("infinite", steps=40, validate_every=40)
    finite = Objective.total
    monkeypatch.setattr(Objective, "total", lambda self, terms: finite(self, terms) * float("nan"))
    with pytest.raises(RuntimeError, match="not finite for 21 steps .* lower the learning rate"):
        train(config)


def test_a_run_without_a_step_is_no_model(configure, monkeypatch):
    finite = Objective.total
    monkeypatch.setattr(Objective, "total", lambda self, terms: finite(self, terms) * float("nan"))
    for patience in (0, 1):
        config = configure(f"patience{patience}", steps=4, validate_every=2, patience=patience)
        with pytest.raises(RuntimeError, match="none of the 4 steps was taken, .* no model is written"):
            train(config)
        assert not list(config.output.iterdir())


def test_skipped_steps_are_counted_also_over_an_interruption(configure, monkeypatch):
    finite, calls = Objective.total, []

    def total(self, terms):
        calls.append(terms)
        return finite(self, terms) * (float("nan") if len(calls) in (1, 3) else 1.0)

    monkeypatch.setattr(Objective, "total", total)
    config = configure(steps=5, validate_every=5)
    with pytest.raises(KeyboardInterrupt):
        run_until(config, 2, lambda: os.kill(os.getpid(), signal.SIGINT))
    assert read_header(train(config)).training["steps_skipped"] == 2


def test_a_term_without_weight_may_be_not_finite(configure, monkeypatch):
    config = configure(steps=2, validate_every=2)
    inside = objective.loss_terms

    def lacking(*arguments):
        return inside(*arguments) | {"fast": torch.full((len(arguments[2].n_occupied),), torch.nan)}

    monkeypatch.setattr(objective, "loss_terms", lacking)
    header = read_header(train(config))
    assert header.training["steps_skipped"] == 0
    assert "fast_meh" not in header.training["validation"]
    assert "ao_meh" in header.training["validation"]


def test_a_validation_that_is_not_finite_ends_the_run_and_leaves_what_was_written(configure, monkeypatch):
    config = configure("diverged", steps=4, validate_every=2)
    first = replace(config, training=replace(config.training, steps=2))
    train(first)
    before = {path.name: path.read_bytes() for path in config.output.iterdir()}
    errors = loop._Run._validation_errors
    monkeypatch.setattr(loop._Run, "_validation_errors", lambda self: errors(self) | {"energy": float("nan")})
    with pytest.raises(RuntimeError, match="validation after step 4: energy not finite: lower the learning rate"):
        train(config)
    assert {path.name: path.read_bytes() for path in config.output.iterdir()} == before


def test_a_part_is_trained_of_a_trained_model_only(configure):
    config = configure("part")
    with pytest.raises(ValueError, match="trained = 'head' is for a part of a trained model: give one with --from"):
        train(replace(config, training=replace(config.training, trained="head")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_is_refused_where_there_is_none(configure):
    config = configure("cuda")
    with pytest.raises(ValueError, match="finds no CUDA device"):
        train(replace(config, training=replace(config.training, device="cuda")))


def test_the_random_split_is_disjoint_and_fixed(configure, water_labels):
    config = configure(limit=50)
    with LabelStore.open(water_labels) as store:
        first, second = split_labels(store, config), split_labels(store, config)
        assert first == second
        assert sorted(first[0] + first[1]) == list(range(50))
        assert len(first[1]) == 10
        other = split_labels(store, replace(config, training=replace(config.training, seed=1)))
        assert other != first


def test_the_split_by_molecule_goes_by_smiles(configure, water_labels, tmp_path):
    config = configure(limit=50, split="molecule")
    with LabelStore.open(water_labels) as store:
        with pytest.raises(ValueError, match="is not its SMILES"):
            split_labels(store, config)
        records, attrs = [store.record(i) for i in range(4)], dict(store.attrs)
    # "O" trains, and no water of any other SMILES validates
    named = [replace(r, molecule=replace(r.molecule, name="O")) for r in records]
    write_store(tmp_path / "named.h5", named, attrs, fock_encoding="residual:atoms/1")
    with LabelStore.open(tmp_path / "named.h5") as store:
        assert split_labels(store, config) == ([0, 1, 2, 3], [])
    only = replace(config, data=replace(config.data, labels=(str(tmp_path / "named.h5"),)))
    with pytest.raises(ValueError, match="4 for training and 0 for"):
        train(only)


@pytest.mark.parametrize(
    ("change", "message"), [({"labels": ("none.h5",)}, "no such label file"), ({"split": "molecule"}, "not its SMILES")]
)
def test_refused_labels_leave_no_folder(configure, change, message):
    config = configure()
    with pytest.raises(ValueError, match=message):
        train(replace(config, data=replace(config.data, **change)))
    assert not config.output.exists()


@pytest.mark.parametrize("bond", [(16, -4, 8, 4), (12, 4, 8, 6, 4, 4, 4, -1)])
def test_negative_numbers_of_channels_are_refused(configure, bond):
    with pytest.raises(ValueError, match=r"bond=\[.*-.*\] must hold numbers of channels, none of them negative"):
        train(configure(network={"bond": bond}))


def test_an_output_that_is_a_file_is_refused(configure, tmp_path):
    (tmp_path / "taken").write_text("a file")
    config = configure("taken")
    with pytest.raises(ValueError, match="taken: .*taken is a file: give the name of a folder"):
        train(config)
    with pytest.raises(ValueError, match="taken/inside: .*taken is a file: give the name of a folder"):
        train(replace(config, output=config.output / "inside"))


def test_labels_of_unlike_methods_are_refused(configure, water_labels, tmp_path):
    with LabelStore.open(water_labels) as store:
        records, attrs = [store.record(i) for i in range(2)], dict(store.attrs) | {"resolved_functional": "HF"}
    write_store(tmp_path / "other.h5", records, attrs, fock_encoding="residual:atoms/1")
    config = configure()
    both = replace(config.data, labels=(str(water_labels), str(tmp_path / "other.h5")))
    with pytest.raises(ValueError, match="different methods"):
        train(replace(config, data=both))


def test_training_goes_on_from_a_model(configure):
    """Weights, means and scales are those of the model, also on other labels; the header says where it began."""
    first = train(configure("first", limit=10))
    config = configure("second", limit=12, steps=1, validate_every=1, learning_rate=1e-12, ema=0.0)
    second = train(config, start=first)
    before, after = load_file(first), load_file(second)
    for key, value in before.items():
        # one step with a vanishing learning rate
        torch.testing.assert_close(after[key], value, atol=1e-9, rtol=1e-6)
    assert read_header(second).training["started_from"]["training"]["steps"] == 6
    assert train(config, start=first) == second


def test_atomic_energies_are_refitted_to_labels_of_another_method(configure, water_labels, tmp_path):
    first = train(configure("first"))
    settings = {"steps": 1, "validate_every": 1, "learning_rate": 1e-12, "ema": 0.0}
    labels = relabelled(tmp_path / "hf.h5", water_labels, shift=0.5, **HARTREE_FOCK)
    notes = []
    second = train(configure("second", labels=labels, **settings), start=first, report=lambda p: notes.append(p.note))
    assert any("energies of pbe/def2-svp, the labels of hf/def2-svp: atomic energies are refitted" in n for n in notes)
    header = read_header(second)
    assert header.resolved_functional == "HF"
    # 0.5 Eh of three atoms, without the refit
    assert header.training["validation"]["energy_meh"] < 10
    before, after = load_file(first), load_file(second)
    name = "network.energy_readout.offset"
    shift = after[name].double().sum(0) - before[name].double().sum(0)
    # the shift of least norm of hydrogen and oxygen; the mean error of the first model is within the tolerance
    assert shift.tolist() == pytest.approx([0.2, 0.1], abs=5e-3)
    torch.testing.assert_close(after["network.energy_readout.scale"], before["network.energy_readout.scale"])


@pytest.mark.parametrize(("energy_method", "stays"), [("", True), ("pbe/def2-svp", True), ("CCSD/cc-pvdz", False)])
def test_atomic_energies_stay_where_the_energies_are_of_the_method_of_the_labels(
    configure, tmp_path, energy_method, stays
):
    # the last model has Fock matrices of the method of the labels, but was fine-tuned to other energies
    first = tmp_path / "tuned.safetensors"
    header, tensors = read_header(train(configure("first"))), weights(tmp_path / "first")
    checkpoint.save(first, replace(header, energy_method=energy_method), tensors)
    second = train(configure("second", limit=12, steps=1, validate_every=1), start=first)
    name = "network.energy_readout.offset"
    assert torch.equal(load_file(first)[name], load_file(second)[name]) == stays


def test_sizes_that_are_not_named_are_those_of_the_model(configure, tmp_path):
    first = train(configure("first", limit=10))
    config = configure("second", limit=10, steps=1, validate_every=1)
    path = tmp_path / "second.toml"
    before, _, rest = path.read_text().partition("[network]")
    path.write_text(before + "[network]\ncharges = true\n[loss]" + rest.partition("[loss]")[2])
    second = read_header(train(read_config(path), start=first)).network
    assert second == replace(config.network, charges=True) != NetworkConfig(charges=True)


def test_the_filter_that_is_not_named_is_that_of_the_model(configure):
    config = configure("first", steps=1, validate_every=1)
    assert config.overlap_floor is None
    first = train(replace(config, overlap_floor=1e-3))
    again = configure("second", steps=1, validate_every=1)
    assert read_header(train(again, start=first)).overlap_floor == 1e-3
    other = configure("third", steps=1, validate_every=1)
    assert read_header(train(replace(other, overlap_floor=0.0), start=first)).overlap_floor == 0.0
    assert read_header(train(configure("fresh", steps=1, validate_every=1))).overlap_floor == 0.0


def test_a_model_that_does_not_fit_is_refused(configure, tmp_path):
    first = train(configure("first", limit=10))
    config = configure("second", limit=10)
    smaller = replace(config, network=replace(config.network, layers=2))
    with pytest.raises(ValueError, match="has network .*layers=1.*the configuration .*layers=2.*must agree"):
        train(smaller, start=first)
    with pytest.raises(ValueError, match="no such checkpoint"):
        train(config, start=tmp_path / "none.safetensors")
