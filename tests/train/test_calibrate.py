"""`with_members` and `calibrate`: one checkpoint with the model, its members, and what its estimates are worth."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mlsemi import checkpoint
from mlsemi.data.store import LabelStore
from mlsemi.train.calibrate import calibrate, with_members
from mlsemi.train.loop import train


@pytest.fixture
def trained(configure):
    """A model and two smaller members of other seeds, hardly trained, on water."""
    paths = [train(configure("model", limit=24, steps=6))]
    for seed in (1, 2):
        paths.append(train(configure(f"member{seed}", limit=24, steps=6, seed=seed)))
    return paths


def test_members_say_what_they_say_alone(trained, water_labels):
    _, alone = checkpoint.load(trained[0])
    header, engine = with_members(trained[0], trained[1:])
    assert len(header.members) == 2
    with LabelStore.open(water_labels) as store:
        batch = alone.batch([store.molecule(i) for i in range(3)])
    with torch.no_grad():
        found = engine(batch, with_members=True)
        torch.testing.assert_close(found.energy, alone(batch).energy, rtol=0, atol=0)
        for energy, path in zip(found.member_energy, trained[1:], strict=True):
            torch.testing.assert_close(energy, checkpoint.load(path)[1](batch).energy, rtol=0, atol=0)
    assert found.member_energy.shape == (2, 3)
    assert float((found.member_energy - found.energy).abs().min()) > 0
    assert engine(batch).member_energy is None


def test_calibrated_checkpoint(trained, water_labels, tmp_path):
    header, engine = with_members(trained[0], trained[1:])
    with LabelStore.open(water_labels) as store:
        monkey = LimitedStore(store, 24)
        found = calibrate(header, engine, [monkey], split="all")
    path = tmp_path / "calibrated.safetensors"
    checkpoint.save(path, found, engine.state_dict())
    again, loaded = checkpoint.load(path)
    assert again.calibration == found.calibration
    assert again.calibration["labels"] == 24
    assert len(loaded.members) == 2
    for mode in ("fast", "variational", "corrected"):
        interval = again.calibration[mode]
        assert 0 < interval["scale_68"] <= interval["scale_95"]
    # dE2 is the error to second order, so that subtracting it leaves less
    assert 0.2 < again.calibration["correction"]["factor"] < 2
    assert again.calibration["corrected"]["scale_95"] < again.calibration["variational"]["scale_95"]


class LimitedStore:
    """The first labels of a store: a Fock build each is enough for a test."""

    def __init__(self, store, count):
        self._store, self._count = store, count

    def __len__(self):
        return self._count

    def __getattr__(self, name):
        return getattr(self._store, name)


def test_members_of_another_kind_are_refused(trained, tmp_path):
    header, engine = checkpoint.load(trained[1])
    other = tmp_path / "other.safetensors"
    checkpoint.save(other, replace(header, resolved_functional="HF"), engine.state_dict())
    with pytest.raises(ValueError, match=r"other\.safetensors has another method than .*model\.safetensors"):
        with_members(trained[0], [other])
    far = tmp_path / "far.safetensors"
    checkpoint.save(far, replace(header, network=replace(header.network, cutoff=20.0)), engine.state_dict())
    with pytest.raises(ValueError, match="has cutoff 20 bohr, beyond that of"):
        with_members(trained[0], [far])


def test_a_member_that_is_the_model_is_refused(trained, tmp_path):
    header, engine = checkpoint.load(trained[0])
    copy = tmp_path / "copy.safetensors"
    checkpoint.save(copy, replace(header, name="copy"), engine.state_dict())
    with pytest.raises(ValueError, match=r"member .*copy\.safetensors has the same weights as .*model\.safetensors"):
        with_members(trained[0], [trained[1], copy])


def test_too_few_labels_are_refused_before_any_work(trained, water_labels):
    header, engine = with_members(trained[0], [])
    with (
        LabelStore.open(water_labels) as store,
        pytest.raises(ValueError, match="19 labels .* too few .*: 20 at least"),
    ):
        calibrate(header, engine, [LimitedStore(store, 19)], split="all", report=lambda *_: pytest.fail("worked"))


def test_a_model_without_members_has_no_estimate_of_the_fast_mode(trained, water_labels):
    header, engine = with_members(trained[0], [])
    with LabelStore.open(water_labels) as store:
        found = calibrate(header, engine, [LimitedStore(store, 20)], split="all")
    assert "fast" not in found.calibration
    assert np.isfinite(found.calibration["correction"]["factor"])


def test_training_goes_on_from_a_calibrated_model(trained, configure, tmp_path):
    """Members and calibration belong to the model as it was: what is trained from it has none, and can be loaded."""
    header, engine = with_members(trained[0], trained[1:])
    path = tmp_path / "with_members.safetensors"
    checkpoint.save(path, replace(header, calibration={"labels": 1}), engine.state_dict())
    again, _ = checkpoint.load(train(configure("further", limit=24, steps=2), start=path))
    assert again.members == () and again.calibration == {}


def test_members_must_see_what_the_model_sees(trained, tmp_path):
    header, engine = checkpoint.load(trained[0])
    seeing = tmp_path / "seeing.safetensors"
    with_spin = replace(header, network=replace(header.network, open_shells=True))
    checkpoint.save(seeing, with_spin, checkpoint.engine_of(with_spin, build=False).state_dict())
    with pytest.raises(ValueError, match="open_shells = true on the same labels"):
        with_members(seeing, [trained[1]])
    more = tmp_path / "more.safetensors"
    domain = {**header.domain, "states": [[0, 0], [1, 0]]}
    checkpoint.save(more, replace(header, domain=domain), engine.state_dict())
    with pytest.raises(ValueError, match=r"not trained on the pairs of charge and spin \[\(1, 0\)\]"):
        with_members(more, [trained[1]])
