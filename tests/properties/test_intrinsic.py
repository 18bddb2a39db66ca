"""Intrinsic atomic orbitals, charges and spins against PySCF's lo.iao, and their derivatives."""

import numpy as np
import pytest
import torch
from pyscf import gto, lo
from pyscf.gto import basis as pyscf_basis
from torch.autograd import gradcheck

from mlsemi.basis import Basis, Shell, load_basis
from mlsemi.batch import Batch
from mlsemi.integrals import overlap as overlap_integrals
from mlsemi.integrals import plan
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule, symbol_of
from mlsemi.properties.intrinsic import (
    MINIMAL_BASIS,
    iao_charges,
    iao_populations,
    iao_spins,
    intrinsic_orbitals,
    minimal_overlaps,
)

TO_PYSCF = 1e-8
"""The contract; what is measured is 1e-12."""


def test_the_minimal_basis_is_that_of_pyscf():
    ours = load_basis(MINIMAL_BASIS)
    for z in range(1, 19):
        expected = [
            Shell.normalized(l, [r[0] for r in rows], [r[k] for r in rows])
            for l, *rows in pyscf_basis.load("minao", symbol_of(z))
            for k in range(1, len(rows[0]))
        ]
        for one, other in zip(ours.shells(z), expected, strict=True):
            assert one.l == other.l
            np.testing.assert_allclose(one.exponents, other.exponents, rtol=1e-12)
            np.testing.assert_allclose(one.coefficients, other.coefficients, rtol=0, atol=1e-12)


def by_pyscf(case):
    """IAO populations of each spin by PySCF, and its orthonormal IAOs in our order of AOs and IAOs."""
    mol, s = case.field.mol, case.field.get_ovlp()
    coeff, occ = (np.reshape(x, (-1, *np.shape(x)[-n:])) for x, n in ((case.field.mo_coeff, 2), (case.field.mo_occ, 1)))
    slices = lo.iao.reference_mol(mol).aoslice_by_atom()[:, 2:]
    layout = AOLayout(case.basis, case.molecule.numbers)
    small = AOLayout(load_basis(MINIMAL_BASIS), case.molecule.numbers)
    populations, orbitals = [], []
    for c, f in zip(coeff, occ, strict=True):
        a = lo.vec_lowdin(lo.iao.iao(mol, c[:, f > 0]), s)
        c_iao = a.T @ s @ c[:, f > 0]
        on_iaos = (c_iao**2).sum(1) * f.max()
        populations.append([on_iaos[i:j].sum() for i, j in slices])
        orbitals.append(small.from_pyscf(layout.from_pyscf(a, axes=(0,)), axes=(1,)))
    return np.array(populations), np.array(orbitals)


def test_as_pyscf_for_closed_and_open_shells(together):
    """In one batch: degenerate ones, a radical, a triplet and an anion."""
    t = together
    minimal = minimal_overlaps(t.batch)
    found = iao_populations(t.density, t.overlap, minimal, t.batch)
    orbitals = intrinsic_orbitals(t.density, t.overlap, minimal, t.batch)
    for k, case in enumerate(t.cases):
        expected, their_orbitals = by_pyscf(case)
        both = expected if len(expected) == 2 else np.concatenate([expected, expected]) / 2
        np.testing.assert_allclose(found[:, t.atoms(k)], both, rtol=0, atol=TO_PYSCF)
        n, m = int(t.batch.n_ao[k]), their_orbitals.shape[2]
        ours = orbitals[k, :, :n, :m].numpy()
        np.testing.assert_allclose(ours, np.broadcast_to(their_orbitals, ours.shape), rtol=0, atol=TO_PYSCF)
        assert not orbitals[k, :, n:].any() and not orbitals[k, :, :, m:].any()
    charges = iao_charges(t.density, t.overlap, minimal, t.batch)
    spins = iao_spins(t.density, t.overlap, minimal, t.batch)
    for values, total in ((charges, t.batch.charge), (spins, t.batch.spin)):
        sums = torch.zeros(len(total), dtype=torch.float64).index_add(0, t.batch.molecule, values)
        np.testing.assert_allclose(sums, total, atol=1e-9)  # IAOs span the occupied orbitals


@pytest.mark.parametrize("name", ["benzene", "O2"])
def test_of_one_spin_and_in_another_basis(solved, name):
    case = solved(name, "sto-3g")
    batch = Batch.of([case.molecule], case.basis)
    d, s = torch.from_numpy(case.observables.density)[None], torch.from_numpy(case.observables.overlap)[None]
    found = iao_populations(d, s, minimal_overlaps(batch), batch)
    np.testing.assert_allclose(found, by_pyscf(case)[0], rtol=0, atol=TO_PYSCF)
    if name == "benzene":
        assert not iao_spins(d, s, minimal_overlaps(batch), batch).any()


def test_cross_overlaps_equal_libcint(solved):
    case = solved("formaldehyde", "def2-svp")
    batch = Batch.of([case.molecule], case.basis)
    minimal = minimal_overlaps(batch)
    small = lo.iao.reference_mol(case.field.mol)
    layout, other = (AOLayout(b, case.molecule.numbers) for b in (case.basis, load_basis(MINIMAL_BASIS)))
    cross = gto.intor_cross("int1e_ovlp", case.field.mol, small)
    cross = other.from_pyscf(layout.from_pyscf(cross, axes=(0,)), axes=(1,))
    np.testing.assert_allclose(minimal.cross[0], cross, rtol=0, atol=1e-10)
    np.testing.assert_allclose(minimal.minimal[0], other.from_pyscf(small.intor("int1e_ovlp")), rtol=0, atol=1e-10)


def test_rotation(solved, random_rotation):
    case = solved("O2", "def2-svp")
    rotation = random_rotation(improper=True)
    r = AOLayout(case.basis, case.molecule.numbers).rotation(rotation)
    turned = Molecule(case.molecule.numbers, case.molecule.positions @ rotation.T, spin=2)
    before, after = Batch.of([case.molecule], case.basis), Batch.of([turned], case.basis)
    d, s = case.observables.density, case.observables.overlap
    one = iao_populations(torch.from_numpy(d)[None], torch.from_numpy(s)[None], minimal_overlaps(before), before)
    d, s = torch.from_numpy(r @ d @ r.T)[None], torch.from_numpy(r @ s @ r.T)[None]
    torch.testing.assert_close(iao_populations(d, s, minimal_overlaps(after), after), one, rtol=0, atol=1e-10)


def test_derivatives(solved):
    """In density and positions, all overlaps included, of a degenerate molecule in a batch with padding."""
    case = solved("OH-", "sto-3g")
    hydrogen = Molecule(np.array([1, 1]), np.array([[0.0, 0, 0], [0, 0, 1.4]]))
    batch = Batch.of([case.molecule, hydrogen], case.basis)
    density = torch.zeros(2, 1, 6, 6, dtype=torch.float64)
    density[0] = torch.from_numpy(case.observables.density)
    density[1, 0, :2, :2] = 1 / (1 + overlap_integrals(batch, plan(batch))[1, 0, 1])

    def function(d, x):
        moved = batch.with_positions(x)
        s = overlap_integrals(moved, plan(moved))
        return iao_charges((d + d.mT) / 2, s, minimal_overlaps(moved), moved)

    inputs = [density.requires_grad_(), batch.positions.clone().requires_grad_()]
    assert gradcheck(function, inputs, atol=1e-6, fast_mode=True)


def test_what_has_none_is_refused(solved):
    helium = Molecule(np.array([2]), np.zeros((1, 3)), spin=2)
    batch = Batch.of([helium], load_basis("def2-svp"))
    density = torch.zeros(1, 2, 5, 5, dtype=torch.float64)
    s = overlap_integrals(batch, plan(batch))
    values, vectors = torch.linalg.eigh(s[0])
    c = vectors[:, :2] / values[:2].sqrt()
    density[0, 0] = c @ c.T
    with pytest.raises(ValueError, match="has 2 occupied orbitals of a spin, but only 1 functions"):
        iao_charges(density, s, minimal_overlaps(batch), batch)
    only_hydrogen = load_basis(MINIMAL_BASIS).subset([1])
    with pytest.raises(ValueError, match="has no functions for He"):
        minimal_overlaps(batch, Basis("few", only_hydrogen.elements))
