"""`mlsemi sample`: geometries to label."""

from __future__ import annotations

from concurrent.futures import BrokenExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlsemi.cli.options import check_writable

if TYPE_CHECKING:
    from mlsemi.molecule import Molecule

SMILES_FILES = (".smi", ".smiles", ".txt")
GEOMETRY_FILES = (".xyz", ".extxyz", ".npz")


def sample(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A SMILES, a file with one SMILES a line (.smi, .smiles, .txt), or an xyz file (angstrom).",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Extended xyz file to write (angstrom).")],
    frames: Annotated[int, typer.Option("--frames", min=1, help="Geometries of each molecule.")] = 10,
    temperature: Annotated[
        list[float] | None,
        typer.Option("--temperature", help="Of the dynamics, in kelvin (default 500); give it several times to mix."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same geometries.")] = 0,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Processes, for more than one molecule.")] = 1,
) -> None:
    """Make thermal geometries of molecules to label: from SMILES or an xyz file.

    RDKit makes SMILES three-dimensional; dynamics with GFN2-xTB at a fixed
    temperature (Langevin) give geometries 100 fs apart. A trajectory in which a
    bond breaks or forms is thrown away and another one is tried.

    Of several molecules the file has first one frame of each, shuffled, then a
    second one of each, and so on: labelling it can be stopped at any time.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, soft_wrap=True)
    temperatures = temperature or [500.0]
    try:
        if min(temperatures) <= 0:
            raise ValueError(f"--temperature must be positive [K], got {min(temperatures):g}")
        check_writable({"--output": output}, [Path(source)])
        starts = read_source(source)
        from mlsemi.reference.geometries import sample_many, write_frames

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task("molecules", total=len(starts))
            found, dropped = sample_many(
                starts,
                frames=frames,
                temperatures=temperatures,
                seed=seed,
                jobs=jobs,
                on_done=lambda: progress.advance(task),
            )
        for message in dropped:
            console.print(f"left out: {message}", style="yellow", markup=False)
        if not found:
            raise ValueError(f"SOURCE {source} gives no geometry; nothing was written")
        write_frames(output, found)
    except KeyboardInterrupt:
        console.print("interrupted: nothing was written", style="yellow")
        raise typer.Exit(130) from None
    except (ValueError, OSError, BrokenExecutor) as error:  # the last: a worker was killed
        console.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(1) from None
    except ImportError as error:
        console.print(f"error: {error}; `mlsemi sample` needs rdkit, tblite and ase", style="red", markup=False)
        raise typer.Exit(1) from None
    kept = len(starts) - len(dropped)
    console.print(f"{len(found)} geometries of {kept} molecule{'s' if kept != 1 else ''} in {output}", markup=False)


def read_source(source: str) -> list[str | Molecule]:
    """What to start from: canonical SMILES, or molecules of an xyz file.

    Raises:
        ValueError: if it is neither a SMILES nor a file, or the file holds nothing that can be used.
    """
    from mlsemi.reference.sampling import canonical_smiles

    path = Path(source)
    suffix = path.suffix.lower()
    if not source.strip():
        raise ValueError("SOURCE is empty; give a SMILES, a file of SMILES or an xyz file")
    if path.is_file():
        return list(_read_smiles(path) if suffix in SMILES_FILES else _read_geometries(path))
    if path.is_dir():
        raise ValueError(f"SOURCE {source} is a folder; give a SMILES, a file of SMILES or an xyz file")
    if suffix in SMILES_FILES + GEOMETRY_FILES:
        raise ValueError(f"SOURCE {source}: no such file")
    try:
        return [canonical_smiles(source)]
    except ValueError as error:
        raise ValueError(f"SOURCE {source} is neither a file nor a SMILES: {error}") from None


def _read_smiles(path: Path) -> list[str]:
    from mlsemi.reference.sampling import canonical_smiles

    found: dict[str, None] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1):
        words = line.split()
        if not words or words[0] == "#":
            continue
        try:
            found[canonical_smiles(words[0])] = None
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not found:
        raise ValueError(f"{path} holds no SMILES; expected one a line")
    return list(found)


def _read_geometries(path: Path) -> list[Molecule]:
    from mlsemi.interop.ase import read_molecules

    molecules = read_molecules(path)
    if len({molecule.name for molecule in molecules}) == len(molecules):
        return molecules
    return [replace(molecule, name=f"{molecule.name}#{index}") for index, molecule in enumerate(molecules)]
