"""`mlsemi report`: one page about one molecule, to look at and to pass on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mlsemi.cli import options
from mlsemi.cli.options import ModeName, check_writable, limit_threads, read_files, told
from mlsemi.files import written_whole

if TYPE_CHECKING:
    from mlsemi.molecule import Molecule


def report(
    file: options.GeometryFile,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Page to write; default: FILE.html.")] = None,
    model: options.Model = None,
    mode: Annotated[ModeName, typer.Option(help="As of `mlsemi predict`.")] = ModeName.fast,
    charge: options.Charge = None,
    spin: options.Spin = None,
    frame: Annotated[int, typer.Option(min=0, help="Which frame of FILE, counted from 0.")] = 0,
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
    threads: options.Threads = None,
) -> None:
    """Write a page about a molecule: structure, orbitals, charges, energies and where they come from.

    The page is one HTML file that opens in any browser, without a network.
    """
    limit_threads(threads)
    with told("nothing was written"):
        path = output or file.with_suffix(".html")
        if not 0 < isovalue < 10:
            raise ValueError(f"--isovalue {isovalue:g} must be positive, such as 0.05 [bohr^-3/2]")
        check_writable({"--output": path}, [file])
        molecules = read_files([file], charge, spin)
        if frame >= len(molecules):
            raise ValueError(f"--frame {frame}: {file} has {len(molecules)} frames, counted from 0")
        chosen = molecules[frame]
        page = _page(file, chosen, len(molecules), model=model, mode=mode, frame=frame, frequencies=frequencies,
                     orbitals=orbitals, isovalue=isovalue, potential=potential, title=title)  # fmt: skip
        _write(path, page)
    if len(molecules) > 1:
        typer.echo(f"note: {file} has {len(molecules)} frames; the report shows frame {frame}", err=True)
    typer.echo(f"written: {path} ({len(page.encode()) / 1e6:.1f} MB)", err=True)


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

    with written_whole(path) as beside:
        beside.write_text(page, encoding="utf-8")
