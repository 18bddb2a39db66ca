"""`mlsemi train`: from labels to a checkpoint, and errors of one line that lose nothing."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mlsemi.checkpoint import read_header
from mlsemi.cli import app
from mlsemi.train.objective import Objective

WATER = Path(__file__).parents[2] / "reference_data" / "water" / "water_pbe_def2svp_500.h5"


def configure(folder, *, steps=4, more=""):
    path = folder / "water.toml"
    path.write_text(
        f"""
output = "run"
[data]
labels = ["{WATER}"]
limit = 8
validation = 0.25
[network]
natural = 8
unnatural = 4
bond = [12, 4, 8, 6]
layers = 1
product = 4
radial = 8
n_radial = 8
[training]
steps = {steps}
batch = 3
validate_every = 2
threads = 1
{more}
"""
    )
    return path


def invoke(path):
    return CliRunner().invoke(app, ["train", str(path)])


def test_trains_and_says_what_came_of_it(tmp_path):
    result = invoke(configure(tmp_path))
    assert result.exit_code == 0, result.output
    run = tmp_path / "run"
    assert {p.name for p in run.iterdir()} == {
        "model.safetensors",
        "best.safetensors",
        "curves.csv",
        "curves.png",
        "state.pt",
    }
    assert read_header(run / "model.safetensors").training["steps"] == 4
    assert "4 steps" in result.output
    assert "mlsemi evaluate" in result.output
    assert "prepare 8/8" in result.output
    assert "train 4/4" in result.output or "step 4," in result.output


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    path = configure(tmp_path, steps=100000)
    process = subprocess.Popen(
        [sys.executable, "-c", "from mlsemi.cli import main; main()", "train", str(path)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    state = tmp_path / "run" / "state.pt"
    deadline = time.monotonic() + 60
    while not state.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "is done and saved; run `mlsemi train" in err
    assert "Traceback" not in err
    with (tmp_path / "run" / "curves.csv").open() as file:
        assert len(list(csv.DictReader(file))) >= 1


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda text: text.replace("limit", "limits"), r"unknown key(s) ['limits'] in [data]"),
        (lambda text: text.replace(str(WATER), "none.h5"), "no such label file"),
        (lambda text: "baseline = 'sap'\n" + text, "'residual:atoms/1'"),
        (lambda text: text + "[loss]\nao = nan\n", "[loss] ao = nan must be finite"),
        (lambda text: text.replace("4, 8, 6]", "-4, 8, 6]"), "bond=[12, -4, 8, 6] must hold numbers of channels"),
        (lambda text: text.replace('"run"', '"water.toml"'), "water.toml is a file: give the name of a folder"),
    ],
)
def test_errors_have_one_line(tmp_path, edit, message):
    path = configure(tmp_path)
    path.write_text(edit(path.read_text()))
    result = invoke(path)
    assert result.exit_code == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert "Traceback" not in result.output
    assert [p.name for p in tmp_path.iterdir()] == ["water.toml"]


def test_skipped_steps_are_told(tmp_path, monkeypatch):
    finite, calls = Objective.total, []

    def total(self, terms):
        calls.append(terms)
        return finite(self, terms) * (float("nan") if len(calls) == 2 else 1.0)

    monkeypatch.setattr(Objective, "total", total)
    result = invoke(configure(tmp_path))
    assert result.exit_code == 0, result.output
    assert ", 1 of them skipped, since loss or gradient was not finite" in result.output


def test_a_missing_configuration(tmp_path):
    result = invoke(tmp_path / "none.toml")
    assert result.exit_code == 1
    assert "error: no such configuration" in result.stderr


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    path = configure(tmp_path)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda where: usage(10, 10, 0))
    monkeypatch.setattr("mlsemi.train.loop.train", fail_as_torch_does)
    (tmp_path / "run").mkdir()
    result = invoke(path)
    assert result.exit_code == 1
    assert "is full (unexpected pos 64 vs 0): free some space and run the same command again" in result.stderr


def fail_as_torch_does(config, **options):
    """What torch.save says when the disk is full."""
    raise RuntimeError("unexpected pos 64 vs 0")


def test_a_lack_of_memory_has_one_line(tmp_path, monkeypatch):
    def lacking(*_arguments, **_options):
        raise MemoryError("Gauss-Newton needs 9 GB")

    monkeypatch.setattr("mlsemi.train.loop.train", lacking)
    result = invoke(configure(tmp_path))
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == "error: Gauss-Newton needs 9 GB"
