"""`mlsemi report`: a page or a reason, and nothing in between."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from mlsemi.cli import app
from mlsemi.molecule import Molecule

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])
HYDROGEN = Molecule.from_angstrom([1, 1], [[0, 0, 0.1], [0, 0, 0.86]])


@pytest.fixture
def run(tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "two.xyz").write_text(WATER.to_xyz() + HYDROGEN.to_xyz())

    def invoke(*arguments):
        return CliRunner().invoke(app, ["report", *map(str, arguments), "--model", str(tiny_checkpoint)])

    return invoke


def test_writes_a_page(run, tmp_path):
    result = run("two.xyz", "--frame", 1, "--orbitals", 1, "--title", "a & b")
    assert result.exit_code == 0, result.output
    assert "shows frame 1" in result.stderr and "written: two.html" in result.stderr
    page = (tmp_path / "two.html").read_text(encoding="utf-8")
    assert "<h1>a &amp; b</h1>" in page and "H<sub>2</sub>" in page and "frame 1 of 2 in two.xyz" in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["two.html", "two.xyz"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.xyz"], "no such geometry file"),
        (["two.xyz", "--frame", "2"], "--frame 2: two.xyz has 2 frames"),
        (["two.xyz", "-o", "no/where.html"], "--output: the folder no does not exist"),
        (["two.xyz", "-o", "."], "is a folder"),
        (["two.xyz", "-o", "two.xyz"], "--output: two.xyz is a file that is read; take another name"),
        (["two.xyz", "--isovalue", "-1"], "--isovalue -1 must be positive"),
        (["two.xyz", "--charge", "1"], "the options are --charge and --spin"),
        (["two.xyz", "--spin", "2"], "does not cover"),
    ],
)
def test_errors_write_nothing(run, tmp_path, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1 and message in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["two.xyz"]
