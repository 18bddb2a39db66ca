"""Progress of long commands: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time

import typer

PLAIN_SECONDS = 30.0
"""Without a terminal a line of progress is printed this often."""


class Display:
    """Progress with rate and remaining time, stage after stage.

    Args:
        unit: what is counted, in the plural, by stage.
    """

    def __init__(self, unit: dict[str, str]) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._unit = unit
        self._console = Console(stderr=True)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
        self._bar = Progress(TextColumn("{task.description}"), *columns, console=self._console)
        self._tasks: dict[str, int] = {}
        self._next_line = 0.0

    def __enter__(self) -> Display:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def show(self, stage: str, done: int, total: int, rate: float, note: str = "") -> None:
        """Draws the state: so many of a stage done, at a rate per second."""
        text = _rate(rate, self._unit[stage]) + (f", {note}" if note else "")
        if self._console.is_terminal:
            if stage not in self._tasks:
                self._tasks[stage] = self._bar.add_task(stage, total=total, note=text)
            self._bar.update(self._tasks[stage], total=total, completed=done, note=text)  # type: ignore[arg-type]
        elif time.monotonic() >= self._next_line or (done == total and stage not in self._tasks):
            left = f", {(total - done) / rate / 60:.1f} min left" if rate > 0 and done < total else ""
            typer.echo(f"{stage} {done}/{total}, {text}{left}", err=True)
            self._next_line = time.monotonic() + PLAIN_SECONDS
            if done == total:
                self._tasks[stage] = 0

    def line(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._console.is_terminal:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            typer.echo(text, err=True)


def _rate(rate: float, unit: str) -> str:
    return f"{rate:.3g} {unit}/s" if rate >= 0.1 or rate <= 0 else f"{rate * 60:.3g} {unit}/min"
