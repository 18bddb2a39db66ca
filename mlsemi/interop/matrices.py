"""Matrices of a result as npz, in PySCF's AO order."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mlsemi.files import written_whole
from mlsemi.layout import AOLayout
from mlsemi.observables import Observables

_AO_AXES = {
    "fock": (-2, -1),
    "overlap": (-2, -1),
    "density": (-2, -1),
    "mo_energy": (),
    "mo_coeff": (-2,),
    "mo_occ": (),
}
"""Fields that are written, and which of their axes are AOs."""


def write_matrices(path: str | Path, observables: Observables, layout: AOLayout) -> None:
    """Writes fock [Eh], overlap, density, mo_energy [Eh], mo_coeff, mo_occ and ao_labels in PySCF's AO order.

    A restricted state has no spin axis: fock, density (ao, ao), mo_energy, mo_occ (mo,), mo_coeff (ao, mo). One of two
    spins has it first, (alpha, beta), as PySCF's UHF. The file appears whole or not at all.

    Args:
        path: file to write; its name is kept as it is.
        observables: the results, in mlsemi's order.
        layout: AOs of the molecule.

    Raises:
        ValueError: if a field is missing or does not fit the layout, or the folder does not exist.
    """
    arrays = {}
    for name, axes in _AO_AXES.items():
        value = getattr(observables, name)
        if value is None:
            raise ValueError(f"observables.{name} is missing: this result has no such matrix to write")
        wrong = [axis for axis in axes if value.shape[axis] != layout.n_ao]
        if wrong:
            raise ValueError(f"observables.{name} has shape {value.shape}, but the layout has {layout.n_ao} AOs")
        if name != "overlap" and len(value) == 1:
            value = value[0]
        arrays[name] = layout.to_pyscf(value, axes)
    labels = layout.labels()
    arrays["ao_labels"] = np.array([labels[i] for i in layout.pyscf_order])
    with written_whole(path) as beside, open(beside, "wb") as file:  # an open file, or numpy would add .npz to the name
        np.savez(file, **arrays)


def frame_path(out: str | Path, index: int) -> Path:
    """Name of the file of a frame: OUT-0000.npz, OUT-0001.npz...; a suffix .npz of OUT is not repeated."""
    out = Path(out)
    stem = out.name.removesuffix(".npz")
    return out.with_name(f"{stem}-{index:04d}.npz")
