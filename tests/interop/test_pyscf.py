"""PySCF goes on from predicted orbitals, and its mean fields come back; checked against PySCF."""

from dataclasses import replace

import numpy as np
import pytest
from pyscf import cc, dft, gto, mp, scf, tdscf
from pyscf.tools import cubegen

from mlsemi.basis import load_basis
from mlsemi.interop.pyscf import AOMap, from_pyscf, initial_guess, orbitals_to_pyscf, to_basis, to_molecule, to_pyscf
from mlsemi.model import Model
from mlsemi.molecule import Molecule
from mlsemi.reference.mean_field import solve, to_pyscf_mole

STO3G = load_basis("sto-3g")
WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])
HYDROXYL = Molecule.from_angstrom([8, 1], [[0.0, 0.1, 0.0], [0.5, 0.6, 0.6]], spin=1)
AMMONIA = "N 0 0 0.1; H 0 0.94 -0.27; H 0.81 -0.47 -0.27; H -0.81 -0.47 -0.27"


@pytest.fixture(scope="module")
def model(tiny_header, tiny_engine):
    return Model(tiny_header, tiny_engine)


@pytest.fixture(scope="module")
def open_model(open_header, open_engine):
    return Model(open_header, open_engine)


def mole(atoms="O 0.01 0.06 0.02; H -0.78 -0.49 0.1; H 0.76 -0.52 -0.1", **options):
    return gto.M(atom=atoms, verbose=0, **({"basis": "sto-3g"} | options))


@pytest.mark.parametrize("basis", ["def2-svp", "def2-tzvp", "cc-pvtz"])
def test_aos_of_pyscf_tables_are_recognized(basis):
    """Also those of general contractions, and shells up to f; the overlap knows the order and the signs."""
    mol = mole("O 0 0 0.1; H 0.1 0.5 0.8; Al 2.5 0.1 0.3", spin=None, basis=basis, charge=0)
    molecule, ours = to_molecule(mol), to_basis(mol)
    again = to_pyscf_mole(molecule, ours)
    mapping, same = AOMap.of(mol, ours), AOMap.of(again, ours)
    overlap = mol.intor("int1e_ovlp")
    np.testing.assert_allclose(same.from_pyscf(again.intor("int1e_ovlp")), mapping.from_pyscf(overlap), atol=1e-13)
    np.testing.assert_array_equal(mapping.to_pyscf(mapping.from_pyscf(overlap)), overlap)


def test_other_order_and_opposite_signs_are_undone():
    ours = load_basis("def2-tzvp")
    molecule = replace(WATER, numbers=np.array([13, 1, 1]), spin=1)
    mol = to_pyscf_mole(molecule, ours)
    shells = {
        z: [[s.l, *[[a, -c] for a, c in zip(s.exponents, s.coefficients, strict=True)]] for s in ours.shells(n)[::-1]]
        for z, n in (("Al", 13), ("H", 1))
    }
    turned = gto.M(atom=mol.atom, unit="B", spin=1, basis=shells, verbose=0)
    overlaps = [AOMap.of(m, ours).from_pyscf(m.intor("int1e_r")[0]) for m in (mol, turned)]
    assert np.abs(turned.intor("int1e_r")[0] - mol.intor("int1e_r")[0]).max() > 0.1
    np.testing.assert_allclose(*overlaps, atol=1e-12)


@pytest.mark.parametrize("as_mole", [False, True])
def test_prediction_as_mean_field(model, as_mole):
    found = model.predict(WATER)
    field = to_pyscf(model, mole() if as_mole else WATER)
    assert isinstance(field, scf.hf.RHF) and not field.converged
    # the Mole was given in angstrom: PySCF's bohr is of another year
    assert field.e_tot == pytest.approx(found.energy, abs=1e-7)
    c, s = field.mo_coeff, field.mol.intor("int1e_ovlp")
    accuracy = 1e-7 if as_mole else 1e-9  # PySCF's table of STO-3G has fewer digits
    np.testing.assert_allclose(c.T @ s @ c, np.eye(7), atol=accuracy)
    np.testing.assert_allclose(field.dip_moment(unit="AU", verbose=0), found.dipole, atol=accuracy)
    np.testing.assert_allclose(field.mulliken_pop(verbose=0)[1], found.charges_mulliken, atol=accuracy)
    field.analyze(verbose=0)


def test_open_shell_as_mean_field(open_model):
    found = open_model.predict(HYDROXYL)
    field = to_pyscf(open_model, HYDROXYL)
    assert isinstance(field, scf.uhf.UHF) and field.mo_coeff.shape == (2, 6, 6)
    assert field.spin_square()[0] == pytest.approx(found.spin_square, abs=1e-9)
    np.testing.assert_allclose(field.dip_moment(unit="AU", verbose=0), found.dipole, atol=1e-8)


def test_scf_mode_is_converged_and_post_hartree_fock_is_that_of_pyscf(model):
    field = to_pyscf(model, WATER, mode="scf")
    mol = to_pyscf_mole(WATER, STO3G)
    exact = scf.RHF(mol).run(conv_tol=1e-12)
    assert field.converged and field.e_tot == pytest.approx(exact.e_tot, abs=1e-8)
    assert mp.MP2(field).run().e_corr == pytest.approx(mp.MP2(exact).run().e_corr, abs=1e-6)  # first order in F's error
    assert cc.CCSD(field).run().e_tot == pytest.approx(cc.CCSD(exact).run().e_tot, abs=1e-6)


@pytest.mark.parametrize("molecule", [WATER, HYDROXYL], ids=["RHF", "UHF"])
def test_mp2_of_orbitals_of_ours(molecule):
    label = solve(molecule, STO3G, method="hf", residual_tolerance=1e-9).observables
    field = orbitals_to_pyscf(molecule, STO3G, label, method="hf", converged=True)
    kind = scf.UHF if molecule.spin else scf.RHF
    exact = kind(to_pyscf_mole(molecule, STO3G)).run(conv_tol=1e-13, conv_tol_grad=1e-9)
    assert mp.MP2(field).run().e_corr == pytest.approx(mp.MP2(exact).run().e_corr, abs=1e-7)


def test_predicted_orbitals_are_not_taken_for_converged_ones(model):
    """MP2 of PySCF goes on by iteration where the object is not converged, with the energy of its determinant."""
    field = to_pyscf(model, WATER)
    second = mp.MP2(field).run()
    assert second.e_hf == pytest.approx(field.energy_tot(), abs=1e-9)
    assert cc.CCSD(field).run().converged


def test_excitations_go_on_from_the_object(model, tiny_header, tiny_engine):
    kohn_sham = Model(replace(tiny_header, method="pbe"), tiny_engine)
    field = to_pyscf(kohn_sham, WATER)
    assert isinstance(field, dft.rks.RKS) and field.xc == "pbe"
    energies = field.TDA().run(nstates=2).e
    by_hand = dft.RKS(to_pyscf_mole(WATER, STO3G), xc="pbe")
    by_hand.mo_coeff, by_hand.mo_energy, by_hand.mo_occ = field.mo_coeff, field.mo_energy, field.mo_occ
    a = tdscf.rhf.get_ab(by_hand)[0]
    n = a.shape[0] * a.shape[1]
    np.testing.assert_allclose(energies, np.linalg.eigvalsh(a.reshape(n, n))[:2], atol=1e-5)
    assert mp.MP2(field.to_hf()).run().e_corr < 0
    assert isinstance(field.to_hf(), scf.hf.RHF)


def test_cubegen_and_chkfile(model, tmp_path):
    field = to_pyscf(model, WATER)
    cubegen.orbital(field.mol, str(tmp_path / "homo.cube"), field.mo_coeff[:, 4], nx=8, ny=8, nz=8)
    assert (tmp_path / "homo.cube").stat().st_size > 1000


def test_initial_guess(model, open_model):
    density = initial_guess(model, mole())
    field = scf.RHF(mole())
    assert density.shape == (7, 7) and np.sum(density * field.get_ovlp()) == pytest.approx(10)
    assert field.kernel(dm0=density) == pytest.approx(scf.RHF(mole()).kernel(), abs=1e-8)
    two = initial_guess(model, mole(), unrestricted=True)
    np.testing.assert_allclose(two.sum(0), density, atol=1e-12)
    unrestricted = scf.UHF(mole())
    assert unrestricted.kernel(dm0=two) == pytest.approx(field.e_tot, abs=1e-8)
    radical = initial_guess(open_model, HYDROXYL)
    assert radical.shape == (2, 6, 6)
    s = to_pyscf_mole(HYDROXYL, STO3G).intor("int1e_ovlp")
    np.testing.assert_allclose(np.einsum("spq,qp->s", radical, s), [5, 4], atol=1e-9)


REFUSED = {
    "a mol in another basis": (
        mole(basis="def2-svp"),
        r"atom 0 \(O\) of mol has a shell of l=0 .* not one of the basis 'sto-3g'",
    ),
    "one element in another": (mole(basis={"O": "sto-3g", "H": "6-31g"}), r"atom 1 \(H\) of mol has a shell"),
    "fewer shells": (
        mole(basis={"O": gto.basis.load("sto-3g", "O")[:2], "H": "sto-3g"}),
        "lacks 1 shells of the basis",
    ),
    "Cartesian": (mole(basis="def2-svp", cart=True), "Cartesian"),
    "core potentials": (mole("O 0 0 0; Br 0 0 1.8", basis="lanl2dz", ecp="lanl2dz", spin=1), "effective core"),
    "ghost": (mole("O 0 0 0; H 0 0 1; ghost-H 0 1 0", spin=1), "atom 2 of mol is a ghost"),
    "charge": (mole(charge=2), "charge 2, which the model tiny does not cover"),
    "spin": (mole(spin=2), "spin"),
    "element": (mole("N 0 0 0; H 0 0 1; H 0 1 0; H 1 0 0"), "holds N, which the model tiny does not cover"),
    "symmetry": (mole("O 0 0 0; H 0 0.8 0.6; H 0 -0.8 0.6", symmetry=True), "point group symmetry"),
    "no mol": ("water.xyz", "must be a pyscf.gto.Mole, got str"),
    "not built": (gto.Mole(), "not built"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(model, case):
    mol, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        to_pyscf(model, mol)
    if case != "symmetry":  # a density does not mind
        with pytest.raises(ValueError, match=message):
            initial_guess(model, mol)


def test_wrong_spin_of_the_guess_is_refused(open_model, model):
    with pytest.raises(ValueError, match="takes two densities"):
        initial_guess(open_model, HYDROXYL, unrestricted=False)
    with pytest.raises(ValueError, match="one set of orbitals"):
        orbitals_to_pyscf(HYDROXYL, STO3G, replace(model.predict(WATER)), method="hf")


@pytest.mark.parametrize("molecule", [WATER, HYDROXYL], ids=["RHF", "UHF"])
def test_round_trip_is_exact(molecule):
    label = solve(molecule, STO3G, method="hf", residual_tolerance=1e-9).observables
    back = from_pyscf(orbitals_to_pyscf(molecule, STO3G, label, method="hf"))
    np.testing.assert_array_equal(back.molecule.positions, molecule.positions)
    assert (back.molecule.charge, back.molecule.spin) == (molecule.charge, molecule.spin) and back.method == "hf"
    assert back.basis.content_hash() == STO3G.content_hash(molecule.numbers.tolist())
    for name in ("mo_coeff", "mo_energy", "mo_occ"):
        np.testing.assert_array_equal(getattr(back.observables, name), getattr(label, name))
    for name in ("overlap", "density", "dipole", "fock"):
        np.testing.assert_allclose(getattr(back.observables, name), getattr(label, name), atol=1e-9)
    assert back.observables.energy == label.energy and "not converged" in back.observables.warnings[0]


def any_field(kind):
    if kind == "RHF, degenerate":
        return scf.RHF(mole(AMMONIA, basis="def2-svp"))
    if kind == "linear, with symmetry":
        return scf.RHF(mole("N 0 0 0; N 0 0 1.1", symmetry=True))
    if kind == "UKS":
        return dft.UKS(mole("C 0 0 0; H 0 1.08 0; H 0.93 -0.54 0; H -0.93 -0.54 0", spin=1), xc="pbe")
    if kind == "density fitting":
        return scf.RHF(mole()).density_fit()
    return scf.ROHF(mole("O 0 0 0; O 0.1 0.2 1.2", spin=2))


@pytest.mark.parametrize("kind", ["RHF, degenerate", "linear, with symmetry", "UKS", "density fitting", "ROHF"])
def test_any_mean_field_comes_back(kind):
    field = any_field(kind).run(conv_tol=1e-12, conv_tol_grad=1e-7)
    found = from_pyscf(field, build_fock=True)
    o, mol = found.observables, field.mol
    np.testing.assert_allclose(o.dipole, field.dip_moment(unit="AU", verbose=0), atol=1e-8)
    np.testing.assert_allclose(o.charges_mulliken, field.mulliken_pop(verbose=0)[1], atol=1e-8)
    assert o.spin_square == pytest.approx(field.spin_square()[0] if mol.spin else 0, abs=1e-8)
    assert o.homo < o.lumo
    state = found.state
    np.testing.assert_allclose((state.total_density * state.overlap).sum(), mol.nelectron, atol=1e-9)
    if kind == "ROHF":
        assert "ROHF" in o.warnings[0]
    else:
        assert o.residual < 1e-6 and o.warnings == ()
        np.testing.assert_allclose(from_pyscf(field).observables.fock, o.fock, atol=1e-6)  # as well as it is converged
        np.testing.assert_allclose(o.fock @ o.mo_coeff, o.overlap @ o.mo_coeff * o.mo_energy[:, None], atol=1e-6)
    core = AOMap.of(mol, found.basis).from_pyscf(mol.intor("int1e_kin") + mol.intor("int1e_nuc"))
    if kind not in ("UKS", "density fitting"):
        energy = 0.5 * np.sum(o.density * (o.fock + core)) + mol.energy_nuc()
        assert energy == pytest.approx(o.energy, abs=1e-8)


def test_removed_orbitals_leave_a_state():
    field = scf.RHF(mole("H 0 0 0; He 0 0 0.7", charge=1))
    energy, coeff = field.eig(field.get_hcore(), field.get_ovlp())
    field.mo_energy, field.mo_coeff, field.mo_occ = energy[:1], coeff[:, :1], np.array([2.0])  # as PySCF leaves it
    found = from_pyscf(field)
    assert found.observables.mo_coeff.shape == (1, 2, 1) and found.observables.energy is None
    assert found.state.mo_coeff.shape == (1, 1, 2, 2) and found.state.mo_occ.tolist() == [[[2.0, 0.0]]]


def test_fields_that_cannot_come_are_refused():
    for field, message in (
        (scf.RHF(mole()), "no orbitals"),
        (scf.GHF(mole()), "GHF"),
        (mole(), "must be a mean-field object"),
    ):
        with pytest.raises(ValueError, match=message):
            from_pyscf(field)
    atoms = "O 0 0 0; H1 0 0.8 0.6; H2 0 -0.8 0.6"
    with pytest.raises(ValueError, match="atoms of H in mol have different basis sets"):
        to_basis(mole(atoms, basis={"O": "sto-3g", "H1": "sto-3g", "H2": "6-31g"}))
