"""What a report is made of, and what is worked out of it before it is written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlsemi.batch import Batch
from mlsemi.domain import BOND_TOLERANCE_ANGSTROM, COVALENT_RADII_ANGSTROM
from mlsemi.files import sha256_of
from mlsemi.model import Mode, Model
from mlsemi.molecule import Molecule, symbol_of
from mlsemi.observables import Observables
from mlsemi.properties.bond_orders import mayer_bond_orders, wiberg_bond_orders
from mlsemi.properties.intrinsic import iao_charges, iao_spins, minimal_overlaps
from mlsemi.properties.reactivity import Frontier, frontier
from mlsemi.report.volumes import Scene
from mlsemi.vibrations import Frequencies

WORTH_A_LINE = 0.3
"""Pairs of atoms with a bond order from here are drawn as bonds, whatever their distance."""


@dataclass(frozen=True)
class Source:
    """Where a molecule was read from.

    Attributes:
        name: name of the file, without folders: a report is passed on.
        sha256: hash of the content of the file.
        frame: index of the frame that is shown.
        n_frames: number of frames in the file.
    """

    name: str
    sha256: str
    frame: int = 0
    n_frames: int = 1

    @classmethod
    def of(cls, path: Path, *, frame: int, n_frames: int) -> Source:
        """The source of a frame of a file."""
        return cls(path.name, sha256_of(path), frame, n_frames)


@dataclass(frozen=True)
class Bond:
    """A line between two atoms.

    Attributes:
        pair: indices of the atoms.
        distance: in angstrom.
        mayer: bond order after Mayer.
        wiberg: after Wiberg, in Loewdin's basis.
    """

    pair: tuple[int, int]
    distance: float
    mayer: float
    wiberg: float


@dataclass(frozen=True, eq=False)
class Content:
    """What a report is made of.

    Attributes:
        model: the model.
        checkpoint: its file; its card lies beside it with the suffix .md, if there is one.
        molecule: what was asked for.
        observables: what came out.
        mode: in which mode.
        source: where the molecule came from.
        frequencies: its vibrations, if they were asked for.
    """

    model: Model
    checkpoint: Path
    molecule: Molecule
    observables: Observables
    mode: Mode
    source: Source
    frequencies: Frequencies | None = None

    @property
    def title(self) -> str:
        return self.molecule.name or self.molecule.formula

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of the prediction and of the vibrations, each once."""
        own = self.observables.warnings + (self.frequencies.warnings if self.frequencies else ())
        return tuple(dict.fromkeys(own))

    @cached_property
    def batch(self) -> Batch:
        return Batch.of([self.molecule], self.model.header.basis)

    @cached_property
    def scene(self) -> Scene:
        return Scene.of(self.molecule)

    @cached_property
    def density(self) -> Tensor:
        """Of each spin, or of all electrons of a closed shell, shape (1, spin, ao, ao)."""
        assert self.observables.density is not None
        return torch.from_numpy(self.observables.density).unsqueeze(0)

    @cached_property
    def overlap(self) -> Tensor:
        """Shape (1, ao, ao)."""
        assert self.observables.overlap is not None
        return torch.from_numpy(self.observables.overlap).unsqueeze(0)

    @property
    def frontier(self) -> Frontier:
        """HOMO, LUMO and what is made of them."""
        o = self.observables
        assert o.mo_energy is not None and o.mo_occ is not None
        return frontier(torch.from_numpy(o.mo_energy)[None], torch.from_numpy(o.mo_occ)[None], self.batch)

    @cached_property
    def dipole(self) -> np.ndarray:
        """About the centre of the nuclear charges, for which it means something in an ion too [e bohr], shape (3,)."""
        molecule = self.molecule
        assert self.observables.dipole is not None
        center = molecule.numbers @ molecule.positions / molecule.numbers.sum()
        return self.observables.dipole - molecule.charge * center

    @cached_property
    def charges(self) -> dict[str, np.ndarray]:
        """Charges of the atoms [e] by kind."""
        o = self.observables
        assert o.charges_mulliken is not None and o.charges_loewdin is not None
        found = {"Mulliken": o.charges_mulliken, "Löwdin": o.charges_loewdin}
        return found | self._intrinsic(iao_charges)

    @cached_property
    def spins(self) -> dict[str, np.ndarray]:
        """Unpaired electrons of the atoms by kind, for open shells."""
        o = self.observables
        if not self.molecule.spin or o.spins_mulliken is None or o.spins_loewdin is None:
            return {}
        return {"Mulliken": o.spins_mulliken, "Löwdin": o.spins_loewdin} | self._intrinsic(iao_spins)

    def _intrinsic(self, populations) -> dict[str, np.ndarray]:
        """Populations of intrinsic atomic orbitals; of some elements and states there are none."""
        try:
            found = populations(self.density, self.overlap, minimal_overlaps(self.batch), self.batch)
        except (ValueError, RuntimeError):  # no minimal basis for an element; a basis no larger than the minimal one
            return {}
        return {"IAO": found.numpy()} if bool(found.isfinite().all()) else {}

    @cached_property
    def bonds(self) -> list[Bond]:
        """Atoms that are near each other or share electrons, in the order of their indices."""
        molecule = self.molecule
        orders = [f(self.density, self.overlap, self.batch)[0].numpy() for f in (mayer_bond_orders, wiberg_bond_orders)]
        radii = COVALENT_RADII_ANGSTROM[molecule.numbers]
        x = molecule.positions_angstrom
        found = []
        for i in range(molecule.n_atoms):
            for j in range(i + 1, molecule.n_atoms):
                distance = float(np.linalg.norm(x[i] - x[j]))
                near = distance < radii[i] + radii[j] + BOND_TOLERANCE_ANGSTROM
                if near or orders[0][i, j] >= WORTH_A_LINE:
                    found.append(Bond((i, j), distance, float(orders[0][i, j]), float(orders[1][i, j])))
        return found

    def atom_name(self, k: int) -> str:
        """Such as C0: symbol and index."""
        return f"{symbol_of(int(self.molecule.numbers[k]))}{k}"
