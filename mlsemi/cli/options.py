"""What several commands share: options and their values, errors as one line, reading molecules, checks of outputs."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlsemi.files import refuse_unwritable

if TYPE_CHECKING:
    from mlsemi.molecule import Molecule


class ModeName(StrEnum):
    """Values of --mode."""

    fast = "fast"
    variational = "variational"
    corrected = "corrected"
    composite = "composite"
    scf = "scf"


class DeviceName(StrEnum):
    """Values of --device."""

    cpu = "cpu"
    cuda = "cuda"


class PrecisionName(StrEnum):
    """Values of --precision."""

    float32 = "float32"
    float64 = "float64"


GeometryFile = Annotated[Path, typer.Argument(metavar="FILE", help="Geometry: xyz [angstrom] or whatever ASE reads.")]
Model = Annotated[
    str | None, typer.Option(help="Shipped model (see `mlsemi models`) or checkpoint; default: organic-b3lyp-def2svp.")
]
Charge = Annotated[int | None, typer.Option(help="Total charge; default: what the frame says, else 0.")]
Spin = Annotated[int | None, typer.Option(help="Unpaired electrons, 2S; default: what the frame says, else 0.")]
Frame = Annotated[int | None, typer.Option(help="Frame of FILE, from 0, where it has several.")]
Dispersion = Annotated[bool, typer.Option("--dispersion", help="Add D4 dispersion (needs dftd4).")]
Device = Annotated[DeviceName, typer.Option(help="Where to compute.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: as torch chooses.")]
Precision = Annotated[PrecisionName, typer.Option(help="Of the network; all else is float64.")]


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
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        typer.echo(f"error: {' '.join(str(error).split()) or type(error).__name__}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo(f"interrupted: {interrupted}", err=True)
        raise typer.Exit(130) from None


def read_files(files: list[Path], charge: int | None, spin: int | None) -> list[Molecule]:
    """All frames; where charge and spin do not go together the options for them are named."""
    from mlsemi.interop.ase import read_molecules

    try:
        return [m for path in files for m in read_molecules(path, charge=charge, spin=spin)]
    except ValueError as error:
        if "electrons" in str(error):
            raise ValueError(f"{error}; the options are --charge and --spin (unpaired electrons, 2S)") from error
        raise


def limit_threads(threads: int | None) -> None:
    """Before numpy and torch are loaded their libraries take the number of threads from the environment."""
    if threads is None:
        return
    if "torch" not in sys.modules:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ[name] = str(threads)
    import torch

    torch.set_num_threads(threads)


def check_outputs(json_out: Path | None, matrices: Path | None, sources: Iterable[Path] = ()) -> None:
    """`check_writable` for the options --json and --matrices."""
    from mlsemi.interop.matrices import frame_path

    if matrices is not None and not matrices.name:
        raise ValueError(f"--matrices: {str(matrices)!r} is no file name; give the beginning of one, such as 'ethanol'")
    first = None if matrices is None else frame_path(matrices, 0)
    check_writable({"--json": json_out, "--matrices": first}, sources)


def check_writable(outputs: Mapping[str, Path | None], sources: Iterable[Path] = ()) -> None:
    """Refuses outputs that cannot be written or would overwrite an input or each other, before anything is computed.

    Args:
        outputs: files to be written, by the option that names them; None where it is not given.
        sources: files that are read.

    Raises:
        ValueError: naming the option, and saying why.
    """
    taken = {path.resolve(): f"{path} is a file that is read" for path in sources}
    for option, path in outputs.items():
        if path is None:
            continue
        try:
            refuse_unwritable(path)
        except ValueError as error:
            raise ValueError(f"{option}: {error}") from None
        if reason := taken.get(path.resolve()):
            raise ValueError(f"{option}: {reason}; take another name")
        taken[path.resolve()] = f"{path} is that of {option}"
        probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
        try:
            probe.write_bytes(b"")
        except OSError as error:
            raise ValueError(f"{option}: cannot write to {path.parent}: {error.strerror}") from error
        finally:
            probe.unlink(missing_ok=True)
