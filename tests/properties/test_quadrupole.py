"""Second and quadrupole moments: on PySCF's densities, of point charges, under rotation, and in H2's closed form."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from mlsemi.batch import Batch
from mlsemi.integrals import plan, second_moments
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.properties.multipoles import quadrupole, second_moment, traceless


def test_as_pyscf(together):
    """For closed and open shells, charged ones, and linear molecules."""
    integrals = second_moments(together.batch, plan(together.batch))
    density = together.density.sum(1)
    raw = second_moment(density, integrals, together.batch)
    theta = quadrupole(density, integrals, together.batch)
    for k, case in enumerate(together.cases):
        mole, d = case.field.mol, case.field.make_rdm1()
        d = d if d.ndim == 2 else d.sum(0)
        x = mole.atom_coords()
        expected = np.einsum("a,ai,aj->ij", mole.atom_charges(), x, x)
        expected -= np.einsum("xij,ij->x", mole.intor("int1e_rr"), d).reshape(3, 3)
        # 1e-10: the same density and integrals, summed in another order
        np.testing.assert_allclose(raw[k], expected, rtol=0, atol=1e-10)
        np.testing.assert_allclose(theta[k], 1.5 * expected - 0.5 * np.trace(expected) * np.eye(3), rtol=0, atol=1e-10)
        if hasattr(case.field, "quad_moment"):  # in newer versions
            np.testing.assert_allclose(theta[k], case.field.quad_moment(unit="AU", verbose=0), rtol=0, atol=1e-10)
    np.testing.assert_allclose(theta.diagonal(dim1=1, dim2=2).sum(1), 0, atol=1e-12)


def test_n2_is_a_linear_quadrupole(solved):
    """Theta along the axis, minus half of it across; HF/def2-SVP lies near the -1.1 e bohr^2 of experiment."""
    case = solved("N2", "def2-svp")
    batch = Batch.of([case.molecule], case.basis)
    density = torch.from_numpy(case.observables.density).clone()
    theta = quadrupole(density, second_moments(batch, plan(batch)), batch)[0]
    axis = np.subtract(*case.molecule.positions)
    axis = axis / np.linalg.norm(axis)
    along = axis @ theta.numpy() @ axis
    expected = along * (1.5 * np.outer(axis, axis) - 0.5 * np.eye(3))
    np.testing.assert_allclose(theta, expected, rtol=0, atol=1e-8)  # the convergence of the SCF
    assert along == pytest.approx(-1.1, abs=0.3)


def test_point_charges_and_rotation(together, random_rotation):
    """Without electrons the nuclei remain; turned matrices and positions give turned tensors."""
    case = together.cases[5]
    layout = AOLayout(case.basis, case.molecule.numbers)
    rotation = random_rotation(improper=True)
    turn = layout.rotation(rotation)
    turned = Molecule(case.molecule.numbers, case.molecule.positions @ rotation.T)
    found = []
    for molecule, r in ((case.molecule, np.eye(layout.n_ao)), (turned, turn)):
        batch = Batch.of([molecule], case.basis)
        density = torch.from_numpy(r @ case.observables.density @ r.T)
        integrals = second_moments(batch, plan(batch))
        found.append(quadrupole(density, integrals, batch)[0].numpy())
        nuclei = second_moment(torch.zeros_like(density), integrals, batch)[0]
        x = molecule.positions
        np.testing.assert_allclose(nuclei, (x.T * molecule.numbers) @ x, rtol=0, atol=1e-13)
    np.testing.assert_allclose(rotation @ found[0] @ rotation.T, found[1], rtol=0, atol=1e-10)


def test_derivatives(solved):
    case = solved("OH-", "sto-3g")
    batch = Batch.of([case.molecule], case.basis)
    tables = plan(batch)
    inputs = [
        torch.from_numpy(case.observables.density).requires_grad_(),
        batch.positions.clone().requires_grad_(),
    ]

    def function(density, positions):
        moved = batch.with_positions(positions)
        return second_moment(density, second_moments(moved, tables), moved)

    assert gradcheck(function, inputs, fast_mode=True)
    assert gradcheck(lambda x: traceless(x), torch.eye(3, dtype=torch.float64, requires_grad=True)[None])
