"""Geometry files, through ASE, and npz files of many frames of one molecule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from mlsemi.molecule import Molecule

if TYPE_CHECKING:
    from ase import Atoms


def read_molecules(path: str | Path, *, charge: int | None = None, spin: int | None = None) -> list[Molecule]:
    """All frames of a geometry file.

    Args:
        path: .xyz, extended xyz or anything else that ASE reads [angstrom]; or .npz with `coords` [angstrom], shape
            (frame, atom, 3), and `nuclear_charges`, shape (atom,).
        charge: total charge [e]; by default the frame's `charge` (extended xyz), else 0.
        spin: unpaired electrons, 2S; by default the frame's `spin`, else 0.

    Returns:
        Molecules, named by the frame's `smiles` or `key` where it has one, else by file and frame.

    Raises:
        ValueError: if there is no such file, or it is empty, truncated, periodic, of an unknown kind, or holds an
            unknown element or a molecule that `Molecule` refuses.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is a folder; give a file" if path.is_dir() else f"no such geometry file: {path}")
    if path.stat().st_size == 0:
        raise ValueError(f"geometry file {path} is empty")
    if path.suffix.lower() == ".npz":
        return _read_npz(path, charge=charge or 0, spin=spin or 0)
    is_xyz = path.suffix.lower() in (".xyz", ".extxyz")
    comments = _comments_of_xyz(path) if is_xyz else []
    frames = _read_ase(path, "extxyz" if is_xyz else None)
    if not frames:
        raise ValueError(f"geometry file {path} holds no frame")
    names = [f"{path.name}#{i}" for i in range(len(frames))]
    for i, comment in enumerate(comments):
        names[i] = _name_in(comment) or names[i]
    return [_molecule(atoms, name, charge=charge, spin=spin) for atoms, name in zip(frames, names, strict=True)]


def _read_ase(path: Path, kind: str | None) -> list[Atoms]:
    from ase.io import read

    try:
        return list(read(path, index=":", format=kind))  # pyright: ignore[reportReturnType]
    except KeyError as error:
        raise ValueError(f"geometry file {path}: unknown element {error}") from error
    except Exception as error:  # noqa: BLE001 (ASE's readers raise anything)
        raise ValueError(f"geometry file {path} cannot be read: {type(error).__name__}: {error}") from error


def _name_in(comment: str) -> str:
    """The `smiles`, or else the `key`, of the comment of an extended xyz frame.

    Read here because ASE takes some SMILES for lists ('[H][H]') or truth values ('F').
    """
    for name in ("smiles", "key"):
        found = re.search(rf'(?:^|\s){name}=(?:"((?:[^"\\]|\\.)*)"|(\S+))', comment)
        if found:
            quoted, plain = found.groups()
            return plain or re.sub(r"\\(.)", r"\1", quoted)
    return ""


def _comments_of_xyz(path: Path) -> list[str]:
    """Comment line of each frame; refuses what is not a sequence of whole frames, saying where."""
    comments: list[str] = []
    with path.open(encoding="utf-8", errors="replace") as file:
        lines = iter(enumerate(file, start=1))
        for number, line in lines:
            frame = len(comments)
            if not line.strip():
                continue
            try:
                n_atoms = int(line)
            except ValueError:
                raise ValueError(
                    f"geometry file {path}, line {number}: expected the number of atoms of frame {frame}, "
                    f"got {line.strip()!r}"
                ) from None
            if n_atoms < 1:
                raise ValueError(f"geometry file {path}, line {number}: frame {frame} has {n_atoms} atoms")
            rows = [row for _, (_, row) in zip(range(n_atoms + 1), lines, strict=False)]
            atoms = [row for row in rows[1:] if len(row.split()) >= 4]
            if len(rows) < n_atoms + 1 or len(atoms) < n_atoms:
                raise ValueError(
                    f"geometry file {path}, line {number}: frame {frame} is truncated: {n_atoms} atoms announced, "
                    f"{len(atoms)} found"
                )
            comments.append(rows[0].strip())
    if not comments:
        raise ValueError(f"geometry file {path} is empty")
    return comments


def _molecule(atoms: Atoms, name: str, *, charge: int | None, spin: int | None) -> Molecule:
    info = atoms.info
    if atoms.pbc.any():
        raise ValueError(
            f"{name} is periodic (pbc={atoms.pbc.tolist()}), and mlsemi is for molecules; take the cell out of the "
            "file if it is one molecule"
        )
    return Molecule.from_angstrom(
        atoms.get_atomic_numbers(),
        atoms.get_positions(),
        charge=integer_in(info, "charge", name) if charge is None else charge,
        spin=integer_in(info, "spin", name) if spin is None else spin,
        name=name,
    )


def integer_in(info: Mapping[str, object], name: str, where: str) -> int:
    """The integer of a name in the `info` of a frame, 0 if it has none."""
    value = info.get(name, 0)
    if not isinstance(value, int | float | np.number) or int(value) != value:
        raise ValueError(f"{where}: {name}={value!r} must be an integer")
    return int(value)


def _read_npz(path: Path, *, charge: int, spin: int) -> list[Molecule]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            missing = {"coords", "nuclear_charges"} - set(data.files)
            if missing:
                raise ValueError(
                    f"geometry file {path} has no {', '.join(sorted(missing))}; it has {', '.join(data.files)}"
                )
            coords, numbers = data["coords"], data["nuclear_charges"]
    except (OSError, EOFError, BadZipFile, AttributeError, TypeError) as error:
        raise ValueError(f"geometry file {path} cannot be read: {error}") from error
    if coords.ndim != 3 or coords.shape[1:] != (len(numbers), 3):
        raise ValueError(f"geometry file {path}: coords must have shape (frame, {len(numbers)}, 3), got {coords.shape}")
    return [
        Molecule.from_angstrom(numbers, xyz, charge=charge, spin=spin, name=f"{path.name}#{i}")
        for i, xyz in enumerate(coords)
    ]
