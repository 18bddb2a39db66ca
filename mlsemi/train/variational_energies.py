"""Variational and composite energies of many molecules, in processes, for evaluations."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager

import numpy as np
import torch

from mlsemi.basis import Basis
from mlsemi.checkpoint import Header
from mlsemi.engine import Engine
from mlsemi.molecule import Molecule
from mlsemi.processes import SINGLE_THREAD, environment, follow, stop
from mlsemi.train.metrics import Report, Row


def variational_energies(
    header: Header,
    molecules: Sequence[Molecule],
    densities: Sequence[np.ndarray],
    rows: Sequence[Row],
    *,
    jobs: int,
    say: Report,
) -> list[str]:
    """Adds the variational energies to the rows; gives the reasons of failures."""
    failed: list[str] = []
    start = time.perf_counter()

    def take(done: int, k: int, energy: float, estimate: float | None, failure: str) -> None:
        row = rows[k]
        row["energy_variational"] = energy
        row["energy_variational_error"] = energy - float(row["energy"])
        row["energy_variational_estimate"] = float("nan") if estimate is None else estimate
        if failure:
            failed.append(f"{molecules[k].name or molecules[k].formula}: {failure}")
        say("variational", done, len(rows), done / (time.perf_counter() - start))

    if jobs == 1:
        for k, (molecule, density) in enumerate(zip(molecules, densities, strict=True)):
            take(k + 1, k, *_one_variational(molecule, header.basis, density, header.method))
        return failed
    with _pool(jobs) as pool:
        futures: dict[Future, int] = {
            pool.submit(_one_variational, molecule, header.basis, density, header.method): k
            for k, (molecule, density) in enumerate(zip(molecules, densities, strict=True))
        }
        for done, future in enumerate(as_completed(futures), start=1):
            take(done, futures[future], *future.result())
    return failed


def composite_energies(
    header: Header, engine: Engine, molecules: Sequence[Molecule], rows: Sequence[Row], *, jobs: int, say: Report
) -> list[str]:
    """Adds the composite energies, variational plus learned difference, to the rows; gives the reasons of failures."""
    densities, differences = [], []
    with torch.no_grad():
        for molecule in molecules:
            batch = engine.batch([molecule])
            densities.append(engine(batch).state.density[0].cpu().numpy())
            differences.append(float(engine.method_difference(batch)))
    failed = variational_energies(header, molecules, densities, rows, jobs=jobs, say=say)
    for row, difference in zip(rows, differences, strict=True):
        # of another method than the label: neither is an error
        del row["energy_variational_error"], row["energy_variational_estimate"]
        row["energy_composite"] = float(row["energy_variational"]) + difference
        row["energy_composite_error"] = row["energy_composite"] - float(row["energy"])
    return failed


def _one_variational(
    molecule: Molecule, basis: Basis, density: np.ndarray, method: str
) -> tuple[float, float | None, str]:
    """Energy, error estimate, and the reason of a failure."""
    from mlsemi.reference.variational import variational

    try:
        found = variational(molecule, basis, density, method=method)
    except (ValueError, RuntimeError) as error:
        return float("nan"), None, str(error)
    return found.energy, found.error_estimate, ""


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes with one thread each; they end at once if the block fails or is interrupted."""
    with environment(SINGLE_THREAD):
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=follow, initargs=(os.getpid(),))
        try:
            yield pool
            pool.shutdown()
        except BaseException:
            stop(pool)
            raise
