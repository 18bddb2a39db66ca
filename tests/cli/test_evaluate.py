"""`mlsemi evaluate`: the table, the files, and errors of one line."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mlsemi.cli import app
from mlsemi.data.store import LabelStore, Record, write_store
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables

MOLECULES = [
    Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]], name="O"),
    Molecule.from_angstrom([1, 1], [[0, 0, 0.1], [0, 0.1, 0.86]], name="[H][H]"),
]


@pytest.fixture(scope="module")
def labels(tiny_header, tiny_engine, tmp_path_factory):
    """Labels that the tiny model meets but for 1 mEh in every diagonal element of F and in the energy."""
    records = []
    for molecule in MOLECULES:
        with torch.no_grad():
            found = tiny_engine(tiny_engine.batch([molecule]))
        fock = found.state.fock[0, 0].numpy()
        records.append(
            Record(
                molecule,
                Observables(energy=float(found.energy[0]) - 1e-3, fock=(fock + 1e-3 * np.eye(len(fock)))[None]),
            )
        )
    attrs = {
        "method": "hf",
        "resolved_functional": "HF",
        "gradient": False,
        "versions": "{}",
        "basis_json": json.dumps(tiny_header.basis.to_json()),
    }
    path = tmp_path_factory.mktemp("labels") / "labels.h5"
    write_store(path, records, attrs)
    return path


@pytest.fixture
def run(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: CliRunner().invoke(app, ["evaluate", str(tiny_checkpoint), *map(str, arguments)])


def test_writes_all_and_prints_a_table(run, labels, tmp_path):
    result = run(labels, "-o", "out")
    assert result.exit_code == 0, result.output
    assert "H, AO elements: MAE" in result.output
    assert "heavy atoms" in result.output
    data = json.loads((tmp_path / "out" / "metrics.json").read_text())
    # 1 mEh in n of n^2 elements; 7 and 2 orbitals; the network of the command line is float32
    assert data["metrics"]["h_mae_uEh"] == pytest.approx(1000 * (1 / 7 + 1 / 2) / 2, rel=1e-2)
    assert data["metrics"]["h_max_uEh"] == pytest.approx(1000, rel=1e-2)
    assert data["metrics"]["energy_fast_mae_mEh"] == pytest.approx(1.0, rel=2e-2)
    assert (data["molecules"], data["split"]) == (2, "all")
    assert data["model"]["name"] == "tiny"
    assert len(data["labels"][0]["sha256"]) == 64
    assert set(data["by_heavy_atoms"]) == {"0", "1"}
    assert "dipole_mae_D" not in data["metrics"]
    with (tmp_path / "out" / "per_molecule.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["O", "[H][H]"]
    assert float(rows[1]["h_mae"]) == pytest.approx(5e-4, rel=1e-2)
    assert (tmp_path / "out" / "parity.png").read_bytes().startswith(b"\x89PNG")


def test_several_files_are_taken_together(run, labels, tmp_path):
    copy = shutil.copy(labels, tmp_path / "copy.h5")
    assert run(labels, copy, "-o", "out").exit_code == 0
    data = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert data["molecules"] == 4
    assert len(data["labels"]) == 2
    # the same molecules twice have the same mean
    assert data["metrics"]["h_mae_uEh"] == pytest.approx(1000 * (1 / 7 + 1 / 2) / 2, rel=1e-2)


def test_the_folder_has_a_name_by_default(run, labels, tmp_path):
    assert run(labels, "--limit", 1, "--split", "train").exit_code == 0
    assert json.loads((tmp_path / "tiny-on-labels" / "metrics.json").read_text())["molecules"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.h5",), "no such label file"),
        (("LABELS", "--split", "validation"), "is in split='validation'"),
        (("LABELS", "LABELS"), "labels.h5 is given twice: give every file once"),
    ],
)
def test_errors_have_one_line(run, labels, tmp_path, arguments, message):
    result = run(*(str(labels) if a == "LABELS" else a for a in arguments))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_file_is_the_same_under_another_path(run, labels, tmp_path):
    (tmp_path / "link.h5").symlink_to(labels)
    result = run(labels, "link.h5")
    assert result.exit_code == 1 and "label file link.h5 is given twice" in result.stderr


def test_refused_labels_leave_no_folder(run, labels, tmp_path):
    other = tmp_path / "other.h5"
    with LabelStore.open(labels) as store:
        attrs = {**store.attrs, "method": "pbe", "resolved_functional": "PBE"}
        write_store(other, [store.record(i) for i in range(len(store))], attrs)
    result = run(other, "-o", "runs/out")
    assert result.exit_code == 1 and "was made with 'pbe'" in result.stderr
    assert sorted(tmp_path.iterdir()) == [other]
    result = run(labels, "-o", "other.h5/out")
    assert result.exit_code == 1 and "--output other.h5/out: other.h5 is a file" in result.stderr


def test_a_truncated_model_is_refused(labels, tmp_path, tiny_checkpoint):
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(tiny_checkpoint.read_bytes()[:1000])
    result = CliRunner().invoke(app, ["evaluate", str(broken), str(labels)])
    assert result.exit_code == 1
    assert "not a readable checkpoint" in result.stderr
