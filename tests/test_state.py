"""Occupations and states of a batch of unlike molecules."""

import numpy as np
import pytest
import torch
from pyscf import gto, scf

from mlsemi.basis import load_basis
from mlsemi.batch import Batch
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.state import aufbau_occupations, solve_state

WATER = Molecule.from_angstrom([8, 1, 1], [[0, 0, 0.1173], [0, 0.7572, -0.4692], [0, -0.7572, -0.4692]])
HYDROGEN = Molecule.from_angstrom([1, 1], [[0, 0, 0], [0, 0, 0.74]])
HYDROXIDE = Molecule.from_angstrom([8, 1], [[0, 0, 0], [0, 0, 0.97]], charge=-1)


def _hartree_fock(molecule: Molecule) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """F, S, D and orbital energies in STO-3G, in mlsemi's order."""
    atoms = list(zip(molecule.numbers.tolist(), molecule.positions.tolist(), strict=True))
    field = scf.RHF(gto.M(atom=atoms, unit="B", basis="sto-3g", charge=molecule.charge, verbose=0)).run(conv_tol=1e-13)
    layout = AOLayout(load_basis("sto-3g"), molecule.numbers)
    return *(layout.from_pyscf(m) for m in (field.get_fock(), field.get_ovlp(), field.make_rdm1())), field.mo_energy


def test_states_of_a_batch_are_those_of_pyscf():
    molecules = [WATER, HYDROGEN, HYDROXIDE]
    batch = Batch.of(molecules, load_basis("sto-3g"))
    fock, overlap = torch.zeros(2, 3, 7, 7, dtype=torch.float64)
    references = [_hartree_fock(m) for m in molecules]
    for k, (f, s, _, _) in enumerate(references):
        fock[k, : len(f), : len(f)], overlap[k, : len(f), : len(f)] = torch.from_numpy(f), torch.from_numpy(s)
    state = solve_state(fock, overlap, batch)
    for k, (_, _, d, energy) in enumerate(references):
        n = len(d)
        # 1e-6: the density of PySCF's SCF is converged to the root of its 1e-13 in energy
        np.testing.assert_allclose(state.density[k, :n, :n], d, atol=1e-6)
        np.testing.assert_allclose(state.mo_energy[k, :n], energy, atol=1e-6)
    electrons = (state.density * overlap).sum((1, 2))
    np.testing.assert_allclose(electrons, [10, 2, 10], atol=1e-12)
    assert state.mo_occ.tolist() == [[2] * 5 + [0] * 2, [2] + [0] * 6, [2] * 5 + [0] * 2]
    # F C = S C eps and the density commute: F D S = S D F
    np.testing.assert_allclose(fock @ state.density @ overlap, overlap @ state.density @ fock, atol=1e-11)


def test_occupations_of_a_full_basis():
    helium = aufbau_occupations(torch.tensor([2]), torch.tensor([0]), torch.tensor([1]))
    assert helium.tolist() == [[2.0]]


@pytest.mark.parametrize(("electrons", "spin"), [(9, 1), (8, 2)])
def test_open_shells_are_refused(electrons, spin):
    with pytest.raises(ValueError, match=rf"molecule 1 .* {electrons} electrons and spin={spin}: open shells"):
        aufbau_occupations(torch.tensor([2, electrons]), torch.tensor([0, spin]), torch.tensor([7, 7]))


def test_more_electrons_than_orbitals_is_refused():
    with pytest.raises(ValueError, match=r"molecule 0 .* 4 electrons, but its basis has only 1 orbitals"):
        aufbau_occupations(torch.tensor([4]), torch.tensor([0]), torch.tensor([1]))
