"""The surfaces of a report: orbitals, density, spin density and electrostatic potential on the grid of its scene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt, map_coordinates

from mlsemi.properties.grids import BoxGrid, density_at, orbitals_at, potential_at
from mlsemi.report.content import Content
from mlsemi.report.orbitals import Orbital
from mlsemi.report.volumes import pack

ORBITAL_ISOVALUE = 0.05
"""[bohr^-3/2]"""

DENSITY_ISOVALUE = 0.002
"""[bohr^-3]: about the van der Waals surface (Bader et al., J. Am. Chem. Soc. 109, 7968 (1987))."""

SPIN_ISOVALUE = 0.005
"""[bohr^-3]"""

_COARSE = 0.9
"""Distance of the points at which the potential is calculated [bohr]: outside the nuclei it is smooth."""

_PAINTED = (1.4, 7.0)
"""The potential is wanted at points whose nearest nucleus is between these [bohr]: where the density has surfaces."""


def surfaces(
    content: Content, grid: BoxGrid, orbitals: Sequence[Orbital], *, isovalue: float, potential: bool
) -> list[dict[str, Any]]:
    """What the page draws, as plain data: orbitals in the order of their energies, then densities.

    Args:
        content: the report.
        grid: where; a grid of its scene.
        orbitals: which.
        isovalue: at which the orbitals are first shown [bohr^-3/2].
        potential: colour the density by the electrostatic potential too.
    """
    points = torch.from_numpy(content.scene.from_scene(grid.points)).unsqueeze(0)
    found = []
    values = _orbital_values(content, points, orbitals)
    for orbital in sorted(orbitals, key=lambda o: (o.energy, o.spin)):
        found.append({
            "key": orbital.key,
            "kind": "orbital",
            "label": orbital.name,
            "unit": "au",
            "isovalue": isovalue,
            "signed": True,
            "signs": ["positive phase", "negative phase"],
            "volume": pack(values[orbital.key], grid.shape, knee=isovalue / 5),
        })  # fmt: skip
    total = content.density.sum(1)
    density = density_at(content.batch, total, points)[0].numpy()
    common = {"unit": "e/bohr³", "signed": False}
    found.append({
        **common,
        "key": "density",
        "kind": "density",
        "label": "electron density",
        "isovalue": DENSITY_ISOVALUE,
        "volume": pack(density, grid.shape, knee=DENSITY_ISOVALUE / 10),
    })  # fmt: skip
    if content.density.shape[1] == 2:
        unpaired = density_at(content.batch, content.density[:, 0] - content.density[:, 1], points)[0].numpy()
        found.append({
            **common,
            "key": "spin",
            "kind": "spin",
            "label": "spin density",
            "isovalue": SPIN_ISOVALUE,
            "signed": True,
            "signs": ["more α", "more β"],
            "volume": pack(unpaired, grid.shape, knee=SPIN_ISOVALUE / 10),
        })  # fmt: skip
    if potential:
        found.append({
            **common,
            "key": "potential",
            "kind": "density",
            "label": "density, coloured by the electrostatic potential",
            "isovalue": DENSITY_ISOVALUE,
            "volume_of": "density",
            "paint": _paint(content, grid, density),
        })  # fmt: skip
    return found


def _orbital_values(content: Content, points: torch.Tensor, orbitals: Sequence[Orbital]) -> dict[str, np.ndarray]:
    """Values of the orbitals, the largest of each positive, by key."""
    assert content.observables.mo_coeff is not None
    found = {}
    for spin, coefficients in enumerate(torch.from_numpy(content.observables.mo_coeff)):
        mine = [o for o in orbitals if o.spin == spin]
        if mine:
            columns = coefficients[:, [o.index for o in mine]]
            values = orbitals_at(content.batch, columns[None, None], points)[0, 0].numpy()
            found |= {o.key: v * np.sign(v[np.abs(v).argmax()]) for o, v in zip(mine, values, strict=True)}
    return found


def _paint(content: Content, grid: BoxGrid, density: np.ndarray) -> dict[str, Any]:
    """The electrostatic potential [Eh/e] on the grid, from a coarser one by cubic splines."""
    every = _COARSE / grid.step
    shape = tuple(int(np.ceil((n - 1) / every)) + 1 for n in grid.shape)
    coarse = BoxGrid(grid.origin, _COARSE, (shape[0], shape[1], shape[2]))
    distance = np.linalg.norm(coarse.points[:, None] - content.scene.positions, axis=-1).min(1)
    wanted = (distance > _PAINTED[0]) & (distance < _PAINTED[1])
    points = torch.from_numpy(content.scene.from_scene(coarse.points[wanted])).unsqueeze(0)
    values = np.zeros(coarse.n_points)
    values[wanted] = potential_at(content.batch, content.density.sum(1), points)[0].numpy()
    # a jump at the border of what was calculated would make the splines swing
    nearest = distance_transform_edt(~wanted.reshape(shape), return_distances=False, return_indices=True)
    filled = values.reshape(shape)[tuple(nearest)]
    places = np.indices(grid.shape).reshape(3, -1) / every
    fine = map_coordinates(filled, places, order=3, mode="nearest")
    at_surface = np.abs(np.log(np.maximum(density, 1e-12) / DENSITY_ISOVALUE)) < 0.3
    most = float(np.ceil(100 * np.abs(fine[at_surface]).max()) / 100) if at_surface.any() else 0.1
    clipped = np.clip(fine, -2 * most, 2 * most)
    return {
        "volume": pack(clipped, grid.shape, knee=2 * most, levels=500),
        "most": most,
        "signs": [f"potential +{most:.2f} au", f"potential −{most:.2f} au"],
    }
