"""What several commands share: values of their options, reading molecules, outputs that can be written."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlsemi.molecule import Molecule


class ModeName(StrEnum):
    """Values of --mode."""

    fast = "fast"
    variational = "variational"
    corrected = "corrected"
    scf = "scf"


class DeviceName(StrEnum):
    """Values of --device."""

    cpu = "cpu"
    cuda = "cuda"


class PrecisionName(StrEnum):
    """Values of --precision."""

    float32 = "float32"
    float64 = "float64"


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


def check_outputs(json_out: Path | None, matrices: Path | None) -> None:
    """Tries to write beside the outputs, so that nothing is computed in vain."""
    from mlsemi.interop.matrices import frame_path

    if matrices is not None and not matrices.name:
        raise ValueError(f"--matrices: {str(matrices)!r} is no file name; give the beginning of one, such as 'ethanol'")
    wanted = [("--json", json_out)] * (json_out is not None)
    wanted += [("--matrices", frame_path(matrices, 0))] if matrices is not None else []
    for option, path in wanted:
        assert path is not None
        if not path.parent.is_dir():
            raise ValueError(f"{option}: the folder {path.parent} does not exist; create it first")
        if path.is_dir():
            raise ValueError(f"{option}: {path} is a folder; give the name of a file")
        probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
        try:
            probe.write_bytes(b"")
        except OSError as error:
            raise ValueError(f"{option}: cannot write to {path.parent}: {error.strerror}") from error
        finally:
            probe.unlink(missing_ok=True)
