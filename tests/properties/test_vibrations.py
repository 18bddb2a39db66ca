"""Harmonic analysis and thermochemistry against PySCF on PySCF's Hessians: bent, linear, degenerate, open shell."""

import ase.data
import numpy as np
import pytest
from pyscf import gto, scf
from pyscf.data import elements, nist
from pyscf.hessian import thermo
from scipy.constants import physical_constants

from mlsemi.properties.masses import atomic_masses
from mlsemi.properties.thermochemistry import rotational_constants, thermochemistry
from mlsemi.properties.vibrations import (
    HARTREE_IN_WAVENUMBERS,
    KM_PER_MOL,
    broadened,
    harmonic_analysis,
    infrared_intensities,
    is_linear,
    rigid_motions,
)
from mlsemi.units import BOHR_IN_ANGSTROM, DIPOLE_AU_IN_DEBYE

# minima of HF/STO-3G to 1e-3 angstrom or so; the ring of equal angles of NH3 and CH3 is exact
_TURN = np.array([[np.cos(a), np.sin(a)] for a in (0.3, 0.3 + 2 * np.pi / 3, 0.3 + 4 * np.pi / 3)])
CASES = {
    "water": ("O 0.1 0 0; H 0.1 0.7579 0.6369; H 0.1 -0.7579 0.6369", 0),
    "carbon dioxide": ("C 0.1 0.2 0.3; O 0.779 0.879 1.0; O -0.579 -0.479 -0.4", 0),
    "ammonia": ("N 0 0 0;" + ";".join(f"H {0.944 * x} {0.944 * y} 0.4206" for x, y in _TURN), 0),
    # planar, where HF/STO-3G has an imaginary frequency
    "methyl": ("C 0 0 0;" + ";".join(f"H {1.078 * x} {1.078 * y} 0" for x, y in _TURN), 1),
}


@pytest.fixture(scope="module")
def fields():
    """Mean field and Hessian, shape (atom, 3, atom, 3), in the order of `CASES`."""
    found = {}
    for name, (atoms, spin) in CASES.items():
        mol = gto.M(atom=atoms, basis="sto-3g", spin=spin, verbose=0)
        field = (scf.UHF if spin else scf.RHF)(mol).run(conv_tol=1e-12)
        found[name] = field, field.Hessian().kernel()
    return found


@pytest.fixture
def codata(monkeypatch):
    """PySCF with the constants of scipy: its own are of CODATA 2014, which changes T S by 1e-8 Eh."""
    for name, long in (
        ("BOLTZMANN", "Boltzmann constant"), ("PLANCK", "Planck constant"), ("HARTREE2J", "Hartree energy"),
        ("ATOMIC_MASS", "atomic mass constant"), ("BOHR_SI", "Bohr radius"), ("AVOGADRO", "Avogadro constant"),
    ):  # fmt: skip
        monkeypatch.setattr(nist, name, physical_constants[long][0])
    monkeypatch.setattr(nist, "HBAR", nist.PLANCK / (2 * np.pi))


def _analysis(field, hessian):
    mol = field.mol
    masses = mol.atom_mass_list(isotope_avg=True)
    return harmonic_analysis(hessian.transpose(0, 2, 1, 3), mol.atom_coords(), masses)


@pytest.mark.parametrize("name", CASES)
def test_modes_are_those_of_pyscf(fields, codata, name):
    field, hessian = fields[name]
    theirs = thermo.harmonic_analysis(field.mol, hessian, imaginary_freq=False)
    ours = _analysis(field, hessian)
    n = field.mol.natm
    assert ours.linear == (name == "carbon dioxide") == is_linear(ours.positions)
    assert len(ours.wavenumbers) == 3 * n - 6 + ours.linear
    # 1e-6 cm^-1 of 4000: rounding
    np.testing.assert_allclose(ours.wavenumbers, theirs["freq_wavenumber"], atol=1e-6)
    # each mode by itself may turn within a degenerate set: the projector on the set does not
    for k in range(len(ours.wavenumbers)):
        same = np.abs(ours.wavenumbers - ours.wavenumbers[k]) < 0.1
        modes = ours.modes[same].reshape(-1, 3 * n)
        others = np.array(theirs["norm_mode"])[same].reshape(-1, 3 * n)
        np.testing.assert_allclose(modes.T @ modes, others.T @ others, atol=1e-7)
        if same.sum() == 1:
            assert ours.reduced_masses[k] == pytest.approx(theirs["reduced_mass"][k], abs=1e-7)
    weighted = (ours.modes * np.sqrt(ours.masses)[:, None]).reshape(-1, 3 * n)
    np.testing.assert_allclose(weighted @ weighted.T, np.eye(len(weighted)), atol=1e-12)
    np.testing.assert_allclose(rigid_motions(ours.positions, ours.masses) @ weighted.T, 0, atol=1e-12)
    length = (ours.displacements**2).sum((1, 2))
    np.testing.assert_allclose(length, 1, atol=1e-12)
    along = np.einsum("kai,aibj,kbj->k", ours.displacements, hessian.transpose(0, 2, 1, 3), ours.displacements)
    np.testing.assert_allclose(ours.force_constants, along, atol=1e-9)


def test_degenerate_modes(fields):
    for name, pairs in {"ammonia": (1, 4), "methyl": (1, 4), "carbon dioxide": (0,)}.items():
        found = _analysis(*fields[name]).wavenumbers
        for k in pairs:
            # 1e-2 cm^-1: symmetry to the six digits of the geometry and the convergence of the Hessian
            assert abs(found[k] - found[k + 1]) < 1e-2, (name, found)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("temperature", [298.15, 20.0, 2000.0])
def test_thermochemistry_is_that_of_pyscf(fields, codata, name, temperature):
    field, hessian = fields[name]
    ours = _analysis(field, hessian)
    modes = thermo.harmonic_analysis(field.mol, hessian)["freq_au"]
    theirs = thermo.thermo(field, modes, temperature=temperature, pressure=90000)
    found = thermochemistry(
        field.e_tot,
        ours,
        spin=field.mol.spin,
        temperature=temperature,
        pressure=90000,
        symmetry_number=int(theirs["sym_number"][0]),
    )
    # 1e-10 Eh: the constants are the same, but scipy rounds k in Eh/K to eleven digits
    values = {
        "ZPE": found.zero_point_energy, "E_0K": found.energy_at_zero, "E_tot": found.energy, "H_tot": found.enthalpy,
        "G_tot": found.gibbs_energy, "S_tot": found.entropy, "Cv_tot": found.heat_capacity,
        "S_trans": found.translation.entropy, "S_rot": found.rotation.entropy, "S_vib": found.vibration.entropy,
        "S_elec": found.electronic.entropy, "E_vib": found.vibration.energy,
    }  # fmt: skip
    for key, value in values.items():
        assert value == pytest.approx(theirs[key][0], abs=1e-10), key
    constants = rotational_constants(ours.positions, ours.masses)
    np.testing.assert_allclose(constants, theirs["rot_const"][0], rtol=1e-9)


def test_an_atom_has_translation_only():
    found = harmonic_analysis(np.zeros((1, 3, 1, 3)), np.ones((1, 3)), np.array([4.002602]))
    assert len(found.wavenumbers) == 0 and not found.linear
    gas = thermochemistry(-2.9, found, temperature=298.15, pressure=100000)
    # standard entropy of helium, 126.153 J/(mol K) (CODATA key values for thermodynamics)
    in_joule = gas.entropy * physical_constants["Hartree energy"][0] * physical_constants["Avogadro constant"][0]
    assert in_joule == pytest.approx(126.153, abs=0.002)
    assert gas.heat_capacity == pytest.approx(1.5 * 3.1668115634564e-6)


def test_shares_at_very_low_temperature_are_finite(fields):
    gas = thermochemistry(-75.0, _analysis(*fields["water"]), temperature=1.0)
    assert gas.vibration.energy == pytest.approx(gas.zero_point_energy, rel=1e-14)
    assert gas.vibration.entropy == gas.vibration.heat_capacity == 0


def test_imaginary_modes_are_negative_and_left_out(fields):
    """Planar ammonia is the transition state of the inversion."""
    mol = gto.M(atom="N 0 0 0;" + ";".join(f"H {1.006 * x} {1.006 * y} 0" for x, y in _TURN), basis="sto-3g", verbose=0)
    field = scf.RHF(mol).run(conv_tol=1e-12)
    found = _analysis(field, field.Hessian().kernel())
    assert found.n_imaginary == 1 and found.wavenumbers[0] < -500
    assert found.zero_point_energy == pytest.approx(found.wavenumbers[1:].sum() / 2 / HARTREE_IN_WAVENUMBERS)
    gas = thermochemistry(0.0, found)
    rest = harmonic_analysis(np.zeros((4, 3, 4, 3)), found.positions, found.masses)
    assert not np.isnan(gas.entropy)
    assert gas.rotation == thermochemistry(0.0, rest).rotation


def test_rotated_molecules_have_the_same_modes(fields, random_rotation):
    field, hessian = fields["ammonia"]
    ours = _analysis(field, hessian)
    r = random_rotation()
    turned = np.einsum("abij,xi,yj->axby", hessian, r, r)
    moved = ours.positions @ r.T + [3.0, -2, 5]
    other = harmonic_analysis(turned, moved, ours.masses)
    np.testing.assert_allclose(other.wavenumbers, ours.wavenumbers, atol=1e-6)
    rng = np.random.default_rng(3)
    moments = rng.normal(size=(4, 3, 3))
    np.testing.assert_allclose(
        infrared_intensities(np.einsum("aij,xi,yj->axy", moments, r, r), other)[[0, 3]],
        infrared_intensities(moments, ours)[[0, 3]],
        rtol=1e-6,
    )


def test_intensity_of_a_diatomic():
    """A = N_A / (12 eps0 c^2) (dmu/dr)^2 / reduced mass; 42.2561 km/mol for 1 (D/angstrom)^2/u is the usual factor."""
    in_debye = (DIPOLE_AU_IN_DEBYE / BOHR_IN_ANGSTROM) ** 2
    assert KM_PER_MOL / in_debye == pytest.approx(42.2561, abs=2e-4)
    masses, charge = np.array([1.008, 18.998]), 0.4
    k = 0.6
    bond = np.array([[k, -k], [-k, k]])
    hessian = np.zeros((2, 3, 2, 3))
    hessian[:, 2, :, 2] = bond
    found = harmonic_analysis(hessian, np.array([[0, 0, 0], [0, 0, 1.7]]), masses)
    reduced = masses.prod() / masses.sum()
    # 5140.4871 cm^-1 for a force constant of 1 Eh/bohr^2 and 1 u
    assert found.wavenumbers == pytest.approx([5140.4871 * (k / reduced) ** 0.5], rel=1e-6)
    moments = np.zeros((2, 3, 3))
    moments[:, 2, 2] = [charge, -charge]
    assert infrared_intensities(moments, found) == pytest.approx([KM_PER_MOL * charge**2 / reduced])


@pytest.mark.parametrize("shape", ["lorentzian", "gaussian"])
def test_bands_hold_their_intensity(shape):
    lines = np.array([[1000.0, 1500.0, -300.0], [1200.0, np.nan, np.nan]])
    heights = np.array([[10.0, 20.0, 50.0], [5.0, np.nan, np.nan]])
    grid = np.linspace(-20000, 25000, 90001)
    found = broadened(lines, heights, grid, width=8, shape=shape)
    assert found.shape == (2, grid.size)
    # 5e-4: what lies in the tails of Lorentzians beyond 20000 cm^-1
    np.testing.assert_allclose(found.sum(1) * (grid[1] - grid[0]), [30, 5], rtol=5e-4)
    top = broadened([1000.0], [1.0], np.array([1000.0, 1004.0]), width=8, shape=shape)
    assert top[1] == pytest.approx(top[0] / 2)


def test_masses():
    numbers = np.arange(1, 55)
    np.testing.assert_allclose(atomic_masses(numbers), ase.data.atomic_masses_common[1:55], rtol=1e-10)
    average = atomic_masses(numbers, kind="average")
    np.testing.assert_allclose(average, np.array(elements.MASSES)[1:55], rtol=1e-10)
    others = np.array(elements.COMMON_ISOTOPE_MASSES)[1:55]
    # 1e-5 u: PySCF's table is an older one; Tc has no stable isotope
    assert np.flatnonzero(np.abs(atomic_masses(numbers) - others) > 1e-5).tolist() == [42]


def test_errors(fields):
    found = _analysis(*fields["water"])
    n = np.zeros((3, 3, 3, 3))
    with pytest.raises(ValueError, match="shapes"):
        harmonic_analysis(n[:2], found.positions, found.masses)
    with pytest.raises(ValueError, match="not finite"):
        harmonic_analysis(n + np.nan, found.positions, found.masses)
    with pytest.raises(ValueError, match="positive"):
        harmonic_analysis(n, found.positions, found.masses * 0)
    with pytest.raises(ValueError, match="shape"):
        infrared_intensities(np.zeros((3, 3)), found)
    with pytest.raises(ValueError, match="temperature=0"):
        thermochemistry(0, found, temperature=0)
    with pytest.raises(ValueError, match="spin=-1"):
        thermochemistry(0, found, spin=-1)
    with pytest.raises(ValueError, match="width"):
        broadened([1.0], [1.0], np.zeros(1), width=0)
    with pytest.raises(ValueError, match="shape='box'"):
        broadened([1.0], [1.0], np.zeros(1), shape="box")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="54"):
        atomic_masses(np.array([55]))
    with pytest.raises(ValueError, match="kind"):
        atomic_masses(np.array([1]), kind="heavy")  # type: ignore[arg-type]
