"""Warnings about results that cannot be right."""

import numpy as np

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
