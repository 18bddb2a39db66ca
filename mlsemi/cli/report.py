"""`mlsemi report`: one page about one molecule, to look at and to pass on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlsemi.cli.options import ModeName

if TYPE_CHECKING:
    from mlsemi.molecule import Molecule


def report(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Geometry: xyz [angstrom] or whatever ASE reads.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Page to write; default: FILE.html.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Shipped model (see `mlsemi models`) or checkpoint; default: organic-b3lyp-def2svp."),
    ] = None,
    mode: Annotated[ModeName, typer.Option(help="As of `mlsemi predict`.")] = ModeName.fast,
    charge: Annotated[int | None, typer.Option(help="Total charge; default: what the frame says, else 0.")] = None,
    spin: Annotated[
        int | None, typer.Option(help="Unpaired electrons, 2S; default: what the frame says, else 0.")
    ] = None,
    frame: Annotated[int, typer.Option(min=0, help="Which frame of the file, counted from 0.")] = 0,
    frequencies: Annotated[
        bool,
        typer.Option(
            "--frequencies",
            help="Vibrations and thermochemistry too, of a relaxed geometry; in minutes but for the fast mode.",
        ),
    ] = False,
    orbitals: Annotated[int, typer.Option(min=1, max=40, help="So many occupied and so many empty orbitals.")] = 5,
    isovalue: Annotated[float, typer.Option(help="At which orbitals are first shown [bohr^-3/2].")] = 0.05,
    potential: Annotated[
        bool, typer.Option("--potential", help="The density coloured by the electrostatic potential too.")
    ] = False,
    title: Annotated[str | None, typer.Option(help="Title of the page; default: the name of the frame.")] = None,
) -> None:
    """Write a page about a molecule: structure, orbitals, charges, energies and where they come from.

    The page is one HTML file that opens in any browser, without a network.
    """
    try:
        path = output or file.with_suffix(".html")
        _check(path, isovalue)
        molecules = read_files(file, charge, spin)
        if frame >= len(molecules):
            raise ValueError(f"--frame {frame}: {file} has {len(molecules)} frames, counted from 0")
        chosen = molecules[frame]
        page = _page(file, chosen, len(molecules), model=model, mode=mode, frame=frame, frequencies=frequencies,
                     orbitals=orbitals, isovalue=isovalue, potential=potential, title=title)  # fmt: skip
        _write(path, page)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("interrupted: nothing was written", err=True)
        raise typer.Exit(130) from None
    if len(molecules) > 1:
        typer.echo(f"note: {file} has {len(molecules)} frames; the report shows frame {frame}", err=True)
    typer.echo(f"written: {path} ({len(page.encode()) / 1e6:.1f} MB)", err=True)


def _check(path: Path, isovalue: float) -> None:
    """Refuses outputs that cannot be written, before anything is computed."""
    if not 0 < isovalue < 10:
        raise ValueError(f"--isovalue {isovalue:g} must be positive, such as 0.05 [bohr^-3/2]")
    if not path.parent.is_dir():
        raise ValueError(f"--output: the folder {path.parent} does not exist; create it first")
    if path.is_dir():
        raise ValueError(f"--output: {path} is a folder; give the name of a file")


def read_files(file: Path, charge: int | None, spin: int | None) -> list[Molecule]:
    """All frames; where charge and spin do not go together the options for them are named."""
    from mlsemi.interop.ase import read_molecules

    try:
        return read_molecules(file, charge=charge, spin=spin)
    except ValueError as error:
        if "electrons" in str(error):
            raise ValueError(f"{error}; the options are --charge and --spin (unpaired electrons, 2S)") from error
        raise


def _page(
    file: Path,
    molecule: Molecule,
    n_frames: int,
    *,
    model: str | None,
    mode: ModeName,
    frame: int,
    frequencies: bool,
    orbitals: int,
    isovalue: float,
    potential: bool,
    title: str | None,
) -> str:
    """Computes all that the page shows, and the page."""
    from dataclasses import replace

    from mlsemi.model import DEFAULT_MODEL, find_model, load
    from mlsemi.report.content import Content, Source
    from mlsemi.report.page import render

    checkpoint = find_model(model or DEFAULT_MODEL)
    loaded = load(checkpoint)
    loaded.check([molecule], mode=mode.value, forces=frequencies)
    observables = loaded.predict(molecule, mode=mode.value)
    found = None
    if frequencies:
        from mlsemi.vibrations import frequencies as vibrations

        found = vibrations(loaded, molecule, mode=mode.value)
    if title is not None:
        molecule = replace(molecule, name=title)
    source = Source.of(file, frame=frame, n_frames=n_frames)
    content = Content(loaded, checkpoint, molecule, observables, mode.value, source, found)
    return render(content, orbitals=orbitals, isovalue=isovalue, potential=potential)


def _write(path: Path, page: str) -> None:
    from mlsemi.interop.atomic_write import written_whole

    with written_whole(path) as beside:
        beside.write_text(page, encoding="utf-8")
