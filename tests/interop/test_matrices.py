"""The npz of matrices: PySCF's order, PySCF's shapes."""

import numpy as np
import pytest

from mlsemi.basis import load_basis
from mlsemi.interop.matrices import frame_path, write_matrices
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.reference.mean_field import solve, to_pyscf_mole

WATER = Molecule.from_angstrom([8, 1, 1], [[0, 0.1, 0.1173], [0, 0.7572, -0.4692], [0.2, -0.7572, -0.4692]])
AMINO = Molecule.from_angstrom([7, 1, 1], [[0, 0, 0.14], [0, 0.80, -0.49], [0, -0.80, -0.49]], spin=1)
BASIS = load_basis("def2-svp")


@pytest.mark.parametrize("molecule", [WATER, AMINO], ids=["restricted", "unrestricted"])
def test_pyscf_understands_the_file(tmp_path, molecule):
    observables = solve(molecule, BASIS, method="hf").observables
    path = tmp_path / "out.npz"
    write_matrices(path, observables, AOLayout(BASIS, molecule.numbers))
    assert list(tmp_path.iterdir()) == [path]
    mol = to_pyscf_mole(molecule, BASIS)
    with np.load(path, allow_pickle=False) as data:
        assert set(data.files) == {"fock", "overlap", "density", "mo_energy", "mo_coeff", "mo_occ", "ao_labels"}
        np.testing.assert_allclose(data["overlap"], mol.intor("int1e_ovlp"), atol=1e-12)
        fock, c, eps = data["fock"], data["mo_coeff"], data["mo_energy"]
        spin = () if molecule.spin == 0 else (2,)
        assert fock.shape == data["density"].shape == c.shape == (*spin, mol.nao, mol.nao)
        assert eps.shape == (*spin, mol.nao)
        # one order throughout: F C = S C eps with PySCF's own overlap
        np.testing.assert_allclose(fock @ c, mol.intor("int1e_ovlp") @ c * eps[..., None, :], atol=1e-8)
        kinetic_and_nuclear = mol.intor("int1e_kin") + mol.intor("int1e_nuc")
        density = data["density"] if molecule.spin == 0 else data["density"].sum(0)
        core = np.sum(density * kinetic_and_nuclear)
        fock_energy = 0.5 * (np.sum(data["density"] * fock) + core) + mol.energy_nuc()
        assert fock_energy == pytest.approx(observables.energy, abs=1e-8)  # Hartree-Fock: E = Tr[D (h + F)] / 2 + E_nn
        assert [label.split() for label in data["ao_labels"]] == [label.split() for label in mol.ao_labels()]


def test_names_of_frames():
    assert str(frame_path("a/out", 3)) == "a/out-0003.npz"
    assert str(frame_path("a/out.npz", 12345)) == "a/out-12345.npz"
    assert str(frame_path("a/water.500K", 0)) == "a/water.500K-0000.npz"


def test_what_is_missing_or_does_not_fit_is_named(tmp_path):
    layout = AOLayout(BASIS, WATER.numbers)
    with pytest.raises(ValueError, match=r"observables\.fock is missing"):
        write_matrices(tmp_path / "out.npz", Observables(energy=1.0), layout)
    with pytest.raises(ValueError, match=r"observables\.fock has shape \(1, 5, 5\), but the layout has 24 AOs"):
        write_matrices(tmp_path / "out.npz", Observables(fock=np.zeros((1, 5, 5))), layout)
    assert not list(tmp_path.iterdir())
