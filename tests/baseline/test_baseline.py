"""F0: free atoms, tables, symmetry, derivatives, and figures against PySCF."""

import numpy as np
import pytest
import torch

from mlsemi.baseline import KINDS, Baseline
from mlsemi.baseline.atoms import free_atom, ground_state_occupations, sap_charges
from mlsemi.baseline.tables import _pair_row, block_entries, on_site_xc
from mlsemi.baseline.xc import lda
from mlsemi.basis import load_basis
from mlsemi.batch import Batch
from mlsemi.blocks import BlockMap, Slots
from mlsemi.frames import BondFrames
from mlsemi.integrals import one_electron, plan
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule

WATER = Molecule([8, 1, 1], [[0.1, 0, 0.2], [0, 1.4, -0.9], [0.1, -1.5, -0.9]])
HYDROGEN = {axis: Molecule([1, 1], np.outer([-0.7, 0.7], e)) for axis, e in zip("xyz", np.eye(3), strict=True)}


@pytest.fixture(scope="session")
def baselines() -> dict[str, Baseline]:
    basis = load_basis("sto-3g")
    return {kind: Baseline(kind, basis, [1, 8]) for kind in KINDS}


def terms(baseline: Baseline, batch: Batch):
    tables = plan(batch)
    _, kinetic, _ = one_electron(batch, tables)
    frames = BondFrames.of(batch, 2)
    return baseline(batch, tables, kinetic, BlockMap.of(batch, baseline.slots), frames)


@pytest.mark.parametrize("number", [1, 2, 6, 8, 10, 14, 18])
@pytest.mark.parametrize("name", ["sto-3g", "def2-svp", "def2-tzvp"])
def test_free_atom_has_z_electrons(name, number):
    basis = load_basis(name)
    atom = free_atom(basis, number)
    r = np.linspace(1e-4, 30, 60001)
    density = atom.radial_density(basis, r)
    assert sum(n for shell in ground_state_occupations(number).values() for n in shell) == number
    # the trapezoidal rule on this grid is good to 1e-4 for the sharpest core
    assert np.trapezoid(4 * np.pi * r**2 * density, r) == pytest.approx(number, rel=1e-4)
    assert atom.charges.sum() == pytest.approx(number, abs=1e-10)
    assert sap_charges(number)[1].sum() == pytest.approx(number, abs=1e-6)


def test_lda_against_libxc():
    """Slater exchange and Perdew-Wang 1992 of libxc, which carries more digits of the published parameters."""
    libxc = pytest.importorskip("pyscf.dft.libxc")
    rho = np.geomspace(1e-8, 100, 40)
    reference = libxc.eval_xc("lda,pw", rho)
    energy, potential = lda(rho)
    np.testing.assert_allclose(energy / rho, reference[0], atol=2e-6)
    np.testing.assert_allclose(potential, reference[1][0], atol=2e-6)


def test_potential_is_the_derivative_of_the_energy():
    rho = np.geomspace(1e-3, 10, 20)
    h = 1e-5 * rho
    slope = (lda(rho + h)[0] - lda(rho - h)[0]) / (2 * h)
    np.testing.assert_allclose(slope, lda(rho)[1], rtol=1e-8)


def test_two_centre_elements_against_a_grid_of_pyscf():
    """<a|v_xc[A + B]|b> of two oxygens on a level-9 grid, in the frame of the tables."""
    pytest.importorskip("pyscf")
    from pyscf import dft, gto

    basis = load_basis("def2-svp")
    slots = Slots.of(basis, [8])
    distance = 2.6
    atom = free_atom(basis, 8)
    shells = {"O": [[s.l, *zip(s.exponents, s.coefficients, strict=True)] for s in basis.shells(8)]}
    mol = gto.M(atom=[("O", (0, 0, 0)), ("O", (0, 0, distance))], basis=shells, unit="B", verbose=0)
    grids = dft.gen_grid.Grids(mol)
    grids.level = 9
    grids.build()
    r_1 = np.linalg.norm(grids.coords, axis=1)
    r_2 = np.linalg.norm(grids.coords - [0, 0, distance], axis=1)
    rho = atom.radial_density(basis, r_1) + atom.radial_density(basis, r_2)
    ao = dft.numint.eval_ao(mol, grids.coords)
    matrix = AOLayout(basis, [8, 8]).from_pyscf((ao.T * (grids.weights * lda(rho)[1])) @ ao)
    n = basis.n_ao(8)
    entries = block_entries(slots)
    row = _pair_row(basis, slots, entries, atom, atom, distance)
    expected = matrix[:n, n:][entries[:, 0], entries[:, 1]]
    # the level-9 grid of PySCF is good to about 1e-6
    np.testing.assert_allclose(row[: len(entries)], expected, atol=3e-6)
    own = on_site_xc(basis, 8)[entries[:, 0], entries[:, 1]] + row[len(entries) : 2 * len(entries)]
    np.testing.assert_allclose(own, matrix[:n, :n][entries[:, 0], entries[:, 1]], atol=3e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("improper", [False, True])
def test_exactly_equivariant(baselines, random_rotation, kind, improper):
    rotation = random_rotation(improper=improper)
    basis = load_basis("sto-3g")
    before = terms(baselines[kind], Batch.of([WATER], basis))
    after = terms(baselines[kind], Batch.of([Molecule(WATER.numbers, WATER.positions @ rotation.T)], basis))
    d = torch.from_numpy(AOLayout(basis, WATER.numbers).rotation(rotation))
    for name in ("fock", "density"):
        torch.testing.assert_close(getattr(after, name)[0], d @ getattr(before, name)[0] @ d.T, atol=1e-12, rtol=0)
    torch.testing.assert_close(after.energy, before.energy, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["atoms", "sap"])
@pytest.mark.parametrize("molecule", [WATER, *HYDROGEN.values()], ids=["water", *HYDROGEN])
def test_twice_differentiable(baselines, kind, molecule):
    batch = Batch.of([molecule], load_basis("sto-3g"))
    torch.manual_seed(1)
    weight = torch.randn(1, batch.ao_mask.shape[1], batch.ao_mask.shape[1], dtype=torch.float64)

    def scalar(positions):
        found = terms(baselines[kind], batch.with_positions(positions))
        return (found.fock * weight).sum() + found.energy.sum()

    positions = batch.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(scalar, positions, fast_mode=True)
    assert torch.autograd.gradgradcheck(scalar, positions, fast_mode=True)


def test_density_counts_the_electrons(baselines):
    batch = Batch.of([WATER], load_basis("sto-3g"))
    overlap, _, _ = one_electron(batch, plan(batch))
    assert float((terms(baselines["atoms"], batch).density * overlap).sum()) == pytest.approx(10, abs=1e-10)


def test_saved_buffers_reproduce_f0(baselines):
    """A checkpoint holds knots; splines are made again and F0 comes out to the last digit."""
    basis = load_basis("sto-3g")
    copy = Baseline("atoms", basis, [1, 8], build=False)
    copy.load_state_dict(baselines["atoms"].state_dict())
    copy.prepare()
    batch = Batch.of([WATER], basis)
    assert torch.equal(terms(copy, batch).fock, terms(baselines["atoms"], batch).fock)


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="baseline 'minao' is not known: it is one of atoms, sap, none"):
        Baseline("minao", load_basis("sto-3g"), [1])
