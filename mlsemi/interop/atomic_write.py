"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """A path beside `path` to write to; renamed to `path` at the end, removed if writing fails or is interrupted.

    Raises:
        ValueError: if the folder of `path` does not exist, or `path` is a folder.
    """
    path = Path(path)
    refuse_unwritable(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def refuse_unwritable(path: Path) -> None:
    """For before long work.

    Raises:
        ValueError: if the folder of `path` does not exist, or `path` is a folder.
    """
    if not path.parent.is_dir():
        raise ValueError(f"path={str(path)!r}: the folder {str(path.parent)!r} does not exist; create it first")
    if path.is_dir():
        raise ValueError(f"path={str(path)!r} is a folder; give the name of a file")
