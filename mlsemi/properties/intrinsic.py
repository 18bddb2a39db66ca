"""Intrinsic atomic orbitals (Knizia, J. Chem. Theory Comput. 9, 4834 (2013)): charges that hardly depend on the basis.

IAOs are the orbitals of a minimal basis, polarized so that they span the occupied orbitals exactly. With P the
projector on the occupied orbitals, P~ that on their image in the minimal basis, and B the minimal basis in the AOs,

    A = (P P~ + (1 - P) (1 - P~)) B = B - P B - P~ B + 2 P P~ B,

orthogonalized symmetrically. All is written here in the density instead of the occupied orbitals, so that it is
differentiable and does not know which of degenerate orbitals were taken.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mlsemi.basis import Basis, load_basis
from mlsemi.batch import Batch
from mlsemi.eigen import square_root
from mlsemi.integrals import overlap as overlap_integrals
from mlsemi.integrals import plan
from mlsemi.properties.populations import atoms_of_aos

MINIMAL_BASIS = "cc-pvtz-minao"
"""Occupied AOs of cc-pVTZ: the minimal basis of the original work, and of PySCF ('minao')."""


@dataclass(frozen=True, eq=False)
class MinimalOverlaps:
    """Overlaps with a minimal basis, padded like all AO matrices.

    Attributes:
        cross: <AO | minimal>, shape (molecule, ao, minimal).
        minimal: <minimal | minimal>, shape (molecule, minimal, minimal).
        mask: True where a function of the minimal basis exists, shape (molecule, minimal).
        atoms: one where such a function is of an atom, shape (molecule, atom, minimal).
    """

    cross: Tensor
    minimal: Tensor
    mask: Tensor
    atoms: Tensor


def minimal_overlaps(batch: Batch, minimal: Basis | None = None) -> MinimalOverlaps:
    """Overlaps of the AOs of a batch with a minimal basis, differentiable in the positions.

    Args:
        batch: the molecules.
        minimal: the minimal basis, `MINIMAL_BASIS` by default.

    Raises:
        ValueError: for an element that the minimal basis lacks.
    """
    minimal = load_basis(MINIMAL_BASIS) if minimal is None else minimal
    small = Batch.of(batch.molecules, minimal, cutoff=0.0).to(batch.numbers.device)
    union = Batch.of(batch.molecules, _union(batch.basis, minimal), cutoff=0.0).to(batch.numbers.device)
    union = union.with_positions(batch.positions)
    s = overlap_integrals(union, plan(union))
    aos, functions = (_places(batch, union, minimal, second) for second in (False, True))
    rows = torch.arange(len(s), device=s.device)[:, None, None]
    cross = s[rows, aos.unsqueeze(2), functions.unsqueeze(1)]
    inside = batch.ao_mask.unsqueeze(2) & small.ao_mask.unsqueeze(1)
    both = small.ao_mask.unsqueeze(2) & small.ao_mask.unsqueeze(1)
    own = s[rows, functions.unsqueeze(2), functions.unsqueeze(1)]
    return MinimalOverlaps(
        torch.where(inside, cross, 0.0), torch.where(both, own, 0.0), small.ao_mask, atoms_of_aos(small)
    )


def intrinsic_orbitals(density: Tensor, overlap: Tensor, minimal: MinimalOverlaps, batch: Batch) -> Tensor:
    """Orthonormal IAOs of each spin; differentiable in all arguments.

    Args:
        density: density matrices of determinants, of one (all electrons of closed shells) or two spins, shape
            (molecule, spin, ao, ao).
        overlap: overlap matrices, shape (molecule, ao, ao).
        minimal: `minimal_overlaps(batch)`.
        batch: the molecules.

    Returns:
        Coefficients, shape (molecule, spin, ao, minimal), zero in the padding.

    Raises:
        ValueError: for more electrons of a spin than there are functions in the minimal basis.
    """
    lower, orbitals, _ = _orthonormal(density, overlap, minimal, batch)
    found = torch.linalg.solve_triangular(lower.mT.unsqueeze(1), orbitals, upper=True)
    return torch.where(batch.ao_mask[:, None, :, None] & minimal.mask[:, None, None, :], found, 0.0)


def iao_populations(density: Tensor, overlap: Tensor, minimal: MinimalOverlaps, batch: Batch) -> Tensor:
    """Electrons of each spin on each atom, by the populations of the IAOs of that spin; differentiable.

    Args:
        density: as in `intrinsic_orbitals`.
        overlap: overlap matrices, shape (molecule, ao, ao).
        minimal: `minimal_overlaps(batch)`.
        batch: the molecules.

    Returns:
        Shape (spin, atom): all electrons where the spin axis has one entry, else those of alpha and of beta.

    Raises:
        ValueError: as `intrinsic_orbitals`.
    """
    _, orbitals, projector = _orthonormal(density, overlap, minimal, batch)
    population = ((projector @ orbitals) * orbitals).sum(-2) * (2 / density.shape[1])
    on_atoms = (minimal.atoms.unsqueeze(1) @ population.unsqueeze(-1)).squeeze(-1)
    return on_atoms.transpose(0, 1)[:, minimal.atoms.any(2)]


def iao_charges(density: Tensor, overlap: Tensor, minimal: MinimalOverlaps, batch: Batch) -> Tensor:
    """Charges by the populations of the IAOs [e], shape (atom,); arguments as in `iao_populations`."""
    return batch.numbers - iao_populations(density, overlap, minimal, batch).sum(0)


def iao_spins(density: Tensor, overlap: Tensor, minimal: MinimalOverlaps, batch: Batch) -> Tensor:
    """Electrons of alpha less those of beta spin on each atom, shape (atom,); arguments as in `iao_populations`."""
    found = iao_populations(density, overlap, minimal, batch)
    return found[0] - found[1] if len(found) == 2 else torch.zeros_like(found[0])


def _orthonormal(
    density: Tensor, overlap: Tensor, minimal: MinimalOverlaps, batch: Batch
) -> tuple[Tensor, Tensor, Tensor]:
    """L with L L^T = S, and in the orthonormal basis that it makes of the AOs the IAOs and the occupied projector."""
    one = torch.eye(overlap.shape[-1], dtype=overlap.dtype, device=overlap.device)
    # the padding is made an identity, which takes no part in anything
    lower = torch.linalg.cholesky(overlap + torch.diag_embed((~batch.ao_mask).to(overlap)))
    smaller = torch.linalg.cholesky(minimal.minimal + torch.diag_embed((~minimal.mask).to(overlap)))
    basis = torch.linalg.solve_triangular(lower, minimal.cross, upper=False)
    # orthonormal functions of the minimal basis
    v = torch.linalg.solve_triangular(smaller, basis.mT, upper=False).mT.unsqueeze(1)
    p = lower.mT.unsqueeze(1) @ density @ lower.unsqueeze(1) * (density.shape[1] / 2)
    _check_electrons(p, minimal.mask)
    # the image of the occupied orbitals C is Q C with Q = V V^T, and the projector on it Q C (C^T Q^2 C)^-1 C^T Q; the
    # inverse is that of a matrix which is this in the occupied space and one in the rest
    image = v @ (v.mT @ p)
    image_projector = image @ torch.linalg.solve(image.mT @ image + one - p, image.mT)
    basis = basis.unsqueeze(1)
    from_image = image_projector @ basis
    orbitals = basis - from_image + p @ (2 * from_image - basis)
    n_spins = density.shape[1]
    gram = (orbitals.mT @ orbitals).flatten(0, 1)
    root = square_root(gram, minimal.mask.repeat_interleave(n_spins, 0))
    root = root + torch.diag_embed((~minimal.mask).to(root)).repeat_interleave(n_spins, 0)
    return lower, torch.linalg.solve(root, orbitals.mT.flatten(0, 1)).unflatten(0, p.shape[:2]).mT, p


def _check_electrons(projector: Tensor, mask: Tensor) -> None:
    """Refuses more occupied orbitals than functions."""
    occupied = projector.detach().diagonal(dim1=-2, dim2=-1).sum(-1).amax(1).round().long()
    for k in (occupied > mask.sum(1)).nonzero().flatten().tolist():
        raise ValueError(
            f"molecule {k} of the batch has {int(occupied[k])} occupied orbitals of a spin, but only "
            f"{int(mask[k].sum())} functions in the minimal basis: it has no intrinsic atomic orbitals"
        )


@lru_cache(maxsize=16)
def _union(basis: Basis, minimal: Basis) -> Basis:
    """Both bases as one, in each angular momentum the shells of the first before those of the second."""
    elements = {
        z: tuple(sorted((*shells, *minimal.shells(z)), key=lambda s: s.l))
        for z, shells in basis.elements.items()
        if z in minimal.elements
    }
    return Basis(f"{basis.name} and {minimal.name}", elements)


def _places(batch: Batch, union: Batch, minimal: Basis, second: bool) -> Tensor:
    """Index in the union of both bases of each function of the first or second, padded with 0, (molecule, function)."""
    local: dict[int, np.ndarray] = {}
    for z in batch.numbers.unique().tolist():
        flags = [(s.l, False) for s in batch.basis.shells(z)] + [(s.l, True) for s in minimal.shells(z)]
        ordered = sorted(flags, key=lambda f: f[0])  # as in `_union`
        local[z] = np.flatnonzero(np.repeat([f[1] for f in ordered], [2 * f[0] + 1 for f in ordered]) == second)
    offsets, molecule = union.ao_offset.tolist(), batch.molecule.cpu().numpy()
    atoms = [local[z] + o for z, o in zip(batch.numbers.tolist(), offsets, strict=True)]
    rows = [np.concatenate([atoms[a] for a in np.flatnonzero(molecule == k)]) for k in range(batch.n_molecules)]
    out = np.zeros((len(rows), max(map(len, rows))), dtype=np.int64)
    for k, row in enumerate(rows):
        out[k, : len(row)] = row
    return torch.from_numpy(out).to(batch.numbers.device)
