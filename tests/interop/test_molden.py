"""Molden files through PySCF's reader: the orbitals come back in its AOs."""

import numpy as np
import pytest
from pyscf.tools import molden

from mlsemi.basis import load_basis
from mlsemi.interop.molden import write_molden
from mlsemi.interop.orbitals import find_orbital
from mlsemi.interop.pyscf import AOMap
from mlsemi.molecule import Molecule
from mlsemi.observables import Observables
from mlsemi.reference.mean_field import solve

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])
AMMONIA = Molecule.from_angstrom(
    [7, 1, 1, 1], [[0, 0, 0.1], [0, 0.94, -0.27], [0.81, -0.47, -0.27], [-0.81, -0.47, -0.27]]
)
HYDROXYL = Molecule.from_angstrom([8, 1], [[0.0, 0.1, 0.0], [0.5, 0.6, 0.6]], spin=1)


@pytest.mark.parametrize(
    ("molecule", "name"), [(WATER, "def2-tzvp"), (AMMONIA, "def2-svp"), (HYDROXYL, "def2-svp")], ids=["f", "E", "open"]
)
def test_pyscf_reads_the_orbitals(tmp_path, molecule, name):
    basis = load_basis(name).subset(molecule.numbers.tolist())
    label = solve(molecule, basis, method="hf").observables
    path = tmp_path / "m.molden"
    write_molden(path, molecule, basis, label)
    mol, energy, coeff, occ, _, spins = molden.load(str(path))
    open_shell = bool(molecule.spin)
    assert mol.spin == molecule.spin and not mol.cart
    np.testing.assert_allclose(mol.atom_coords(), molecule.positions, atol=1e-12)
    if not open_shell:
        energy, coeff, occ = (np.asarray(x)[None] for x in (energy, coeff, occ))
    np.testing.assert_allclose(energy, label.mo_energy, atol=1e-12)
    np.testing.assert_allclose(occ, label.mo_occ, atol=1e-10)
    mapping = AOMap.of(mol, basis)
    np.testing.assert_allclose(coeff, mapping.to_pyscf(label.mo_coeff, axes=(-2,)), atol=1e-8)
    overlap = mol.intor("int1e_ovlp")
    for c in coeff:
        np.testing.assert_allclose(c.T @ overlap @ c, np.eye(mol.nao), atol=1e-8)
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_missing_is_named(tmp_path):
    basis = load_basis("sto-3g")
    with pytest.raises(ValueError, match=r"observables\.mo_coeff is missing"):
        write_molden(tmp_path / "m", WATER, basis, Observables(energy=1.0))
    wrong = Observables(mo_coeff=np.zeros((1, 5, 5)), mo_energy=np.zeros((1, 5)), mo_occ=np.zeros((1, 5)))
    with pytest.raises(ValueError, match=r"shape \(1, 5, 5\), but the layout has 7 AOs"):
        write_molden(tmp_path / "m", WATER, basis, wrong)
    assert not list(tmp_path.iterdir())


def test_orbitals_by_name():
    closed = Observables(mo_energy=np.array([[-2.0, -1, 1, 2]]), mo_occ=np.array([[2.0, 2, 0, 0]]))
    found = [find_orbital(closed, name) for name in ("homo", "LUMO", "homo-1", "lumo+1", "1", 4)]
    assert found == [(0, 1), (0, 2), (0, 0), (0, 3), (0, 0), (0, 3)]
    opened = Observables(
        mo_energy=np.array([[-2.0, -0.5, 1], [-1.8, 0.2, 1.1]]), mo_occ=np.array([[1.0, 1, 0], [1, 0, 0]])
    )
    assert [find_orbital(opened, name) for name in ("homo", "lumo", "2")] == [(0, 1), (1, 1), (0, 1)]
    assert [find_orbital(opened, "homo", spin=s) for s in ("alpha", "beta")] == [(0, 1), (1, 0)]
    for name, message in (
        ("homo-9", "homo-9: there are 4 orbitals, and the HOMO is 2"),
        ("0", "the orbitals 1 to 4"),
        ("sumo", "orbital='sumo' must be homo"),
        ("-1", "must be homo"),
    ):
        with pytest.raises(ValueError, match=message):
            find_orbital(closed, name)
    with pytest.raises(ValueError, match="spin='up'"):
        find_orbital(closed, "homo", spin="up")
    full = Observables(mo_energy=np.array([[-2.0]]), mo_occ=np.array([[2.0]]))
    with pytest.raises(ValueError, match="no LUMO: every orbital is occupied"):
        find_orbital(full, "lumo")
