import numpy as np
import pytest

from mlsemi.basis import load_basis
from mlsemi.molecule import Molecule
from mlsemi.reference import coupled_cluster, finite_field
from mlsemi.reference.coupled_cluster import Correlation, level_name, n_frozen, solve
from mlsemi.reference.mean_field import NotConvergedError, to_pyscf_mole

STO, DZ = load_basis("sto-3g"), load_basis("cc-pvdz")
HF = Molecule([1, 9], [[0, 0, -1.64558411], [0, 0, 0.08729475]], name="HF")
WATER = Molecule([8, 1, 1], [[0.1, 0.2, 0], [1.5, 0.9, 0.3], [-1.2, 1.1, -0.4]], name="water")
CH3 = Molecule.from_angstrom(
    [6, 1, 1, 1], [[0, 0, 0.1], [1.079, 0, 0], [-0.5395, 0.9344, 0], [-0.5395, -0.9344, 0]], spin=1, name="CH3"
)
BH3_CATION = Molecule.from_angstrom(
    [5, 1, 1, 1],
    [[0, 0, 0.10369114], [0, 0, -1.13269886], [0, -0.37149, 3], [0, 0.37149, 3]],
    charge=1,
    spin=1,
)


def energies(molecule, basis, *, all_electron=False, method="ccsd(t)", **options):
    """Hartree-Fock energy, and the correlation energy of MP2, of CCSD and that of triples [Eh]; the observables."""
    correlation = Correlation(frozen_core=not all_electron, **options)
    o = solve(molecule, basis, method=method, correlation=correlation).observables
    hf, ccsd = o.scf_total_energy, o.ccsd_total_energy
    return [hf, o.mp2_total_energy - hf, ccsd - hf, o.energy - ccsd], o


def test_water_of_the_programming_projects():
    # T. D. Crawford, programming projects 3 (geometry), 4 (MP2) and 6 (output/h2o/STO-3G), all electrons:
    # https://github.com/CrawfordGroup/ProgrammingProjects
    water = Molecule(
        [8, 1, 1],
        [[0, -0.143225816552, 0], [1.638036840407, 1.136548822547, 0], [-1.638036840407, 1.136548822547, 0]],
    )
    found, _ = energies(water, STO, all_electron=True)
    # 1e-7: the basis sets differ in their last digits
    np.testing.assert_allclose(found, [-74.942079928192, -0.049149636120, -0.070680088376, -0.000099877272], atol=1e-7)


@pytest.mark.parametrize(
    ("all_electron", "reference", "slope"),
    [
        (False, [-0.201627516796, -0.2068152041, -0.0019205007159748], 0.00342858327943),
        (True, [-0.203781911950, -0.208743643, -0.0019363896542312], 0.00308437284379),
    ],
)
def test_hydrogen_fluoride_of_the_standard_suite(all_electron, reference, slope):
    # standard_suite_ref.py of QCEngine (https://github.com/MolSSI/QCEngine), "hf", cc-pVDZ, RHF, conventional
    # integrals: values of Psi4 and CFOUR; gradients of CCSD(T) there by differences, to 1e-6 Eh/bohr
    correlation = Correlation(frozen_core=not all_electron)
    o = solve(HF, DZ, method="CCSD(T)", correlation=correlation, gradient=True).observables
    hf, ccsd = o.scf_total_energy, o.ccsd_total_energy
    found = [o.mp2_total_energy - hf, ccsd - hf, o.energy - ccsd]
    assert hf == pytest.approx(-100.01941126902270, abs=1e-8)
    np.testing.assert_allclose(found, reference, atol=1e-8)
    np.testing.assert_allclose(o.gradient[:, 2], [slope, -slope], atol=1e-6)


def test_open_shell_of_the_standard_suite():
    # as above, "bh3p", cc-pVDZ, UHF, frozen core
    found, o = energies(BH3_CATION, DZ)
    np.testing.assert_allclose(found, [-25.94513842869638, -0.058423513790, -0.08117105566, -0.00060401], atol=1e-8)
    assert 0 < o.t1_diagnostic < 0.02
    for method, slope in [("mp2", 0.012305278627642), ("ccsd", 0.00496423512)]:
        gradient = solve(BH3_CATION, DZ, method=method, gradient=True).observables.gradient
        assert gradient[0, 2] == pytest.approx(slope, abs=1e-6)
    with pytest.raises(ValueError, match="issue 3305"):
        solve(BH3_CATION, STO, method="ccsd(t)", gradient=True)


def test_cyano_radical_of_psi4():
    # Psi4's tests/cc8: UHF-CCSD(T), cc-pVDZ, frozen core, 1.175 angstrom; 1e-6 for its constant of the bohr
    cn = Molecule.from_angstrom([6, 7], [[0, 0, 0], [0, 0, 1.175]], spin=1)
    found, o = energies(cn, DZ, dipole=True)
    assert np.isfinite(o.dipole).all()  # second-order SCF is needed, in the field too
    np.testing.assert_allclose(found, [-92.2127769533, found[1], -0.264053207416, -0.012461245706], atol=1e-6)


def test_ionization_energies_and_electron_affinities():
    # PySCF's own tests of water in 6-31G (pyscf/cc/test/test_eom_rccsd.py and its kin), all electrons
    water = Molecule.from_angstrom([8, 1, 1], [[0, 0, 0], [0, -0.757, 0.587], [0, 0.757, 0.587]])
    pytest.importorskip("basis_set_exchange")
    o = energies(water, load_basis("6-31g"), all_electron=True, method="ccsd", ip=3, ea=2)[1]
    assert o.energy == pytest.approx(-76.119346385357446, abs=1e-7)
    np.testing.assert_allclose(o.ionization_energies, [0.42789083, 0.50226859, 0.68550640], atol=1e-6)
    np.testing.assert_allclose(o.electron_affinities, [-0.19050588, -0.28345232], atol=1e-6)


def test_two_electrons_are_exact():
    """IP-EOM-CCSD of two electrons is the difference to the exact one-electron cation, and CCSD exact itself."""
    positions = [[0, 0, 0], [0, 0, 1.5]]
    o = energies(Molecule([1, 1], positions), DZ, ip=2)[1]
    cation = solve(Molecule([1, 1], positions, charge=1, spin=1), DZ, method="ccsd(t)", correlation=Correlation(ip=1))
    ionized = cation.observables
    assert o.ionization_energies.shape == (1,)  # no more than there are orbitals
    # the convergence of the EOM
    assert o.ionization_energies[0] == pytest.approx(ionized.energy - o.energy, abs=1e-7)
    assert ionized.energy == ionized.scf_total_energy
    assert o.energy == o.ccsd_total_energy  # no triples


def test_lowest_ionization_is_found_where_correlation_reverses_the_orbitals():
    # N2: Hartree-Fock's highest orbital is pi, the lowest ion is of sigma: 15.6 eV before 17.0 eV (experiment,
    # K. P. Huber and G. Herzberg, Constants of Diatomic Molecules, 1979; a double-zeta basis is off by some tenths)
    nitrogen = Molecule([7, 7], [[0, 0, 0], [0, 0, 2.074]])
    one, two = (energies(nitrogen, DZ, method="ccsd", ip=n)[1].ionization_energies for n in (1, 2))
    np.testing.assert_allclose(one, two[:1], atol=1e-6)
    assert two[1] - two[0] > 0.03


@pytest.mark.parametrize("molecule", [WATER, CH3], ids=lambda m: m.name)
def test_dipole_is_the_derivative_and_turns_with_the_molecule(molecule, monkeypatch):
    first = energies(molecule, STO, dipole=True)[1]
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    turned = Molecule(molecule.numbers, molecule.positions @ turn.T + 5.0, spin=molecule.spin)
    # noise of 1e-9 Eh over the field
    np.testing.assert_allclose(energies(turned, STO, dipole=True)[1].dipole, turn @ first.dipole, atol=5e-6)
    monkeypatch.setattr(finite_field, "FIELD", 4e-3)
    other = energies(molecule, STO, dipole=True)[1].dipole
    # the field is weak enough: sixteen times the quadratic term is below 1e-4
    np.testing.assert_allclose(other, first.dipole, atol=1e-4)


def test_dipole_of_two_electrons_is_that_of_full_configuration_interaction():
    """CCSD of two electrons is exact, and so is its dipole: that of the exact density, of a cation off the origin."""
    from pyscf import ao2mo, fci, scf

    cation = Molecule([2, 1], [[0.3, 0, 0], [0.3, 0, 1.46]], charge=1)
    found = energies(cation, DZ, dipole=True)[1]
    mol = to_pyscf_mole(cation, DZ)
    orbitals = scf.RHF(mol).run(conv_tol=1e-12).mo_coeff
    core = orbitals.T @ scf.hf.get_hcore(mol) @ orbitals
    n = len(orbitals)
    energy, vector = fci.direct_spin0.kernel(core, ao2mo.kernel(mol, orbitals), n, 2, tol=1e-13)
    density = orbitals @ fci.direct_spin0.make_rdm1(vector, n, 2) @ orbitals.T
    electrons = np.einsum("xij,ij->x", mol.intor_symmetric("int1e_r", comp=3), density)
    assert found.energy == pytest.approx(energy + mol.energy_nuc(), abs=1e-8)
    # noise of 1e-9 Eh over the field
    np.testing.assert_allclose(found.dipole, mol.atom_charges() @ mol.atom_coords() - electrons, atol=3e-6)


def test_charge_shifts_the_dipole():
    ion = Molecule([8, 1], [[0, 0, 0], [0, 0, 1.83]], charge=-1)
    far = Molecule([8, 1], [[3, 0, 7], [3, 0, 8.83]], charge=-1)
    shift = energies(far, STO, dipole=True)[1].dipole - energies(ion, STO, dipole=True)[1].dipole
    np.testing.assert_allclose(shift, [-3, 0, -7], atol=5e-6)


def test_gradient_is_the_derivative():
    analytic = solve(WATER, STO, method="ccsd(t)", gradient=True).observables.gradient
    step, found = 0.01, []
    for sign in (1, -1):
        positions = WATER.positions.copy()
        positions[1, 0] += sign * step
        found.append(solve(Molecule(WATER.numbers, positions), STO, method="ccsd(t)").observables.energy)
    # third derivatives of a stretch are about 1 Eh/bohr^3
    assert analytic[1, 0] == pytest.approx((found[0] - found[1]) / (2 * step), abs=5e-5)


def test_composite_level_is_the_sum_of_its_parts():
    correlation = Correlation(small_basis=STO, dipole=True)
    o = solve(HF, DZ, method="ccsd(t)", correlation=correlation, gradient=True).observables
    plain = Correlation(dipole=True)
    large = solve(HF, DZ, method="mp2", correlation=plain, gradient=True).observables
    good = solve(HF, STO, method="ccsd(t)", correlation=plain, gradient=True).observables
    poor = solve(HF, STO, method="mp2", correlation=plain, gradient=True).observables
    for name, tolerance in [("energy", 1e-9), ("dipole", 1e-6), ("gradient", 1e-7)]:  # convergence
        parts = getattr(large, name) + getattr(good, name) - getattr(poor, name)
        np.testing.assert_allclose(getattr(o, name), parts, rtol=0, atol=tolerance)
    assert o.t1_diagnostic == good.t1_diagnostic
    assert level_name("ccsd(t)", DZ, correlation) == "MP2/cc-pvdz + (CCSD(T) - MP2)/sto-3g, frozen core"


def test_nothing_to_correlate():
    for molecule, basis in [(Molecule([1], np.zeros((1, 3)), spin=1), DZ), (Molecule([2], np.zeros((1, 3))), STO)]:
        o = energies(molecule, basis, dipole=True, ip=1)[1]
        assert o.energy == o.scf_total_energy
        assert o.t1_diagnostic == 0
        np.testing.assert_array_equal(o.dipole, 0)
        assert o.ionization_energies[0] > 0
    triplet = energies(Molecule([2], np.zeros((1, 3)), spin=2), DZ)[1]  # one spin only
    assert triplet.energy <= triplet.scf_total_energy


def test_core_and_refusals(monkeypatch):
    chloride = Molecule([17, 1], [[0, 0, 0], [0, 0, 2.4]])
    assert [n_frozen(m, Correlation()) for m in (WATER, chloride)] == [1, 5]
    assert n_frozen(chloride, Correlation(frozen_core=False)) == 0
    with pytest.raises(ValueError, match="method='pbe' must be one of mp2"):
        solve(WATER, STO, method="pbe")
    with pytest.raises(ValueError, match="ea=-1"):
        solve(WATER, STO, method="ccsd", correlation=Correlation(ea=-1))
    monkeypatch.setattr(coupled_cluster, "_MAX_CYCLES", 2)
    monkeypatch.setattr(coupled_cluster, "_DAMPED_CYCLES", 2)
    with pytest.raises(NotConvergedError, match="CCSD not converged"):
        solve(WATER, STO, method="ccsd(t)")


def test_state_that_jumps_in_the_field_is_no_label(monkeypatch):
    monkeypatch.setattr(finite_field, "_HF_TOLERANCE", 0.0)
    with pytest.raises(NotConvergedError, match="follows another state"):
        solve(HF, STO, method="mp2", correlation=Correlation(dipole=True))
