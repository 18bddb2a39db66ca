"""Occupations and states of a batch of unlike molecules, closed and open shells."""

import numpy as np
import pytest
import torch
from pyscf import gto, scf

from mlsemi.basis import load_basis
from mlsemi.batch import Batch
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.properties.populations import loewdin_populations, mulliken_populations
from mlsemi.properties.spin import spin_square
from mlsemi.state import aufbau_occupations, n_spin_channels, names_of, solve_state

WATER = Molecule.from_angstrom([8, 1, 1], [[0, 0, 0.1173], [0, 0.7572, -0.4692], [0, -0.7572, -0.4692]])
HYDROGEN = Molecule.from_angstrom([1, 1], [[0, 0, 0], [0, 0, 0.74]])
HYDROXIDE = Molecule.from_angstrom([8, 1], [[0, 0, 0], [0, 0, 0.97]], charge=-1)
OXYGEN = Molecule.from_angstrom([8, 8], [[0, 0.1, 0], [0.3, 0, 1.18]], spin=2)
PEROXYL = Molecule.from_angstrom([8, 8, 1], [[0.0, 0.66, 0.0], [0.1, -0.66, 0.0], [0.9, 0.92, 0.0]], spin=1)
ATOM = Molecule.from_angstrom([1], [[0.1, 0, 0]], spin=1)


def _hartree_fock(molecule: Molecule):
    """PySCF's solution in STO-3G, and the layout."""
    atoms = list(zip(molecule.numbers.tolist(), molecule.positions.tolist(), strict=True))
    mol = gto.M(atom=atoms, unit="B", basis="sto-3g", charge=molecule.charge, spin=molecule.spin, verbose=0)
    field = (scf.UHF if molecule.spin else scf.RHF)(mol).run(conv_tol=1e-13)
    return field, AOLayout(load_basis("sto-3g"), molecule.numbers)


def _padded(molecules):
    """Batch, Fock matrices and overlaps of PySCF, and what it found."""
    batch = Batch.of(molecules, load_basis("sto-3g"))
    n, spins = batch.ao_mask.shape[1], n_spin_channels(batch)
    fock = torch.zeros(len(molecules), spins, n, n, dtype=torch.float64)
    overlap = torch.zeros(len(molecules), n, n, dtype=torch.float64)
    found = [_hartree_fock(m) for m in molecules]
    for k, (field, layout) in enumerate(found):
        size = layout.n_ao
        fock[k, :, :size, :size] = torch.from_numpy(layout.from_pyscf(field.get_fock()))
        overlap[k, :size, :size] = torch.from_numpy(layout.from_pyscf(field.get_ovlp()))
    return batch, fock, overlap, found


def test_states_of_a_batch_are_those_of_pyscf():
    batch, fock, overlap, found = _padded([WATER, HYDROGEN, HYDROXIDE])
    state = solve_state(fock, overlap, batch)
    assert state.n_spins == 1
    for k, (field, layout) in enumerate(found):
        n = layout.n_ao
        # 1e-6: the density of PySCF's SCF is converged to the root of its 1e-13 in energy
        np.testing.assert_allclose(state.density[k, 0, :n, :n], layout.from_pyscf(field.make_rdm1()), atol=1e-6)
        np.testing.assert_allclose(state.mo_energy[k, 0, :n], field.mo_energy, atol=1e-6)
    electrons = (state.total_density * overlap).sum((1, 2))
    np.testing.assert_allclose(electrons, [10, 2, 10], atol=1e-12)
    assert not state.spin_density.any()
    assert state.mo_occ[:, 0].tolist() == [[2] * 5 + [0] * 2, [2] + [0] * 6, [2] * 5 + [0] * 2]
    # F C = S C eps and the density commute: F D S = S D F
    s = overlap.unsqueeze(1)
    np.testing.assert_allclose(fock @ state.density @ s, s @ state.density @ fock, atol=1e-11)


def test_open_shells_beside_closed_ones_are_those_of_pyscf():
    molecules = [WATER, OXYGEN, PEROXYL, ATOM]
    batch, fock, overlap, found = _padded(molecules)
    state = solve_state(fock, overlap, batch)
    square = spin_square(state.density, overlap, batch)
    mulliken = mulliken_populations(state.spin_density, overlap, batch).split([m.n_atoms for m in molecules])
    loewdin = loewdin_populations(state.spin_density, overlap, batch)
    for k, ((field, layout), molecule) in enumerate(zip(found, molecules, strict=True)):
        n = layout.n_ao
        density = layout.from_pyscf(field.make_rdm1())
        if not molecule.spin:
            density = np.stack([density / 2] * 2)
            expected = 0.0
        else:
            expected = field.spin_square()[0]
            spins = np.einsum("sij,ji->si", density, overlap[k, :n, :n])
            on_atom = np.bincount(layout.ao_atom, weights=spins[0] - spins[1])
            np.testing.assert_allclose(mulliken[k], on_atom, atol=1e-6)
        # as above: 1e-6 in the density
        np.testing.assert_allclose(state.density[k, :, :n, :n], density, atol=1e-6)
        assert float(square[k]) == pytest.approx(expected, abs=1e-6)
        assert state.mo_occ[k].sum(-1).tolist() == list(field.mol.nelec)
    assert float(square[1]) > 2.001  # O2 in UHF is contaminated
    unpaired = torch.zeros(4, dtype=torch.float64).index_add(0, batch.molecule, loewdin)
    np.testing.assert_allclose(unpaired, [0, 2, 1, 1], atol=1e-12)


def test_occupations_of_a_full_basis():
    one = torch.tensor([1])
    assert aufbau_occupations(torch.tensor([2]), torch.tensor([0]), one, n_spins=1).tolist() == [[[2.0]]]
    assert aufbau_occupations(torch.tensor([2]), torch.tensor([0]), one, n_spins=2).tolist() == [[[1.0], [1.0]]]
    assert aufbau_occupations(torch.tensor([1]), torch.tensor([1]), one, n_spins=2).tolist() == [[[1.0], [0.0]]]


@pytest.mark.parametrize(("electrons", "spin"), [(9, 0), (8, 1), (2, 4), (8, -2)])
def test_impossible_spins_are_refused(electrons, spin):
    with pytest.raises(ValueError, match=rf"molecule 1 .* {electrons} electrons and spin={spin}: so many cannot be"):
        aufbau_occupations(torch.tensor([2, electrons]), torch.tensor([0, spin]), torch.tensor([7, 7]), n_spins=2)


def test_an_open_shell_needs_two_matrices():
    with pytest.raises(ValueError, match="molecule 1 .* an open shell needs two Fock matrices"):
        aufbau_occupations(torch.tensor([2, 9]), torch.tensor([0, 1]), torch.tensor([7, 7]), n_spins=1)


def test_more_electrons_than_orbitals_is_refused():
    with pytest.raises(ValueError, match=r"molecule 0 .* 2 electrons of alpha spin, but its basis has only 1 orbitals"):
        aufbau_occupations(torch.tensor([4]), torch.tensor([0]), torch.tensor([1]), n_spins=1)
    with pytest.raises(ValueError, match="molecule 0 .* 2 electrons of alpha spin"):
        aufbau_occupations(torch.tensor([2]), torch.tensor([2]), torch.tensor([1]), n_spins=2)


def test_messages_name_the_molecule():
    named = Molecule(HYDROGEN.numbers, HYDROGEN.positions, name="dihydrogen")
    batch = Batch.of([WATER, named, HYDROGEN, HYDROGEN], load_basis("sto-3g"))
    assert names_of(batch) == ["H2O", "dihydrogen", "H2 (molecule 2 of the batch)", "H2 (molecule 3 of the batch)"]
    overlap = torch.eye(7, dtype=torch.float64).repeat(4, 1, 1)
    fock = overlap.unsqueeze(1).clone()
    fock[1, 0, 0, 1] = torch.nan
    with pytest.raises(ValueError, match="fock of dihydrogen holds values that are not finite"):
        solve_state(fock, overlap, batch)
    beta = overlap.unsqueeze(1).repeat(1, 2, 1, 1)
    beta[0, 1, 2, 2] = torch.inf
    with pytest.raises(ValueError, match=r"fock of H2O \(beta\) holds"):
        solve_state(beta, overlap, batch)
    with pytest.raises(ValueError, match="dihydrogen has 4 electrons of alpha spin"):
        aufbau_occupations(torch.tensor([8]), torch.tensor([0]), torch.tensor([2]), n_spins=1, names=["dihydrogen"])


def test_the_state_tells_how_many_functions_were_dropped():
    batch = Batch.of([HYDROGEN, HYDROGEN], load_basis("sto-3g"))
    overlap = torch.tensor([[[1.0, 0.6], [0.6, 1.0]], [[1.0, 1.0 - 1e-9], [1.0 - 1e-9, 1.0]]], dtype=torch.float64)
    fock = -overlap.unsqueeze(1)
    with pytest.warns(RuntimeWarning, match="S is nearly singular"):
        state = solve_state(fock, overlap, batch)
    assert state.n_dropped.tolist() == [0, 1]
