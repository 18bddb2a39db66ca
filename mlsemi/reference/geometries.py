"""Many geometries of many molecules, in an order and a file that labelling can start from."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from mlsemi.files import written_whole
from mlsemi.molecule import Molecule
from mlsemi.processes import SINGLE_THREAD, follow
from mlsemi.reference.sampling import NotIntactError, geometry_from_smiles, intact_trajectory, relaxed, seed_of


@dataclass(frozen=True)
class Frame:
    """One thermal geometry with its provenance.

    Attributes:
        molecule: the geometry.
        smiles: canonical SMILES, or the name of the geometry that the dynamics started from.
        key: name of this geometry, unlike that of any other of the same run.
        temperature: of the dynamics [K].
        seed: of the trajectory that the frame was taken from.
    """

    molecule: Molecule
    smiles: str
    key: str
    temperature: float
    seed: int


def sample_molecule(
    start: str | Molecule, *, frames: int, temperatures: Sequence[float] = (500.0,), seed: int = 0
) -> list[Frame]:
    """Thermal geometries of one molecule at one or more temperatures in turn.

    Args:
        start: a SMILES, or a geometry with a name.
        frames: how many geometries.
        temperatures: frame n is taken at number n modulo their number [K]; one trajectory each.
        seed: that of the trajectories derives from it, the canonical SMILES (or the name) and the temperature.

    Raises:
        ValueError: for a SMILES that cannot be read.
        NotIntactError: if the molecule does not keep its bonds.
    """
    molecule = geometry_from_smiles(start, seed=seed) if isinstance(start, str) else relaxed(start)
    name = molecule.name or molecule.formula
    found = {}
    for offset, temperature in enumerate(temperatures):
        wanted = len(range(offset, frames, len(temperatures)))
        if wanted:
            own = seed_of(seed, name, f"{temperature:g}")
            found[offset] = intact_trajectory(molecule, frames=wanted, temperature=temperature, seed=own)
    result = []
    for index in range(frames):
        turn, offset = divmod(index, len(temperatures))
        geometries, used = found[offset]
        key = f"{name}/{temperatures[offset]:g}K/{turn}"
        result.append(Frame(geometries[turn], name, key, float(temperatures[offset]), used))
    return result


def sample_many(
    starts: Sequence[str | Molecule],
    *,
    frames: int,
    temperatures: Sequence[float] = (500.0,),
    seed: int = 0,
    jobs: int = 1,
    on_done: Callable[[], None] = lambda: None,
) -> tuple[list[Frame], list[str]]:
    """Thermal geometries of many molecules, in an order that keeps every beginning of the list balanced.

    First comes one frame of every molecule, the molecules in an order shuffled by the seed, then a second one of
    every molecule, and so on; the temperatures are shifted from molecule to molecule. So labelling can be stopped
    at any time. The order of two molecules does not depend on which others there are.

    Args:
        starts: SMILES or named geometries.
        frames: how many geometries of each.
        temperatures: in turn [K].
        seed: of everything.
        jobs: processes.
        on_done: called after each molecule.

    Returns:
        The frames, and one message for each molecule that gives none and was left out.
    """
    tasks = []
    for place, start in enumerate(sorted(starts, key=lambda start: seed_of(seed, "order", _name_of(start)))):
        shift = place % len(temperatures)
        tasks.append((start, frames, [*temperatures[shift:], *temperatures[:shift]], seed))
    outcomes: dict[int, list[Frame] | str] = {}
    if jobs <= 1 or len(tasks) == 1:
        for place, task in enumerate(tasks):
            outcomes[place] = _sample_task(task)
            on_done()
    else:
        context = get_context("spawn")
        pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(os.getpid(),))
        try:
            futures = {pool.submit(_sample_task, task): place for place, task in enumerate(tasks)}
            for future in as_completed(futures):
                outcomes[futures[future]] = future.result()
                on_done()
        finally:  # not as a context manager, which on Ctrl-C would finish all that is queued
            pool.shutdown(cancel_futures=True)
    kept = [outcome for _, outcome in sorted(outcomes.items()) if not isinstance(outcome, str)]
    dropped = [outcome for _, outcome in sorted(outcomes.items()) if isinstance(outcome, str)]
    return [molecule[index] for index in range(frames) for molecule in kept], dropped


def _start_worker(parent: int) -> None:
    os.environ.update(SINGLE_THREAD)  # read when tblite is loaded; the molecules are too small for threads
    follow(parent)


def _name_of(start: str | Molecule) -> str:
    return start if isinstance(start, str) else start.name or start.formula


def _sample_task(task: tuple[str | Molecule, int, list[float], int]) -> list[Frame] | str:
    start, frames, temperatures, seed = task
    try:
        return sample_molecule(start, frames=frames, temperatures=temperatures, seed=seed)
    except NotIntactError as error:
        return str(error)
    except ValueError as error:  # one bad molecule of many costs no other
        return f"{_name_of(start)}: {error}"


def write_frames(path: Path, frames: Sequence[Frame]) -> None:
    """Write frames as extended xyz [angstrom]; the file appears only when it is complete."""
    text = []
    for frame in frames:
        molecule = frame.molecule
        info = {
            "Properties": "species:S:1:pos:R:3",
            "smiles": _quoted(frame.smiles),
            "key": _quoted(frame.key),
            "temperature": f"{frame.temperature:.1f}",
            "charge": str(molecule.charge),
            "spin": str(molecule.spin),
            "seed": str(frame.seed),
            "pbc": '"F F F"',
        }
        text.append(molecule.to_xyz(" ".join(f"{name}={value}" for name, value in info.items())))
    with written_whole(path) as beside:
        beside.write_text("".join(text))


def _quoted(text: str) -> str:
    """A string as a value of an extended xyz comment."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
