"""Integrals of second moments: against libcint, under rotation and translation, and their derivatives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from mlsemi.basis import load_basis
from mlsemi.batch import Batch
from mlsemi.integrals import dipole, overlap, plan, second_moments
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.reference.mean_field import to_pyscf_mole


@pytest.mark.parametrize("name", ["sto-3g", "def2-svp", "def2-tzvp"])
def test_equals_libcint(molecules: dict[str, Molecule], name: str) -> None:
    basis = load_basis(name)
    batch = Batch.of([molecules[k] for k in ("water", "helium", "formamide", "hydroxyl")], basis)
    found = second_moments(batch, plan(batch))
    for row, molecule in enumerate(batch.molecules):
        layout = AOLayout(basis, molecule.numbers)
        n = layout.n_ao
        expected = to_pyscf_mole(molecule, basis).intor("int1e_rr").reshape(3, 3, n, n)
        # measured 3e-13: rounding of elements up to 30
        np.testing.assert_allclose(layout.to_pyscf(found[row, :, :, :n, :n].numpy()), expected, rtol=0, atol=1e-10)
    inside = batch.ao_mask[:, :, None] & batch.ao_mask[:, None, :]
    assert (found.movedim((1, 2), (3, 4))[~inside] == 0).all()
    assert torch.equal(found, found.mT)
    assert torch.equal(found, found.transpose(1, 2))


def test_rotation_and_translation(molecules: dict[str, Molecule], random_rotation: Callable[..., np.ndarray]) -> None:
    basis = load_basis("def2-tzvp")
    molecule = molecules["water"]
    rotation, shift = random_rotation(improper=True), np.array([0.3, -1.2, 0.7])
    moved = Molecule(molecule.numbers, molecule.positions @ rotation.T + shift)
    before, after = Batch.of([molecule], basis), Batch.of([moved], basis)
    d = torch.from_numpy(AOLayout(basis, molecule.numbers).rotation(rotation))
    r, a = torch.from_numpy(rotation), torch.from_numpy(shift)
    turned = d @ torch.einsum("ax,by,xyij->abij", r, r, second_moments(before, plan(before))[0]) @ d.T
    first, s = dipole(after, plan(after))[0], overlap(after, plan(after))[0]
    # (x - a)(y - b) = xy - a y - b x + a b
    mixed = a[:, None, None, None] * first
    back = second_moments(after, plan(after))[0] - mixed - mixed.transpose(0, 1)
    back = back + (a[:, None] * a)[:, :, None, None] * s
    torch.testing.assert_close(turned, back, rtol=0, atol=1e-12)


def test_derivatives(molecules: dict[str, Molecule]) -> None:
    for names, name in ((["hydroxyl", "helium"], "def2-svp"), (["hydroxyl"], "def2-tzvp")):
        batch = Batch.of([molecules[k] for k in names], load_basis(name))
        tables, positions = plan(batch), batch.positions.clone().requires_grad_()

        def function(x: torch.Tensor, batch: Batch = batch, tables=tables) -> torch.Tensor:  # noqa: ANN001
            return second_moments(batch.with_positions(x), tables)

        # the error of central differences with this step is 1e-7 of third derivatives of steep functions
        assert torch.autograd.gradcheck(function, positions, eps=1e-5, atol=1e-6, rtol=1e-6, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, positions, eps=1e-5, atol=1e-5, rtol=1e-5, fast_mode=True)
