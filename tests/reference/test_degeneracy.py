"""States without a unique density are found, whatever their geometry and orientation; others are not."""

from collections.abc import Callable

import numpy as np
import pytest

from mlsemi.basis import load_basis
from mlsemi.domain import DEGENERACY_GAP
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.reference.degeneracy import (
    carried_along,
    electrons_moved,
    reasons,
    rotation,
    smallest_gap,
    symmetry_operations,
)
from mlsemi.reference.mean_field import solve

SVP, STO = load_basis("def2-svp"), load_basis("sto-3g")

C, S = np.cos(np.pi / 3), np.sin(np.pi / 3)
RING = np.array([(np.cos(k * np.pi / 3), np.sin(k * np.pi / 3), 0.0) for k in range(6)])
CH3 = [[0, 0, 0], [1.08, 0, 0], [-1.08 * C, 1.08 * S, 0], [-1.08 * C, -1.08 * S, 0]]
CH4 = np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * 1.09 / np.sqrt(3)
NH2 = [[0, 0, 0], [0.8, 0.64, 0], [-0.8, 0.64, 0]]
VINYL = [[0, 0, 0], [1.31, 0, 0], [-0.55, 0.94, 0], [-0.55, -0.94, 0], [1.99, 0.85, 0]]


def turned(numbers, angstrom, turn, *, charge=0, spin=0):
    """The molecule in another place and orientation."""
    return Molecule.from_angstrom(numbers, np.asarray(angstrom, float) @ turn.T + 0.4, charge=charge, spin=spin)


def diatomic(a, b, length):
    return [a, b], [[0, 0, 0], [0, 0, length]]


@pytest.mark.parametrize("method", ["hf", "pbe"])
@pytest.mark.parametrize(
    ("numbers", "angstrom", "charge", "spin"),
    [
        (*diatomic(8, 1, 0.97), 0, 1),
        (*diatomic(8, 1, 1.2), 0, 1),
        (*diatomic(7, 8, 1.15), 0, 1),
        (*diatomic(7, 8, 1.05), 0, 1),
        (*diatomic(7, 1, 1.07), 1, 1),
        (*diatomic(8, 8, 1.35), -1, 1),
        (*diatomic(8, 8, 1.21), 0, 0),
        ([8], [[0, 0, 0]], 0, 2),
        ([6, 1, 1, 1, 1], CH4, 1, 1),
    ],
    ids=["OH", "OH stretched", "NO", "NO compressed", "NH+", "O2-", "O2 singlet", "O", "CH4+ tetrahedral"],
)
def test_degenerate_states_are_flagged(numbers, angstrom, charge, spin, method, random_rotation: Callable):
    molecule = turned(numbers, angstrom, random_rotation(), charge=charge, spin=spin)
    label = solve(molecule, STO if len(numbers) > 2 else SVP, method=method, residual_tolerance=1e-5)
    assert label.degenerate
    assert "degenerate: " in label.observables.warnings[0]


@pytest.mark.parametrize(
    ("numbers", "angstrom", "charge", "spin"),
    [
        ([6, 1, 1, 1], CH3, 0, 1),
        ([7, 1, 1], NH2, 0, 1),
        (*diatomic(8, 8, 1.21), 0, 2),
        ([6, 6, 1, 1, 1], VINYL, 0, 1),
        (*diatomic(7, 7, 1.10), 0, 0),
        ([6, 1, 1, 1, 1], CH4, 0, 0),
        ([7], [[0, 0, 0]], 0, 3),
        ([1], [[0, 0, 0]], 0, 1),
        ([6] * 6 + [1] * 6, np.vstack([1.395 * RING, 2.48 * RING]), 0, 0),
    ],
    ids=["CH3", "NH2", "O2 triplet", "vinyl", "N2", "CH4", "N", "H", "benzene"],
)
def test_other_states_are_not(numbers, angstrom, charge, spin, random_rotation: Callable):
    molecule = turned(numbers, angstrom, random_rotation(), charge=charge, spin=spin)
    basis = STO if len(numbers) > 3 else SVP
    label = solve(molecule, basis, method="pbe" if len(numbers) < 6 else "hf", residual_tolerance=1e-5)
    assert not label.degenerate
    assert label.observables.warnings == ()


@pytest.mark.parametrize(
    ("numbers", "angstrom", "order"),
    [
        ([6, 1, 1, 1], CH3, 12),  # D3h
        ([6, 1, 1, 1, 1], CH4, 24),  # Td
        ([7, 1, 1], NH2, 4),  # C2v
        ([6, 6, 1, 1, 1], VINYL, 2),  # Cs
        ([6] * 6 + [1] * 6, np.vstack([1.395 * RING, 2.48 * RING]), 24),  # D6h
        ([8, 8, 1, 1], [[0.7, 0, 0], [-0.7, 0, 0], [0.9, 0.9, 0.3], [-0.9, -0.9, 0.3]], 2),  # C2, H2O2
        ([6, 1, 7, 8, 9], np.vstack([CH4[0], 1.1 * CH4[1], CH4[2:]]), 1),
    ],
    ids=["CH3", "CH4", "NH2", "vinyl", "benzene", "H2O2", "chiral"],
)
def test_all_operations_of_the_point_group_are_found_once(numbers, angstrom, order, random_rotation: Callable):
    molecule = turned(numbers, angstrom, random_rotation(), spin=sum(numbers) % 2)
    found = list(symmetry_operations(molecule))
    distinct = {tuple(np.rint(1e3 * r).astype(int).ravel()) for r, _, _ in found}
    assert len(found) == len(distinct) == order - 1  # orders from the character tables; the identity is left out
    x = molecule.positions - molecule.numbers @ molecule.positions / molecule.numbers.sum()
    for r, permutation, _ in found:
        np.testing.assert_allclose(r @ r.T, np.eye(3), atol=1e-12)  # a few float64 operations
        np.testing.assert_array_equal(molecule.numbers[permutation], molecule.numbers)
        np.testing.assert_allclose(x @ r.T, x[permutation], atol=1e-8)  # the geometries are exact to rounding


def test_distorted_geometry_has_no_operations(rng):
    positions = np.asarray(CH4) + 0.1 * rng.standard_normal((5, 3))
    assert list(symmetry_operations(Molecule.from_angstrom([6, 1, 1, 1, 1], positions))) == []


def test_electrons_moved_is_that_of_turning_an_orbital():
    """One electron in a p orbital turned by an angle leaves it with the square of the sine."""
    molecule = Molecule([8], np.zeros((1, 3)), spin=2)
    layout = AOLayout(STO, molecule.numbers)
    density = np.zeros((2, 5, 5))
    density[0, 3, 3] = 1.0  # 2pz is the third of (y, z, x) after 1s, 2s: the axis below is x
    angle = 0.4
    turn = rotation(np.array([1.0, 0.0, 0.0]), angle)
    turned = carried_along(layout, density, turn, np.array([0]))
    moved = electrons_moved(density, turned, np.eye(5))
    assert moved == pytest.approx(np.sin(angle) ** 2, abs=1e-12)  # float64 rounding
    both = electrons_moved(2 * density[:1], 2 * turned[:1], np.eye(5))
    assert both == pytest.approx(moved, abs=1e-12)  # restricted: both spins in one matrix, the figure is of one


def test_small_gap_is_flagged():
    observables = solve(Molecule([7], np.zeros((1, 3)), spin=3), SVP, method="hf").observables
    assert smallest_gap(observables) > DEGENERACY_GAP  # N: a half-filled shell
    occupations = observables.mo_occ.copy()
    occupations[0, 4] = 0  # N+ with an electron out of the three equal p orbitals
    hole = Observables(
        mo_energy=observables.mo_energy, mo_occ=occupations, density=observables.density, overlap=observables.overlap
    )
    molecule = Molecule([7], np.zeros((1, 3)), spin=3)
    assert "gap of a spin" in reasons(molecule, AOLayout(SVP, molecule.numbers), hole)[0]


def test_no_empty_orbital_is_no_gap():
    full = Observables(mo_energy=np.zeros((1, 2)), mo_occ=np.full((1, 2), 2.0))
    assert smallest_gap(full) == float("inf")
