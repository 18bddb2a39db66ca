"""AO order: PySCF's integrals and labels as the oracle, by rotation."""

from collections.abc import Callable

import numpy as np
import pytest

from mlsemi.basis import Basis, load_basis
from mlsemi.batch import Batch
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule, symbol_of

gto = pytest.importorskip("pyscf.gto")


def to_pyscf(molecule: Molecule, basis: Basis):  # noqa: ANN201
    """The molecule in PySCF with exactly our functions."""
    shells = {
        symbol_of(z): [[s.l, *zip(s.exponents, s.coefficients, strict=True)] for s in basis.shells(z)]
        for z in set(molecule.numbers.tolist())
    }
    atoms = [(symbol_of(z), x) for z, x in zip(molecule.numbers.tolist(), molecule.positions.tolist(), strict=True)]
    return gto.M(atom=atoms, basis=shells, unit="bohr", charge=molecule.charge, spin=molecule.spin, verbose=0)


@pytest.mark.parametrize("name", ["def2-svp", "def2-tzvp"])
def test_our_functions_are_those_of_pyscf(name: str) -> None:
    """Every element: <ours|theirs> is the identity.

    PySCF's own table of def2-TZVP has some shells in another order or with the opposite sign: there the sets agree.
    """
    basis = load_basis(name)
    for z in range(1, 19):
        ours = to_pyscf(Molecule(np.array([z]), np.zeros((1, 3)), spin=z % 2), basis)
        theirs = gto.M(atom=ours.atom, basis=name, unit="bohr", spin=ours.spin, verbose=0)
        cross = gto.intor_cross("int1e_ovlp", ours, theirs)
        same = np.diag(cross) if name == "def2-svp" else np.abs(cross).max(axis=1)
        np.testing.assert_allclose(same, 1.0, rtol=0, atol=1e-12, err_msg=symbol_of(z))  # the tables agree to the digit


@pytest.mark.parametrize("name", ["sto-3g", "def2-svp", "def2-tzvp"])
def test_labels_are_those_of_pyscf(name: str, molecules: dict[str, Molecule]) -> None:
    basis = load_basis(name)
    for molecule in molecules.values():
        layout = AOLayout(basis, molecule.numbers)
        theirs = [" ".join(label.split()) for label in to_pyscf(molecule, basis).ao_labels()]
        assert layout.to_pyscf(np.array(layout.labels()), axes=(0,)).tolist() == theirs


@pytest.mark.parametrize("improper", [False, True])
@pytest.mark.parametrize("name", ["sto-3g", "def2-svp", "def2-tzvp"])
def test_the_overlap_of_a_rotated_molecule_is_rotated(
    name: str, improper: bool, molecules: dict[str, Molecule], random_rotation: Callable[..., np.ndarray]
) -> None:
    """S(Rx) = D S(x) D^T with libcint's overlap: the order, the signs and D in one identity."""
    basis = load_basis(name)
    r = random_rotation(improper=improper)
    for key in ("formamide", "hydrogen_sulfide", "hydroxyl"):
        molecule = molecules[key]
        turned = Molecule(molecule.numbers, molecule.positions @ r.T, spin=molecule.spin)
        layout = AOLayout(basis, molecule.numbers)
        before, after = (layout.from_pyscf(to_pyscf(m, basis).intor("int1e_ovlp")) for m in (molecule, turned))
        d = layout.rotation(r)
        np.testing.assert_allclose(after, d @ before @ d.T, rtol=0, atol=1e-13)
        np.testing.assert_allclose(d @ d.T, np.eye(layout.n_ao), rtol=0, atol=1e-13)


def test_orders_are_inverse_to_each_other(rng: np.random.Generator, molecules: dict[str, Molecule]) -> None:
    layout = AOLayout(load_basis("def2-tzvp"), molecules["formamide"].numbers)
    n = layout.n_ao
    matrix, coefficients = rng.normal(size=(2, n, n)), rng.normal(size=(n, 7))
    np.testing.assert_array_equal(layout.from_pyscf(layout.to_pyscf(matrix)), matrix)
    np.testing.assert_array_equal(layout.from_pyscf(layout.to_pyscf(coefficients, axes=(0,)), axes=(0,)), coefficients)
    order = layout.pyscf_order
    np.testing.assert_array_equal(layout.to_pyscf(matrix), matrix[:, order][:, :, order])


def test_rows_belong_to_their_atoms(molecules: dict[str, Molecule]) -> None:
    basis = load_basis("def2-svp")
    molecule = molecules["formamide"]
    layout = AOLayout(basis, molecule.numbers)
    assert layout.n_ao == layout.atom_offsets[-1] == len(layout.labels())
    for atom, z in enumerate(molecule.numbers.tolist()):
        rows = slice(*layout.atom_offsets[atom : atom + 2])
        assert set(layout.ao_atom[rows].tolist()) == {atom}
        expected = [(k, s.l, m) for k, s in enumerate(basis.shells(z)) for m in range(-s.l, s.l + 1)]
        found = zip(layout.ao_shell[rows], layout.ao_l[rows], layout.ao_m[rows], strict=True)
        assert [tuple(map(int, row)) for row in found] == expected
    batch = Batch.of([molecules["water"], molecule], basis)
    np.testing.assert_array_equal(batch.ao_offset[3:].numpy(), layout.atom_offsets[:-1])
