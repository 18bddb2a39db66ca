"""Checkpoints: what is saved is what is loaded, and nothing else is."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from mlsemi import checkpoint
from mlsemi.molecule import Molecule

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])


def _rewritten(path, out, *, header=None, tensors=None):
    """The checkpoint with some entries of its header or its tensors changed."""
    stored = checkpoint.read_header(path).to_json() | (header or {})
    save_file(tensors or load_file(path), out, metadata={"mlsemi": json.dumps(stored)})
    return out


def test_round_trip(tiny_checkpoint, tiny_header, tiny_engine):
    header, engine = checkpoint.load(tiny_checkpoint, dtype=torch.float64)
    assert header == tiny_header
    assert checkpoint.read_header(tiny_checkpoint) == tiny_header
    for key, value in tiny_engine.state_dict().items():
        assert torch.equal(engine.state_dict()[key], value), key
    with torch.no_grad():
        energy = engine(engine.batch([WATER])).energy
    assert torch.equal(energy, tiny_engine(tiny_engine.batch([WATER])).energy)


def test_precision_of_the_network_is_chosen_on_loading(tiny_checkpoint):
    engine = checkpoint.load(tiny_checkpoint)[1]
    assert engine.network.dtype == torch.float32
    assert engine.baseline.density.dtype == torch.float64


def test_no_such_file(tmp_path):
    with pytest.raises(ValueError, match="no such checkpoint: .*nothing.safetensors"):
        checkpoint.load(tmp_path / "nothing.safetensors")


@pytest.mark.parametrize("kept", [0, 4, 100, -100])
def test_truncated(tiny_checkpoint, tmp_path, kept):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(tiny_checkpoint.read_bytes()[:kept])
    with pytest.raises(ValueError, match="cut.safetensors is not a readable checkpoint .truncated"):
        checkpoint.load(path)


def test_another_kind_of_safetensors_file(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="not a checkpoint of mlsemi"):
        checkpoint.read_header(path)


def test_newer_than_the_program(tiny_checkpoint, tmp_path):
    path = _rewritten(tiny_checkpoint, tmp_path / "new.safetensors", header={"format_version": 99})
    with pytest.raises(ValueError, match="checkpoint format 99, this mlsemi reads format 2: upgrade mlsemi"):
        checkpoint.load(path)


def test_another_order_of_orbitals(tiny_checkpoint, tmp_path):
    path = _rewritten(tiny_checkpoint, tmp_path / "order.safetensors", header={"ao_order": "other"})
    with pytest.raises(ValueError, match="AO order 'other'"):
        checkpoint.load(path)


def test_a_basis_that_is_not_the_one_of_its_hash(tiny_checkpoint, tmp_path):
    path = _rewritten(tiny_checkpoint, tmp_path / "basis.safetensors", header={"basis_hash": "0" * 16})
    with pytest.raises(ValueError, match="basis does not match its hash"):
        checkpoint.load(path)


def test_weights_that_do_not_fit(tiny_checkpoint, tmp_path):
    tensors = load_file(tiny_checkpoint)
    name = "network.embedding"
    less = {k: v for k, v in tensors.items() if k != name}
    with pytest.raises(ValueError, match="weights do not fit the header.*network.embedding"):
        checkpoint.load(_rewritten(tiny_checkpoint, tmp_path / "less.safetensors", tensors=less))
    other = tensors | {name: torch.zeros(1)}
    with pytest.raises(ValueError, match=r"network.embedding has shape \(1,\), expected"):
        checkpoint.load(_rewritten(tiny_checkpoint, tmp_path / "shape.safetensors", tensors=other))


def test_a_failed_save_leaves_the_old_file(tiny_header, tmp_path):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, tiny_header, {"x": torch.zeros(3)})
    before = path.read_bytes()
    unwritable = replace(tiny_header, errors={"x": object()})
    with pytest.raises(TypeError):
        checkpoint.save(path, unwritable, {"x": torch.zeros(3)})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
