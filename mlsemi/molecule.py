"""Molecule: what the user asks about. Nuclei, charge and spin; positions in bohr."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlsemi.units import BOHR_IN_ANGSTROM

# fmt: off
SYMBOLS = (
    "X", "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar",
    "K", "Ca", "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr",
    "Rb", "Sr", "Y", "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I", "Xe",
)
# fmt: on

CLOSEST_APPROACH = 0.5
"""Two nuclei nearer than this [bohr] are taken for a mistake in the input: H2 stands at 1.4 bohr."""

LARGEST_COORDINATE = 1e6
"""A coordinate larger than this [bohr], 0.05 mm, is taken for a mistake in the input."""


def symbol_of(number: int) -> str:
    """Element symbol of an atomic number; `Z<number>` beyond xenon."""
    return SYMBOLS[number] if 0 <= number < len(SYMBOLS) else f"Z{number}"


@dataclass(frozen=True, eq=False)
class Molecule:
    """A molecule: nuclei, total charge and spin.

    Attributes:
        numbers: atomic numbers, shape (atom,), int64.
        positions: nuclear positions [bohr], shape (atom, 3), float64.
        charge: total charge [e].
        spin: number of unpaired electrons, 2S.
        name: free text for messages and tables, such as the file and frame it was read from.

    Raises:
        ValueError: for shapes that do not fit, non-finite positions or ones beyond `LARGEST_COORDINATE`, unknown
            elements, two nuclei closer than `CLOSEST_APPROACH`, or a spin that the number of electrons does not allow.
    """

    numbers: np.ndarray
    positions: np.ndarray
    charge: int = 0
    spin: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        where = f" in {self.name}" if self.name else ""
        for key in ("charge", "spin"):
            value = getattr(self, key)
            if int(value) != value:
                raise ValueError(f"{key}={value} must be a whole number{where}")
        if not np.all(np.mod(self.numbers, 1) == 0):
            raise ValueError(f"numbers must be whole atomic numbers, got {np.asarray(self.numbers).tolist()}{where}")
        numbers = np.array(self.numbers, dtype=np.int64)
        positions = np.array(self.positions, dtype=np.float64)
        if numbers.ndim != 1 or numbers.size == 0:
            raise ValueError(
                f"numbers must be one-dimensional with at least one atom, got shape {numbers.shape}{where}"
            )
        if positions.shape != (numbers.size, 3):
            raise ValueError(f"positions must have shape ({numbers.size}, 3), got {positions.shape}{where}")
        if not np.isfinite(positions).all():
            raise ValueError(f"positions hold values that are not finite{where}")
        if (largest := float(np.abs(positions).max())) > LARGEST_COORDINATE:
            raise ValueError(
                f"positions hold a coordinate of {largest:.3g} bohr{where}; the largest allowed is "
                f"{LARGEST_COORDINATE:g} bohr: check the coordinates and their unit (files are read in angstrom)"
            )
        unknown = sorted(set(numbers[(numbers < 1) | (numbers >= len(SYMBOLS))].tolist()))
        if unknown:
            raise ValueError(
                f"unknown atomic number(s) {unknown}{where}: mlsemi knows 1 (H) to {len(SYMBOLS) - 1} (Xe)"
            )
        _refuse_coincident(numbers, positions, where)
        for array in (numbers, positions):
            array.setflags(write=False)
        object.__setattr__(self, "numbers", numbers)
        object.__setattr__(self, "positions", positions)
        object.__setattr__(self, "charge", int(self.charge))
        object.__setattr__(self, "spin", int(self.spin))
        electrons = self.n_electrons
        if electrons < 0 or self.spin < 0 or self.spin > electrons:
            raise ValueError(
                f"charge={self.charge}, spin={self.spin} leaves {electrons} electrons, {self.spin} unpaired{where}"
            )
        if (electrons - self.spin) % 2:
            raise ValueError(
                f"{electrons} electrons (charge {self.charge}) cannot have spin=2S={self.spin} unpaired ones{where}: "
                f"spin must be {'odd' if electrons % 2 else 'even'}; give charge and spin (2S) explicitly"
            )

    @classmethod
    def from_angstrom(
        cls, numbers: np.ndarray, positions_angstrom: np.ndarray, *, charge: int = 0, spin: int = 0, name: str = ""
    ) -> Molecule:
        """As the constructor, with positions in angstrom."""
        positions = np.asarray(positions_angstrom, dtype=np.float64) / BOHR_IN_ANGSTROM
        return cls(numbers, positions, charge=charge, spin=spin, name=name)

    @property
    def n_atoms(self) -> int:
        return int(self.numbers.size)

    @property
    def n_heavy_atoms(self) -> int:
        """Number of atoms other than hydrogen."""
        return int((self.numbers > 1).sum())

    @property
    def n_electrons(self) -> int:
        return int(self.numbers.sum()) - self.charge

    @property
    def positions_angstrom(self) -> np.ndarray:
        """Nuclear positions [angstrom], shape (atom, 3)."""
        return self.positions * BOHR_IN_ANGSTROM

    @property
    def formula(self) -> str:
        """Molecular formula in Hill order, such as C2H6O."""
        symbols, counts = np.unique([symbol_of(z) for z in self.numbers.tolist()], return_counts=True)
        count = dict(zip(symbols.tolist(), counts.tolist(), strict=True))
        first = [s for s in ("C", "H") if s in count] if "C" in count else []
        order = first + sorted(s for s in count if s not in first)
        return "".join(s + (str(count[s]) if count[s] > 1 else "") for s in order)

    def to_xyz(self, comment: str = "") -> str:
        """The molecule as one frame of an xyz file [angstrom]."""
        rows = [
            f"{symbol_of(z):2s} {x:16.10f} {y:16.10f} {w:16.10f}"
            for z, (x, y, w) in zip(self.numbers.tolist(), self.positions_angstrom.tolist(), strict=True)
        ]
        return "\n".join([str(self.n_atoms), " ".join(comment.split()), *rows]) + "\n"


def _refuse_coincident(numbers: np.ndarray, positions: np.ndarray, where: str) -> None:
    from scipy.spatial import cKDTree

    for i, j in sorted(cKDTree(positions).query_pairs(CLOSEST_APPROACH)):
        distance = float(np.linalg.norm(positions[i] - positions[j]))
        raise ValueError(
            f"atoms {i} ({symbol_of(int(numbers[i]))}) and {j} ({symbol_of(int(numbers[j]))}) are only "
            f"{distance:.3f} bohr apart{where}; the least allowed is {CLOSEST_APPROACH} bohr: check the coordinates "
            "and their unit (files are read in angstrom)"
        )
