"""Files that appear whole or not at all, and what tells one from another."""

from __future__ import annotations

import hashlib
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
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"the folder {path.parent} does not exist; create it first")


def sha256_of(path: Path) -> str:
    """SHA-256 of the content of a file, as `sha256sum` has it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def refuse_unusable_folder(folder: Path, option: str) -> None:
    """For before long work: a folder that is made only when there is something to write.

    Args:
        folder: where results will go; need not exist.
        option: what it was given by, for the message.

    Raises:
        ValueError: if the folder cannot be made, or nothing can be written there.
    """
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"{option} {folder}: {nearest} is a file: give the name of a folder, or remove the file")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"{option} {folder}: {nearest} cannot be written to: give another folder")
