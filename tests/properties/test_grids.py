"""AO values, orbitals, densities and potentials at points, against libcint's, in batches with radicals and padding."""

import numpy as np
import pytest
import torch
from pyscf import scf
from torch.autograd import gradcheck

from mlsemi.basis import Basis, Shell, load_basis
from mlsemi.batch import Batch
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.properties.grids import (
    BoxGrid,
    ao_values,
    box_grid,
    density_at,
    orbitals_at,
    points_of,
    potential_at,
)
from mlsemi.reference.mean_field import to_pyscf_mole

AMMONIA = Molecule.from_angstrom(
    np.array([7, 1, 1, 1]), np.array([[0, 0, 0.1], [0, 0.94, -0.27], [0.81, -0.47, -0.27], [-0.81, -0.47, -0.27]])
)
METHYL = Molecule.from_angstrom(
    np.array([6, 1, 1, 1]), np.array([[0.1, 0, 0], [0, 1.08, 0.1], [0.94, -0.54, 0], [-0.94, -0.54, 0]]), spin=1
)
HYDROGEN_FLUORIDE = Molecule.from_angstrom(np.array([1, 9]), np.array([[0.3, 0.2, 0.1], [0.5, 1.0, 0.4]]))
MOLECULES = [AMMONIA, METHYL, HYDROGEN_FLUORIDE]


def up_to_f() -> Basis:
    """STO-3G with d shells on all and f shells on the heavy atoms, contracted."""
    small = load_basis("sto-3g").subset((1, 6, 7, 9))
    d, f = Shell.normalized(2, (1.3, 0.4), (0.4, 0.7)), Shell.normalized(3, (0.9, 0.3), (0.6, -0.2))
    return Basis("f", {z: (*s, d, f) if z > 1 else (*s, d) for z, s in small.elements.items()})


@pytest.fixture(scope="module")
def case():
    """A batch with two spins for all, its orbitals and densities by PySCF, and PySCF's objects."""
    batch = Batch.of(MOLECULES, load_basis("6-31g"))
    n = batch.ao_mask.shape[1]
    coefficients, density = torch.zeros(2, len(MOLECULES), 2, n, n, dtype=torch.float64)
    fields = []
    for k, molecule in enumerate(MOLECULES):
        mol = to_pyscf_mole(molecule, batch.basis)
        field = scf.UHF(mol).run()
        layout = AOLayout(batch.basis, molecule.numbers)
        i = slice(layout.n_ao)
        coefficients[k, :, i, i] = torch.from_numpy(layout.from_pyscf(np.asarray(field.mo_coeff), axes=(-2,)))
        density[k, :, i, i] = torch.from_numpy(layout.from_pyscf(np.asarray(field.make_rdm1())))
        fields.append((mol, layout, field))
    return batch, coefficients, density, fields


def random_points(rng: np.random.Generator, n: int) -> torch.Tensor:
    return torch.from_numpy(rng.normal(scale=2.0, size=(len(MOLECULES), n, 3)))


def test_ao_values_as_libcint(rng):
    batch = Batch.of(MOLECULES, up_to_f())
    points = random_points(rng, 50)
    values = ao_values(batch, points).numpy()
    for k, molecule in enumerate(MOLECULES):
        layout = AOLayout(batch.basis, molecule.numbers)
        expected = to_pyscf_mole(molecule, batch.basis).eval_gto("GTOval_sph", points[k].numpy())
        # 1e-12: the same functions to rounding
        np.testing.assert_allclose(
            values[k, :, : layout.n_ao], layout.from_pyscf(expected, axes=(-1,)), atol=1e-12, rtol=1e-12
        )
        assert not values[k, :, layout.n_ao :].any()


def test_orbitals_and_densities_as_pyscf(case, rng):
    batch, coefficients, density, fields = case
    points = random_points(rng, 40)
    orbitals = orbitals_at(batch, coefficients, points)
    total = density_at(batch, density.sum(1), points)
    spin = density_at(batch, density[:, 0] - density[:, 1], points)
    for k, (mol, layout, field) in enumerate(fields):
        ao = mol.eval_gto("GTOval_sph", points[k].numpy())
        expected = np.einsum("pm,smi->sip", ao, field.mo_coeff)
        np.testing.assert_allclose(orbitals[k, :, : layout.n_ao], expected, atol=1e-12)
        alpha, beta = np.einsum("pm,smn,pn->sp", ao, field.make_rdm1(), ao)
        np.testing.assert_allclose(total[k], alpha + beta, atol=1e-12)
        np.testing.assert_allclose(spin[k], alpha - beta, atol=1e-12)
    assert spin[1].abs().max() > 1e-3  # of the radical


def test_potential_as_pyscf(case, rng):
    batch, _, density, fields = case
    points = random_points(rng, 30)
    potential = potential_at(batch, density.sum(1), points)
    for k, (mol, _, field) in enumerate(fields):
        x = points[k].numpy()
        electrons = np.einsum("pmn,smn->p", mol.intor("int1e_grids", grids=x), field.make_rdm1())
        nuclei = (mol.atom_charges() / np.linalg.norm(x[:, None] - mol.atom_coords(), axis=-1)).sum(1)
        # 1e-10: exact integrals on both sides, of up to some 10 Eh
        np.testing.assert_allclose(potential[k], nuclei - electrons, atol=1e-10)


def test_chunks_change_nothing(case, rng, monkeypatch):
    batch, coefficients, density, _ = case
    points = random_points(rng, 17)

    def all_of_it():
        return (
            orbitals_at(batch, coefficients, points),
            density_at(batch, density.sum(1), points),
            potential_at(batch, density.sum(1), points),
        )

    whole = all_of_it()
    monkeypatch.setattr("mlsemi.properties.grids.CHUNK", 300)
    for one, many in zip(whole, all_of_it(), strict=True):
        np.testing.assert_allclose(many, one, atol=1e-12)


def test_box_holds_the_electrons(case):
    batch, coefficients, density, _ = case
    grid = box_grid(METHYL, step=0.3, margin=6.0)
    assert (METHYL.positions.min(0) - grid.points.min(0) >= 6.0 - 1e-9).all()
    assert (grid.points.max(0) - METHYL.positions.max(0) >= 6.0 - 1e-9).all()
    assert grid.points.shape == (grid.n_points, 3)
    np.testing.assert_allclose(grid.points.reshape(*grid.shape, 3)[0, 0, 1] - grid.origin, [0, 0, 0.3], atol=1e-12)
    points = points_of(grid, batch)
    frontier = orbitals_at(batch, coefficients[..., 4:5], points)[1, 0, 0]
    # the sum over a regular grid is exact but for steep cores and what lies outside of the box
    assert float((frontier**2).sum() * grid.weight) == pytest.approx(1.0, abs=1e-4)
    spin = density_at(batch, density[:, 0] - density[:, 1], points)[1]
    assert float(spin.sum() * grid.weight) == pytest.approx(1.0, abs=1e-3)


def test_derivatives(rng):
    batch = Batch.of([HYDROGEN_FLUORIDE, METHYL], load_basis("sto-3g"))
    n = batch.ao_mask.shape[1]
    density = torch.from_numpy(rng.normal(size=(2, n, n)))
    density = (density + density.mT) * batch.ao_mask[:, None] * batch.ao_mask[:, :, None]
    points = torch.from_numpy(rng.normal(size=(2, 3, 3)))

    def values(d, r, x):
        moved = batch.with_positions(x)
        return density_at(moved, d, r), potential_at(moved, d, r)

    inputs = tuple(v.clone().requires_grad_() for v in (density, points, batch.positions))
    assert gradcheck(values, inputs, fast_mode=True)


def test_potential_turns_with_the_molecule(case, rng, random_rotation):
    batch, _, density, _ = case
    rotation = random_rotation()
    points = random_points(rng, 10)
    turned = batch.with_positions(batch.positions @ torch.from_numpy(rotation.T))
    d = density.sum(1).clone()
    for k, molecule in enumerate(MOLECULES):
        layout = AOLayout(batch.basis, molecule.numbers)
        i = slice(layout.n_ao)
        matrix = torch.from_numpy(layout.rotation(rotation))
        d[k, i, i] = matrix @ d[k, i, i] @ matrix.T
    x = points @ torch.from_numpy(rotation.T)
    before, after = potential_at(batch, density.sum(1), points), potential_at(turned, d, x)
    np.testing.assert_allclose(after, before, atol=1e-11)
    np.testing.assert_allclose(density_at(turned, d, x), density_at(batch, density.sum(1), points), atol=1e-11)


def test_refusals():
    batch = Batch.of([HYDROGEN_FLUORIDE], load_basis("sto-3g"))
    with pytest.raises(ValueError, match="step=0"):
        box_grid(AMMONIA, step=0.0)
    with pytest.raises(ValueError, match=r"points must have shape \(molecule, point, 3\)"):
        ao_values(batch, torch.zeros(5, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"points must have shape \(point, 3\)"):
        points_of(np.zeros(3), batch)
    assert points_of(BoxGrid(np.zeros(3), 0.5, (2, 1, 1)), batch).shape == (1, 2, 3)
