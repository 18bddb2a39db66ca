"""`mlsemi models`."""

import json

import pytest
from typer.testing import CliRunner

from mlsemi import model as model_module
from mlsemi.cli import app


@pytest.fixture
def weights(tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(model_module, "weights_directory", lambda: tmp_path)
    (tmp_path / "tiny.safetensors").write_bytes(tiny_checkpoint.read_bytes())
    (tmp_path / "tiny.md").write_text("# tiny\n\nNot trained.\n")
    return tmp_path


def _run(*arguments):
    return CliRunner().invoke(app, ["models", *arguments])


def test_the_list(weights):
    result = _run()
    assert result.exit_code == 0
    for text in ("tiny", "hf/sto-3g", "H O", "100", "H MAE [uEh]: 12.5"):
        assert text in result.stdout


def test_as_json(weights):
    (entry,) = json.loads(_run("--json").stdout)
    assert entry["name"] == "tiny"
    assert entry["labels"] == {"train": 90, "validation": 10}
    assert entry["elements"] == ["H", "O"]
    assert entry["errors"] == {"H MAE [uEh]": 12.5}
    assert json.loads(_run("tiny", "--json").stdout) == [entry]


def test_a_fine_tuned_model_names_the_method_of_its_energies():
    (entry,) = json.loads(_run("water-ccsdt-ccpvtz", "--json").stdout)
    assert (entry["method"], entry["energy_method"]) == ("pbe", "CCSD(T)/cc-pvtz, frozen core")
    assert "CCSD(T)" in _run().stdout


def test_a_card(weights):
    assert _run("tiny").stdout.startswith("# tiny\n\nNot trained.")
    (weights / "tiny.md").unlink()
    assert "tiny has no model card" in _run("tiny").stdout


def test_a_name_that_is_not_shipped(weights):
    result = _run("huge")
    assert result.exit_code == 1
    assert result.stderr == "error: no shipped model 'huge'; shipped are: tiny\n"


def test_a_damaged_file(weights):
    (weights / "tiny.safetensors").write_bytes(b"broken")
    result = _run()
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and "not a readable checkpoint" in result.stderr


def test_nothing_is_shipped(tmp_path, monkeypatch):
    monkeypatch.setattr(model_module, "weights_directory", lambda: tmp_path)
    result = _run()
    assert result.exit_code == 0
    assert "no models are shipped" in result.stderr
