"""What the commands for one molecule share: reading it, progress, names of the files beside the output."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mlsemi.cli.options import check_writable, read_files

if TYPE_CHECKING:
    from mlsemi.molecule import Molecule


def read_frames(path: Path, *, frame: int | None, charge: int | None, spin: int | None) -> list[Molecule]:
    """The frames of a geometry file, or one of them.

    Raises:
        ValueError: for what `read_molecules` refuses, and a frame that is not there.
    """
    molecules = read_files([path], charge, spin)
    if frame is None:
        return molecules
    if not -len(molecules) <= frame < len(molecules):
        raise ValueError(f"--frame {frame}: {path} has the frames 0 to {len(molecules) - 1}")
    return [molecules[frame]]


def read_one(path: Path, *, frame: int | None, charge: int | None, spin: int | None) -> Molecule:
    """The molecule of a file with one frame, or one frame of it."""
    molecules = read_frames(path, frame=frame, charge=charge, spin=spin)
    if len(molecules) > 1:
        raise ValueError(f"{path} has {len(molecules)} frames, and this is for one: choose it with --frame (from 0)")
    return molecules[0]


def meter() -> Callable[[int], float]:
    """A function of the number of steps done that gives steps per second since its first call."""
    began: list[tuple[int, float]] = []

    def rate(step: int) -> float:
        now = time.monotonic()
        if not began:
            began.append((step, now))
        done, seconds = step - began[0][0], now - began[0][1]
        return done / seconds if seconds > 0 else 0.0

    return rate


def beside(output: Path, suffix: str) -> Path:
    """Name of a file beside the output: ethanol.xyz and .log give ethanol.log."""
    return output.with_name(output.name.removesuffix(".xyz").removesuffix(".extxyz") + suffix)


def files_of_run(output: Path, *, trajectory: Path | None, source: Path) -> tuple[Path, Path]:
    """Log and state of a run, which lie beside its output.

    Raises:
        ValueError: for files that cannot be written or would overwrite one another or the source, and names of another
            format than extended xyz.
    """
    frames = {"--output": output, "--trajectory": trajectory}
    check_writable(frames, [source])
    for option, path in frames.items():
        if path is not None and path.suffix.lower() not in (".xyz", ".extxyz"):
            raise ValueError(f"{option}: {path} is to be extended xyz; give a name that ends in .xyz")
    log, state = beside(output, ".log"), beside(output, ".restart")
    check_writable({**frames, "--output, its log": log, "--output, its state": state}, [source])
    return log, state
