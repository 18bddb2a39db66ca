"""Frames of extended xyz files with results, as ASE and its kin read them: angstrom, eV, eV/angstrom, e."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mlsemi.molecule import Molecule, symbol_of
from mlsemi.observables import Observables
from mlsemi.units import BOHR_IN_ANGSTROM, HARTREE_IN_EV

Value = str | int | float | bool


def frame_text(
    molecule: Molecule,
    observables: Observables | None = None,
    *,
    momenta: np.ndarray | None = None,
    info: Mapping[str, Value] | None = None,
) -> str:
    """One frame: geometry, charge, spin and name, which `read_molecules` reads, and the results that there are.

    Args:
        molecule: the molecule.
        observables: energy, error estimates, dipole, HOMO, LUMO, forces, Mulliken charges, and for open shells Mulliken
            spins (`magmoms`) and <S^2>.
        momenta: momenta of the atoms in ASE's units, sqrt(u eV), shape (atom, 3).
        info: more values for the comment line.

    Raises:
        ValueError: for arrays of another number of atoms, or values that are not finite.
    """
    columns: dict[str, np.ndarray] = {"pos": molecule.positions_angstrom}
    values: dict[str, Value | np.ndarray | None] = {}
    if observables is not None:
        columns |= _columns(observables, with_spins=bool(molecule.spin))
        values |= _values(observables, with_spins=bool(molecule.spin))
    if momenta is not None:
        columns["momenta"] = momenta
    for name, array in columns.items():
        if len(array) != molecule.n_atoms or not np.isfinite(array).all():
            raise ValueError(f"{name} must be {molecule.n_atoms} rows of finite numbers, got shape {array.shape}")
    values |= {"charge": molecule.charge, "spin": molecule.spin, **(info or {}), "pbc": "F F F"}
    names = ":".join(f"{name}:R:{1 if array.ndim == 1 else array.shape[1]}" for name, array in columns.items())
    comment = [f"Properties=species:S:1:{names}"]
    if molecule.name:
        comment.append(f"key={_quoted(molecule.name)}")
    comment += [f"{name}={_text(name, value)}" for name, value in values.items() if value is not None]
    table = np.column_stack([array.reshape(molecule.n_atoms, -1) for array in columns.values()])
    rows = [
        f"{symbol_of(z):2s}" + "".join(f" {x:17.10f}" for x in row)
        for z, row in zip(molecule.numbers.tolist(), table.tolist(), strict=True)
    ]
    return "\n".join([str(molecule.n_atoms), " ".join(comment), *rows]) + "\n"


def _columns(o: Observables, *, with_spins: bool) -> dict[str, np.ndarray]:
    found = {
        "forces": None if o.gradient is None else -o.gradient * (HARTREE_IN_EV / BOHR_IN_ANGSTROM),
        "charges": o.charges_mulliken,
        "magmoms": o.spins_mulliken if with_spins else None,
    }
    return {name: array for name, array in found.items() if array is not None}


def _values(o: Observables, *, with_spins: bool) -> dict[str, Value | np.ndarray | None]:
    names = ("energy", "energy_error_estimate", "energy_error_95", "homo", "lumo")
    energies = ((name, getattr(o, name)) for name in names)
    found: dict[str, Value | np.ndarray | None] = {
        name: None if value is None else float(value) * HARTREE_IN_EV for name, value in energies
    }
    found["dipole"] = None if o.dipole is None else o.dipole * BOHR_IN_ANGSTROM
    found["spin_square"] = o.spin_square if with_spins else None
    return found


def _text(name: str, value: Value | np.ndarray) -> str:
    if isinstance(value, bool):
        return "T" if value else "F"
    if isinstance(value, str):
        return _quoted(value)
    numbers = np.atleast_1d(np.asarray(value))
    if not np.isfinite(numbers).all():
        raise ValueError(f"{name} holds values that are not finite")
    words = [str(x) if isinstance(x, int) else f"{x:.10f}" for x in numbers.tolist()]
    return words[0] if np.ndim(value) == 0 else f'"{" ".join(words)}"'


def _quoted(text: str) -> str:
    escaped = " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
