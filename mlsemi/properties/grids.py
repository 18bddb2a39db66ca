"""Orbitals, densities and the electrostatic potential at points and on regular grids.

All is in atomic units: orbitals [bohr^-3/2], densities [bohr^-3], potentials [Eh/e]. Every function is differentiable
in its tensors and in the positions of the batch; without gradients the memory is bounded by `CHUNK`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mlsemi.basis import Shell
from mlsemi.batch import Batch
from mlsemi.harmonics import solid_harmonics
from mlsemi.integrals import coulomb, plan
from mlsemi.molecule import Molecule

CHUNK = 1 << 21
"""AO values, or half as many combinations of primitive pair and point, that are held at once (16 MB, some 100 MB)."""

MOST_POINTS = 50_000_000
"""Of a grid: a cube file of them has 700 MB."""

MARGIN = 6.0
"""Default distance of the faces of a box from the nearest nucleus [bohr]: isosurfaces of valence orbitals fit."""


@dataclass(frozen=True, eq=False)
class BoxGrid:
    """A regular grid of points, z fastest: the order of cube files.

    Attributes:
        origin: the first point [bohr], shape (3,).
        step: distance of neighbours along x, y, z [bohr].
        shape: number of points along x, y, z.
    """

    origin: np.ndarray
    step: float
    shape: tuple[int, int, int]

    @property
    def n_points(self) -> int:
        return int(np.prod(self.shape))

    @property
    def points(self) -> np.ndarray:
        """All points [bohr], shape (point, 3); `values.reshape(grid.shape)` has the axes x, y, z."""
        axes = [o + self.step * np.arange(n) for o, n in zip(self.origin, self.shape, strict=True)]
        return np.stack([x.ravel() for x in np.meshgrid(*axes, indexing="ij")], axis=1)

    @property
    def weight(self) -> float:
        """Volume that belongs to a point [bohr^3]."""
        return self.step**3


def box_grid(molecule: Molecule, *, step: float = 0.25, margin: float = MARGIN) -> BoxGrid:
    """A box around a molecule, centred on it.

    Args:
        molecule: the molecule.
        step: distance of neighbouring points [bohr].
        margin: least distance of the faces of the box from the nuclei [bohr].

    Raises:
        ValueError: for a step or a margin that makes no box, or one of more than `MOST_POINTS`.
    """
    if not step > 0 or not margin >= 0:
        raise ValueError(f"step={step:g} and margin={margin:g} must be positive lengths [bohr]")
    low, high = molecule.positions.min(0) - margin, molecule.positions.max(0) + margin
    n = np.ceil((high - low) / step - 1e-9) + 1
    if not n.prod() <= MOST_POINTS:
        raise ValueError(
            f"step={step:g} and margin={margin:g} bohr make a grid of {n.prod():.0e} points, and {MOST_POINTS:.0e} are "
            "the most; take a larger step"
        )
    n = n.astype(int)
    origin = (low + high) / 2 - step * (n - 1) / 2
    return BoxGrid(origin, float(step), (int(n[0]), int(n[1]), int(n[2])))


def points_of(grid: BoxGrid | np.ndarray, batch: Batch) -> Tensor:
    """The same points for each molecule of a batch, shape (molecule, point, 3), on its device."""
    points = grid.points if isinstance(grid, BoxGrid) else np.asarray(grid, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must have shape (point, 3), got {points.shape}")
    return torch.from_numpy(points).to(batch.numbers.device).expand(batch.n_molecules, -1, -1)


def ao_values(batch: Batch, points: Tensor) -> Tensor:
    """The atomic orbitals at points: R_l(r) Y_lm about their atoms.

    Args:
        batch: the molecules.
        points: points of each molecule [bohr], shape (molecule, point, 3).

    Returns:
        Values [bohr^-3/2] in mlsemi's AO order, zero in the padding, shape (molecule, point, ao).

    Raises:
        ValueError: for points of another shape.
    """
    check_points(batch, points, "points")
    columns = []
    for atoms, shells in element_shells(batch):
        vectors = points.index_select(0, batch.molecule.index_select(0, atoms)) - batch.positions[atoms].unsqueeze(1)
        r2 = (vectors * vectors).sum(-1)
        harmonics = solid_harmonics(max(s.l for s in shells), vectors)
        columns.append(torch.cat([_radial(shell, r2).unsqueeze(-1) * harmonics[shell.l] for shell in shells], -1))
    return assemble(batch, [c.transpose(1, 2).flatten(0, 1) for c in columns]).transpose(1, 2)


def orbitals_at(batch: Batch, coefficients: Tensor, points: Tensor) -> Tensor:
    """Molecular orbitals at points: sum over AOs of coefficient times AO.

    Args:
        batch: the molecules.
        coefficients: orbital coefficients, shape (molecule, spin, ao, mo); any subset of columns.
        points: points of each molecule [bohr], shape (molecule, point, 3).

    Returns:
        Values [bohr^-3/2], shape (molecule, spin, mo, point).
    """
    parts = [coefficients.mT @ ao_values(batch, part).mT.unsqueeze(1) for part in _chunks(batch, points)]
    return torch.cat(parts, -1)


def density_at(batch: Batch, density: Tensor, points: Tensor) -> Tensor:
    """Electron density at points: sum over AOs of D_mn chi_m chi_n.

    Args:
        batch: the molecules.
        density: a symmetric density matrix, shape (molecule, ao, ao): `ElectronicState.total_density`, or
            `spin_density` for the density of the alpha less that of the beta electrons.
        points: points of each molecule [bohr], shape (molecule, point, 3).

    Returns:
        Values [bohr^-3], shape (molecule, point).
    """
    parts = []
    for part in _chunks(batch, points):
        values = ao_values(batch, part)
        parts.append(((values @ density) * values).sum(-1))
    return torch.cat(parts, -1)


def potential_at(batch: Batch, density: Tensor, points: Tensor) -> Tensor:
    """Electrostatic potential at points: sum_A Z_A / |r - R_A| - int rho(r') / |r - r'| dr'.

    Exact for the density, without a grid: all integrals <m| 1/|r - C| |n> by the scheme of `mlsemi.integrals`. The
    electronic part of all points is one derivative, that of Tr[D V(q)] with respect to charges q at the points. Some
    0.5 ms for a point of ethanol in def2-SVP.

    Args:
        batch: the molecules.
        density: density of all electrons, shape (molecule, ao, ao).
        points: points of each molecule [bohr], shape (molecule, point, 3); infinite on a nucleus.

    Returns:
        Potential that a positive unit charge sees [Eh/e], shape (molecule, point).
    """
    check_points(batch, points, "points")
    tables = plan(batch)
    n_molecules, n_points = points.shape[:2]
    size = max(1, (CHUNK // 8) // max(1, tables.a.shape[0]))
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (density, points, batch.positions))
    parts = []
    for first in range(0, n_points, size):
        centers = points[:, first : first + size]
        where = torch.arange(n_molecules, device=points.device).repeat_interleave(centers.shape[1])
        infinite = centers.new_full((where.shape[0], 1), torch.inf)
        with torch.enable_grad():
            charge = torch.ones_like(infinite).requires_grad_()
            matrices = coulomb(batch, tables, centers.reshape(-1, 3), where, infinite, charge)
            (part,) = torch.autograd.grad((matrices * density).sum(), charge, create_graph=keep)
        parts.append(_nuclear_potential(batch, centers) - part.view(n_molecules, -1))
    return torch.cat(parts, 1)


def _nuclear_potential(batch: Batch, points: Tensor) -> Tensor:
    """sum_A Z_A / |r - R_A| [Eh/e], shape (molecule, point)."""
    vectors = points.index_select(0, batch.molecule) - batch.positions.unsqueeze(1)
    each = batch.numbers.unsqueeze(1) / vectors.norm(dim=-1)
    return points.new_zeros(points.shape[:2]).index_add(0, batch.molecule, each)


def check_points(batch: Batch, points: Tensor, name: str) -> None:
    """Raises ValueError for points that are not of shape (molecule, point, 3)."""
    if points.ndim != 3 or points.shape[0] != batch.n_molecules or points.shape[2] != 3:
        raise ValueError(
            f"{name} must have shape (molecule, point, 3) = ({batch.n_molecules}, any, 3), got {tuple(points.shape)}"
        )


def element_shells(batch: Batch) -> Iterator[tuple[Tensor, tuple[Shell, ...]]]:
    """For each element of a batch its atoms and its shells: what one formula serves."""
    for z in torch.unique(batch.numbers).tolist():
        yield (batch.numbers == z).nonzero().squeeze(1), batch.basis.shells(z)


def assemble(batch: Batch, rows: list[Tensor]) -> Tensor:
    """Values of the AOs, element after element as by `element_shells`, as padded rows in mlsemi's order.

    Args:
        batch: the molecules.
        rows: for each element values of its AOs, those of one atom after the other, shape (atom * ao, ...).

    Returns:
        Shape (molecule, ao, ...), zero in the padding.
    """
    flat = torch.cat([*rows, rows[0].new_zeros(1, *rows[0].shape[1:])])
    n_padded = batch.ao_mask.shape[1]
    source = torch.full((batch.ao_mask.numel(),), flat.shape[0] - 1, device=flat.device)
    start = 0
    for atoms, shells in element_shells(batch):
        n = sum(2 * s.l + 1 for s in shells)
        first = batch.molecule[atoms] * n_padded + batch.ao_offset[atoms]
        columns = torch.arange(n, device=flat.device)
        source[(first.unsqueeze(1) + columns).flatten()] = start + torch.arange(first.shape[0] * n, device=flat.device)
        start += first.shape[0] * n
    return flat.index_select(0, source).unflatten(0, (batch.n_molecules, n_padded))


def _radial(shell: Shell, r2: Tensor) -> Tensor:
    """sum_k c_k N_k exp(-a_k r^2) of a shell."""
    total = torch.zeros_like(r2)
    for a, c in zip(shell.exponents, shell.radial_coefficients().tolist(), strict=True):
        total = total + c * torch.exp(-a * r2)
    return total


def _chunks(batch: Batch, points: Tensor) -> tuple[Tensor, ...]:
    """The points in parts whose AO values fit into `CHUNK`."""
    check_points(batch, points, "points")
    return torch.split(points, max(1, CHUNK // batch.ao_mask.numel()), dim=1)
