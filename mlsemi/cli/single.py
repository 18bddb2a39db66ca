"""What the commands for one molecule share: reading it, reporting errors, names of the files beside the output."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from mlsemi.molecule import Molecule


@contextmanager
def told(interrupted: str) -> Iterator[None]:
    """Turns errors of the user and of the machine into one line and exit code 1, Ctrl-C into a line and 130.

    Args:
        interrupted: what is left after Ctrl-C.
    """
    try:
        yield
    except BrokenPipeError:  # who reads the output has seen enough
        raise
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {interrupted}", err=True)
        raise typer.Exit(130) from None


def read_frames(path: Path, *, frame: int | None, charge: int | None, spin: int | None) -> list[Molecule]:
    """The frames of a geometry file, or one of them.

    Raises:
        ValueError: for what `read_molecules` refuses, and a frame that is not there.
    """
    from mlsemi.interop.ase import read_molecules

    try:
        molecules = read_molecules(path, charge=charge, spin=spin)
    except ValueError as error:
        if "electrons" in str(error):
            raise ValueError(f"{error}; the options are --charge and --spin (unpaired electrons, 2S)") from error
        raise
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


def check_output(output: Path, source: Path) -> None:
    """Refuses an output that cannot be written, or that is the input, before anything is computed.

    Raises:
        ValueError: saying why.
    """
    if output.is_dir():
        raise ValueError(f"--output: {output} is a folder; give the name of a file")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"--output: the folder {output.parent} does not exist; create it first")
    if output.exists() and source.exists() and output.samefile(source):
        raise ValueError(f"--output: {output} is the file that is read; take another name")
    probe = output.with_name(f".{output.name}.{os.getpid()}.probe")
    try:
        probe.write_bytes(b"")
    except OSError as error:
        raise ValueError(f"--output: cannot write to {output.parent}: {error.strerror}") from error
    finally:
        probe.unlink(missing_ok=True)
