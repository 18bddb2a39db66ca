import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import mlsemi
from mlsemi.basis import load_basis
from mlsemi.data.store import LabelStore
from mlsemi.molecule import Molecule
from mlsemi.reference.farm import label

BASIS = load_basis("sto-3g")
CLI = "import typer; from mlsemi.cli.label import label\nif __name__ == '__main__': typer.run(label)\n"
HOOK = """
import os
import numpy as np

def start(molecule):
    if molecule.name == "kills":
        os._exit(1)
    if molecule.name == "raises":
        raise RuntimeError("no luck")
    return np.full((1, 2, 2), 0.5)
"""


def hydrogen(distance, name=""):
    return Molecule([1, 1], [[0, 0, 0], [0, 0, distance]], name=name)


def test_failures_are_recorded_and_cost_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "hooks_of_test_farm.py").write_text(HOOK)
    monkeypatch.syspath_prepend(tmp_path)
    from hooks_of_test_farm import start  # pyright: ignore[reportMissingImports]

    names = ["a", "raises", "b", "kills", "c"]
    molecules = [hydrogen(1.4 + 0.1 * i, name) for i, name in enumerate(names)]
    molecules.append(hydrogen(1.4, "a again"))
    path = tmp_path / "l.h5"
    seen = []
    options = {"method": "hf", "basis": BASIS, "jobs": 2}
    summary = label(molecules, path, initial_density=start, report=seen.append, **options)
    assert (summary.progress.total, summary.progress.done, summary.progress.failed) == (5, 3, 2)
    assert [p.finished for p in seen] == [1, 2, 3, 4, 5]
    with LabelStore.open(path) as store:
        assert [store.molecule(i).name for i in range(len(store))] == ["a", "b", "c"]
        reasons = {m.name: why for m, why in store.failures}
        assert reasons["raises"] == "RuntimeError: no luck"
        assert "died" in reasons["kills"]
        # Szabo and Ostlund, Modern Quantum Chemistry (1989), section 3.5.2: H2, STO-3G, 1.4 bohr: -1.117 Eh (rounded)
        assert store.observables(0).energy == pytest.approx(-1.117, abs=5e-4)
    # failed ones are left alone, unless asked for
    assert label(molecules, path, **options).progress.failed == 0
    summary = label(molecules, path, retry_failed=True, **options)
    assert (summary.progress.done, summary.progress.before) == (2, 3)
    with LabelStore.open(path) as store:
        assert [store.molecule(i).name for i in range(len(store))] == names
        assert store.n_failures == 0
    assert not path.with_name("l.h5.journal").exists()


def _wait_for_records(journal: Path, size: int) -> None:
    deadline = time.monotonic() + 60
    while not journal.exists() or journal.stat().st_size < size:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_killed_and_interrupted_runs_go_on(tmp_path):
    n = 200
    coords = np.zeros((n, 2, 3))
    coords[:, 1, 2] = np.linspace(0.6, 1.4, n)
    np.savez(tmp_path / "h2.npz", coords=coords, nuclear_charges=np.array([1, 1]))
    (tmp_path / "run.py").write_text(CLI)
    root = str(Path(mlsemi.__file__).parents[1])
    arguments = "h2.npz -o l.h5 --method hf --basis sto-3g --jobs 2".split()

    def start():
        env = {**os.environ, "PYTHONPATH": root}
        pipe = subprocess.PIPE
        command = [sys.executable, "run.py", *arguments]
        return subprocess.Popen(command, cwd=tmp_path, env=env, text=True, stdout=pipe, stderr=pipe)

    journal = tmp_path / "l.h5.journal"
    for stop, code in [(signal.SIGKILL, -9), (signal.SIGINT, 130)]:
        with start() as process:
            size = journal.stat().st_size if journal.exists() else 0
            _wait_for_records(journal, size + 20_000)
            process.send_signal(stop)
            _, errors = process.communicate(timeout=60)
            assert process.returncode == code, errors
        assert (stop == signal.SIGKILL) or "run the same command again" in errors
    with LabelStore.open(tmp_path / "l.h5") as store:  # the interrupted run left a file that can be used
        before = len(store)
    assert 5 < before < n
    with start() as process:
        out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    # one more may have reached the journal in the moment of the interruption
    assert any(f"{k} from before, 0 failed; {n} of {n} done" in out for k in (before, before + 1)), out
    with LabelStore.open(tmp_path / "l.h5") as store:
        assert len(store) == len(set(store.keys())) == n
        np.testing.assert_allclose([store.molecule(i).positions_angstrom[1, 2] for i in range(n)], coords[:, 1, 2])
    assert not journal.exists()


def test_bad_requests_are_refused_before_work_begins(tmp_path):
    path = tmp_path / "l.h5"
    with pytest.raises(ValueError, match="molecules is empty"):
        label([], path, method="hf", basis=BASIS)
    with pytest.raises(ValueError, match="jobs=0"):
        label([hydrogen(1.4)], path, method="hf", basis=BASIS, jobs=0)
    with pytest.raises(ValueError, match="no functions for H"):
        label([hydrogen(1.4)], path, method="hf", basis=BASIS.subset([8]))
    with pytest.raises(ValueError, match="method='nonsense'"):
        label([hydrogen(1.4)], path, method="nonsense", basis=BASIS)
    with pytest.raises(ValueError, match="no such folder"):
        label([hydrogen(1.4)], tmp_path / "none" / "l.h5", method="hf", basis=BASIS)
    assert not path.exists()


def test_other_settings_are_refused(tmp_path):
    path = tmp_path / "l.h5"
    label([hydrogen(1.4)], path, method="hf", basis=BASIS)
    for change, message in [({"method": "pbe"}, "method 'hf' .asked now: 'pbe'"), ({"gradient": True}, "gradient")]:
        with pytest.raises(ValueError, match=message):
            label([hydrogen(1.5)], path, **{"method": "hf", "basis": BASIS, **change})
