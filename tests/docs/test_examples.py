"""The scripts of examples/ do what their pages say, with settings that take seconds."""

import csv
import importlib
from pathlib import Path

import pytest

from mlsemi.train.config import read_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def finetune_water(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    return importlib.import_module("finetune_water")


def steps_of(run):
    with (run / "curves.csv").open(newline="") as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def test_water_is_fine_tuned_and_goes_on(finetune_water, tmp_path, capsys):
    output = tmp_path / "tuned"
    small = ["--counts", "4", "--test-geometries", "4", "-o", str(output)]
    finetune_water.main([*small, "--steps", "2"])
    run = output / "water_cc_4"
    assert {p.name for p in output.iterdir()} == {"learning_curve.png", "water_cc_4", "water_cc_4.toml"}
    assert (output / "learning_curve.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "model.safetensors").is_file()
    assert read_config(output / "water_cc_4.toml").output == run.resolve()
    first = capsys.readouterr().out
    count, *errors = (float(word) for word in first.splitlines()[-2].split())
    assert count == 4
    assert all(0 < after < 0.5 * before for before, after in zip(errors[:3], errors[3:], strict=True))
    assert steps_of(run) == [1, 2]

    finetune_water.main([*small, "--steps", "3"])
    second = capsys.readouterr().out
    assert "step 3:" in second
    assert "step 2:" not in second
    assert steps_of(run) == [1, 2, 3]
    # the same model before, whatever the folder holds
    assert [float(word) for word in second.splitlines()[-2].split()][1:4] == errors[:3]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "no/such/folder"], "--output no/such/folder: there is no folder no/such to make it in"),
        (["--counts", "4", "1"], "--counts 1 must be 2 to 100"),
        (["--test-geometries", "0"], "--test-geometries 0 must be 1 to"),
        (["--steps", "0"], "steps = 0 must be positive"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(finetune_water, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        finetune_water.main(arguments)
    assert stopped.value.code in (1, 2)
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.png"))
