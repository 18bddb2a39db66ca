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
from mlsemi.data.store import LabelStore, Record, write_store
from mlsemi.molecule import Molecule
from mlsemi.reference.coupled_cluster import Correlation
from mlsemi.reference.farm import label, plan, run_attributes

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
    again = label(molecules, path, **options).progress
    assert (again.failed, again.failed_before, again.before, again.done, again.finished) == (0, 2, 3, 0, 5)
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
    with pytest.raises(ValueError, match="does not exist; create it first"):
        label([hydrogen(1.4)], tmp_path / "none" / "l.h5", method="hf", basis=BASIS)
    assert not path.exists()


def test_other_settings_are_refused(tmp_path):
    path = tmp_path / "l.h5"
    label([hydrogen(1.4)], path, method="hf", basis=BASIS)
    for change, message in [({"method": "pbe"}, "method 'hf' .asked now: 'pbe'"), ({"gradient": True}, "gradient")]:
        with pytest.raises(ValueError, match=message):
            label([hydrogen(1.5)], path, **{"method": "hf", "basis": BASIS, **change})


def test_correlated_labels(tmp_path):
    path, options = tmp_path / "cc.h5", {"method": "CCSD(T)", "basis": BASIS}
    molecules = [hydrogen(1.4), hydrogen(1.5)]
    correlation = Correlation(dipole=True, ip=1)
    label(molecules[:1], path, correlation=correlation, **options)
    summary = label(molecules, path, correlation=correlation, **options)  # an earlier run is gone on with
    assert (summary.progress.before, summary.progress.done) == (1, 1)
    with LabelStore.open(path) as store:
        assert (store.method, store.level, store.has_fock) == ("ccsd(t)", "CCSD(T)/sto-3g, frozen core", False)
        first = store.observables(0)
        # full configuration interaction of H2: Szabo and Ostlund, Modern Quantum Chemistry (1989), section 4.1:
        # correlation energy -0.0206 Eh in STO-3G at 1.4 bohr
        assert first.energy - first.scf_total_energy == pytest.approx(-0.0206, abs=5e-5)
        assert first.ionization_energies.shape == (1,)
        assert first.t1_diagnostic == pytest.approx(0, abs=1e-6)  # singles have the other symmetry
        np.testing.assert_allclose(first.dipole, 0, atol=1e-6)  # e bohr: noise of 1e-9 Eh over the field
        assert "ccsd/" in store.record(0).scheme
    for change in [{"method": "hf"}, {"correlation": Correlation(dipole=True)}, {"method": "ccsd"}]:
        changed = {**options, "correlation": correlation, **change}
        if change == {"method": "hf"}:
            del changed["correlation"]
        with pytest.raises(ValueError, match="was made with"):
            label(molecules, path, **changed)
    mean_field = tmp_path / "hf.h5"
    settings = run_attributes(method="hf", basis=BASIS, gradient=False, residual_tolerance=1e-6)
    write_store(mean_field, [Record(molecules[0], failure="no luck")], settings)
    with pytest.raises(ValueError, match="was made with method 'hf'"):
        label(molecules, mean_field, **options)


def test_correlated_labels_that_cannot_be_are_refused_before_work_begins(tmp_path):
    path, options = tmp_path / "l.h5", {"basis": BASIS, "max_memory_mb": 4000}
    oxygen = Molecule([8, 8], [[0, 0, 0], [0, 0, 2.3]], spin=2)
    refused = [
        ("hf", Correlation(), {}, "correlation is for the methods"),
        ("mp2", Correlation(ip=1), {}, "ip=1 needs the amplitudes"),
        ("ccsd(t)", Correlation(small_basis=BASIS, ip=1), {}, "not defined for a composite level"),
        ("ccsd(t)", Correlation(), {"gradient": True}, "for open shells are not available"),
        ("ccsd(t)", Correlation(), {"max_memory_mb": 100}, "needs about .* MB, max_memory_mb=100"),
    ]
    for method, correlation, change, message in refused:
        with pytest.raises(ValueError, match=message):
            label([oxygen], path, method=method, correlation=correlation, **{**options, **change})
    assert not path.exists()


def test_costs_grow_as_they_should():
    basis, correlation = load_basis("cc-pvtz"), Correlation()
    water = Molecule([8, 1, 1], [[0, 0, 0], [0, 1.4, 1.1], [0, -1.4, 1.1]], name="water")
    cost, largest, seconds = plan([hydrogen(1.4), water, water], basis, method="ccsd(t)", correlation=correlation)
    assert (largest.name, cost.n_ao, cost.n_occupied, cost.n_virtual) == ("water", 58, 4, 53)
    assert 2 * cost.seconds < seconds < 3 * cost.seconds
    dipole = plan([water], basis, method="ccsd(t)", correlation=Correlation(dipole=True))[0]
    assert dipole.seconds > 2 * cost.seconds
