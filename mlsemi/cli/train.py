"""`mlsemi train`: a model from labels."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from mlsemi.cli.display import Display
    from mlsemi.train.config import Config
    from mlsemi.train.loop import Progress

_FULL = 64 * 2**20
"""A disk with less left [bytes] has no room for a state and is called full."""


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Configuration; see docs/how-to-train.md.")],
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="MODEL", help="Go on from a trained model: a shipped name or a path."),
    ] = None,
) -> None:
    """Train a model on labels as a TOML file says.

    Into the output folder go model.safetensors (the moving average of the weights at the last validation, or with
    patience, when the run has ended, at the one with the lowest loss: the model to use), best.safetensors (the same at
    the validation with the lowest loss: take it if the curves rise at the end), curves.csv, curves.png and state.pt,
    for resuming.

    Run the same command again to go on after an interruption: it resumes exactly.
    """
    from safetensors import SafetensorError

    from mlsemi.cli.display import Display
    from mlsemi.model import find_model
    from mlsemi.train.config import read_config
    from mlsemi.train.loop import train as run

    read = None
    try:
        read = read_config(config)
        with Display({"prepare": "labels", "train": "steps"}) as display:
            path = run(read, start=find_model(start) if start else None, report=_Watch(display, read).show)
    except KeyboardInterrupt as stopped:
        what = str(stopped) or "at once, what was saved before stays"
        again = shlex.join(["mlsemi", "train", str(config), *(["--from", start] if start else [])])
        typer.echo(f"interrupted: {what}; run `{again}` again to go on", err=True)
        raise typer.Exit(130) from None
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError, SafetensorError) as error:
        typer.echo(f"error: {_explain(error, read)}", err=True)
        raise typer.Exit(1) from error
    _finish(read, path)


class _Watch:
    """Shows the progress and draws the curves after each validation."""

    def __init__(self, display: Display, config: Config) -> None:
        self._display, self._config = display, config
        self._row: dict[str, float] | None = None

    def show(self, progress: Progress) -> None:
        """Report of the loop."""
        if progress.note:
            self._display.line(progress.note)
            return
        fresh = progress.row is not None and progress.row is not self._row
        self._row = progress.row
        note = _errors(progress.row) if progress.row else ""
        self._display.show(progress.stage, progress.done, progress.total, progress.rate, note)
        if fresh and progress.row:
            step, seconds = int(progress.row["step"]), progress.row["seconds"]
            self._display.line(f"step {step}, {seconds:.0f} s: {_errors(progress.row)}")
            _draw(self._config)


def _errors(row: dict[str, float]) -> str:
    """The errors of the last validation, in short."""
    found = {key.removeprefix("validation_"): value for key, value in row.items() if key.startswith("validation_")}
    return "validation " + ", ".join(_with_unit(key, value) for key, value in found.items())


def _with_unit(key: str, value: float) -> str:
    """A column of the curves in words, in 1e-6 a.u."""
    for ending, unit in (("_meh_per_bohr", "uEh/bohr"), ("_mebohr", "1e-6 e bohr"), ("_meh", "uEh")):
        if key.endswith(ending):
            return f"{key.removesuffix(ending).replace('_', '-')} {value * 1e3:.3g} {unit}"
    return f"{key} {value:.3g}"


def _draw(config: Config) -> None:
    """Draws curves.png; a picture that cannot be written ends no training."""
    from mlsemi.train.loop import CURVES
    from mlsemi.train.plots import plot_curves

    try:
        plot_curves(config.output / CURVES, config.output / "curves.png")
    except OSError as error:
        typer.echo(f"warning: curves.png was not written: {error}", err=True)


def _finish(config: Config, path: Path) -> None:
    from mlsemi.checkpoint import read_header

    training = read_header(path).training
    _draw(config)
    steps, skipped = training.get("steps", config.training.steps), training.get("steps_skipped", 0)
    left = f", {skipped} of them skipped, since loss or gradient was not finite" if skipped else ""
    typer.echo(f"{steps} steps in {training.get('seconds', 0):.0f} s{left}: {path}")
    for name, value in training.get("validation", {}).items():
        typer.echo(f"  validation {_with_unit(name, value)}")
    typer.echo(f"next: mlsemi evaluate {shlex.quote(str(path))} LABELS")


def _explain(error: Exception, config: Config | None) -> str:
    """One line; a full disk is named, since libraries report it in many ways."""
    text = " ".join(str(error).split()) or type(error).__name__
    if config is not None and config.output.is_dir() and shutil.disk_usage(config.output).free < _FULL:
        return (
            f"the disk of {config.output} is full ({text}): free some space and run the same command again; it goes on "
            "from the last saved state"
        )
    return text
