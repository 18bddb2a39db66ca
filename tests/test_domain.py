"""Warnings about results that cannot be right."""

import numpy as np
import pytest

from mlsemi.domain import SEPARATE_ANGSTROM, distance_ranges, doubts, implausible, n_fragments
from mlsemi.molecule import Molecule


def test_plausible_and_implausible_results() -> None:
    hydrogen = Molecule(np.array([1, 1]), np.array([[0, 0, 0], [0, 0, 1.4]]))
    assert implausible(hydrogen, change=-0.2, gap=0.5) == ()
    assert implausible(hydrogen, change=None, gap=None) == ()
    (warning,) = implausible(hydrogen, change=-60.0, gap=0.5)
    assert "0.5 Eh an atom" in warning and "do not use" in warning
    (warning,) = implausible(hydrogen, change=-0.2, gap=0.0)
    assert "gap" in warning and "open shell" in warning


def test_more_heavy_atoms_than_trained_is_doubted():
    """Six heavy atoms with few hydrogens pass the limit on all atoms, but no such ring was in the training."""
    ring = np.stack([np.cos(np.arange(6) * np.pi / 3), np.sin(np.arange(6) * np.pi / 3), np.zeros(6)], axis=1)
    benzene = Molecule([6] * 6 + [1] * 6, np.concatenate([2.64 * ring, 4.69 * ring]))
    domain = {"max_atoms": 17, "max_heavy_atoms": 5}
    (reason,) = doubts(benzene, domain)
    assert reason.startswith("6 atoms other than H, the training has at most 5")
    assert doubts(benzene, {**domain, "max_heavy_atoms": 6}) == ()


def test_a_single_atom_is_doubted_unless_atoms_were_trained():
    proton = Molecule([1], np.zeros((1, 3)), charge=1)
    (reason,) = doubts(proton, {})
    assert reason == "the smallest molecule of the training has 2 atoms, this has 1: the energy is not reliable"
    assert doubts(proton, {"min_atoms": 1}) == ()


def test_several_molecules_are_doubted_unless_so_many_were_trained():
    line = Molecule.from_angstrom([2, 2, 2], [[0, 0, 0], [4, 0, 0], [8, 0, 0]])
    (reason,) = doubts(line, {})
    assert "trained on connected molecules" in reason
    (reason,) = doubts(line, {"max_fragments": 2})
    assert reason.startswith("3 fragments") and "trained on at most 2" in reason
    assert doubts(line, {"max_fragments": 3}) == ()
    ion = Molecule(line.numbers, line.positions, charge=2)
    (reason,) = doubts(ion, {"max_fragments": 3})
    assert reason.startswith("3 fragments") and "charge +2: the model spreads the charge over all of them" in reason


def test_a_stretched_bond_does_not_make_two_molecules():
    """C-C at 1.4 times its length counts as broken for a warning, but a label of it does not teach two molecules."""
    stretched = Molecule.from_angstrom([6, 6], [[0, 0, 0], [0, 0, 1.4 * 1.54]])
    assert n_fragments(stretched) == 2
    assert n_fragments(stretched, tolerance_angstrom=SEPARATE_ANGSTROM) == 1


def test_another_isomer_of_the_same_formula_is_doubted():
    """Hydrogen peroxide folded and drawn apart: the same atoms, another oxygen-oxygen distance."""

    def peroxide(bond: float) -> Molecule:
        return Molecule.from_angstrom(
            [8, 8, 1, 1], [[0, 0, 0], [bond, 0, 0], [0, 0.97, 0], [bond, 0, 0.97]], name="peroxide"
        )

    domain = {"formulas": ["H2O2"], "distances": distance_ranges([peroxide(1.4), peroxide(1.5)])}
    assert domain["distances"]["O-O"] == [1.4, 1.5] and domain["distances"]["O-H"][0] == 0.97
    assert sorted(domain["distances"]) == ["H-H", "O-H", "O-O"]
    assert doubts(peroxide(1.45), domain) == doubts(peroxide(1.6), domain) == ()
    (reason,) = doubts(peroxide(1.7), domain)
    assert reason.startswith("O-O distance of 1.70 angstrom, the training has 1.40 to 1.50")
    (reason,) = doubts(peroxide(1.1), domain)
    assert "O-O distance of 1.10" in reason
    assert doubts(peroxide(1.7), {"formulas": ["H2O2"]}) == ()  # a checkpoint of before there were distances


CLUSTERS = {"max_fragments": 5}
"""Of a model that was trained on molecules beside each other, so that their number alone is no warning."""

METHYL = np.array([[0, 0, 0], [0, 1.03, 0.36], [0.89, -0.515, 0.36], [-0.89, -0.515, 0.36]])


def _water(bond: float) -> Molecule:
    return Molecule.from_angstrom([8, 1, 1], [[0, 0, 0], [0, 0, 0.96], [0, 0.968 * bond, -0.25 * bond]])


def _ethane(bond: float) -> Molecule:
    other = METHYL * [1, 1, -1]
    return Molecule.from_angstrom([6, 1, 1, 1] * 2, np.concatenate([METHYL, other - [0, 0, bond]]))


def _ethylene(bond: float) -> Molecule:
    half = np.array([[0, 0, 0], [0, 0.92, 0.57], [0, -0.92, 0.57]])
    return Molecule.from_angstrom([6, 1, 1] * 2, np.concatenate([half, half * [1, 1, -1] - [0, 0, bond]]))


@pytest.mark.parametrize(
    ("molecule", "fragments"),
    [
        (_water(1.65), "HO, H"),
        (_water(2.0), "HO, H"),
        (_water(4.0), "HO, H"),
        (_water(20.0), "HO, H"),
        (_ethane(2.0), "CH3, CH3"),
        (_ethane(3.0), "CH3, CH3"),
    ],
)
def test_a_broken_bond_is_doubted_by_a_model_of_several_molecules(molecule, fragments):
    (reason,) = doubts(molecule, CLUSTERS)
    assert reason.startswith("2 fragments without a bond between them")
    assert f"with an odd number of electrons in {fragments}, at spin (2S) 0: a broken or stretched bond" in reason


def test_fragments_of_a_double_bond_are_doubted_near_each_other():
    """CH2 has an even number of electrons; but carbon atoms of two molecules do not come within 2.5 angstrom."""
    assert doubts(_ethylene(1.9), CLUSTERS) == ()
    (reason,) = doubts(_ethylene(2.1), CLUSTERS)
    assert reason.startswith("C-C distance of 2.10 angstrom between fragments, too long for a bond")


def test_whole_bonds_and_hydrogen_bonds_are_not_doubted():
    """Bonds of H are as long as in the distorted geometries of the training; hydrogen bonds as short as in clusters."""
    for molecule in (_water(0.96), _water(1.5), _ethane(1.54), _ethane(1.9)):
        assert doubts(molecule, CLUSTERS) == ()
    donor, acceptor = [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], [[0, 0, 0], [0.5, 0.8, 0], [0.5, -0.8, 0]]
    for hydrogen_bond in (1.3, 1.45, 1.6, 1.7, 2.0, 3.0):
        shifted = (np.array(acceptor) + [0.96 + hydrogen_bond, 0, 0]).tolist()
        assert doubts(Molecule.from_angstrom([8, 1, 1] * 2, donor + shifted), CLUSTERS) == ()
    # a proton half way between two oxygens is bonded to both
    shared = [[0, 0, 0], [1.2, 0, 0], [-0.24, 0.93, 0], [-0.24, -0.93, 0], [2.4, 0, 0], [2.64, 0.93, 0]]
    assert doubts(Molecule.from_angstrom([8, 1, 1, 1, 8, 1], shared), CLUSTERS) == ()


def test_unpaired_electrons_may_be_on_fragments():
    beside = Molecule.from_angstrom([6, 1, 1, 1] * 2, np.concatenate([METHYL, METHYL + [0, 0, 6]]), spin=2)
    assert doubts(beside, CLUSTERS) == ()
    (reason,) = doubts(Molecule(beside.numbers, beside.positions), CLUSTERS)
    assert "CH3, CH3" in reason
    (reason,) = doubts(Molecule(beside.numbers, beside.positions, charge=2), CLUSTERS)
    assert "charge +2" in reason  # which fragment has which charge is not known


def test_a_broken_bond_is_one_warning():
    """Models of few formulas have the distance in a warning already; others say what it is."""
    far, connected = doubts(_water(2.0), {"formulas": ["H2O"], "distances": {"O-H": [0.8, 1.2]}})
    assert far.startswith("O-H distance of 2.00 angstrom") and "trained on connected molecules" in connected
    (reason,) = doubts(_water(2.0), {})
    assert "a broken or stretched bond" in reason
    (far,) = doubts(_water(2.0), {**CLUSTERS, "formulas": ["H2O"], "distances": {"O-H": [0.8, 1.2]}})
    assert far.startswith("O-H distance")
