"""Analysis of any result: the fields against PySCF, predictions, and what is missing."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from pyscf import scf

from mlsemi.analysis import Analysis, CondensedFukui, analyze
from mlsemi.basis import load_basis
from mlsemi.layout import AOLayout
from mlsemi.model import load
from mlsemi.molecule import Molecule

SHAPES = {
    "vector": {"dipole"},
    "matrix": {"second_moment", "quadrupole"},
    "atoms": {f"{p}_{k}" for p in ("charges", "spins") for k in ("mulliken", "loewdin", "iao")}
    | {"valences", "free_valences"},
    "pairs": {"bond_orders_mayer", "bond_orders_wiberg"},
}


@pytest.mark.parametrize("name", ["NH3", "CH3", "O2", "OH-"])
def test_of_a_mean_field_of_pyscf(solved, name):
    case = solved(name, "def2-svp")
    a = analyze(case.molecule, case.observables, case.basis)
    field, o, n = case.field, case.observables, case.molecule.n_atoms
    lengths = {"vector": (3,), "matrix": (3, 3), "atoms": (n,), "pairs": (n, n)}
    for kind, names in SHAPES.items():
        for field_name in names:
            assert getattr(a, field_name).shape == lengths[kind]
    # 1e-9: the same density; PySCF's dipole moment is about the origin by default
    np.testing.assert_allclose(a.dipole, field.dip_moment(unit="AU", verbose=0), rtol=0, atol=1e-9)
    np.testing.assert_allclose(a.charges_mulliken, field.mulliken_pop(verbose=0)[1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(a.charges_iao.sum(), case.molecule.charge, atol=1e-9)
    np.testing.assert_allclose(a.spins_iao.sum(), case.molecule.spin, atol=1e-9)
    if case.molecule.spin:
        spins = scf.uhf.mulliken_spin_pop(field.mol, field.make_rdm1(), field.get_ovlp(), verbose=0)[1]
        np.testing.assert_allclose(a.spins_mulliken, spins, rtol=0, atol=1e-9)
        assert a.spin_square == pytest.approx(field.spin_square()[0], abs=1e-9)
    else:
        assert not a.spins_mulliken.any() and a.spin_square == 0
    assert (a.homo, a.lumo, a.gap) == (o.homo, o.lumo, o.gap)
    assert a.fukui_loewdin.zero.sum() == pytest.approx(1, abs=1e-10)
    # sigma* of NH3 and OH-, SOMO of CH3; a pi pair of O2 on either side, that of OH- is the HOMO
    assert (a.homo_degeneracy, a.lumo_degeneracy) == {"NH3": (1, 1), "CH3": (1, 1), "O2": (2, 2), "OH-": (2, 1)}[name]
    assert a.notes == ()
    # equal atoms of a molecule whose density has the symmetry of the nuclei
    if name in ("NH3", "CH3"):
        for f in (a.charges_iao, a.valences, a.fukui_mulliken.plus, a.bond_orders_wiberg[0]):
            np.testing.assert_allclose(f[2:], f[1], rtol=0, atol=1e-7)


def test_rotation(solved, random_rotation):
    """Scalars stay, tensors turn; with matrices brought to the new orientation, degenerate orbitals any way."""
    case = solved("O2", "def2-svp")
    o, rotation = case.observables, random_rotation()
    r = AOLayout(case.basis, case.molecule.numbers).rotation(rotation)
    turned = replace(
        o, overlap=r @ o.overlap @ r.T, density=r @ o.density @ r.T, mo_coeff=r @ o.mo_coeff, fock=r @ o.fock @ r.T
    )
    before = analyze(case.molecule, o, case.basis)
    after = analyze(Molecule(case.molecule.numbers, case.molecule.positions @ rotation.T, spin=2), turned, case.basis)
    for name in ("second_moment", "quadrupole"):
        expected = rotation @ getattr(before, name) @ rotation.T
        np.testing.assert_allclose(getattr(after, name), expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(after.dipole, rotation @ before.dipole, rtol=0, atol=1e-9)
    for f in fields(Analysis):
        one, other = getattr(before, f.name), getattr(after, f.name)
        if isinstance(one, CondensedFukui):
            np.testing.assert_allclose(other.zero, one.zero, rtol=0, atol=1e-9)
        elif f.name not in ("second_moment", "quadrupole", "dipole", "notes"):
            np.testing.assert_allclose(other, one, rtol=0, atol=1e-9, err_msg=f.name)


@pytest.mark.parametrize("mode", ["fast", "variational", "scf"])
def test_of_predictions_in_any_mode(tiny_checkpoint, mode):
    water = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])
    model = load(tiny_checkpoint)
    o = model.predict(water, mode=mode)
    a = analyze(water, o, model.header.basis)
    for name in ("dipole", "charges_mulliken", "charges_loewdin", "spins_mulliken"):
        np.testing.assert_allclose(getattr(a, name), getattr(o, name), rtol=0, atol=1e-8, err_msg=name)
    assert (a.homo, a.lumo) == (o.homo, o.lumo)
    assert a.charges_iao is not None
    json.dumps(a.to_dict(), allow_nan=False)
    assert a.to_dict()["fukui_mulliken"]["minus"] == a.fukui_mulliken.minus.tolist()


def test_what_is_missing_is_said(solved):
    case = solved("NH3", "def2-svp")
    o = case.observables
    without = analyze(case.molecule, replace(o, mo_energy=None, overlap=None), case.basis)
    assert without.homo is None and without.fukui_mulliken is None and "no orbital energies" in without.notes[0]
    np.testing.assert_allclose(without.charges_loewdin, analyze(case.molecule, o, case.basis).charges_loewdin)
    mixed = analyze(case.molecule, replace(o, density=0.9 * o.density), case.basis)
    assert mixed.charges_iao is None and "not that of a determinant" in mixed.notes[0]
    full = analyze(case.molecule, replace(o, mo_occ=np.full_like(o.mo_occ, 2.0)), case.basis)
    assert (full.lumo, full.gap, full.hardness, full.fukui_loewdin) == (None,) * 4 and full.homo is not None


def test_what_does_not_fit_is_refused(solved):
    case = solved("NH3", "def2-svp")
    o = case.observables
    layout = AOLayout(case.basis, case.molecule.numbers)
    with pytest.raises(ValueError, match="hold no density"):
        analyze(case.molecule, replace(o, density=None), case.basis)
    with pytest.raises(ValueError, match="in sto-3g has 8 AOs"):
        analyze(case.molecule, o, load_basis("sto-3g"))
    with pytest.raises(ValueError, match="one or two spins"):
        analyze(case.molecule, replace(o, density=o.density[0]), case.basis)
    with pytest.raises(ValueError, match="density holds values that are not finite"):
        analyze(case.molecule, replace(o, density=o.density * np.nan), case.basis)
    with pytest.raises(ValueError, match="another geometry, basis or AO order"):
        analyze(case.molecule, replace(o, overlap=layout.to_pyscf(o.overlap)), case.basis)
