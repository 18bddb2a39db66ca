"""TREXIO files (HDF5), which quantum Monte Carlo and selected CI programs start from; needs the package trexio."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from mlsemi.basis import Basis
from mlsemi.files import written_whole
from mlsemi.interop.molden import m_order
from mlsemi.interop.orbitals import checked_orbitals
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule, symbol_of
from mlsemi.observables import Observables

M_ORDER = {0: (0,), 1: (0, 1, -1), 2: (0, 1, -1, 2, -2), 3: (0, 1, -1, 2, -2, 3, -3)}
"""Order of m in TREXIO's shells."""


def write_trexio(path: str | Path, molecule: Molecule, basis: Basis, observables: Observables) -> None:
    """Writes geometry, basis, overlap and orbitals; the file appears whole or not at all.

    Orbitals of two spins follow each other, alpha first, with `mo_spin` 0 and 1.

    Args:
        path: file to write (HDF5).
        molecule: the molecule.
        basis: basis set of the orbitals.
        observables: with mo_coeff, mo_energy and mo_occ in mlsemi's AO order; the overlap is written if it is there.

    Raises:
        ValueError: if there are no orbitals, they do not fit the molecule, or the folder does not exist.
        ImportError: without the package trexio.
    """
    try:
        import trexio
    except ModuleNotFoundError as error:
        raise ImportError("TREXIO files need the package trexio: install mlsemi[trexio]") from error

    layout = AOLayout(basis, molecule.numbers)
    checked_orbitals(observables, layout)
    data = _molecule(molecule) | _basis(layout) | _orbitals(layout, observables)
    with written_whole(path) as beside, trexio.File(str(beside), mode="w", back_end=trexio.TREXIO_HDF5) as file:
        for name, value in data.items():
            getattr(trexio, f"write_{name}")(file, value)


def _molecule(molecule: Molecule) -> dict[str, Any]:
    try:
        code = f"mlsemi {version('mlsemi')}"
    except PackageNotFoundError:
        code = "mlsemi"
    i, j = np.triu_indices(molecule.n_atoms, 1)
    distance = np.linalg.norm(molecule.positions[i] - molecule.positions[j], axis=1)
    return {
        "metadata_code_num": 1,
        "metadata_code": [code],
        "metadata_description": molecule.name or molecule.formula,
        "nucleus_num": molecule.n_atoms,
        "nucleus_charge": molecule.numbers.astype(float),
        "nucleus_coord": molecule.positions,
        "nucleus_label": [symbol_of(z) for z in molecule.numbers.tolist()],
        "nucleus_repulsion": float((molecule.numbers[i] * molecule.numbers[j] / distance).sum()),
        "electron_num": molecule.n_electrons,
        "electron_up_num": (molecule.n_electrons + molecule.spin) // 2,
        "electron_dn_num": (molecule.n_electrons - molecule.spin) // 2,
    }


def _basis(layout: AOLayout) -> dict[str, Any]:
    """Shells, and AOs as N S_lm(r) R(r) with Racah's solid harmonics S_lm, whose factor N makes r^l Y_lm of them."""
    shells = [(atom, shell) for atom, z in enumerate(layout.numbers) for shell in layout.basis.shells(z)]
    exponents = [np.array(s.exponents) for _, s in shells]
    coefficients = [np.array(s.coefficients) for _, s in shells]
    factors = [s.radial_coefficients() / c for (_, s), c in zip(shells, coefficients, strict=True)]
    of_ao = [k for k, (_, s) in enumerate(shells) for _ in range(2 * s.l + 1)]
    l_of_ao = np.array([shells[k][1].l for k in of_ao])
    return {
        "basis_type": "Gaussian",
        "basis_shell_num": len(shells),
        "basis_prim_num": sum(map(len, exponents)),
        "basis_nucleus_index": [atom for atom, _ in shells],
        "basis_shell_ang_mom": [s.l for _, s in shells],
        "basis_shell_factor": [1.0] * len(shells),
        "basis_r_power": [0] * len(shells),
        "basis_shell_index": [k for k, a in enumerate(exponents) for _ in a],
        "basis_exponent": np.concatenate(exponents),
        "basis_coefficient": np.concatenate(coefficients),
        "basis_prim_factor": np.concatenate(factors),
        "ao_cartesian": 0,
        "ao_num": layout.n_ao,
        "ao_shell": of_ao,
        "ao_normalization": np.sqrt((2 * l_of_ao + 1) / (4 * np.pi)),
    }


def _orbitals(layout: AOLayout, observables: Observables) -> dict[str, Any]:
    coeff, energy, occ = checked_orbitals(observables, layout)
    order = m_order(layout, M_ORDER)
    rows = coeff[:, order].swapaxes(-1, -2).reshape(-1, layout.n_ao)
    found: dict[str, Any] = {}
    if observables.overlap is not None:
        found["ao_1e_int_overlap"] = observables.overlap[np.ix_(order, order)]
    return found | {
        "mo_type": "UHF" if len(coeff) == 2 else "RHF",
        "mo_num": len(rows),
        "mo_coefficient": np.ascontiguousarray(rows),
        "mo_energy": energy.ravel(),
        "mo_occupation": occ.ravel(),
        "mo_spin": [spin for spin in range(len(coeff)) for _ in range(coeff.shape[2])],
    }
