"""Orbitals and densities on a grid around a molecule, packed small enough for a page.

All of it is in the frame of the scene: the principal axes of the molecule, the longest along x and the shortest along
z, towards the eye. The box of the grid is then small, and the first view shows the molecule from its broad side.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mlsemi.molecule import Molecule
from mlsemi.properties.grids import BoxGrid, box_grid
from mlsemi.units import BOHR_IN_ANGSTROM

MARGIN = 6.0
"""From the outermost nuclei to the faces of the box [bohr]: lobes of 0.02 au and densities of 0.001 au end before."""

SPACING = 0.36
"""Of the grid points [bohr], where the box does not hold more than `MOST_POINTS` of them."""

MOST_POINTS = 120_000
"""Of one grid: a page with ten surfaces stays below three megabytes."""

LEVELS = 4000
"""Number of steps from zero to the largest value: one is some 0.2 % of a value, and second differences fit 16 bits."""


@dataclass(frozen=True, eq=False)
class Scene:
    """The frame in which a molecule is shown: x_scene = rotation (x - center).

    Attributes:
        center: middle of the molecule in the frame of the input [bohr], shape (3,).
        rotation: proper, shape (3, 3).
        positions: nuclei in the scene [bohr], shape (atom, 3).
    """

    center: np.ndarray
    rotation: np.ndarray
    positions: np.ndarray

    @classmethod
    def of(cls, molecule: Molecule) -> Scene:
        """The scene of a molecule."""
        center = molecule.positions.mean(0)
        centered = molecule.positions - center
        axes = np.linalg.eigh(centered.T @ centered)[1].T[::-1].copy()
        for axis in axes[:2]:
            # eigenvectors have any sign: the same molecule is to look the same every time
            axis *= np.sign(axis[np.argmax(np.abs(axis) - 1e-9 * np.arange(3))])
        axes[2] = np.cross(axes[0], axes[1])  # proper: a mirror image would be another molecule
        return cls(center, axes, centered @ axes.T)

    def turned(self, vectors: np.ndarray) -> np.ndarray:
        """Vectors of the frame of the input in that of the scene, shape (..., 3)."""
        return vectors @ self.rotation.T

    def from_scene(self, points: np.ndarray) -> np.ndarray:
        """Points of the scene in the frame of the input, shape (..., 3)."""
        return points @ self.rotation + self.center


def grid_around(molecule: Molecule, scene: Scene) -> BoxGrid:
    """A grid around all nuclei of a scene, coarser than `SPACING` where it would have more than `MOST_POINTS`."""
    there = replace(molecule, positions=scene.positions)
    grid = box_grid(there, step=SPACING, margin=MARGIN)
    while grid.n_points > MOST_POINTS:
        grid = box_grid(there, step=grid.step * (grid.n_points / MOST_POINTS) ** (1 / 3) * 1.01, margin=MARGIN)
    return grid


def grid_json(grid: BoxGrid) -> dict[str, Any]:
    """A grid of the scene as plain data, in angstrom as the page has it."""
    return {
        "origin": [round(x * BOHR_IN_ANGSTROM, 6) for x in grid.origin.tolist()],
        "spacing": grid.step * BOHR_IN_ANGSTROM,
        "shape": list(grid.shape),
    }


def pack(values: np.ndarray, shape: tuple[int, int, int], *, knee: float, levels: int = LEVELS) -> dict[str, Any]:
    """Values on a grid as text: rounded, differences along y and z, compressed, base64.

    Values below the knee are rounded to equal steps, those above it to equal ratios, as asinh does it: a surface at any
    value is smooth. Differences of neighbours are small and compress well; signs go to the last bit.

    Args:
        values: shape (point,).
        shape: that of the grid.
        knee: below the least value of interest, same unit.
        levels: number of steps from zero to the largest value.

    Returns:
        `knee`, `step` and `data`: value = knee * sinh(step * integer).
    """
    largest = max(float(np.abs(values).max()), knee)
    step = float(np.arcsinh(largest / knee)) / levels
    whole = np.rint(np.arcsinh(values / knee) / step).astype(np.int32).reshape(shape)
    for axis in (1, 2):
        whole = np.diff(whole, axis=axis, prepend=0)
    zigzag = np.where(whole < 0, -2 * whole - 1, 2 * whole).astype("<u2").ravel()
    # all low bytes, then all high ones, which are nearly all zero
    planes = zigzag.view(np.uint8).reshape(-1, 2).T.tobytes()
    return {"knee": knee, "step": step, "data": base64.b64encode(zlib.compress(planes, 9)).decode()}


def unpack(packed: dict[str, Any], shape: tuple[int, int, int]) -> np.ndarray:
    """Inverse of `pack`, to rounding: what the page does in JavaScript, shape (point,)."""
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), dtype=np.uint8)
    zigzag = np.ascontiguousarray(planes.reshape(2, -1).T).view("<u2").ravel().astype(np.int32)
    whole = np.where(zigzag & 1, -(zigzag + 1) // 2, zigzag // 2).reshape(shape)
    for axis in (2, 1):
        whole = np.cumsum(whole, axis=axis)
    return packed["knee"] * np.sinh(packed["step"] * whole.ravel())
