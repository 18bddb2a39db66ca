"""Geometry files, through ASE, and npz files of many frames of one molecule."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, TextIO
from zipfile import BadZipFile

import numpy as np

from mlsemi.molecule import Molecule, symbol_of

if TYPE_CHECKING:
    from ase import Atoms

WHOLE = 0.01
"""Initial charges and magnetic moments add up to a whole number to within this: files have them rounded."""


def read_molecules(path: str | Path, *, charge: int | None = None, spin: int | None = None) -> list[Molecule]:
    """All frames of a geometry file.

    Args:
        path: .xyz, with symbols or atomic numbers, extended xyz or anything else that ASE reads [angstrom]; or .npz
            with `coords` [angstrom], shape (frame, atom, 3), and `nuclear_charges`, shape (atom,).
        charge: total charge [e]; by default what the frame says, see `charge_and_spin`, else 0.
        spin: unpaired electrons, 2S; by default what the frame says, else 0.

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
    comments, numbered = _comments_of_xyz(path) if is_xyz else ([], False)
    frames = _read_ase(path, "extxyz" if is_xyz else None, numbered=numbered)
    if not frames:
        raise ValueError(f"geometry file {path} holds no frame")
    names = [f"{path.name}#{i}" for i in range(len(frames))]
    for i, comment in enumerate(comments):
        names[i] = _name_in(comment) or names[i]
    return [_molecule(atoms, name, charge=charge, spin=spin) for atoms, name in zip(frames, names, strict=True)]


def _read_ase(path: Path, kind: str | None, *, numbered: bool) -> list[Atoms]:
    from ase.io import read

    try:
        source: Path | StringIO = path
        if kind == "extxyz":
            with _text(path) as file:
                source = StringIO("".join(_with_symbols(file)) if numbered else file.read())
        return list(read(source, index=":", format=kind))  # pyright: ignore[reportReturnType]
    except KeyError as error:
        raise ValueError(
            f"geometry file {path}: unknown element {error}; a symbol such as O is expected, or an atomic number"
        ) from error
    except Exception as error:  # noqa: BLE001 (ASE's readers raise anything)
        raise ValueError(f"geometry file {path} cannot be read: {type(error).__name__}: {error}") from error


def _text(path: Path) -> TextIO:
    """An xyz file: with or without a byte order mark, its comments in whatever encoding."""
    return path.open(encoding="utf-8-sig", errors="replace")


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


def _comments_of_xyz(path: Path) -> tuple[list[str], bool]:
    """Comment line of each frame, and whether atoms have numbers for symbols.

    Raises:
        ValueError: for what is not a sequence of whole frames, saying where.
    """
    comments: list[str] = []
    numbered = False
    with _text(path) as file:
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
            numbered |= _symbols_first(comments[-1]) and any(row.split()[0].isdecimal() for row in atoms)
    if not comments:
        raise ValueError(f"geometry file {path} is empty")
    return comments, numbered


def _symbols_first(comment: str) -> bool:
    """Whether the first column of a frame is that of the elements, as in xyz files without `Properties`."""
    return "Properties=" not in comment or re.search(r"(^|\s)Properties=\"?species:", comment) is not None


def _with_symbols(file: TextIO) -> Iterator[str]:
    """Lines of a sequence of whole frames, with symbols for the atomic numbers."""
    for line in file:
        if not line.strip():
            continue
        comment = next(file)
        yield from (line, comment)
        for _, row in zip(range(int(line)), file, strict=False):
            first, rest = row.split(maxsplit=1)
            known = first.isdecimal() and _symbols_first(comment)
            yield f"{symbol_of(int(first))} {rest}" if known else row


def _molecule(atoms: Atoms, name: str, *, charge: int | None, spin: int | None) -> Molecule:
    if atoms.pbc.any():
        raise ValueError(
            f"{name} is periodic (pbc={atoms.pbc.tolist()}), and mlsemi is for molecules; take the cell out of the "
            "file if it is one molecule"
        )
    charge, spin = charge_and_spin(atoms, name, charge=charge, spin=spin)
    return Molecule.from_angstrom(
        atoms.get_atomic_numbers(), atoms.get_positions(), charge=charge, spin=spin, name=name
    )


def charge_and_spin(atoms: Atoms, where: str, *, charge: int | None = None, spin: int | None = None) -> tuple[int, int]:
    """Total charge [e] and spin (2S) of atoms, as far as they are not given.

    They are `charge` and `spin`, or `multiplicity`, in `atoms.info`, which the comment of an extended xyz frame fills;
    else the sums of the initial charges and magnetic moments, ASE's own way; else 0.

    Args:
        atoms: the atoms.
        where: what to call them in messages.
        charge: the charge, if it is given.
        spin: the spin, if it is given.

    Raises:
        ValueError: for values that are no whole numbers, or a spin and a multiplicity that do not go together.
    """
    if charge is None:
        charge = _integer_in(atoms.info, "charge", where)
    if charge is None:
        charge = _whole_sum(atoms, "initial_charges", where, "charge")
    if spin is None:
        spin = _spin_in(atoms.info, where)
    if spin is None:
        spin = abs(_whole_sum(atoms, "initial_magmoms", where, "spin"))
    return charge, spin


def _spin_in(info: Mapping[str, object], where: str) -> int | None:
    spin, multiplicity = (_integer_in(info, name, where) for name in ("spin", "multiplicity"))
    if multiplicity is None:
        return spin
    if spin not in (None, multiplicity - 1):
        raise ValueError(
            f"{where}: spin={spin} and multiplicity={multiplicity} do not go together: spin is 2S, multiplicity 2S + 1"
        )
    return multiplicity - 1


def _integer_in(info: Mapping[str, object], name: str, where: str) -> int | None:
    """The integer of a name, in any case of its letters, in the `info` of a frame; None if it has none."""
    value = next((v for k, v in info.items() if str(k).lower() == name), None)
    if value is None:
        return None
    if not isinstance(value, int | float | np.number) or int(value) != value:
        plain = value.item() if isinstance(value, np.number) else value
        raise ValueError(f"{where}: {name}={plain!r} must be an integer")
    return int(value)


def _whole_sum(atoms: Atoms, array: str, where: str, name: str) -> int:
    """The sum of an array of ASE, which is zero where it is not set."""
    if not atoms.has(array):
        return 0
    total = float(np.sum(atoms.get_array(array)))
    if abs(total - round(total)) > WHOLE:
        raise ValueError(f"{where}: the {array} add up to {total:g}, which is no whole number; give {name}")
    return round(total)


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
