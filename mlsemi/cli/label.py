"""`mlsemi label`: reference labels by PySCF."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mlsemi.reference.farm import Summary


def label(
    geometries: Annotated[
        Path,
        typer.Argument(help="xyz, extended xyz or whatever ASE reads; npz with coords (angstrom), nuclear_charges."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Label file (HDF5).")],
    method: Annotated[str, typer.Option(help="'hf' or any functional of PySCF.")] = "pbe",
    basis: Annotated[str, typer.Option(help="Name, or JSON file in the Basis Set Exchange's schema.")] = "def2-svp",
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Processes, each with one thread.")] = 1,
    gradient: Annotated[bool, typer.Option("--gradient", help="Nuclear gradients too.")] = False,
    charge: Annotated[int | None, typer.Option(help="Total charge; default: what the frames say, else 0.")] = None,
    spin: Annotated[
        int | None, typer.Option(help="Unpaired electrons, 2S; default: as the frames say, else 0.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many geometries.")] = None,
    residual_tol: Annotated[float, typer.Option(help="Largest |FDS - SDF| that is accepted [Eh].")] = 1e-6,
    guess: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Start each SCF from a model (name or checkpoint); labels stay the same."),
    ] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
) -> None:
    """Label geometries with Fock matrices, energies and more by PySCF.

    Run the same command again to go on after an interruption: nothing is lost and nothing is done twice.
    """
    from mlsemi.basis import load_basis
    from mlsemi.cli.display import Display
    from mlsemi.interop.ase import read_molecules
    from mlsemi.reference.farm import label as run_farm
    from mlsemi.reference.guess import ModelGuess

    try:
        molecules = read_molecules(geometries, charge=charge, spin=spin)[:limit]
        start = None if guess is None else ModelGuess(_checkpoint(guess))
        with Display({"labels": "labels"}) as display:
            summary = run_farm(
                molecules,
                output,
                method=method,
                basis=load_basis(basis),
                jobs=jobs,
                gradient=gradient,
                residual_tolerance=residual_tol,
                initial_density=start,
                retry_failed=retry_failed,
                report=lambda p: display.show("labels", p.finished, p.total, p.per_second, f"{p.failed} failed"),
            )
    except (ValueError, OSError) as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(1) from error
    _print_summary(summary, output)
    if summary.interrupted:
        raise typer.Exit(130)
    if summary.progress.failed and not summary.progress.done and not summary.progress.before:
        raise typer.Exit(1)


def _checkpoint(name_or_path: str) -> Path:
    from mlsemi.model import find_model

    return find_model(name_or_path).resolve()


def _print_summary(summary: Summary, output: Path) -> None:
    p = summary.progress
    typer.echo(
        f"{p.done} labels in {p.seconds:.1f} s ({p.per_second:.2f}/s), {p.before} from before, {p.failed} failed; "
        f"{p.finished} of {p.total} done: {output}"
    )
    for reason, count in sorted(summary.failures.items(), key=lambda item: -item[1])[:5]:
        typer.echo(f"warning: {count} failed: {reason}", err=True)
    if p.failed:
        typer.echo("warning: failed molecules have no label in the file; --retry-failed tries them again", err=True)
    if summary.interrupted:
        typer.echo("interrupted: all labels so far are safe; run the same command again to go on", err=True)
