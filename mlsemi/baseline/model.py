"""The baselines as one module: its buffers are all that a checkpoint needs to reproduce F0 to the last digit."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from mlsemi.baseline.atoms import FreeAtom, free_atom, n_fit_charges, sap_charges
from mlsemi.baseline.tables import (
    LONGEST,
    SHORTEST,
    SPACING,
    block_entries,
    on_site_xc,
    spline_coefficients,
    spread,
    two_centre_knots,
)
from mlsemi.basis import Basis
from mlsemi.batch import Batch
from mlsemi.blocks import BlockMap, Blocks, Slots
from mlsemi.frames import BondFrames
from mlsemi.integrals import IntegralPlan, coulomb

KINDS = ("atoms", "sap", "none")
"""atoms: superposed free atoms with two-centre xc; sap: superposition of atomic potentials; none: zero."""


VERSION = 1
"""Raised whenever F0 changes: stored residuals F - F0 belong to one version."""


@dataclass(frozen=True, eq=False)
class BaselineTerms:
    """What a baseline gives for a batch.

    Attributes:
        fock: F0 [Eh], shape (molecule, ao, ao).
        density: D0, the superposed free atoms, block-diagonal, shape (molecule, ao, ao).
        energy: the part of E[D0] that depends on the geometry: pair electrostatics of the neutral atoms and their
            two-centre xc energy [Eh], shape (molecule,).
    """

    fock: Tensor
    density: Tensor
    energy: Tensor


class Baseline(nn.Module):
    """F0(R) of DESIGN: see docs/theory.md.

    Args:
        kind: one of `KINDS`.
        basis: the AO basis.
        elements: atomic numbers to be covered.

    Raises:
        ValueError: for an unknown kind, or an element that the basis sets lack.
    """

    knots: Tensor
    density: Tensor
    omega2: Tensor
    weight: Tensor
    on_site: Tensor
    splines: Tensor
    spread: Tensor

    def __init__(self, kind: str, basis: Basis, elements: Iterable[int], *, build: bool = True) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"baseline {kind!r} is not known: it is one of {', '.join(KINDS)}")
        self.kind = kind
        self.basis = basis
        self.slots = slots = Slots.of(basis, elements)
        n, s = len(slots.elements), slots.n_slots
        entries = block_entries(slots)
        n_rows = round((LONGEST - SHORTEST) / SPACING)
        shapes = {
            "knots": (n, n, n_rows + 1, 2 * len(entries) + 1) if kind == "atoms" else (0,),
            "density": (n, s, s),
            "omega2": (n, _n_charges(kind, slots)),
            "weight": (n, _n_charges(kind, slots)),
            "on_site": (n, s, s),
        }
        for name, shape in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("splines", torch.zeros(0, dtype=torch.float64), persistent=False)
        self.register_buffer("spread", torch.from_numpy(spread(slots, entries)), persistent=False)
        if build:
            self._build()

    @property
    def identity(self) -> str:
        """Kind and version, which together with the basis say what F0 is; stored with residuals F - F0."""
        return f"{self.kind}/{VERSION}"

    def _build(self) -> None:
        """Computes the tables from the basis sets."""
        for row, z in enumerate(self.slots.elements):
            atom = free_atom(self.basis, z)
            own = np.ix_(self.slots.of_ao[z], self.slots.of_ao[z])
            self.density[row].numpy()[own] = atom.density(self.basis)
            exponents, charges = _charges(self.kind, atom)
            k = len(charges)
            self.omega2[row] = 1.0
            self.omega2[row, 0], self.weight[row, 0] = torch.inf, -float(z)
            self.omega2[row, 1 : k + 1] = torch.from_numpy(np.ascontiguousarray(exponents))
            self.weight[row, 1 : k + 1] = torch.from_numpy(np.ascontiguousarray(charges))
            if self.kind == "atoms":
                self.on_site[row].numpy()[own] = on_site_xc(self.basis, z)
        if self.kind == "atoms":
            self.knots.copy_(torch.from_numpy(two_centre_knots(self.basis, self.slots)))
        self.prepare()

    def prepare(self) -> None:
        """Computes what follows from the buffers; to be called after they were loaded."""
        if self.kind == "atoms":
            self.splines = torch.from_numpy(spline_coefficients(self.knots.cpu().numpy())).to(self.knots.device)

    def forward(
        self, batch: Batch, plan: IntegralPlan, kinetic: Tensor, blocks: BlockMap, frames: BondFrames
    ) -> BaselineTerms:
        """F0, D0 and the baseline energy of a batch; differentiable in the positions.

        Args:
            batch: the molecules; its pairs must reach as far as two-centre xc is wanted.
            plan: integral plan of the batch.
            kinetic: kinetic energy matrices, shape (molecule, ao, ao).
            blocks: block map of the batch for `self.slots`.
            frames: float64 bond frames up to the l_max of the basis at least.
        """
        element = self.slots.element_index(batch.numbers)
        zeros = kinetic.new_zeros(batch.pair.shape[1], self.slots.n_slots, self.slots.n_slots)
        density = blocks.assemble(Blocks(self.density[element], zeros))
        energy = kinetic.new_zeros(batch.n_molecules)
        if self.kind == "none":
            return BaselineTerms(torch.zeros_like(kinetic), density, energy)
        potential = coulomb(batch, plan, batch.positions, batch.molecule, self.omega2[element], self.weight[element])
        fock = kinetic + potential
        if self.kind == "atoms":
            xc, energy = self._two_centre(batch, element, blocks, frames)
            fock = fock + xc
        return BaselineTerms(fock, density, energy)

    def _two_centre(self, batch: Batch, element: Tensor, blocks: BlockMap, frames: BondFrames) -> tuple[Tensor, Tensor]:
        i, j = batch.pair
        row, offset = _locate(frames.distance, self.splines.shape[2])
        c = self.splines[element[i], element[j], row]
        inside = (frames.distance < LONGEST).to(c.dtype)[:, None]
        values = (((c[:, 0] * offset + c[:, 1]) * offset + c[:, 2]) * offset + c[:, 3]) * inside
        n = self.spread.shape[0]
        shape = (-1, self.slots.n_slots, self.slots.n_slots)
        rotation = frames.slot_rotation(self.slots)
        off, on = (rotation @ (values[:, k : k + n] @ self.spread).view(shape) @ rotation.mT for k in (0, n))
        diagonal = self.on_site[element].index_add(0, i, on)
        energy = values.new_zeros(batch.n_molecules).index_add(0, batch.molecule[i], 0.5 * values[:, 2 * n])
        return blocks.assemble(Blocks(diagonal, off)), energy


def _locate(distance: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """Spline interval of each distance and the offset in it [bohr]; the first one is extrapolated to zero distance."""
    row = ((distance.detach() - SHORTEST) / SPACING).floor().long().clamp(0, n_rows - 1)
    # an integer tensor times a Python number would be float32
    return row, (distance - (SHORTEST + SPACING * row.to(distance.dtype)))[:, None]


def _charges(kind: str, atom: FreeAtom) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian charges of an element beside its nucleus."""
    if kind == "atoms":
        return atom.exponents, atom.charges
    return sap_charges(atom.number) if kind == "sap" else (np.zeros(0), np.zeros(0))


def _n_charges(kind: str, slots: Slots) -> int:
    """Nucleus and Gaussian charges of the richest element."""
    if kind == "none":
        return 1
    if kind == "sap":
        return 1 + max(len(sap_charges(z)[0]) for z in slots.elements)
    return 1 + max(n_fit_charges(z) for z in slots.elements)
