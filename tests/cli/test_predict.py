"""`mlsemi predict`: the table, the JSON and npz that others rely upon, and errors that lose nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import qcelemental
from typer.testing import CliRunner

from mlsemi.checkpoint import save
from mlsemi.cli import app
from mlsemi.layout import AOLayout
from mlsemi.model import Model, load
from mlsemi.molecule import Molecule
from mlsemi.reference.mean_field import to_pyscf_mole

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])
HYDROGEN = Molecule.from_angstrom([1, 1], [[0, 0, 0.1], [0, 0, 0.86]])


@pytest.fixture
def run(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments, model=tiny_checkpoint):
        return CliRunner().invoke(app, ["predict", *map(str, arguments), "--model", str(model)])

    return invoke


@pytest.fixture
def water(tmp_path):
    path = tmp_path / "water.xyz"
    path.write_text(WATER.to_xyz())
    return path


@pytest.fixture
def mixed(tmp_path):
    """Six frames, the small ones among the larger ones."""
    path = tmp_path / "mixed.xyz"
    path.write_text("".join(m.to_xyz() for m in (WATER, HYDROGEN, WATER, HYDROGEN, WATER, WATER)))
    return path


@pytest.fixture
def nothing_computed(monkeypatch):
    monkeypatch.setattr(Model, "_predict_batch", lambda *_: pytest.fail("something was computed"))


def _failed(result):
    """The one line of an error."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_the_table(run, water, tiny_checkpoint):
    result = run(water)
    assert result.exit_code == 0, result.output
    o = load(tiny_checkpoint).predict(WATER)
    for text in (
        "water.xyz#0: H2O, charge 0, spin 0", "tiny", "hf/sto-3g", f"{o.energy:.6f} Eh", f"{o.homo:.6f} Eh",
        f"{o.gap * 27.211386:.4f} eV", f"{np.linalg.norm(o.dipole):.5f} au", "Mulliken", "Loewdin",
        f"{o.charges_mulliken[0]:+.4f}", "time",
    ):  # fmt: skip
        assert text in result.stdout
    assert "error estimate" not in result.stdout
    assert result.stderr == ""


def test_many_frames_have_one_line_each_in_their_order(run, mixed):
    result = run(mixed)
    lines = result.stdout.splitlines()
    assert lines[0] == "tiny, fast, hf/sto-3g"
    assert [line.split()[:2] for line in lines[2:]] == [
        [f"mixed.xyz#{k}", "H2" if k in (1, 3) else "H2O"] for k in range(6)
    ]
    assert "6 frames in" in result.stderr


def test_json_of_one_frame(run, water):
    assert run(water, "--json", "out.json").exit_code == 0
    data = json.loads(Path("out.json").read_text())
    result = qcelemental.models.AtomicResult(**data)
    o = result.extras["mlsemi"]
    assert result.driver == "energy"
    assert result.return_result == result.properties.return_energy
    assert result.properties.scf_dipole_moment.shape == (3,)
    assert (result.model.method, result.model.basis) == ("hf", "sto-3g")
    assert (o["model"], o["mode"], o["energy_error_estimate"]) == ("tiny", "fast", None)
    assert o["gap"] == pytest.approx(o["lumo"] - o["homo"])
    assert len(o["charges_mulliken"]) == len(o["charges_loewdin"]) == 3
    assert o["seconds"] > 0


def test_json_of_forces_and_several_files(run, water, mixed):
    assert run(water, mixed, "--forces", "--json", "out.json").exit_code == 0
    results = [qcelemental.models.AtomicResult(**r) for r in json.loads(Path("out.json").read_text())]
    assert [len(r.molecule.symbols) for r in results] == [3, 3, 2, 3, 2, 3, 3]
    for r in results:
        assert r.driver == "gradient"
        assert r.return_result.shape == (len(r.molecule.symbols), 3)
        np.testing.assert_allclose(r.return_result.sum(0), 0, atol=1e-4)  # the network is in float32


def test_matrices_are_in_the_order_of_pyscf(run, water, mixed, tiny_header):
    assert run(water, mixed, "--matrices", "m").exit_code == 0
    files = sorted(p.name for p in water.parent.glob("*.npz"))
    assert files == [f"m-{k:04d}.npz" for k in range(7)]
    for name, molecule in (("m-0000.npz", WATER), ("m-0002.npz", HYDROGEN)):
        with np.load(name) as data:
            assert set(data.files) == {"fock", "overlap", "density", "mo_energy", "mo_coeff", "mo_occ", "ao_labels"}
            mole = to_pyscf_mole(molecule, tiny_header.basis)
            # 1e-8: the file has ten decimals [angstrom]
            np.testing.assert_allclose(data["overlap"], mole.intor("int1e_ovlp"), atol=1e-8)
            f, s, c = data["fock"], data["overlap"], data["mo_coeff"]
            np.testing.assert_allclose(f @ c, s @ c * data["mo_energy"], atol=1e-10)
            assert np.sum(data["density"] * s) == pytest.approx(mole.nelectron, abs=1e-10)
            assert len(data["ao_labels"]) == AOLayout(tiny_header.basis, molecule.numbers).n_ao


def test_variational(run, water):
    result = run(water, "--mode", "variational", "--json", "out.json", "--precision", "float64")
    assert result.exit_code == 0, result.output
    assert "error estimate" in result.stdout
    o = json.loads(Path("out.json").read_text())["extras"]["mlsemi"]
    assert o["mode"] == "variational"


def test_warnings_are_printed_together(run, tmp_path):
    (tmp_path / "far.xyz").write_text("4\n\nH 0 0 0\nH 0 0 0.74\nH 0 0 9\nH 0 0 9.74\n" * 5)
    result = run("far.xyz")
    assert result.exit_code == 0
    assert "warning: 5 frames, the first is far.xyz#0: 2 fragments without a bond" in result.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("3\n\nO 0 0 0\nH 0 0 1\n", "frame 0 is truncated: 3 atoms announced, 2 found"),
        ("1\n\nQq 0 0 0\n", "unknown element"),
        ("two\n", "expected the number of atoms"),
        ("2\n\nH 0 0 0\nH 0 0 0.01\n", "are only"),
        ("2\n\nC 0 0 0\nO 0 0 1.13\n", "holds C, which the model tiny does not cover; it covers H, O"),
        ("2\n\nO 0 0 0\nH 0 0 0.97\n", "spin must be odd"),
        ("2\ncharge=-2\nO 0 0 0\nO 0 0 1.3\n", "has charge -2, which the model tiny does not cover"),
        ("2\nspin=2\nO 0 0 0\nO 0 0 1.2\n", "it covers spin (2S) 0"),
    ],
)
def test_bad_geometries(run, water, nothing_computed, text, message):
    water.with_name("bad.xyz").write_text(text)
    error = _failed(run(water, "bad.xyz", "--json", "out.json"))
    assert message in error
    assert "bad.xyz" in error
    assert sorted(p.name for p in water.parent.iterdir()) == ["bad.xyz", "water.xyz"]


def test_scf(run, water):
    result = run(water, "--mode", "scf", "--compare", "--forces", "--dispersion", "--json", "out.json")
    assert result.exit_code == 0, result.output
    assert "Fock builds" in result.stdout and "PySCF's default guess" in result.stdout
    assert "D4 dispersion included" in result.stdout
    o = json.loads((water.parent / "out.json").read_text())["extras"]["mlsemi"]
    assert o["mode"] == "scf" and len(o["notes"]) == 2
    assert o["energy_error_estimate"] < 1e-8


def test_charge_and_spin_of_the_command_line(run, water, nothing_computed):
    assert "9 electrons (charge 1)" in _failed(run(water, "--charge", "1"))
    assert "has charge 2" in _failed(run(water, "--charge", "2"))
    assert "has spin (2S) 2" in _failed(run(water, "--spin", "2"))


def test_other_errors(run, water, tmp_path, nothing_computed):
    assert "no such geometry file: none.xyz" in _failed(run("none.xyz"))
    assert "no model 'none'" in _failed(run(water, model="none"))
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    assert "not a readable checkpoint" in _failed(run(water, model=tmp_path / "cut.safetensors"))
    assert "--compare is an option of --mode scf" in _failed(run(water, "--compare", "--mode", "variational"))
    assert "--conv-tol 0 must be a positive energy" in _failed(run(water, "--conv-tol", "0", "--mode", "scf"))
    assert "the model tiny has no correction" in _failed(run(water, "--mode", "corrected"))
    for option, name in (("--json", "no/out.json"), ("--matrices", "no/out")):
        assert f"{option}: the folder no does not exist" in _failed(run(water, option, name))
    (tmp_path / "folder").mkdir()
    assert "--json: folder is a folder" in _failed(run(water, "--json", "folder"))


@pytest.fixture
def no_hydrogen(monkeypatch):
    """H2 cannot be predicted, and nobody knows it beforehand."""
    inside = Model._predict_batch

    def failing(self, molecules, *options):
        if any(m.formula == "H2" for m in molecules):
            raise ValueError("singular")
        return inside(self, molecules, *options)

    monkeypatch.setattr(Model, "_predict_batch", failing)


def test_frames_that_fail_are_reported_and_the_others_go_on(run, mixed, no_hydrogen):
    result = run(mixed, "--json", "out.json", "--matrices", "m", "--forces")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert [("failed: mixed.xyz#" in line) for line in lines[2:]] == [False, True, False, True, False, False]
    assert "failed: mixed.xyz#1: singular" in lines[3] and lines[3].split()[:2] == ["mixed.xyz#1", "H2"]
    assert "error: 2 of 6 frames failed, the first: mixed.xyz#1: singular" in result.stderr
    records = json.loads(Path("out.json").read_text())
    assert [r["success"] for r in records] == [True, False, True, False, True, True]
    for record in records:
        kind = qcelemental.models.AtomicResult if record["success"] else qcelemental.models.FailedOperation
        found = kind(**record)
        if not record["success"]:
            assert "singular" in found.error.error_message
            asked = qcelemental.models.AtomicInput(**found.input_data)
            assert asked.driver == "gradient" and asked.molecule.get_molecular_formula() == "H2"
    assert sorted(p.name for p in mixed.parent.glob("*.npz")) == [f"m-{k:04d}.npz" for k in (0, 2, 4, 5)]


def test_few_frames_that_fail(run, water, tmp_path, no_hydrogen):
    (tmp_path / "h2.xyz").write_text(HYDROGEN.to_xyz())
    result = run("h2.xyz", water)
    assert result.exit_code == 1
    assert "failed: h2.xyz#0: singular" in result.stdout and "dipole moment" in result.stdout
    assert "error: h2.xyz#0: singular" in _failed(run("h2.xyz"))
    assert run("h2.xyz", "--json", "out.json").exit_code == 1
    assert json.loads(Path("out.json").read_text())["success"] is False


def test_an_interruption(run, water, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "_predict_batch", interrupted)
    result = run(water, "--json", "out.json")
    assert result.exit_code == 130
    assert "interrupted" in result.stderr
    assert [p.name for p in water.parent.iterdir()] == ["water.xyz"]


def test_help_is_instant():
    code = (
        "import sys; from mlsemi.cli import app; "
        "assert not {'torch', 'numpy', 'scipy', 'ase', 'rich.table'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


RADICAL = Molecule.from_angstrom([8, 8, 1], [[0.0, 0.66, 0.0], [0.1, -0.66, 0.0], [0.9, 0.92, 0.1]], spin=1)


@pytest.fixture(scope="module")
def open_checkpoint(open_header, open_engine, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "open.safetensors"
    save(path, open_header, open_engine.state_dict())
    return path


@pytest.fixture
def radical(tmp_path):
    path = tmp_path / "radical.xyz"
    path.write_text(RADICAL.to_xyz())
    return path


def test_an_open_shell(run, radical, open_checkpoint):
    result = run(radical, "--spin", 1, "--forces", "--json", "out.json", "--matrices", "m", model=open_checkpoint)
    assert result.exit_code == 0, result.output
    o = load(open_checkpoint).predict(RADICAL)
    for text in ("charge 0, spin 1", "<S^2>", f"{o.spin_square:.4f}", "0.75 if pure", "spin Mulliken", "spin Loewdin",
                 f"{o.spins_mulliken[0]:+.4f}", f"{o.homo:.6f} Eh"):  # fmt: skip
        assert text in result.stdout
    data = qcelemental.models.AtomicResult(**json.loads(Path("out.json").read_text()))
    assert data.molecule.molecular_multiplicity == 2
    assert (data.properties.calcinfo_nalpha, data.properties.calcinfo_nbeta) == (9, 8)
    extras = data.extras["mlsemi"]
    assert extras["spin_square"] == pytest.approx(o.spin_square, abs=1e-5)  # float32, coordinates of ten digits
    assert sum(extras["spins_mulliken"]) == pytest.approx(1)
    with np.load("m-0000.npz") as matrices:
        assert matrices["fock"].shape == (2, 11, 11)
        assert matrices["mo_occ"].sum(1).tolist() == [9, 8]


def test_many_frames_with_open_shells(run, tmp_path, open_checkpoint):
    path = tmp_path / "both.xyz"
    frames = [(WATER, "charge=0"), (RADICAL, "spin=1")] * 2
    path.write_text("".join(m.to_xyz(f"Properties=species:S:1:pos:R:3 {text}") for m, text in frames))
    result = run(path, model=open_checkpoint)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    column = lines[1].split().index("<S^2>")
    assert [float(line.split()[column]) > 0.5 for line in lines[2:]] == [False, True, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), r"17 electrons .* spin must be odd.* the options are --charge and --spin \(unpaired electrons, 2S\)"),
        (("--charge", 20), "leaves -3 electrons.* the options are --charge and --spin"),
        (("--spin", 3), r"has spin \(2S\) 3, which the model open does not cover; it covers spin \(2S\) 0, 1, 2"),
    ],
)
def test_impossible_and_uncovered_spins(run, radical, open_checkpoint, nothing_computed, options, message):
    assert re.search(message, _failed(run(radical, *options, model=open_checkpoint)))


def test_an_output_does_not_overwrite_an_input(run, water):
    before = water.read_bytes()
    result = run(water, "--json", water)
    assert result.exit_code == 1
    assert "--json" in result.output and "is a file that is read; take another name" in result.output
    assert water.read_bytes() == before
