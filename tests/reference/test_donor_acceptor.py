"""Lewis orbitals and donor-acceptor energies: what they span, sum to, and say of molecules whose answer is known."""

import numpy as np
import pytest

from mlsemi.basis import load_basis
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.reference.donor_acceptor import interactions, lewis_orbitals
from mlsemi.reference.localization import Case
from mlsemi.reference.mean_field import solve

FORMALDEHYDE = Molecule.from_angstrom(
    np.array([6, 8, 1, 1]), np.array([[0, 0, 0], [0, 0, 1.21], [0, 0.94, -0.59], [0, -0.94, -0.59]])
)
BORANE = Molecule.from_angstrom(
    np.array([5, 1, 1, 1]), np.array([[0, 0, 0], [0, 1.19, 0], [1.03057, -0.595, 0], [-1.03057, -0.595, 0]])
)
METHYL = Molecule.from_angstrom(
    np.array([6, 1, 1, 1]), np.array([[0, 0, 0], [0, 1.08, 0], [0.93531, -0.54, 0], [-0.93531, -0.54, 0]]), spin=1
)
FORMAMIDE = Molecule.from_angstrom(
    np.array([7, 6, 8, 1, 1, 1]),
    np.array(
        [[1.07, -0.16, 0], [-0.16, 0.39, 0], [-1.19, -0.24, 0], [-0.14, 1.49, 0], [1.9, 0.42, 0], [1.16, -1.17, 0]]
    ),
)
OXYGEN = Molecule.from_angstrom(np.array([8, 8]), np.array([[0.0, 0, 0], [0, 0, 1.21]]), spin=2)


@pytest.fixture(scope="module")
def basis():
    return load_basis("6-31g")


@pytest.fixture(scope="module")
def states(basis):
    named = {"formaldehyde": FORMALDEHYDE, "borane": BORANE, "methyl": METHYL, "oxygen": OXYGEN}
    named["formamide"] = FORMAMIDE
    return {name: (m, solve(m, basis, method="hf", stability=False).observables) for name, m in named.items()}


def test_lewis_orbitals_of_formaldehyde(states, basis):
    molecule, state = states["formaldehyde"]
    found = lewis_orbitals(state, molecule, basis)
    assert sorted(found.labels[: found.n_occupied]) == [
        "bond C1-H3", "bond C1-H4", "bond C1-O2 (1)", "bond C1-O2 (2)", "core C1", "core O2", "lone pair O2 (1)",
        "lone pair O2 (2)",
    ]  # fmt: skip
    assert sorted(found.labels[found.n_occupied :]) == [
        "antibond C1-H3", "antibond C1-H4", "antibond C1-O2 (1)", "antibond C1-O2 (2)",
    ]  # fmt: skip
    c = found.coefficients
    np.testing.assert_allclose(c.T @ state.overlap @ c, np.eye(12), atol=1e-10)
    np.testing.assert_allclose(c.T @ state.fock[0] @ c, found.fock, atol=1e-10)
    # they span the IAOs, which hold all electrons
    assert found.occupations.sum() == pytest.approx(16, abs=1e-8)
    assert 0.985 < found.lewis_share < 1
    case = Case(state, molecule, basis, 0)
    projector = case.layout.from_pyscf(case.iaos @ case.iaos.T)
    np.testing.assert_allclose(c @ c.T, projector, atol=1e-10)
    # each is of its atoms only
    inside = case.iaos.T @ case.overlap @ case.layout.to_pyscf(c, axes=(-2,))
    for k, atoms in enumerate(found.atoms):
        assert np.abs(inside[~np.isin(case.iao_atom, atoms), k]).max() < 1e-10


def test_hyperconjugation_of_formaldehyde(states, basis):
    """The p lone pair gives to both antibonds of C-H, by symmetry alike, and to nothing else."""
    molecule, state = states["formaldehyde"]
    found = interactions(state, molecule, basis, geminal=False)
    of_pair = [i for i in found if i.donor == "lone pair O2 (2)"]
    assert {i.acceptor for i in of_pair} == {"antibond C1-H3", "antibond C1-H4"}
    assert found[:2] == of_pair[:2]
    assert of_pair[0].energy == pytest.approx(of_pair[1].energy, abs=1e-6)
    orbitals = lewis_orbitals(state, molecule, basis)
    i, j = orbitals.labels.index(of_pair[0].donor), orbitals.labels.index(of_pair[0].acceptor)
    expected = -2 * orbitals.fock[i, j] ** 2 / (orbitals.energies[j] - orbitals.energies[i])
    assert of_pair[0].energy == pytest.approx(expected, rel=1e-12)
    assert -0.1 < expected < -0.01
    assert not any(i.geminal for i in found)


def test_borane_has_an_empty_orbital(states, basis):
    molecule, state = states["borane"]
    found = lewis_orbitals(state, molecule, basis)
    assert "empty B1" in found.labels
    k = found.labels.index("empty B1")
    # a p orbital of another symmetry than all bonds of a planar molecule
    assert found.occupations[k] < 1e-8
    assert all(abs(found.fock[k, i]) < 1e-8 for i in range(found.n_occupied))


def test_lone_pair_of_an_amide_is_one(states, basis):
    """A tenth of it is on carbon, which has four bonds without it."""
    molecule, state = states["formamide"]
    found = lewis_orbitals(state, molecule, basis)
    assert "lone pair N1" in found.labels and found.lewis_share > 0.97
    first = interactions(state, molecule, basis, geminal=False)[0]
    assert (first.donor, first.acceptor) == ("lone pair N1", "antibond C2-O3 (1)")


def test_radical(states, basis):
    molecule, state = states["methyl"]
    alpha, beta = (lewis_orbitals(state, molecule, basis, spin=s) for s in (0, 1))
    assert "lone pair C1" in alpha.labels and "empty C1" in beta.labels
    assert alpha.occupations.sum() == pytest.approx(5, abs=1e-8)
    assert beta.occupations.sum() == pytest.approx(4, abs=1e-8)
    found = interactions(state, molecule, basis, threshold=0.0)
    assert {i.spin for i in found} == {0, 1}
    assert all(i.energy <= 0 for i in found)


def test_triplet_oxygen(states, basis):
    molecule, state = states["oxygen"]
    for spin, electrons in ((0, 9), (1, 7)):
        found = lewis_orbitals(state, molecule, basis, spin=spin)
        assert found.occupations.sum() == pytest.approx(electrons, abs=1e-8)
        c = found.coefficients
        np.testing.assert_allclose(c.T @ state.overlap @ c, np.eye(10), atol=1e-10)


def test_energies_do_not_turn(states, basis, random_rotation):
    molecule, state = states["formaldehyde"]
    rotation = random_rotation(improper=True)
    matrix = AOLayout(basis, molecule.numbers).rotation(rotation)
    turned = Molecule(molecule.numbers, molecule.positions @ rotation.T + 2.0)
    moved = Observables(fock=matrix @ state.fock @ matrix.T, mo_coeff=matrix @ state.mo_coeff, mo_occ=state.mo_occ)
    before, after = interactions(state, molecule, basis), interactions(moved, turned, basis)
    values = [{(i.donor, i.acceptor): i.energy for i in found} for found in (before, after)]
    assert values[0].keys() == values[1].keys()
    # 1e-6: the localization is converged in its functional, second order in the orbitals
    for key, energy in values[0].items():
        assert values[1][key] == pytest.approx(energy, abs=1e-6)


def test_refusals(states, basis):
    molecule, state = states["formaldehyde"]
    with pytest.raises(ValueError, match="threshold=-1"):
        interactions(state, molecule, basis, threshold=-1.0)
    with pytest.raises(ValueError, match="lack them"):
        interactions(Observables(), molecule, basis)
    hydrogen = Molecule(np.array([1]), np.zeros((1, 3)), spin=1)
    alone = Observables(
        fock=np.zeros((2, 2, 2)), mo_coeff=np.stack([np.eye(2)] * 2), mo_occ=np.array([[1.0, 0], [0, 0]])
    )
    with pytest.raises(ValueError, match="no electrons of spin 1"):
        lewis_orbitals(alone, hydrogen, basis, spin=1)
