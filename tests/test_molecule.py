"""Molecule: what it accepts, refuses, and writes."""

import numpy as np
import pytest

from mlsemi.molecule import CLOSEST_APPROACH, LARGEST_COORDINATE, Molecule, symbol_of

WATER = np.array([8, 1, 1])
PLACES = np.array([[0.0, 0.0, 0.0], [0.0, 1.43, 1.1], [0.0, -1.43, 1.1]])


def test_angstrom_and_bohr_are_the_same_molecule() -> None:
    molecule = Molecule.from_angstrom(WATER, PLACES * 0.529177210544)
    np.testing.assert_allclose(molecule.positions, PLACES, rtol=1e-8)  # ten digits of the Bohr radius
    np.testing.assert_allclose(molecule.positions_angstrom, PLACES * 0.529177210544, rtol=1e-14)


def test_arrays_are_own_copies_and_cannot_be_written() -> None:
    places = PLACES.copy()
    molecule = Molecule(WATER, places)
    places[0] = 9.0
    assert molecule.positions[0, 0] == 0.0
    with pytest.raises(ValueError, match="read-only"):
        molecule.positions[0, 0] = 1.0
    with pytest.raises(AttributeError):
        molecule.charge = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("numbers", "formula"),
    [
        ([8, 1, 1], "H2O"),
        ([6, 6, 8, 1, 1, 1, 1, 1, 1], "C2H6O"),
        ([17, 6, 35, 1], "CHBrCl"),  # Hill: carbon, hydrogen, then the alphabet
        ([14, 17, 1, 17], "Cl2HSi"),  # without carbon hydrogen is one among the others
        ([2], "He"),
    ],
)
def test_formula_is_in_hill_order(numbers: list[int], formula: str) -> None:
    line = np.arange(3 * len(numbers)).reshape(-1, 3).astype(float)
    electrons = sum(numbers)
    assert Molecule(np.array(numbers), line, spin=electrons % 2).formula == formula


@pytest.mark.parametrize(("charge", "spin", "electrons"), [(0, 0, 10), (1, 1, 9), (-1, 3, 11), (2, 2, 8)])
def test_charge_and_spin(charge: int, spin: int, electrons: int) -> None:
    molecule = Molecule(WATER, PLACES, charge=charge, spin=spin)
    assert (molecule.n_electrons, molecule.charge, molecule.spin) == (electrons, charge, spin)


def test_xyz_holds_the_molecule() -> None:
    molecule = Molecule(WATER, PLACES)
    count, comment, *rows = molecule.to_xyz("two\nlines").splitlines()
    assert (count, comment) == ("3", "two lines")  # a comment may not break the format
    assert [r.split()[0] for r in rows] == ["O", "H", "H"]
    written = np.array([[float(x) for x in r.split()[1:]] for r in rows])
    np.testing.assert_allclose(written, molecule.positions_angstrom, atol=1e-10)  # ten decimals are written


def test_symbols() -> None:
    assert [symbol_of(z) for z in (1, 6, 18, 26, 54, 99)] == ["H", "C", "Ar", "Fe", "Xe", "Z99"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"numbers": np.array([])}, r"numbers must be one-dimensional with at least one atom"),
        ({"numbers": np.array([[8, 1, 1]])}, r"numbers must be one-dimensional .*\(1, 3\)"),
        ({"positions": PLACES[:2]}, r"positions must have shape \(3, 3\), got \(2, 3\) in frame 7"),
        ({"positions": PLACES * np.nan}, r"not finite in frame 7"),
        ({"numbers": np.array([8, 1, 0])}, r"unknown atomic number\(s\) \[0\]"),
        ({"numbers": np.array([8, 1, 99])}, r"unknown atomic number\(s\) \[99\].*1 \(H\) to 54 \(Xe\)"),
        ({"spin": 1}, r"10 electrons \(charge 0\) cannot have spin=2S=1 .* spin must be even"),
        ({"charge": 1}, r"9 electrons \(charge 1\) cannot have spin=2S=0 .* spin must be odd"),
        ({"charge": 11, "spin": 1}, r"leaves -1 electrons"),
        ({"spin": -2}, r"spin=-2"),
        ({"spin": 12}, r"leaves 10 electrons, 12 unpaired"),
    ],
)
def test_impossible_molecules_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Molecule(**({"numbers": WATER, "positions": PLACES, "name": "frame 7"} | arguments))


def test_coincident_nuclei_are_refused_by_name() -> None:
    near = PLACES.copy()
    near[2] = near[1] + [0.0, 0.0, 0.99 * CLOSEST_APPROACH]
    with pytest.raises(ValueError, match=r"atoms 1 \(H\) and 2 \(H\) are only 0.495 bohr apart.*angstrom"):
        Molecule(WATER, near)
    near[2] = near[1] + [0.0, 0.0, 1.01 * CLOSEST_APPROACH]
    assert Molecule(WATER, near).n_atoms == 3


@pytest.mark.parametrize("value", [1.01 * LARGEST_COORDINATE, -1e30, 1e200])
def test_coordinates_beyond_any_molecule_are_refused(value: float) -> None:
    places = PLACES.copy()
    places[1, 2] = value
    with pytest.raises(ValueError, match=r"a coordinate of .* bohr in frame 7; the largest allowed is 1e\+06 bohr"):
        Molecule(WATER, places, name="frame 7")
    places[1, 2] = 0.99 * LARGEST_COORDINATE
    assert Molecule(WATER, places).n_atoms == 3
