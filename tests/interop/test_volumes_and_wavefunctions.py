"""Cube, QCSchema wavefunction and TREXIO: read back by others' readers, and compared with what PySCF computes."""

import json
from math import sqrt

import numpy as np
import pytest
from ase.io.cube import read_cube
from ase.units import Bohr
from pyscf import gto
from scipy.special import sph_harm_y

from mlsemi.basis import load_basis
from mlsemi.interop.cube import values_on_grid, write_cube
from mlsemi.interop.qcschema import atomic_result, wavefunction
from mlsemi.interop.trexio import write_trexio
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule, symbol_of
from mlsemi.observables import Observables
from mlsemi.properties.grids import box_grid
from mlsemi.reference.mean_field import solve, to_pyscf_mole

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])
METHYL = Molecule.from_angstrom(
    [6, 1, 1, 1], [[0, 0, 0.02], [0, 1.08, 0], [0.93, -0.54, 0], [-0.93, -0.54, 0]], spin=1, name="CH3"
)
BASIS = load_basis("def2-svp").subset([1, 6, 8])
LARGE = load_basis("def2-tzvp").subset([1, 8])


@pytest.fixture(scope="module")
def labels():
    return {m.formula: solve(m, BASIS, method="hf", residual_tolerance=1e-8).observables for m in (WATER, METHYL)}


@pytest.fixture(scope="module")
def large_label():
    return solve(WATER, LARGE, method="hf").observables


@pytest.mark.parametrize("molecule", [WATER, METHYL], ids=["closed", "open"])
def test_cubes_are_read_by_ase_and_agree_with_pyscf(tmp_path, labels, molecule):
    label, mol = labels[molecule.formula], to_pyscf_mole(molecule, BASIS)
    grid = box_grid(molecule, step=0.9, margin=2.0)
    layout = AOLayout(BASIS, molecule.numbers)
    ao = mol.eval_gto("GTOval_sph", grid.points)
    coeff = layout.to_pyscf(label.mo_coeff, axes=(-2,))
    density = layout.to_pyscf(label.density)
    path = tmp_path / "m.cube"
    for quantity, expected in (
        ("orbital", ao @ coeff[0][:, label.mo_occ[0] > 0][:, -1]),
        ("density", np.einsum("pi,ij,pj->p", ao, density.sum(0), ao)),
    ):
        values, title = values_on_grid(molecule, BASIS, label, grid, quantity)
        write_cube(path, molecule, grid, values, title=title)
        expected = expected * (np.sign((expected * values.ravel()).sum()) if quantity == "orbital" else 1)
        np.testing.assert_allclose(values.ravel(), expected, atol=1e-10)
        with path.open() as file:
            read = read_cube(file, read_data=True)
        np.testing.assert_allclose(read["data"].ravel(), expected, rtol=1e-6, atol=1e-10)  # seven digits in the file
        np.testing.assert_allclose(read["origin"] / Bohr, grid.origin, atol=1e-7)
        np.testing.assert_allclose(read["spacing"] / Bohr, 0.9 * np.eye(3), atol=1e-7)
        np.testing.assert_allclose(read["atoms"].positions / Bohr, molecule.positions, atol=1e-7)
        assert read["atoms"].numbers.tolist() == molecule.numbers.tolist() and read["data"].shape == grid.shape
    if molecule.spin:
        spin, title = values_on_grid(molecule, BASIS, label, grid, "spin")
        np.testing.assert_allclose(spin.ravel(), np.einsum("pi,ij,pj->p", ao, density[0] - density[1], ao), atol=1e-10)
        assert title == "CH3: spin density [bohr^-3]"
        beta, title = values_on_grid(molecule, BASIS, label, grid, "orbital", orbital="lumo", spin="beta")
        assert "orbital 5 beta" in title and "occupation 0" in title
        np.testing.assert_allclose(np.abs(beta.ravel()), np.abs(ao @ coeff[1][:, 4]), atol=1e-10)


def test_potential_is_that_of_pyscf_and_finite_on_nuclei(labels):
    label, mol = labels["H2O"], to_pyscf_mole(WATER, BASIS)
    grid = box_grid(WATER, step=2.0, margin=2.0)
    values, _ = values_on_grid(WATER, BASIS, label, grid, "potential")
    density = AOLayout(BASIS, WATER.numbers).to_pyscf(label.density)[0]
    for k in (0, 17, grid.n_points - 1):
        with mol.with_rinv_origin(grid.points[k]):
            electrons = np.sum(density * mol.intor("int1e_rinv"))
        nuclei = (WATER.numbers / np.linalg.norm(WATER.positions - grid.points[k], axis=1)).sum()
        assert values.ravel()[k] == pytest.approx(nuclei - electrons, abs=1e-8)
    helium = Molecule([2], [[0.0, 0.0, 0.0]])
    basis = load_basis("sto-3g")
    on_nucleus, _ = values_on_grid(
        helium,
        basis,
        solve(helium, basis, method="hf").observables,
        box_grid(helium, step=1.0, margin=1.0),
        "potential",
    )
    assert on_nucleus.max() == 200.0


def test_cubes_that_make_no_sense_are_refused(tmp_path, labels):
    grid = box_grid(WATER, step=2.0)
    for quantity, options, message in (
        ("laplacian", {}, "quantity='laplacian' must be one of"),
        ("spin", {}, "spin density of a closed shell is zero"),
        ("orbital", {"orbital": "99"}, "there are the orbitals 1 to 24"),
    ):
        with pytest.raises(ValueError, match=message):
            values_on_grid(WATER, BASIS, labels["H2O"], grid, quantity, **options)
    with pytest.raises(ValueError, match=r"observables\.density is missing"):
        values_on_grid(WATER, BASIS, Observables(), grid, "density")
    with pytest.raises(ValueError, match="has shape .* but the molecule has 24 AOs"):
        values_on_grid(WATER, BASIS, Observables(density=np.eye(3)[None]), grid, "density")
    for values, message in ((np.zeros((1, 2, 3)), "have shape"), (np.full(grid.shape, np.nan), "not all finite")):
        with pytest.raises(ValueError, match=message):
            write_cube(tmp_path / "m.cube", WATER, grid, values)
    assert not list(tmp_path.iterdir())


def _mole_of_schema(result):
    """PySCF's Mole of a QCSchema result, and its order of the schema's AOs (m = -l..l)."""
    data = result.wavefunction.basis
    shells = {
        name: [
            [s.angular_momentum[0], *zip(s.exponents, s.coefficients[0], strict=True)] for s in center.electron_shells
        ]
        for name, center in data.center_data.items()
    }
    atoms = list(zip(data.atom_map, result.molecule.geometry.tolist(), strict=True))
    mol = gto.M(atom=atoms, unit="B", basis=shells, spin=result.molecule.molecular_multiplicity - 1, verbose=0)
    order = []
    for k in range(mol.nbas):
        m = [2, 0, 1] if (l := mol.bas_angular(k)) == 1 else range(2 * l + 1)
        order += [len(order) + i for i in m]
    return mol, np.array(order)


@pytest.mark.parametrize("formula", ["H2O", "CH3"])
def test_qcelemental_reads_the_wavefunction_and_the_energy_follows_from_it(labels, formula):
    models = pytest.importorskip("qcelemental.models.v1", exc_type=ImportError)
    molecule = WATER if formula == "H2O" else METHYL
    label = labels[formula]
    names = {"model_name": "m", "mode": "scf", "method": "hf", "basis_name": BASIS.name}
    written = json.loads(json.dumps(atomic_result(molecule, label, **names, basis=BASIS), allow_nan=False))
    result = models.AtomicResult(**written)
    wfn = result.wavefunction
    assert wfn.restricted == (molecule.spin == 0) and wfn.basis.nbf == label.mo_coeff.shape[1]
    mol, order = _mole_of_schema(result)
    overlap, core = mol.intor("int1e_ovlp"), mol.intor("int1e_kin") + mol.intor("int1e_nuc")
    energy = mol.energy_nuc()
    for spin in "a" if wfn.restricted else "ab":
        c, e = (getattr(wfn, f"scf_{name}_{spin}") for name in ("orbitals", "eigenvalues"))
        n = getattr(wfn, f"scf_occupations_{spin}")
        density, fock = (getattr(wfn, f"scf_{x}_{spin}")[np.ix_(order, order)] for x in ("density", "fock"))
        c = c[order]
        np.testing.assert_allclose(c.T @ overlap @ c, np.eye(len(c)), atol=1e-7)  # positions have eight decimals
        np.testing.assert_allclose((c * n) @ c.T, density, atol=1e-7)  # as well as it is converged
        np.testing.assert_allclose(fock @ c, overlap @ c * e, atol=1e-6)
        energy += 0.5 * np.sum(density * (fock + core)) * (2 if wfn.restricted else 1)
        assert n.sum() == pytest.approx((molecule.n_electrons + (1 if spin == "a" else -1) * molecule.spin) / 2)
    assert energy == pytest.approx(label.energy, abs=1e-6)


def test_wavefunctions_that_do_not_fit_are_refused(labels):
    with pytest.raises(ValueError, match="but the molecule has 24 AOs"):
        wavefunction(WATER, labels["CH3"], BASIS)
    mixed = Observables(density=np.zeros((1, 24, 24)), mo_energy=np.zeros((2, 24)))
    with pytest.raises(ValueError, match="different numbers of spins"):
        wavefunction(WATER, mixed, BASIS)
    assert set(wavefunction(WATER, Observables(), BASIS)) == {"basis", "restricted"}


def _real_harmonic(l, m, vector):
    """r^l Y_lm without the Condon-Shortley phase, from scipy's complex ones."""
    r = np.linalg.norm(vector, axis=1)
    polar, azimuth = np.arccos(vector[:, 2] / r), np.arctan2(vector[:, 1], vector[:, 0])
    y = sph_harm_y(l, abs(m), polar, azimuth)
    part = y.real if m >= 0 else y.imag
    return r**l * part * (1 if m == 0 else (-1) ** m * sqrt(2))


@pytest.mark.parametrize("case", ["f shells", "open"])
def test_orbitals_of_trexio_by_its_definition(tmp_path, labels, large_label, rng, case):
    trexio = pytest.importorskip("trexio")
    molecule, basis, label = (WATER, LARGE, large_label) if case == "f shells" else (METHYL, BASIS, labels["CH3"])
    path = tmp_path / "m.h5"
    write_trexio(path, molecule, basis, label)
    assert list(tmp_path.iterdir()) == [path]
    with trexio.File(str(path), "r", trexio.TREXIO_HDF5) as file:
        read = {
            name: getattr(trexio, f"read_{name}")(file)
            for name in (
                "nucleus_coord nucleus_charge nucleus_label electron_up_num electron_dn_num basis_nucleus_index "
                "basis_shell_ang_mom basis_shell_index basis_exponent basis_coefficient basis_prim_factor ao_shell "
                "ao_normalization ao_1e_int_overlap mo_coefficient mo_energy mo_occupation mo_spin mo_type"
            ).split()
        }
    assert [symbol_of(z) for z in molecule.numbers.tolist()] == read["nucleus_label"]
    assert read["electron_up_num"] - read["electron_dn_num"] == molecule.spin
    points = rng.normal(size=(20, 3))
    columns = []
    for shell, (atom, l) in enumerate(zip(read["basis_nucleus_index"], read["basis_shell_ang_mom"], strict=True)):
        vector = points - read["nucleus_coord"][atom]
        mine = read["basis_shell_index"] == shell
        weights = read["basis_coefficient"][mine] * read["basis_prim_factor"][mine]
        radial = np.exp(-np.outer((vector**2).sum(1), read["basis_exponent"][mine])) @ weights
        for m in [0, *(s * k for k in range(1, l + 1) for s in (1, -1))]:
            racah = sqrt(4 * np.pi / (2 * l + 1)) * _real_harmonic(int(l), m, vector)
            columns.append(read["ao_normalization"][len(columns)] * racah * radial)
    values = np.array(columns).T @ read["mo_coefficient"].T
    mol = to_pyscf_mole(molecule, basis)
    coeff = AOLayout(basis, molecule.numbers).to_pyscf(label.mo_coeff, axes=(-2,))
    expected = np.concatenate([mol.eval_gto("GTOval_sph", points) @ c for c in coeff], axis=1)
    np.testing.assert_allclose(values, expected, atol=1e-10)
    c, s = read["mo_coefficient"][read["mo_spin"] == 0], read["ao_1e_int_overlap"]
    np.testing.assert_allclose(c @ s @ c.T, np.eye(len(c)), atol=1e-8)
    np.testing.assert_array_equal(read["mo_energy"], label.mo_energy.ravel())
    assert read["mo_occupation"].sum() == pytest.approx(molecule.n_electrons)
    assert read["mo_type"] == ("UHF" if molecule.spin else "RHF")
