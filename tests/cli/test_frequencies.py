"""`mlsemi frequencies`: tables, JSON and errors."""

import json

import numpy as np
import pytest
import qcelemental
from typer.testing import CliRunner

from mlsemi.cli import app
from mlsemi.model import load
from mlsemi.molecule import Molecule
from mlsemi.vibrations import frequencies

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])


@pytest.fixture
def run(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "water.xyz").write_text(WATER.to_xyz())
    (tmp_path / "oxygen.xyz").write_text(Molecule.from_angstrom([8], [[0, 0, 0]]).to_xyz())
    return lambda *arguments: CliRunner().invoke(app, ["frequencies", *arguments, "--model", str(tiny_checkpoint)])


def test_tables_and_json(run, tiny_checkpoint, tmp_path):
    result = run("water.xyz", "--json", "out.json", "--temperature", "350", "--symmetry-number", "2")
    assert result.exit_code == 0, result.output
    found = frequencies(load(tiny_checkpoint, precision="float64"), WATER)
    gas = found.thermochemistry(temperature=350, symmetry_number=2)
    for text in (
        "H2O, charge 0, spin 0", "tiny, fast, hf/sto-3g", "wavenumber/cm^-1", "350 K and 101325 Pa",
        "symmetry number 2",
        f"{gas.gibbs_energy:.6f} Eh", f"{gas.zero_point_energy:.6f} Eh", f"{gas.entropy:.4e} Eh/K",
        *(f"{x:.2f}" for x in found.vibrations.wavenumbers), *(f"{x:.2f}" for x in found.intensities),
    ):  # fmt: skip
        assert " ".join(text.split()) in " ".join(result.stdout.split())
    assert "no stationary point" in result.stderr and "written: out.json" in result.stderr
    record = json.loads((tmp_path / "out.json").read_text())
    qcelemental.models.AtomicResult(**record)
    np.testing.assert_allclose(np.reshape(record["return_result"], (3, 3, 3, 3)), found.force_field.hessian, atol=1e-8)
    extras = record["extras"]["mlsemi"]
    np.testing.assert_allclose(extras["vibrations"]["infrared_km_per_mol"], found.intensities, rtol=1e-6)
    assert extras["thermochemistry"]["gibbs_energy_Eh"] == pytest.approx(gas.gibbs_energy)


def test_relaxed_first(run):
    result = run("water.xyz", "--optimize", "--masses", "average")
    assert result.exit_code == 0, result.output
    assert "stationary" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("missing.xyz",), "no such geometry file"),
        (("water.xyz", "--temperature", "0"), "--temperature 0 must be positive"),
        (("water.xyz", "--pressure", "-1"), "--pressure -1 must be positive"),
        (("water.xyz", "--json", "none/out.json"), "folder none does not exist"),
        (("water.xyz", "--json", "./water.xyz"), "--json: water.xyz is a file that is read; take another name"),
        (("water.xyz", "--charge", "1", "--spin", "1"), "does not cover"),
    ],
)
def test_errors_are_one_line(run, arguments, text):
    result = run(*arguments)
    assert result.exit_code == 1 and result.stdout == ""
    assert text in result.stderr and result.stderr.count("\n") == 1


def test_atoms(run):
    result = run("oxygen.xyz", "--optimize")
    assert result.exit_code == 0, result.output
    assert "an atom has no vibrations" in result.stdout
