"""Label files: HDF5 with ragged flat arrays, and the journal that makes labelling safe against being killed.

A label file (format 2) has one flat dataset per quantity, records one after the other, and the sizes of each record in
`records/`; matrices are packed lower triangles in mlsemi's AO order. HDF5 files that are open for writing do not
survive a kill; so records go to an append-only journal first (`data/journal.py`), and the HDF5 file is written beside
and renamed. Format 1, which is still read, has none of what correlated methods add (`_ADDED`, and the last of `_FLAT`).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from mlsemi.basis import Basis
from mlsemi.files import written_whole
from mlsemi.layout import AO_ORDER
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables

FORMAT_VERSION = 2
_READABLE = (1, 2)
NO_FOCK = "none"
"""The `fock_encoding` of a file whose labels are energies and what follows from them, without Fock matrices."""

_KIND = "mlsemi labels"
_POSITION_QUANTUM = 1e-7
"""Positions are compared to this many bohr when geometries are recognized."""

_CHUNK = 65536
_TEXT_CHUNK = 256
_CACHE_BYTES = 1 << 24
_FLUSH_RECORDS = 128
_SCALARS = {
    "charge": "i4",
    "spin": "i4",
    "n_atoms": "i4",
    "n_ao": "i4",
    "n_mo": "i4",
    "n_spins": "i4",
    "energy": "f8",
    "residual": "f8",
    "seconds": "f8",
    "degenerate": "i1",
    "index": "i8",
}
_ENERGIES = ("t1_diagnostic", "scf_total_energy", "mp2_total_energy", "ccsd_total_energy")
_ADDED = {"has_gradient": "i1", "n_ip": "i4", "n_ea": "i4"} | dict.fromkeys(_ENERGIES, "f8")
"""Columns that format 1 does not have."""

_TEXTS = ("name", "scheme", "failure", "key")
_FLAT = {
    "numbers": "i2",
    "positions": "f8",
    "fock": "f8",
    "mo_energy": "f8",
    "dipole": "f8",
    "gradient": "f8",
    "ionization_energies": "f8",
    "electron_affinities": "f8",
}
_ADDED_FLAT = ("ionization_energies", "electron_affinities")


@dataclass(frozen=True, eq=False)
class Record:
    """One line of a label file.

    Attributes:
        molecule: geometry, charge, spin, name.
        observables: energy, fock (or its residual to a baseline; None if the method has none), mo_energy, dipole,
            gradient, residual, seconds, ionization_energies, electron_affinities, t1_diagnostic, scf_total_energy,
            mp2_total_energy, ccsd_total_energy.
        scheme: how the SCF was converged.
        degenerate: the occupation was a matter of choice (tiny gap).
        failure: why there is no label; empty if there is one.
        index: place among the geometries that were asked for.
    """

    molecule: Molecule
    observables: Observables = Observables()
    scheme: str = ""
    degenerate: bool = False
    failure: str = ""
    index: int = -1

    @property
    def key(self) -> str:
        """Hash of what was asked: see `molecule_key`."""
        return molecule_key(self.molecule)


def molecule_key(molecule: Molecule) -> str:
    """Hash of nuclei, positions (to 1e-7 bohr), charge and spin: 32 hexadecimal digits."""
    digest = hashlib.sha256(molecule.numbers.astype("<i8").tobytes())
    digest.update(np.rint(molecule.positions / _POSITION_QUANTUM).astype("<i8").tobytes())
    digest.update(f"{molecule.charge} {molecule.spin}".encode())
    return digest.hexdigest()[:32]


def pack(matrices: np.ndarray) -> np.ndarray:
    """Lower triangles of symmetric matrices, shape (spin, ao, ao) to (spin * ao (ao + 1) / 2,)."""
    rows, columns = np.tril_indices(matrices.shape[-1])
    return matrices[:, rows, columns].ravel()


def unpack(packed: np.ndarray, n_spins: int, n_ao: int) -> np.ndarray:
    """Inverse of `pack`, shape (spin, ao, ao), float64."""
    rows, columns = np.tril_indices(n_ao)
    out = np.empty((n_spins, n_ao, n_ao))
    triangles = np.asarray(packed, dtype=np.float64).reshape(n_spins, -1)
    out[:, rows, columns] = triangles
    out[:, columns, rows] = triangles
    return out


def _row(record: Record) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Scalars and flat arrays of a record."""
    mol, obs = record.molecule, record.observables
    fock = None if obs.fock is None else np.asarray(obs.fock)
    mo = None if obs.mo_energy is None else np.asarray(obs.mo_energy)
    ip, ea = (np.zeros(0) if x is None else np.asarray(x) for x in (obs.ionization_energies, obs.electron_affinities))
    if not record.failure and obs.energy is None:
        raise ValueError(f"record {mol.name!r} has neither a failure nor an energy")
    scalars = {
        "charge": mol.charge,
        "spin": mol.spin,
        "n_atoms": mol.n_atoms,
        "n_ao": 0 if fock is None else fock.shape[-1],
        "n_mo": 0 if mo is None else mo.shape[-1],
        "n_spins": 0 if fock is None else fock.shape[0],
        "energy": np.nan if obs.energy is None else obs.energy,
        "residual": np.nan if obs.residual is None else obs.residual,
        "seconds": np.nan if obs.seconds is None else obs.seconds,
        "degenerate": int(record.degenerate),
        "index": record.index,
        "name": mol.name,
        "scheme": record.scheme,
        "failure": record.failure,
        "key": record.key,
        "has_gradient": int(obs.gradient is not None),
        "n_ip": ip.size,
        "n_ea": ea.size,
    }
    scalars |= {k: np.nan if getattr(obs, k) is None else getattr(obs, k) for k in _ENERGIES}
    none = np.zeros(0)
    arrays = {
        "numbers": mol.numbers,
        "positions": mol.positions.ravel(),
        "fock": none if fock is None else pack(fock),
        "mo_energy": none if mo is None else mo.ravel(),
        "dipole": np.full(3, np.nan) if obs.dipole is None else np.asarray(obs.dipole),
        "gradient": none if obs.gradient is None else np.asarray(obs.gradient).ravel(),
        "ionization_energies": ip,
        "electron_affinities": ea,
    }
    return scalars, arrays


def _record(scalars: Mapping[str, Any], arrays: Mapping[str, np.ndarray], *, with_fock: bool = True) -> Record:
    """Inverse of `_row`; what is not there (in a journal of format 1) is None."""
    molecule = Molecule(
        arrays["numbers"],
        np.asarray(arrays["positions"]).reshape(-1, 3),
        charge=int(scalars["charge"]),
        spin=int(scalars["spin"]),
        name=scalars["name"],
    )
    failed = bool(scalars["failure"])
    n_spins, n_ao = int(scalars["n_spins"]), int(scalars["n_ao"])

    def value(name: str) -> float | None:
        found = scalars.get(name, np.nan)
        return None if np.isnan(found) else float(found)

    def array(name: str, *shape: int) -> np.ndarray | None:
        data = np.asarray(arrays.get(name, ()), dtype=np.float64)
        return None if failed or data.size == 0 or np.isnan(data).any() else data.reshape(shape)

    energies: dict[str, Any] = {k: value(k) for k in _ENERGIES}
    observables = Observables(
        energy=value("energy"),
        fock=unpack(arrays["fock"], n_spins, n_ao) if with_fock and n_ao and not failed else None,
        mo_energy=array("mo_energy", n_spins, -1),
        dipole=array("dipole", 3),
        gradient=array("gradient", -1, 3),
        residual=value("residual"),
        seconds=value("seconds"),
        ionization_energies=array("ionization_energies", -1),
        electron_affinities=array("electron_affinities", -1),
        **energies,
    )
    return Record(
        molecule,
        observables,
        scheme=scalars["scheme"],
        degenerate=bool(scalars["degenerate"]),
        failure=scalars["failure"],
        index=int(scalars["index"]),
    )


def write_store(
    path: str | Path,
    records: Iterable[Record],
    attrs: Mapping[str, Any],
    *,
    fock_encoding: str = "full",
    fock_dtype: str = "f8",
    fock_quantum: float | None = None,
) -> int:
    """Write a label file, beside and then renamed.

    Args:
        path: the file; an existing one is replaced when the new one is complete.
        records: in the order in which they are to be stored; read once.
        attrs: what `run_attributes` gives; any other plain values are kept too.
        fock_encoding: 'full', 'residual:<baseline>' if the records' `fock` is F minus that baseline, or 'none' if they
            have none.
        fock_dtype: 'f8' or 'f4'; not used with a quantum.
        fock_quantum: store the matrices as integer multiples of this [Eh]: compact, error at most half of it.

    Returns:
        Number of records written.

    Raises:
        ValueError: for an unknown encoding or dtype, a quantum too small for 32 bits, a record without label and
            without failure, or one with a Fock matrix where there is to be none, or the other way round.
        OSError: if the disk is full; an existing file stays as it was.
    """
    named = fock_encoding.startswith("residual:") and fock_encoding.removeprefix("residual:").strip()
    if fock_encoding not in ("full", NO_FOCK) and not named:
        raise ValueError(
            f"fock_encoding={fock_encoding!r} must be 'full' or 'residual:<name of the baseline>', or '{NO_FOCK}'"
        )
    if fock_dtype not in ("f8", "f4"):
        raise ValueError(f"fock_dtype={fock_dtype!r} must be 'f8' or 'f4'")
    with written_whole(path) as beside:
        with h5py.File(beside, "w") as file:
            for name, value in {**attrs, "kind": _KIND, "format_version": FORMAT_VERSION, "ao_order": AO_ORDER}.items():
                _write_attribute(file, name, value)
            types = {**_FLAT, "fock": "i4" if fock_quantum else fock_dtype}
            n_records = _write_records(file, _checked(records, fock_encoding), types, fock_quantum)
            file["flat/fock"].attrs["fock_encoding"] = fock_encoding
            if fock_quantum:
                file["flat/fock"].attrs["quantum"] = fock_quantum
            file.flush()
        with open(beside, "rb+") as raw:
            os.fsync(raw.fileno())
    return n_records


def _checked(records: Iterable[Record], fock_encoding: str) -> Iterator[Record]:
    """The records, all labels with a Fock matrix or all without."""
    wanted = fock_encoding != NO_FOCK
    for record in records:
        if not record.failure and (record.observables.fock is not None) != wanted:
            found, other = ("no Fock matrix", "one") if wanted else ("a Fock matrix", "none")
            raise ValueError(
                f"record {record.molecule.name!r} has neither a failure nor what its file is to hold: it has {found}, "
                f"fock_encoding={fock_encoding!r} wants {other}: keep mean-field and other labels in files of their own"
            )
        yield record


def _write_attribute(file: h5py.File, name: str, value: Any) -> None:  # noqa: ANN401
    """An attribute, or a dataset where it is too long for one (64 kB in HDF5)."""
    if isinstance(value, str) and len(value) > 2000:
        file.create_dataset(f"texts/{name}", data=value)
    else:
        file.attrs[name] = value


def _write_records(file: h5py.File, records: Iterable[Record], types: Mapping[str, str], quantum: float | None) -> int:
    """The datasets, appended in pieces so that memory stays small."""
    options: dict[str, Any] = {"maxshape": (None,), "shuffle": True, "compression": "gzip", "compression_opts": 4}
    flat = {k: file.create_dataset(f"flat/{k}", (0,), dtype=t, chunks=(_CHUNK,), **options) for k, t in types.items()}
    columns = {
        k: file.create_dataset(f"records/{k}", (0,), dtype=t, chunks=(4096,), **options)
        for k, t in (_SCALARS | _ADDED).items()
    }
    for k in _TEXTS:
        columns[k] = file.create_dataset(
            f"records/{k}", (0,), dtype=h5py.string_dtype(), chunks=(_TEXT_CHUNK,), maxshape=(None,)
        )
    rows: list[tuple[dict[str, Any], dict[str, np.ndarray]]] = []
    total = 0

    def flush() -> None:
        nonlocal total
        for k, dataset in columns.items():
            _append(dataset, [scalars[k] for scalars, _ in rows])
        for k, dataset in flat.items():
            data = np.concatenate([arrays[k] for _, arrays in rows])
            _append(dataset, _quantized(data, quantum) if k == "fock" and quantum else data)
        total += len(rows)
        rows.clear()

    for record in records:
        rows.append(_row(record))
        if len(rows) >= _FLUSH_RECORDS:
            flush()
    if rows:
        flush()
    return total


def _quantized(values: np.ndarray, quantum: float) -> np.ndarray:
    """Multiples of a quantum, int32."""
    multiples = np.rint(values / quantum)
    largest = np.iinfo(np.int32).max
    if not (np.abs(multiples) <= largest).all():
        raise ValueError(
            f"fock_quantum={quantum} is too small: values up to {np.abs(values).max():.3g} Eh need "
            f"{np.abs(values).max() / largest:.1e} at least"
        )
    return multiples.astype(np.int32)


def _append(dataset: h5py.Dataset, values: Any) -> None:  # noqa: ANN401
    start = dataset.shape[0]
    dataset.resize((start + len(values),))
    dataset[start:] = values


class LabelStore:
    """A label file, opened for reading. Records with a label come by number; failed ones are in `failures`.

    Attributes:
        path: the file.
        attrs: what the file says about how it was made.
        fock_encoding: 'full', 'residual:<baseline>', or 'none' if the labels have no Fock matrices.
        fock_quantum: step of the stored matrices [Eh]; None if they are stored as numbers.
    """

    def __init__(self, file: h5py.File, path: Path) -> None:
        self._file = file
        self.path = path
        self.attrs: dict[str, Any] = dict(file.attrs)
        self.attrs.update({k: v[()].decode() for k, v in file.get("texts", {}).items()})
        self._columns = {k: file[f"records/{k}"][:] for k in _SCALARS}
        self._columns |= {k: file[f"records/{k}"].asstr()[:] for k in _TEXTS}
        c = self._columns
        triangle = c["n_spins"].astype("i8") * c["n_ao"] * (c["n_ao"].astype("i8") + 1) // 2
        labelled = c["failure"] == ""
        if self.attrs["format_version"] == 1:
            has_gradient = labelled & bool(self.attrs.get("gradient", False))
            c |= {k: np.zeros(len(labelled), dtype=t) for k, t in _ADDED.items()} | {"has_gradient": has_gradient}
            c |= {k: np.full(len(labelled), np.nan) for k in _ENERGIES}
        else:
            c |= {k: file[f"records/{k}"][:] for k in _ADDED}
        sizes = {
            "numbers": c["n_atoms"],
            "positions": 3 * c["n_atoms"],
            "fock": triangle,
            "mo_energy": c["n_spins"] * c["n_mo"],
            "dipole": np.full(len(triangle), 3),
            "gradient": 3 * c["n_atoms"] * (c["has_gradient"] != 0),
            "ionization_energies": c["n_ip"],
            "electron_affinities": c["n_ea"],
        }
        self._offsets = {k: np.concatenate([[0], np.cumsum(v, dtype="i8")]) for k, v in sizes.items()}
        none = np.zeros(0)
        absent = _ADDED_FLAT if self.attrs["format_version"] == 1 else ()
        self._flat = {name: none if name in absent else file[f"flat/{name}"] for name in sizes}
        for name, offsets in self._offsets.items():
            if self._flat[name].shape != (offsets[-1],):
                raise ValueError(
                    f"label file {path} is damaged: {name} has {self._flat[name].shape[0]} values, "
                    f"its records need {offsets[-1]}"
                )
            if name != "fock":  # all else is small
                self._flat[name] = self._flat[name][:]
        step = file["flat/fock"].attrs.get("quantum")
        self.fock_quantum: float | None = None if step is None else float(step)
        self.fock_encoding = str(file["flat/fock"].attrs["fock_encoding"])
        self._labels = np.flatnonzero(labelled)
        self._failed = np.flatnonzero(~labelled)

    @classmethod
    def open(cls, path: str | Path) -> LabelStore:
        """Open a label file.

        Raises:
            ValueError: if there is no such file, if it is damaged or no label file, or has another format version or AO
                order.
        """
        path = Path(path)
        if not path.is_file():
            raise ValueError(f"{path} is a folder; give a file" if path.is_dir() else f"no such label file: {path}")
        try:
            file = h5py.File(path, "r", rdcc_nbytes=_CACHE_BYTES)
        except OSError as error:
            raise ValueError(f"{path} is not a readable HDF5 file (truncated or of another kind): {error}") from error
        try:
            _check_header(file, path)
            return cls(file, path)
        except (KeyError, OSError, AttributeError) as error:
            file.close()
            raise ValueError(f"label file {path} is damaged: {error}") from error
        except ValueError:
            file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> LabelStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._labels)

    @property
    def method(self) -> str:
        """The method as it was asked for."""
        return str(self.attrs["method"])

    @property
    def resolved_functional(self) -> str:
        """What the method's name meant in the program that made the labels."""
        return str(self.attrs["resolved_functional"])

    @property
    def level(self) -> str:
        """Method and basis in one line, as they are to be quoted."""
        return str(self.attrs.get("level") or f"{self.method}/{self.basis.name}")

    @property
    def has_fock(self) -> bool:
        """Whether the labels have Fock matrices; those of correlated methods have none."""
        return self.fock_encoding != NO_FOCK

    @property
    def basis(self) -> Basis:
        """The basis set."""
        return Basis.from_json(json.loads(self.attrs["basis_json"]))

    @property
    def failures(self) -> list[tuple[Molecule, str]]:
        """Molecules without a label, and why."""
        return [(r.molecule, r.failure) for r in map(self._read, self._failed.tolist())]

    @property
    def n_failures(self) -> int:
        """Number of molecules without a label."""
        return len(self._failed)

    def _slice(self, name: str, row: int) -> np.ndarray:
        offsets = self._offsets[name]
        return self._flat[name][offsets[row] : offsets[row + 1]]

    def _fock(self, row: int) -> np.ndarray:
        packed = self._slice("fock", row) * (self.fock_quantum or 1.0)
        return unpack(packed, int(self._columns["n_spins"][row]), int(self._columns["n_ao"][row]))

    def _read(self, row: int, *, with_fock: bool = False) -> Record:
        scalars = {k: v[row] for k, v in self._columns.items()}
        arrays = {k: self._slice(k, row) for k in _FLAT if k != "fock"}
        record = _record(scalars, arrays, with_fock=False)
        if with_fock and self.has_fock and not record.failure:
            object.__setattr__(record.observables, "fock", self._fock(row))
        return record

    def molecule(self, i: int) -> Molecule:
        """Molecule of label i."""
        return self._read(int(self._labels[i])).molecule

    def is_degenerate(self, i: int) -> bool:
        """Whether the occupation of label i was a matter of choice (tiny gap), and with it the label."""
        return bool(self._columns["degenerate"][self._labels[i]])

    def fock_values(self, i: int) -> np.ndarray:
        """What is stored for F of label i [Eh]: F, or F minus the baseline of `fock_encoding`; shape (spin, ao, ao).

        Raises:
            ValueError: if the labels have no Fock matrices.
        """
        if not self.has_fock:
            raise ValueError(f"the labels in {self.path} are of {self.level} and have no Fock matrices")
        return self._fock(int(self._labels[i]))

    def observables(self, i: int, *, baseline: np.ndarray | None = None) -> Observables:
        """Observables of label i.

        Args:
            i: number of the label.
            baseline: F0 of the molecule, shape (ao, ao), for a file that stores residuals to it. Without it `fock` is
                None there.
        """
        record = self.record(i)
        if self.fock_encoding not in ("full", NO_FOCK):
            fock = None if baseline is None else record.observables.fock + baseline
            object.__setattr__(record.observables, "fock", fock)
        return record.observables

    def record(self, i: int) -> Record:
        """Label i with all that is stored about it; its fock as in `fock_values`."""
        return self._read(int(self._labels[i]), with_fock=True)

    def all_records(self) -> Iterator[Record]:
        """All records, failed ones too, in the order of the file; fock as in `fock_values`."""
        for row in range(len(self._columns["key"])):
            yield self.any_record(row)

    def any_record(self, row: int) -> Record:
        """Record at a row of the file, failed ones counted too; fock as in `fock_values`."""
        return self._read(row, with_fock=True)

    def keys(self) -> dict[str, bool]:
        """`molecule_key` of all records, and whether each has a label."""
        return dict(zip(self._columns["key"].tolist(), (self._columns["failure"] == "").tolist(), strict=True))

    def check(self, *, basis: Basis | None = None, method: str | None = None, fock_encoding: str | None = None) -> None:
        """Refuse a file that is not what the caller needs.

        Raises:
            ValueError: naming what differs.
        """
        if basis is not None:
            numbers = {z for row in range(len(self._columns["key"])) for z in self._slice("numbers", row).tolist()}
            lacking = numbers - set(basis.elements)
            if lacking or self.basis.content_hash(numbers) != basis.content_hash(numbers):
                raise ValueError(
                    f"label file {self.path} has basis {self.basis.name!r}, which is not the {basis.name!r} needed"
                )
        for what, found, wanted in (("method", self.method, method), ("encoding", self.fock_encoding, fock_encoding)):
            if wanted is not None and found.lower() != wanted.lower():
                raise ValueError(f"label file {self.path} has {what} {found!r}, needed is {wanted!r}")


def _check_header(file: h5py.File, path: Path) -> None:
    if file.attrs.get("kind") != _KIND:
        raise ValueError(f"{path} is an HDF5 file but no mlsemi label file")
    if file.attrs["format_version"] not in _READABLE:
        raise ValueError(
            f"label file {path} has format version {file.attrs['format_version']}, this program reads "
            f"{' and '.join(map(str, _READABLE))}: use the version of mlsemi that wrote it"
        )
    if file.attrs["ao_order"] != AO_ORDER:
        raise ValueError(f"label file {path} has AO order {file.attrs['ao_order']!r}, this program has {AO_ORDER!r}")
