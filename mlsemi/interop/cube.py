"""Cube files: orbitals, densities and the electrostatic potential on a regular grid, for viewers."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from mlsemi.basis import Basis
from mlsemi.batch import Batch
from mlsemi.files import written_whole
from mlsemi.interop.orbitals import SPINS, checked_orbitals, find_orbital
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.properties.grids import BoxGrid, density_at, orbitals_at, points_of, potential_at

Quantity = Literal["orbital", "density", "spin", "potential"]

NEAREST = 0.01
"""A grid point on a nucleus has the potential of one at this distance from it [bohr], which is finite."""


def write_cube(path: str | Path, molecule: Molecule, grid: BoxGrid, values: np.ndarray, *, title: str = "") -> None:
    """Writes values on a grid in the format of Gaussian's cube files; the file appears whole or not at all.

    Args:
        path: file to write.
        molecule: its nuclei are written too.
        grid: the grid [bohr].
        values: values in atomic units, of the shape of the grid.
        title: first line.

    Raises:
        ValueError: for values that do not fit the grid or are not finite, or if the folder does not exist.
    """
    if values.shape != grid.shape:
        raise ValueError(f"values have shape {values.shape}, and the grid {grid.shape}")
    if not np.isfinite(values).all():
        raise ValueError("values on the grid are not all finite")
    with written_whole(path) as beside, beside.open("w", encoding="utf-8") as file:
        file.write(f"{' '.join(title.split()) or 'mlsemi'}\natomic units; x slowest, z fastest\n")
        file.write(f"{molecule.n_atoms:5d}" + "".join(f" {x:14.8f}" for x in grid.origin) + "\n")
        for k, n in enumerate(grid.shape):
            file.write(f"{n:5d}" + "".join(f" {grid.step * (k == j):14.8f}" for j in range(3)) + "\n")
        for z, xyz in zip(molecule.numbers.tolist(), molecule.positions.tolist(), strict=True):
            file.write(f"{z:5d} {float(z):14.8f}" + "".join(f" {x:14.8f}" for x in xyz) + "\n")
        rounded = np.where(np.abs(values) < 1e-99, 0.0, values)  # three digits of an exponent run into each other
        for row in rounded.reshape(-1, grid.shape[2]).tolist():
            file.writelines("".join(f" {x:13.6E}" for x in row[k : k + 6]) + "\n" for k in range(0, len(row), 6))


def values_on_grid(
    molecule: Molecule,
    basis: Basis,
    observables: Observables,
    grid: BoxGrid,
    quantity: Quantity,
    *,
    orbital: str | int = "homo",
    spin: str | None = None,
) -> tuple[np.ndarray, str]:
    """A quantity of a result on a grid.

    Args:
        molecule: the molecule.
        basis: basis set of the result.
        observables: in mlsemi's AO order; orbitals, or a density.
        grid: where.
        quantity: 'orbital' [bohr^-3/2], 'density' [bohr^-3], 'spin' (alpha less beta density), or 'potential' [Eh/e].
        orbital: which one, see `mlsemi.interop.orbitals.find_orbital`.
        spin: spin of the orbital.

    Returns:
        Values of the shape of the grid, and a title. The sign of an orbital is such that its largest coefficient is
        positive.

    Raises:
        ValueError: for an unknown quantity or orbital, or a result without it.
    """
    if quantity not in get_args(Quantity):
        raise ValueError(f"quantity={quantity!r} must be one of {', '.join(get_args(Quantity))}")
    batch = Batch.of([molecule], basis, cutoff=0.0)
    points = points_of(grid, batch)
    name = molecule.name or molecule.formula
    with torch.no_grad():
        if quantity == "orbital":
            values, title = _orbital(molecule, basis, observables, batch, points, orbital, spin)
            return values.reshape(grid.shape), f"{name}: {title}"
        density = torch.from_numpy(_density(observables, batch, unpaired=quantity == "spin")).unsqueeze(0)
        if quantity == "potential":
            values = _finite(potential_at(batch, density, points)[0].numpy(), molecule)
            return values.reshape(grid.shape), f"{name}: electrostatic potential [Eh/e]"
        values = density_at(batch, density, points)[0].numpy()
    kind = "spin density" if quantity == "spin" else "electron density"
    return values.reshape(grid.shape), f"{name}: {kind} [bohr^-3]"


def _orbital(
    molecule: Molecule,
    basis: Basis,
    observables: Observables,
    batch: Batch,
    points: torch.Tensor,
    orbital: str | int,
    spin: str | None,
) -> tuple[np.ndarray, str]:
    coeff, energy, occ = checked_orbitals(observables, AOLayout(basis, molecule.numbers))
    s, k = find_orbital(observables, orbital, spin=spin)
    column = coeff[s, :, k] * np.sign(coeff[s, np.abs(coeff[s, :, k]).argmax(), k])
    values = orbitals_at(batch, torch.from_numpy(column).reshape(1, 1, -1, 1), points)[0, 0, 0].numpy()
    which = f" {SPINS[s]}" if len(coeff) == 2 else ""
    title = f"orbital {k + 1}{which}, {energy[s, k]:.6f} Eh, occupation {occ[s, k]:g} [bohr^-3/2]"
    return values, title


def _density(observables: Observables, batch: Batch, *, unpaired: bool) -> np.ndarray:
    density = observables.density
    n = int(batch.n_ao[0])
    if density is None:
        raise ValueError("observables.density is missing: this result has no density to write")
    if density.shape[1:] != (n, n):
        raise ValueError(f"observables.density has shape {density.shape}, but the molecule has {n} AOs")
    if not unpaired:
        return density.sum(0)
    if len(density) == 1:
        raise ValueError("the spin density of a closed shell is zero everywhere")
    return density[0] - density[1]


def _finite(values: np.ndarray, molecule: Molecule) -> np.ndarray:
    """The potential with what lies on a nucleus brought down to a finite value."""
    peak = float(molecule.numbers.max()) / NEAREST
    return np.clip(np.nan_to_num(values, nan=peak, posinf=peak), None, peak)
