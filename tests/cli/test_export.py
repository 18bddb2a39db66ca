"""`mlsemi export`: each format holds the prediction; what does not go together is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from ase.io.cube import read_cube
from pyscf.tools import molden
from typer.testing import CliRunner

from mlsemi.checkpoint import save
from mlsemi.cli import app
from mlsemi.interop.ase import read_molecules
from mlsemi.model import Model, load
from mlsemi.molecule import Molecule
from mlsemi.units import HARTREE_IN_EV

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])
HYDROXYL = Molecule.from_angstrom([8, 1], [[0.0, 0.1, 0.0], [0.5, 0.6, 0.6]], spin=1)


@pytest.fixture
def run(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "water.xyz").write_text(WATER.to_xyz())
    (tmp_path / "two.xyz").write_text(WATER.to_xyz() * 2)
    (tmp_path / "oh.xyz").write_text(HYDROXYL.to_xyz("spin=1"))
    return lambda *arguments, model=tiny_checkpoint: CliRunner().invoke(
        app, ["export", *map(str, arguments), "--model", str(model)]
    )


@pytest.fixture
def expected(tiny_checkpoint):
    return load(tiny_checkpoint).predict(WATER, forces=True)


@pytest.fixture
def open_checkpoint(open_header, open_engine, tmp_path):
    save(tmp_path / "open.safetensors", open_header, open_engine.state_dict())
    return tmp_path / "open.safetensors"


def done(result):
    assert result.exit_code == 0, result.output
    return result


def test_molden(run, expected):
    done(run("water.xyz", "-o", "w.molden"))
    _, energy, _, occ, _, _ = molden.load("w.molden")
    np.testing.assert_allclose(energy, expected.mo_energy[0], atol=1e-6)  # float32 in batches of other sizes
    assert occ.sum() == 10


def test_cubes(run, expected):
    for option, charge in (("--density", 10), ("--orbital=homo", 1), ("--potential", None)):
        done(run("water.xyz", "-o", "w.cube", option, "--step", 0.6, "--margin", 4))
        with open("w.cube") as file:
            data = read_cube(file, read_data=True)["data"]
        if charge == 1:
            data = data**2
        if charge is not None:
            assert data.sum() * 0.6**3 == pytest.approx(charge, rel=0.1)  # a coarse grid, worst at the nuclei
    assert "orbital 5" not in Path("w.cube").read_text().splitlines()[0]
    done(run("water.xyz", "-o", "other", "--format", "cube", "--orbital", 5, "--step", 1))
    assert "orbital 5" in Path("other").read_text().splitlines()[0]


def test_cubes_of_open_shells(run, open_checkpoint):
    options = ("oh.xyz", "-o", "w.cube", "--step", 0.6)
    done(run(*options, "--spin-density", model=open_checkpoint))
    with open("w.cube") as file:
        assert read_cube(file, read_data=True)["data"].sum() * 0.6**3 == pytest.approx(1, rel=0.1)
    done(run(*options, "--orbital", "lumo", "--orbital-spin", "beta", model=open_checkpoint))
    assert "orbital 5 beta" in Path("w.cube").read_text().splitlines()[0]


def test_qcschema_has_the_wavefunction(run, expected):
    done(run("water.xyz", "-o", "w.json", "--forces"))
    result = json.loads(Path("w.json").read_text())
    np.testing.assert_allclose(result["return_result"], expected.gradient.ravel(), atol=1e-6)
    wfn = result["wavefunction"]
    np.testing.assert_allclose(2 * np.reshape(wfn["scf_density_a"], (7, 7)), expected.density[0], atol=1e-6)
    done(run("two.xyz", "-o", "w.json"))
    assert len(json.loads(Path("w.json").read_text())) == 2


def test_extxyz_and_npz(run, expected):
    done(run("two.xyz", "-o", "w.extxyz", "--forces"))
    frames = read("w.extxyz", index=":")
    assert len(frames) == 2 and frames[0].info["model"] == "tiny" and frames[0].info["mode"] == "fast"
    assert frames[1].get_potential_energy() == pytest.approx(expected.energy * HARTREE_IN_EV, abs=1e-5)
    np.testing.assert_allclose(frames[1].get_charges(), expected.charges_mulliken, atol=1e-6)
    again = read_molecules("w.extxyz")[0]
    np.testing.assert_allclose(again.positions, WATER.positions, atol=1e-9)
    done(run("two.xyz", "-o", "w.npz", "--frame", 1))
    with np.load("w.npz") as data:
        np.testing.assert_allclose(data["mo_energy"], expected.mo_energy[0], atol=1e-6)


def test_trexio(run, expected):
    trexio = pytest.importorskip("trexio")
    done(run("water.xyz", "-o", "w.h5"))
    with trexio.File("w.h5", "r", trexio.TREXIO_HDF5) as file:
        np.testing.assert_allclose(trexio.read_mo_energy(file), expected.mo_energy[0], atol=1e-6)


def test_wrong_calls_are_refused_before_anything_is_computed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(Model, "_predict_batch", lambda *_: pytest.fail("something was computed"))
    before = sorted(tmp_path.iterdir())
    for arguments, message in (
        (("water.xyz", "-o", "w.out"), "--format is needed: 'w.out' does not say it"),
        (("water.xyz", "-o", "w.cube"), "a cube is of one of --orbital NAME, --density"),
        (("water.xyz", "-o", "w.cube", "--density", "--potential"), "a cube is of one of"),
        (("water.xyz", "-o", "w.cube", "--density", "--orbital", "homo"), "a cube is of one of"),
        (("water.xyz", "-o", "w.cube", "--density", "--orbital-spin", "beta"), "--orbital-spin goes with --orbital"),
        (("water.xyz", "-o", "w.cube", "--density", "--step", 0), "--step 0 must be a positive length"),
        (("water.xyz", "-o", "w.cube", "--density", "--step", 1e-3), "e+12 points, and 5e+07 are the most; take a"),
        (("water.xyz", "-o", "w.cube", "--orbital", "sumo"), "orbital='sumo' must be homo"),
        (("water.xyz", "-o", "w.molden", "--density"), "--density is an option of --format cube"),
        (("water.xyz", "-o", "w.json", "--step", 1), "--step is an option of --format cube, and the format is qcs"),
        (("water.xyz", "-o", "w.molden", "--forces"), "the format molden has no forces"),
        (("two.xyz", "-o", "w.molden"), "two.xyz has 2 frames, and molden is of one"),
        (("two.xyz", "-o", "w.molden", "--frame", 5), "has the frames 0 to 1"),
        (("water.xyz", "-o", "none/w.molden"), "the folder none does not exist"),
        (("water.xyz", "-o", "water.xyz"), "is a file that is read; take another name"),
        (("oh.xyz", "-o", "w.molden"), "does not cover"),
    ):
        result = run(*arguments)
        assert result.exit_code == 1 and message in result.stderr, result.output
    assert sorted(tmp_path.iterdir()) == before
