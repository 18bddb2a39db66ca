"""`mlsemi properties`: what is printed and written is the analysis of the prediction; errors lose nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from mlsemi.analysis import analyze
from mlsemi.checkpoint import save
from mlsemi.cli import app
from mlsemi.model import load
from mlsemi.molecule import Molecule

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])
HYDROGEN = Molecule.from_angstrom([1, 1], [[0, 0, 0.1], [0, 0, 0.86]])


@pytest.fixture
def run(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("frames.xyz").write_text(WATER.to_xyz() + HYDROGEN.to_xyz() + WATER.to_xyz())
    Path("water.xyz").write_text(WATER.to_xyz())

    def invoke(*arguments, model=tiny_checkpoint):
        return CliRunner().invoke(app, ["properties", *map(str, arguments), "--model", str(model)])

    return invoke


@pytest.fixture
def expected(tiny_checkpoint):
    model = load(tiny_checkpoint)

    def of(molecule):
        return analyze(molecule, model.predict(molecule), model.header.basis)

    return of


def test_the_tables(run, expected):
    result = run("water.xyz")
    assert result.exit_code == 0, result.output
    a = expected(WATER)
    for text in (
        "water.xyz#0: H2O, charge 0, spin 0", "hf/sto-3g", f"{a.homo:.6f} Eh", f"{a.hardness:.6f} Eh",
        f"{a.electronegativity * 27.211386:.4f} eV", f"{a.electrophilicity:.6f} Eh", "dipole/D",
        f"{a.quadrupole[0, 0] * 2.541746 * 0.52917721:.4f}", f"{a.charges_iao[0]:+.4f}", f"{a.valences[0]:.4f}",
        f"{a.fukui_mulliken.minus[0]:+.4f}", f"{a.fukui_loewdin.zero[1]:+.4f}", "0-1", "O-H",
        f"{a.bond_orders_mayer[0, 1]:.4f}", f"{a.bond_orders_wiberg[0, 2]:.4f}",
    ):  # fmt: skip
        assert text in result.stdout, text
    assert "1-2" not in result.stdout  # no bond between the hydrogen atoms
    assert "unpaired" not in result.stdout and "free valence" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert "1-2" in run("water.xyz", "--bonds", "0").stdout


def test_json_of_several_frames_is_in_their_order(run, expected):
    result = run("frames.xyz", "--json", "out.json", "--mode", "fast")
    assert result.exit_code == 0, result.output
    titles = [line.split(":")[0] for line in result.stdout.splitlines() if "charge 0, spin 0" in line]
    assert titles == ["frames.xyz#0", "frames.xyz#1", "frames.xyz#2"]
    data = json.loads(Path("out.json").read_text())
    assert [len(d["symbols"]) for d in data] == [3, 2, 3]
    for d, molecule in zip(data, (WATER, HYDROGEN, WATER), strict=True):
        a = expected(molecule)
        # the network is in float32, and the file of the geometry has ten decimals
        np.testing.assert_allclose(d["properties"]["bond_orders_mayer"], a.bond_orders_mayer, atol=1e-4)
        np.testing.assert_allclose(d["properties"]["quadrupole"], a.quadrupole, atol=1e-3)
        np.testing.assert_allclose(d["positions"], molecule.positions, atol=1e-9)
        assert (d["model"], d["mode"], d["method"], d["basis"]) == ("tiny", "fast", "hf", "sto-3g")


def test_open_shells(run, open_header, open_engine, tmp_path):
    path = tmp_path / "open.safetensors"
    save(path, open_header, open_engine.state_dict())
    result = run("water.xyz", "--charge", "1", "--spin", "1", model=path)
    assert result.exit_code == 0, result.output
    for text in ("charge 1, spin 1", "<S^2>", "0.75 if pure", "unpaired electrons", "free valence"):
        assert text in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.xyz"], "no such geometry file"),
        (["water.xyz", "--spin", "1"], "--charge and --spin"),
        (["water.xyz", "--json", "nowhere/out.json"], "the folder nowhere does not exist"),
        (["water.xyz", "--json", "water.xyz"], "--json: water.xyz is a file that is read; take another name"),
    ],
)
def test_errors(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr.startswith("error: ") and message in result.stderr and result.stderr.count("\n") == 1


def test_lack_of_memory_is_one_line(run, monkeypatch):
    def lacking(*_, **__):
        raise MemoryError

    monkeypatch.setattr("mlsemi.model.load", lacking)
    result = run("water.xyz")
    assert result.exit_code == 1 and result.stderr == "error: MemoryError\n"
