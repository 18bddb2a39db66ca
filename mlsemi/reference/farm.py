"""The label farm: many single-threaded PySCF processes, one writer, safe against being killed.

Workers solve, the parent alone writes: each record goes to a journal beside the label file, and from there to the label
file at intervals and at the end. A run that is started again reads both and does what is missing.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyscf
from pyscf import lib

import mlsemi
from mlsemi.basis import Basis
from mlsemi.data.journal import Journal, raise_differing
from mlsemi.data.store import NO_FOCK, LabelStore, Record, molecule_key, write_store
from mlsemi.files import refuse_unwritable
from mlsemi.layout import AO_ORDER
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.processes import SINGLE_THREAD, environment, follow, stop
from mlsemi.reference import coupled_cluster
from mlsemi.reference.cost import Cost, total
from mlsemi.reference.coupled_cluster import Correlation, is_correlated, level_name
from mlsemi.reference.finite_field import FIELD
from mlsemi.reference.guess import ModelGuess
from mlsemi.reference.mean_field import (
    RESIDUAL_TOLERANCE,
    InitialDensity,
    grid_description,
    resolve_functional,
    solve,
)

_WORKER_VARIABLES = SINGLE_THREAD | {
    # glibc gives large arrays back to the system and asks for them again; touching fresh pages is slow
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 31),
}
_MUST_AGREE = ("method", "resolved_functional", "grid", "basis_hash", "ao_order", "gradient", "residual_tolerance")
_CORRELATED_MUST_AGREE = ("core", "small_basis_hash", "dipole", "n_ionization_energies", "n_electron_affinities")

PACK_SECONDS = 600.0
"""The label file is brought up to date at this interval, so that it can be used while the run goes on."""


@dataclass(frozen=True)
class Progress:
    """State of a run.

    Attributes:
        total: geometries asked for, without repetitions.
        before: of these, labelled by earlier runs.
        failed_before: of these, failures of earlier runs that are not tried again.
        done: labels made by this run.
        failed: failures of this run.
        seconds: wall time of this run so far.
        starting: part of it until the first record came, mostly the start of the processes.
    """

    total: int
    before: int
    failed_before: int
    done: int
    failed: int
    seconds: float
    starting: float = 0.0

    @property
    def finished(self) -> int:
        """Geometries that need no more work."""
        return self.before + self.failed_before + self.done + self.failed

    @property
    def per_second(self) -> float:
        """Labels per second in this run, after the first."""
        count, seconds = self.done + self.failed, self.seconds
        if count > 1 and seconds > self.starting:
            count, seconds = count - 1, seconds - self.starting
        return count / seconds if seconds > 0 else 0.0


@dataclass(frozen=True)
class Summary:
    """Outcome of a run.

    Attributes:
        progress: the counts.
        failures: reason and how often, over this run.
        interrupted: stopped by Ctrl-C: run it again to go on.
    """

    progress: Progress
    failures: dict[str, int]
    interrupted: bool


def run_attributes(
    *, method: str, basis: Basis, gradient: bool, residual_tolerance: float, correlation: Correlation | None = None
) -> dict[str, Any]:
    """What a label file says about how it was made."""
    common = {
        "basis_name": basis.name,
        "basis_hash": basis.content_hash(),
        "basis_json": json.dumps(basis.to_json()),
        "ao_order": AO_ORDER,
        "gradient": gradient,
        "residual_tolerance": residual_tolerance,
        "versions": json.dumps(_versions()),
    }
    if correlation is not None:
        return common | _correlated_attributes(method, basis, correlation)
    return common | {
        "method": method.strip().lower(),
        "resolved_functional": resolve_functional(method),
        "grid": grid_description(method),
    }


def _correlated_attributes(method: str, basis: Basis, correlation: Correlation) -> dict[str, Any]:
    level = level_name(method, basis, correlation)
    small = correlation.small_basis
    return {
        # a composite level has no name but this
        "method": method.strip().lower() if small is None else level.partition(",")[0].lower(),
        "level": level,
        "resolved_functional": f"{level}; RHF for closed, UHF for open shells",
        "grid": "none",
        "core": "frozen (PySCF's chemical core)" if correlation.frozen_core else "all electrons",
        "small_basis_name": "" if small is None else small.name,
        "small_basis_hash": "" if small is None else small.content_hash(),
        "small_basis_json": "" if small is None else json.dumps(small.to_json()),
        "dipole": f"central differences, orbitals relaxed, field {FIELD:g}" if correlation.dipole else "none",
        "n_ionization_energies": correlation.ip,
        "n_electron_affinities": correlation.ea,
    }


def plan(
    molecules: Sequence[Molecule], basis: Basis, *, method: str, correlation: Correlation, gradient: bool = False
) -> tuple[Cost, Molecule, float]:
    """The largest cost of a correlated label, whose it is, and the time of all on one core [s].

    Raises:
        ValueError: for settings that do not go together, or elements outside of the bases.
    """
    correlation.check(method)
    for each in (basis, correlation.small_basis):
        for number in sorted({z for m in molecules for z in m.numbers.tolist()}) if each else ():
            each.shells(number)  # pyright: ignore[reportOptionalMemberAccess]
    if gradient and method.strip().lower() == "ccsd(t)" and any(m.spin for m in molecules):
        raise ValueError(f"gradient=True: {coupled_cluster.NO_OPEN_SHELL_GRADIENT}")
    return total(molecules, basis, method=method, correlation=correlation, gradient=gradient)


def _refuse_too_large(cost: Cost, molecule: Molecule, max_memory_mb: float) -> None:
    if cost.memory_mb > max_memory_mb:
        raise ValueError(
            f"{molecule.name or molecule.formula} ({cost.n_occupied} correlated and {cost.n_virtual} empty orbitals) "
            f"needs about {cost.memory_mb:.0f} MB, max_memory_mb={max_memory_mb:.0f} is allowed for each process: give "
            "more memory, fewer processes, a smaller basis, or frozen cores"
        )


def _versions() -> dict[str, str]:
    from pyscf.dft import libxc

    return {
        "mlsemi": getattr(mlsemi, "__version__", "unknown"),
        "pyscf": pyscf.__version__,
        "libxc": str(getattr(libxc, "__version__", "unknown")),
        "numpy": np.__version__,
    }


def label(
    molecules: Sequence[Molecule],
    path: str | Path,
    *,
    method: str,
    basis: Basis,
    jobs: int = 1,
    gradient: bool = False,
    residual_tolerance: float | None = None,
    initial_density: InitialDensity | None = None,
    retry_failed: bool = False,
    report: Callable[[Progress], None] | None = None,
    pack_seconds: float = PACK_SECONDS,
    max_memory_mb: float = 4000,
    correlation: Correlation | None = None,
) -> Summary:
    """Label molecules in parallel; goes on where an earlier run into the same file stopped.

    Processes are started by 'spawn': call it from a module whose main part is guarded by `if __name__ == "__main__"`.

    Args:
        molecules: what to label; repetitions are done once.
        path: label file (HDF5); `<path>.journal` stands beside it until the run is complete.
        method: 'hf' or a functional in PySCF's notation; or 'mp2', 'ccsd', 'ccsd(t)': such labels have no Fock matrix.
        basis: basis set.
        jobs: processes, each with one thread.
        gradient: also nuclear gradients.
        residual_tolerance: see `solve`; by default 1e-6 Eh, 1e-7 Eh for correlated methods.
        initial_density: see `solve`; must be picklable. A `ModelGuess` must cover all molecules; the file names it.
        retry_failed: try again what failed in an earlier run.
        report: called after each record.
        pack_seconds: how often the label file is brought up to date meanwhile.
        max_memory_mb: for each process [MB].
        correlation: what labels of correlated methods are to have; for these only.

    Raises:
        ValueError: for no molecules, an unknown method, elements outside of the basis, molecules that a guess does not
            cover, correlated labels that need more memory than is allowed, or a file made with other settings or being
            written by another process.
        OSError: if the disk is full; all records so far are safe.
    """
    if not molecules:
        raise ValueError("molecules is empty: nothing to label")
    if jobs < 1:
        raise ValueError(f"jobs={jobs} must be at least 1")
    for number in sorted({z for m in molecules for z in m.numbers.tolist()}):
        basis.shells(number)
    extras: dict[str, Any] = {}
    if is_correlated(method):
        correlation = correlation or Correlation()
        cost, largest, _ = plan(molecules, basis, method=method, correlation=correlation, gradient=gradient)
        _refuse_too_large(cost, largest, max_memory_mb)
        extras = {"correlation": correlation}
    elif correlation is not None:
        raise ValueError(f"correlation is for the methods 'mp2', 'ccsd' and 'ccsd(t)' only, not for method={method!r}")
    if residual_tolerance is None:
        residual_tolerance = coupled_cluster.SCF_TOLERANCE if extras else RESIDUAL_TOLERANCE
    settings = run_attributes(
        method=method, basis=basis, gradient=gradient, residual_tolerance=residual_tolerance, correlation=correlation
    )
    if isinstance(initial_density, ModelGuess):
        initial_density.check(molecules, basis)
        settings["guess"] = initial_density.description
    ledger = _Ledger(Path(path), settings)
    try:
        tasks, order = {}, {}
        for index, molecule in enumerate(molecules):
            key = molecule_key(molecule)
            if key not in order:
                order[key] = index
                if not (key in ledger.known and (ledger.known[key] or not retry_failed)):
                    tasks[index] = molecule
        work = partial(
            _work,
            method=method,
            basis=basis,
            gradient=gradient,
            residual_tolerance=residual_tolerance,
            initial_density=initial_density,
            max_memory_mb=max_memory_mb,
            **extras,
        )
        return _run(tasks, work, ledger, order, jobs=jobs, report=report, pack_seconds=pack_seconds)
    finally:
        ledger.close()


def _run(
    tasks: dict[int, Molecule],
    work: Callable[[int, Molecule], Record],
    ledger: _Ledger,
    order: dict[str, int],
    *,
    jobs: int,
    report: Callable[[Progress], None] | None,
    pack_seconds: float,
) -> Summary:
    """Collect and write what the workers give."""
    start = time.perf_counter()
    reasons: Counter[str] = Counter()
    kept = [ledger.known[key] for key, index in order.items() if index not in tasks]
    progress = Progress(len(order), sum(kept), len(kept) - sum(kept), 0, 0, 0.0)
    interrupted = False
    next_pack = start + pack_seconds
    results = _solved(tasks, work, min(jobs, max(len(tasks), 1)))
    try:
        for record in results:
            ledger.append(record)
            reasons.update([record.failure] if record.failure else [])
            failed = bool(record.failure)
            now = time.perf_counter()
            progress = replace(
                progress, done=progress.done + (not failed), failed=progress.failed + failed, seconds=now - start
            )
            if progress.done + progress.failed == 1:
                progress = replace(progress, starting=now - start)
            if report:
                report(progress)
            if now > next_pack:
                ledger.pack(order)
                # packing costs time in proportion to what there is: never more than a twentieth of the run
                next_pack = time.perf_counter() + max(pack_seconds, 20 * (time.perf_counter() - now))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        results.close()
    ledger.pack(order, final=not interrupted)
    return Summary(progress, dict(reasons), interrupted)


class _Ledger:
    """Label file and journal of a run taken together."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        refuse_unwritable(path)
        self.known: dict[str, bool] = {}
        agreed = {k: settings[k] for k in _MUST_AGREE + _CORRELATED_MUST_AGREE if k in settings}
        self.encoding = NO_FOCK if "core" in settings else "full"
        if path.exists():
            with LabelStore.open(path) as store:
                differing = [k for k in agreed if store.attrs.get(k) != settings[k]]
                if differing:
                    raise_differing(str(path), store.attrs, agreed, differing)
                if store.fock_encoding != self.encoding:
                    raise ValueError(f"{path} stores Fock matrices as {store.fock_encoding}: give another output")
                # guesses need not agree: all are named
                guesses = [*str(store.attrs.get("guess", "")).split("; "), settings.get("guess", "")]
                if named := dict.fromkeys(filter(None, guesses)):
                    self.settings = settings | {"guess": "; ".join(named)}
                self.known.update(store.keys())
        self.journal = Journal(path.with_name(path.name + ".journal"), agreed)
        self.known.update({key: labelled for key, labelled, _ in self.journal.places})

    def append(self, record: Record) -> None:
        """Put a record where it is safe."""
        self.journal.append(record)

    def pack(self, order: dict[str, int], *, final: bool = False) -> None:
        """Write the label file from itself and the journal, in the order of the input; at the end drop the journal."""
        if self.journal.places or not self.path.exists():
            store = LabelStore.open(self.path) if self.path.exists() else None
            try:
                write_store(self.path, self._merged(store, order), self.settings, fock_encoding=self.encoding)
            finally:
                if store:
                    store.close()
        if final:
            self.journal.close(remove=True)

    def _merged(self, store: LabelStore | None, order: dict[str, int]) -> Iterator[Record]:
        """Records of both, the journal's (the later one) where both have it."""
        last = {key: offset for key, _, offset in self.journal.places}
        sources: list[tuple[int, str, int]] = [(order.get(k, len(order)), "journal", o) for k, o in last.items()]
        if store:
            sources += [(order.get(k, len(order)), "store", row) for row, k in enumerate(store.keys()) if k not in last]
        for place, source, where in sorted(sources):
            record = self.journal.read(where) if source == "journal" else store.any_record(where)  # pyright: ignore
            yield replace(record, index=place if place < len(order) else -1)

    def close(self) -> None:
        """Let the files go; the journal stays if it was not dropped."""
        self.journal.close()


def _solved(tasks: dict[int, Molecule], work: Callable[[int, Molecule], Record], jobs: int) -> Generator[Record]:
    """Records as they are finished. A worker that dies (memory) costs the molecule that killed it, not the run."""
    queue = deque(tasks)
    suspects: deque[int] = deque()
    with environment(_WORKER_VARIABLES):
        while queue or suspects:
            alone = bool(suspects)
            source = deque([suspects.popleft()]) if alone else queue
            pool = _pool(1 if alone else jobs)
            running: dict[Future[Record], int] = {}
            try:
                while source or running:
                    # few in flight: all of them are suspects if a worker dies
                    while source and len(running) < (1 if alone else 2 * jobs):
                        index = source[0]  # taken once it is submitted: a broken pool refuses it
                        running[pool.submit(work, index, tasks[index])] = index
                        source.popleft()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        record = future.result()
                        del running[future]
                        yield record
            except BrokenProcessPool:
                left = sorted([*running.values(), *(source if alone else ())])
                if alone:
                    reason = "the process died while it worked on this molecule (out of memory?)"
                    yield from (Record(tasks[i], failure=reason, index=i) for i in left)
                else:
                    suspects.extend(left)
            finally:
                stop(pool)


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_prepare_worker, initargs=(os.getpid(),)
    )


def _prepare_worker(parent: int) -> None:
    """In a worker: one thread; no life without a parent."""
    follow(parent)
    lib.num_threads(1)
    gc.freeze()  # what is loaded stays: collections after each molecule need not look at it


def _work(index: int, molecule: Molecule, **options: Any) -> Record:  # noqa: ANN401
    """In a worker: one label, or the reason why there is none."""
    try:
        result = (coupled_cluster.solve if "correlation" in options else solve)(molecule, **options)
    except Exception as error:  # noqa: BLE001 (whatever goes wrong belongs to this molecule, not to the run)
        return Record(molecule, failure=f"{type(error).__name__}: {error}", index=index)
    finally:
        gc.collect()  # PySCF's objects are cyclic and large
    obs = result.observables
    kept = Observables(
        energy=obs.energy,
        fock=obs.fock,
        mo_energy=obs.mo_energy,
        dipole=obs.dipole,
        gradient=obs.gradient,
        residual=obs.residual,
        seconds=obs.seconds,
        ionization_energies=obs.ionization_energies,
        electron_affinities=obs.electron_affinities,
        t1_diagnostic=obs.t1_diagnostic,
        scf_total_energy=obs.scf_total_energy,
        mp2_total_energy=obs.mp2_total_energy,
        ccsd_total_energy=obs.ccsd_total_energy,
    )
    scheme = f"{result.scheme}/{result.fock_builds}"
    if result.amplitude_cycles:
        scheme += f", ccsd/{result.amplitude_cycles}"
    return Record(molecule, kept, scheme=scheme, degenerate=result.degenerate, index=index)
