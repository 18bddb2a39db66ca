"""The command line: one file for each command. What is heavy is imported inside of the commands."""

from __future__ import annotations

from typing import Annotated

import typer

from mlsemi.cli.calibrate import calibrate
from mlsemi.cli.evaluate import evaluate
from mlsemi.cli.export import export
from mlsemi.cli.frequencies import frequencies
from mlsemi.cli.label import label
from mlsemi.cli.md import md
from mlsemi.cli.models import models
from mlsemi.cli.optimize import optimize
from mlsemi.cli.predict import predict
from mlsemi.cli.properties import properties
from mlsemi.cli.report import report
from mlsemi.cli.sample import sample
from mlsemi.cli.train import train

app = typer.Typer(
    name="mlsemi",
    help="Semi-empirical quantum chemistry with a learned Hamiltonian.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # it would swallow units in brackets
    pretty_exceptions_enable=False,
)
for command in (
    predict,
    optimize,
    md,
    export,
    report,
    properties,
    frequencies,
    models,
    sample,
    label,
    train,
    calibrate,
    evaluate,
):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        from mlsemi import __version__

        typer.echo(f"mlsemi {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Semi-empirical quantum chemistry with a learned Hamiltonian."""


def main() -> None:
    """Entry point of the program `mlsemi`."""
    app()
