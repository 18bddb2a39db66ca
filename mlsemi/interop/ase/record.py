"""Record: trajectory, log and state of a long run, which agree whenever it is killed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ase.io.jsonio import decode, encode

from mlsemi.files import refuse_unwritable, written_whole


class Record:
    """Files of a run that can be gone on with.

    Trajectory and log grow at their ends. The state appears whole or not at all, and says how long they were then; what
    was written after it is cut off on going on, so that nothing is lost and nothing is there twice.

    Args:
        state: file of the state.
        trajectory: file of the frames, or None.
        log: file of the log, or None.
        settings: what must be the same for going on, as plain data.
        restart: go on from the state.
        overwrite: write over a trajectory and a log that are there, unless there is a state to go on from.

    Raises:
        ValueError: without `restart` if there is a run already (see `overwrite`), with it if there is none, if it has
            other settings, or if its files were cut short.
    """

    def __init__(
        self,
        *,
        state: Path,
        trajectory: Path | None,
        log: Path | None,
        settings: Mapping[str, Any],
        restart: bool,
        overwrite: bool = False,
    ) -> None:
        self._state = state
        self._settings = json.loads(json.dumps(dict(settings)))
        self._paths = {"trajectory": trajectory, "log": log}
        for path in (state, trajectory, log):
            if path is not None:
                refuse_unwritable(path)
        self.kept: dict[str, Any] | None = self._resume() if restart else self._begin(overwrite)
        self._files: dict[str, TextIO] = {
            name: open(path, "a" if restart else "w", encoding="utf-8")  # noqa: SIM115 (closed by close)
            for name, path in self._paths.items()
            if path is not None
        }

    def __enter__(self) -> Record:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def write(self, name: str, text: str) -> None:
        """Appends to the trajectory or the log, where there is one."""
        if name in self._files:
            self._files[name].write(text)

    def save(self, kept: Mapping[str, Any]) -> None:
        """Keeps a state: numbers, texts, arrays, lists and dictionaries of them."""
        sizes = {}
        for name, file in self._files.items():
            file.flush()
            sizes[name] = os.fstat(file.fileno()).st_size
        data = {"settings": self._settings, "sizes": sizes, "kept": dict(kept)}
        with written_whole(self._state) as beside:
            beside.write_text(encode(data), encoding="utf-8")

    def remove_state(self) -> None:
        """Removes the state: there is nothing to go on with."""
        self._state.unlink(missing_ok=True)

    def _begin(self, overwrite: bool) -> None:
        if self._state.exists():
            raise ValueError(
                f"{self._state} is of a run before this one: go on with it (restart), or remove it to start anew"
            )
        for path in self._paths.values():
            if path is not None and path.exists() and not (overwrite and path.is_file()):
                raise ValueError(f"{path} exists already: take another name, or remove it")

    def _resume(self) -> dict[str, Any]:
        if not self._state.is_file():
            raise ValueError(f"there is nothing to go on with: no file {self._state}")
        try:
            data: Any = decode(self._state.read_text(encoding="utf-8"), always_array=False)
            settings, sizes, kept = data["settings"], data["sizes"], data["kept"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self._state} is not a state that a run of mlsemi left: {error}") from error
        for name, value in self._settings.items():
            if settings.get(name) != value:
                was = "another" if isinstance(value, list) else repr(settings.get(name))
                now = "is not that of the run" if isinstance(value, list) else f"is {value!r} now"
                raise ValueError(f"restart: {name} was {was} before and {now}; go on with the same settings")
        for name, path in self._paths.items():
            if (path is None) != (name not in sizes):
                raise ValueError(
                    f"restart: the run {'has a' if path is None else 'had no'} {name}; take the same files"
                )
            if path is None:
                continue
            if not path.is_file() or path.stat().st_size < sizes[name]:
                raise ValueError(f"restart: {path} is missing or shorter than it was: it cannot be gone on with")
        for name, path in self._paths.items():
            if path is not None:
                os.truncate(path, sizes[name])
        return kept
