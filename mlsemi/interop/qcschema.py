"""QCSchema: results as AtomicResult (schema version 1), the JSON that the tools of quantum chemistry exchange.

The dictionaries are written here as the schema prescribes, arrays flat, so that writing needs no qcelemental;
`qcelemental.models.AtomicResult(**result)` reads them, and the tests do.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from mlsemi.basis import Basis
from mlsemi.files import written_whole
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule, symbol_of
from mlsemi.observables import Observables

Driver = Literal["energy", "gradient", "properties"]


def atomic_result(
    molecule: Molecule,
    observables: Observables,
    *,
    model_name: str,
    mode: str,
    method: str,
    basis_name: str,
    driver: Driver | None = None,
    basis: Basis | None = None,
    level: str | None = None,
) -> dict[str, Any]:
    """A result as the dictionary of a QCSchema AtomicResult, in atomic units.

    What the observables do not have is null, never made up.

    Args:
        molecule: what was calculated. Its frame is kept (fix_com, fix_orientation).
        observables: the results.
        model_name: name of the model that gave them.
        mode: 'fast', 'variational' ...
        method: method that the model stands for.
        basis_name: basis set.
        driver: what `return_result` holds: 'energy', 'gradient' [Eh/bohr], or 'properties' for a result without an
            energy. By default the gradient if there is one, else the energy if there is one, else the properties.
        basis: basis set of the AOs; with it the wavefunction is there too, see `wavefunction`.
        level: method and basis of the energy, which in some modes of a fine-tuned model are others.

    Raises:
        ValueError: if the observables lack what the driver wants, or hold values that are not finite.
    """
    if driver is None:
        driver = "gradient" if observables.gradient is not None else "energy"
        driver = "properties" if observables.energy is None else driver
    wanted = {"energy": ("energy",), "gradient": ("energy", "gradient"), "properties": ()}[driver]
    missing = [name for name in wanted if getattr(observables, name) is None]
    if missing:
        raise ValueError(f"driver={driver!r} needs {' and '.join(wanted)}, but the result has no {missing[0]}")
    gradient = _plain("gradient", observables.gradient)
    properties = {
        "calcinfo_nbasis": _count(observables.mo_coeff, -2),
        "calcinfo_nmo": _count(observables.mo_coeff, -1),
        "calcinfo_nalpha": (molecule.n_electrons + molecule.spin) // 2,
        "calcinfo_nbeta": (molecule.n_electrons - molecule.spin) // 2,
        "calcinfo_natom": molecule.n_atoms,
        "nuclear_repulsion_energy": _nuclear_repulsion(molecule),
        "return_energy": _plain("energy", observables.energy),
        "return_gradient": gradient,
        "scf_dipole_moment": _plain("dipole", observables.dipole),
    }
    result = {"energy": properties["return_energy"], "gradient": gradient, "properties": dict(properties)}[driver]
    extras: dict[str, Any] = {"model": model_name, "mode": mode, "level": level or f"{method}/{basis_name}"}
    names = ("homo", "lumo", "gap", "energy_error_estimate", "charges_mulliken", "charges_loewdin", "seconds")
    names += ("energy_error_95", "spin_square", "spins_mulliken", "spins_loewdin")
    extras.update({name: _plain(name, getattr(observables, name)) for name in names})
    extras["warnings"] = list(observables.warnings)
    extras["notes"] = list(observables.notes)
    with_wavefunction = {}
    if basis is not None:
        with_wavefunction["protocols"] = {"wavefunction": "all"}
        with_wavefunction["wavefunction"] = wavefunction(molecule, observables, basis)
    return {
        "schema_name": "qcschema_output",
        "schema_version": 1,
        "molecule": _molecule(molecule),
        "driver": driver,
        "model": {"method": method, "basis": basis_name},
        "keywords": {},
        "properties": properties,
        "return_result": result,
        "success": True,
        "error": None,
        "provenance": _provenance(mode),
        "extras": {"mlsemi": extras},
        **with_wavefunction,
    }


def wavefunction(molecule: Molecule, observables: Observables, basis: Basis) -> dict[str, Any]:
    """The wavefunction block of an AtomicResult: basis, orbitals, energies [Eh], occupations, density, Fock matrix.

    The schema has the order of AOs of the Common Component Architecture, m = -l..l in each shell: ours. Its matrices
    are of one spin each; those of a restricted state are of the alpha electrons, half of the whole density.

    Args:
        molecule: the molecule.
        observables: what it does not have is left out.
        basis: basis set of the AOs.

    Raises:
        ValueError: for arrays that do not fit the molecule.
    """
    layout = AOLayout(basis, molecule.numbers)
    fields = {
        "orbitals": (observables.mo_coeff, -2),
        "eigenvalues": (observables.mo_energy, None),
        "occupations": (observables.mo_occ, None),
        "density": (observables.density, -1),
        "fock": (observables.fock, -1),
    }
    sizes = {len(array) for array, _ in fields.values() if array is not None}
    if len(sizes) > 1:
        raise ValueError(f"observables have arrays of different numbers of spins: {sorted(sizes)}")
    restricted = sizes != {2}
    found: dict[str, Any] = {"basis": _basis(layout), "restricted": restricted}
    for name, (array, axis) in fields.items():
        if array is None:
            continue
        if axis is not None and array.shape[axis] != layout.n_ao:
            raise ValueError(f"{name} have shape {array.shape}, but the molecule has {layout.n_ao} AOs")
        half = 0.5 if restricted and name in ("occupations", "density") else 1.0
        for spin, one in zip("ab", array, strict=False):
            found[f"scf_{name}_{spin}"] = _plain(name, half * one)
            found[f"{name}_{spin}"] = f"scf_{name}_{spin}"
    return found


def _basis(layout: AOLayout) -> dict[str, Any]:
    """The basis of the elements of a molecule; coefficients are of normalized primitives."""
    centers = {
        symbol_of(z): {
            "electron_shells": [
                {
                    "angular_momentum": [s.l],
                    "harmonic_type": "spherical",
                    "exponents": list(s.exponents),
                    "coefficients": [list(s.coefficients)],
                }
                for s in layout.basis.shells(z)
            ]
        }
        for z in sorted(set(layout.numbers))
    }
    return {
        "schema_name": "qcschema_basis",
        "schema_version": 1,
        "name": layout.basis.name,
        "center_data": centers,
        "atom_map": [symbol_of(z) for z in layout.numbers],
        "nbf": layout.n_ao,
    }


def failed_operation(
    molecule: Molecule, reason: str, *, model_name: str, mode: str, method: str, basis_name: str, driver: Driver
) -> dict[str, Any]:
    """A calculation that failed as the dictionary of a QCSchema FailedOperation: what was asked for, and why not.

    Args:
        molecule: what was to be calculated.
        reason: why there is no result.
        model_name: name of the model that was asked.
        mode: 'fast', 'variational' ...
        method: method that the model stands for.
        basis_name: basis set.
        driver: what was wanted.
    """
    return {
        "input_data": {
            "schema_name": "qcschema_input",
            "schema_version": 1,
            "molecule": _molecule(molecule),
            "driver": driver,
            "model": {"method": method, "basis": basis_name},
            "keywords": {},
        },
        "success": False,
        "error": {"error_type": "unknown_error", "error_message": reason},
        "extras": {"mlsemi": {"model": model_name, "mode": mode, "provenance": _provenance(mode)}},
    }


def write_json(path: str | Path, results: Sequence[dict[str, Any]]) -> None:
    """Writes one AtomicResult as an object, several (or none) as a list; the file appears whole or not at all.

    Raises:
        ValueError: if the folder does not exist.
    """
    data = results[0] if len(results) == 1 else list(results)
    with written_whole(path) as beside, open(beside, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, allow_nan=False)
        file.write("\n")


def _molecule(molecule: Molecule) -> dict[str, Any]:
    return {
        "schema_name": "qcschema_molecule",
        "schema_version": 2,
        "symbols": [symbol_of(z) for z in molecule.numbers.tolist()],
        "geometry": molecule.positions.ravel().tolist(),
        "molecular_charge": float(molecule.charge),
        "molecular_multiplicity": molecule.spin + 1,
        "name": molecule.name or molecule.formula,
        "fix_com": True,
        "fix_orientation": True,
    }


def _provenance(routine: str) -> dict[str, str]:
    try:
        installed = version("mlsemi")
    except PackageNotFoundError:
        installed = "0+unknown"  # run from a checkout that is not installed; the schema wants a valid version
    return {"creator": "mlsemi", "version": installed, "routine": f"mlsemi {routine}"}


def _nuclear_repulsion(molecule: Molecule) -> float:
    """Sum over pairs of Z_A Z_B / R_AB [Eh]."""
    i, j = np.triu_indices(molecule.n_atoms, 1)
    distance = np.linalg.norm(molecule.positions[i] - molecule.positions[j], axis=1)
    return float((molecule.numbers[i] * molecule.numbers[j] / distance).sum())


def _count(array: np.ndarray | None, axis: int) -> int | None:
    return None if array is None else int(array.shape[axis])


def _plain(name: str, value: np.ndarray | float | None) -> list[float] | float | None:
    """A value as plain data, arrays flat as QCSchema has them."""
    if value is None:
        return None
    array = np.asarray(value, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError(f"{name} holds values that are not finite; JSON has none, and such a result is of no use")
    return float(array) if array.ndim == 0 else array.ravel().tolist()
