"""Append-only journal of label records: what survives being killed.

A frame is a fixed head (magic, length, CRC-32) and a payload; each is flushed to the disk before the next is begun. The
first frame holds the settings of the run, every other one record. A torn frame can only be the last one: it is cut off
when the journal is opened again.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mlsemi.data.store import Record, _record, _row

_HEAD = struct.Struct("<4sQI")
_MAGIC = b"MLSJ"


class Journal:
    """The journal of one run, opened for appending; the records that it already has are read by `records`.

    Args:
        path: the file; made if there is none.
        settings: plain data that must be the same for all records.

    Raises:
        ValueError: if another process is writing it, or if it was begun with other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._file = open(path, "a+b")  # noqa: SIM115 (closed in close)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ValueError(f"another process is writing {path}: wait for it, or give another output") from error
        self.places: list[tuple[str, bool, int]] = []
        """Key, whether it has a label, and place in the file, for each record."""
        self._end = 0
        self._scan(settings)

    def _scan(self, settings: Mapping[str, Any]) -> None:
        first = True
        for offset, payload in self._frames():
            header, _ = _split(payload)
            if first:
                differing = [k for k in settings if header.get(k) != settings[k]]
                if differing:
                    raise_differing(str(self.path), header, settings, differing)
                first = False
            else:
                self.places.append((header["key"], not header["failure"], offset))
        self._refuse_damage()
        self._file.truncate(self._end)
        if first:
            self._append(_join(dict(settings), {}))

    def _refuse_damage(self) -> None:
        """What follows the last good frame must be one torn frame; if whole ones follow, cutting would lose them."""
        self._file.seek(self._end)
        rest = self._file.read()
        if rest.find(_MAGIC, 1) > 0:
            self._file.close()
            raise ValueError(
                f"journal {self.path} is damaged at byte {self._end}, with more records behind: move it away to label "
                "these again; nothing has been changed"
            )

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        """Place and payload of each whole frame."""
        self._file.seek(0)
        while True:
            offset = self._file.tell()
            payload = _read_frame(self._file)
            if payload is None:
                return
            self._end = self._file.tell()
            yield offset, payload

    def _append(self, payload: bytes) -> int:
        offset = self._end
        try:
            self._file.seek(0, os.SEEK_END)
            self._file.write(_HEAD.pack(_MAGIC, len(payload), zlib.crc32(payload)) + payload)
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self._cut(offset)
            raise OSError(
                error.errno,
                f"cannot write {self.path} ({error.strerror}); the {len(self.places)} records before are safe: "
                "free space and run the same command again",
            ) from error
        self._end = offset + _HEAD.size + len(payload)
        return offset

    def _cut(self, size: int) -> None:
        """Undo a write that failed. What Python still buffers goes with the file object."""
        os.ftruncate(self._file.fileno(), size)
        raw = os.dup(self._file.fileno())
        try:
            self._file.close()
        except OSError:
            pass
        self._file = os.fdopen(raw, "a+b")
        os.ftruncate(raw, size)

    def append(self, record: Record) -> None:
        """Add a record; it is on the disk when this returns.

        Raises:
            OSError: if it cannot be written; what was there before is intact.
        """
        scalars, arrays = _row(record)
        offset = self._append(_join(scalars, arrays))
        self.places.append((scalars["key"], not record.failure, offset))

    def read(self, offset: int) -> Record:
        """The record at a place of `places`."""
        self._file.seek(offset)
        payload = _read_frame(self._file)
        if payload is None:
            raise ValueError(f"journal {self.path} changed while it was read")
        return _record(*_split(payload))

    def close(self, *, remove: bool = False) -> None:
        """Close it, and remove it if its records are in the label file."""
        if remove and not self._file.closed:
            self.path.unlink(missing_ok=True)
        self._file.close()


def raise_differing(where: str, found: Mapping[str, Any], wanted: Mapping[str, Any], names: list[str]) -> None:
    """Refuse to continue a file that was begun with other settings."""

    def short(value: object) -> str:
        text = repr(value.item() if isinstance(value, np.generic) else value)
        return text if len(text) < 80 else text[:77] + "..."

    parts = ", ".join(f"{k} {short(found.get(k))} (asked now: {short(wanted[k])})" for k in names)
    raise ValueError(f"{where} was made with {parts}: give another output, or the settings it was made with")


def _read_frame(file: io.BufferedRandom) -> bytes | None:
    """The next payload, or None at the end or where a frame is torn."""
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    magic, length, checksum = _HEAD.unpack(head)
    if magic != _MAGIC:
        return None
    payload = file.read(length)
    return payload if len(payload) == length and zlib.crc32(payload) == checksum else None


def _join(scalars: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in scalars.items()}
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(json.dumps(plain).encode(), dtype=np.uint8), **arrays)  # pyright: ignore
    return buffer.getvalue()


def _split(payload: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with np.load(io.BytesIO(payload), allow_pickle=False) as data:
        return json.loads(data["header"].tobytes()), {k: data[k] for k in data.files if k != "header"}
