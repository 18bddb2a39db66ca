"""`mlsemi optimize` and `mlsemi md`: files, restart after kill -9 and Ctrl-C, errors that lose nothing."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from ase.io import read
from typer.testing import CliRunner

from mlsemi.cli import app
from mlsemi.interop.ase import read_molecules
from mlsemi.molecule import Molecule

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])
MODEL = ("--model", "water-pbe-def2svp")


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "water.xyz").write_text(WATER.to_xyz())
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments), *MODEL])


def failed(result):
    assert result.exit_code == 1, result.output
    assert result.stderr.count("error: ") == 1 and "Traceback" not in result.output
    return result.stderr


def test_optimize_writes_the_minimum(run, tmp_path):
    result = run("optimize", "water.xyz", "-o", "out.xyz", "--trajectory", "steps.xyz")
    assert result.exit_code == 0, result.output
    assert "H2O: converged after" in result.stdout and "energy         -76.2" in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.log", "out.xyz", "steps.xyz", "water.xyz"]
    atoms, steps = read("out.xyz"), read("steps.xyz", index=":")
    assert atoms.info["converged"] and atoms.info["step"] == len(steps) - 1
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() < 0.01
    assert atoms.get_distance(0, 1) == pytest.approx(0.97468, abs=1e-3)  # the scf mode's
    np.testing.assert_allclose(atoms.positions, steps[-1].positions, atol=1e-9)
    assert (tmp_path / "out.log").read_text().count("\n") == len(steps) + 1
    again = run("optimize", "out.xyz", "-o", "out2.xyz", "--optimizer", "lbfgs")
    assert "converged after 0 steps" in again.stdout and read_molecules("out2.xyz")[0].formula == "H2O"


def test_optimize_that_does_not_converge_says_so_and_goes_on(run, tmp_path):
    whole = run("optimize", "water.xyz", "-o", "whole.xyz")
    message = failed(run("optimize", "water.xyz", "-o", "out.xyz", "--steps", 2))
    assert "not converged after 2 steps" in message and "--restart" in message
    assert not read("out.xyz").info["converged"]
    assert "remove it to start anew" in failed(run("optimize", "water.xyz", "-o", "out.xyz"))
    result = run("optimize", "water.xyz", "-o", "out.xyz", "--restart")
    assert result.exit_code == 0 and whole.exit_code == 0
    assert (tmp_path / "out.xyz").read_text() == (tmp_path / "whole.xyz").read_text()
    assert (tmp_path / "out.log").read_text() == (tmp_path / "whole.log").read_text()
    assert "nothing to go on with" in failed(run("optimize", "water.xyz", "-o", "out.xyz", "--restart"))


def test_md_writes_frames_and_goes_on(run, tmp_path):
    options = ("--ensemble", "nvt", "--every", 2, "--seed", 5, "--temperature", 350)
    result = run("md", "water.xyz", "-o", "a.xyz", "--steps", 10, *options)
    assert result.exit_code == 0, result.output
    assert "H2O: 10 steps, 5 fs, 6 frames" in result.stdout and "mean temperature" in result.stdout
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.log", "a.restart", "a.xyz", "water.xyz"]
    assert run("md", "water.xyz", "-o", "b.xyz", "--steps", 4, *options).exit_code == 0
    assert "start anew" in failed(run("md", "water.xyz", "-o", "b.xyz", "--steps", 10, *options))
    changed = failed(run("md", "water.xyz", "-o", "b.xyz", "--steps", 10, *options, "--seed", 6, "--restart"))
    assert "seed was 5 before and is 6 now" in changed
    assert run("md", "water.xyz", "-o", "b.xyz", "--steps", 10, *options, "--restart").exit_code == 0
    for suffix in ("xyz", "log"):
        assert (tmp_path / f"a.{suffix}").read_text() == (tmp_path / f"b.{suffix}").read_text()
    assert [m.formula for m in read_molecules("a.xyz")] == ["H2O"] * 6


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "Ctrl-C"])
def test_md_that_is_ended_loses_nothing(run, tmp_path, how):
    options = ["--every", "1", "--steps", "2000000", *MODEL]
    command = [sys.executable, "-m", "mlsemi", "md", "water.xyz", "-o", "out.xyz", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    end = time.monotonic() + 120
    while not (tmp_path / "out.log").is_file() or (tmp_path / "out.log").read_text().count("\n") < 6:
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.02)
    process.send_signal(how)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == (130 if how is signal.SIGINT else -signal.SIGKILL)
    if how is signal.SIGINT:
        assert "interrupted: out.xyz has whole frames; --restart goes on" in stderr and "Traceback" not in stderr
    rows = (tmp_path / "out.log").read_text().count("\n") - 1
    steps = rows + 5
    assert run("md", "water.xyz", "-o", "out.xyz", "--every", 1, "--steps", steps, "--restart").exit_code == 0
    assert run("md", "water.xyz", "-o", "whole.xyz", "--every", 1, "--steps", steps).exit_code == 0
    logs = [np.loadtxt(tmp_path / f"{name}.log", skiprows=1) for name in ("out", "whole")]
    assert logs[0][:, 0].tolist() == list(range(steps + 1))
    np.testing.assert_allclose(*logs, atol=1e-4)  # another number of threads may round otherwise
    assert [m["step"] for m in (atoms.info for atoms in read("out.xyz", index=":"))] == list(range(steps + 1))


@pytest.mark.parametrize("command", ["optimize", "md"])
def test_wrong_calls_are_refused_before_anything_is_written(run, tmp_path, command):
    (tmp_path / "two.xyz").write_text(WATER.to_xyz() * 2)
    (tmp_path / "cell.xyz").write_text(WATER.to_xyz('Lattice="9 0 0 0 9 0 0 0 9"'))
    before = sorted(tmp_path.iterdir())
    for arguments, message in (
        (("two.xyz", "-o", "out.xyz"), "two.xyz has 2 frames, and this is for one: choose it with --frame"),
        (("two.xyz", "-o", "out.xyz", "--frame", 2), "--frame 2: two.xyz has the frames 0 to 1"),
        (("cell.xyz", "-o", "out.xyz"), "periodic"),
        (("none.xyz", "-o", "out.xyz"), "no such geometry file"),
        (("water.xyz", "-o", "water.xyz"), "--output: water.xyz is a file that is read; take another name"),
        (("water.log", "-o", "water.xyz"), "--output, its log: water.log is a file that is read"),
        (("water.xyz", "-o", "out.pdb"), "--output: out.pdb is to be extended xyz; give a name that ends in .xyz"),
        (("water.xyz", "-o", "none/out.xyz"), "the folder none does not exist"),
        (("water.xyz", "-o", "."), "is a folder"),
        (("water.xyz", "-o", "out.xyz", "--charge", 1), "spin must be odd; give charge and spin (2S) explicitly; the"),
        (("water.xyz", "-o", "out.xyz", "--charge", 2), "does not cover"),
        (("water.xyz", "-o", "out.xyz", "--mode", "corrected", "--spin", 2), "does not cover"),
    ):
        assert message in failed(run(command, *arguments))
    if command == "optimize":
        for name, message in (
            ("water.xyz", "--trajectory: water.xyz is a file that is read"),
            ("out.xyz", "--trajectory: out.xyz is that of --output"),
        ):
            assert message in failed(run(command, "water.xyz", "-o", "out.xyz", "--trajectory", name))
    own = (
        (("--fmax", 0), "fmax=0 must be a positive force")
        if command == "optimize"
        else (("--timestep", 0), "timestep=0")
    )
    assert own[1] in failed(run(command, "water.xyz", "-o", "out.xyz", *own[0]))
    assert sorted(tmp_path.iterdir()) == before
