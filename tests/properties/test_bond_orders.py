"""Bond orders and valences: their definitions on PySCF's matrices, textbook values, and sum rules."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from mlsemi.batch import Batch
from mlsemi.properties.bond_orders import mayer_bond_orders, mayer_valences, wiberg_bond_orders

KINDS = {"mayer": mayer_bond_orders, "wiberg": wiberg_bond_orders}


def from_definition(case, kind):
    """Atom by atom from PySCF's matrices, in PySCF's order."""
    s = case.field.get_ovlp()
    d = case.field.make_rdm1()
    spins = [d / 2, d / 2] if d.ndim == 2 else list(d)
    values, vectors = np.linalg.eigh(s)
    root = (vectors * values**0.5) @ vectors.T
    x = [root @ p @ root if kind == "wiberg" else p @ s for p in spins]
    slices = [slice(a, b) for a, b in case.field.mol.aoslice_by_atom()[:, 2:]]
    out = np.zeros((len(slices), len(slices)))
    for a, i in enumerate(slices):
        for b, j in enumerate(slices):
            if a != b:
                out[a, b] = 2 * sum((p[i, j] * p[j, i].T).sum() for p in x)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_as_defined_on_the_matrices_of_pyscf(together, kind):
    found = KINDS[kind](together.density, together.overlap, together.batch)
    for k, case in enumerate(together.cases):
        n = case.molecule.n_atoms
        # 1e-10: the same sums in another order
        np.testing.assert_allclose(found[k, :n, :n], from_definition(case, kind), rtol=0, atol=1e-10)
        assert not found[k, n:].any() and not found[k, :, n:].any()


@pytest.mark.parametrize(("name", "order"), [("N2", 3.0), ("O2", 2.0)])
def test_textbook_orders_in_a_minimal_basis(solved, name, order):
    """Three bonds; two, of which one and a half are of alpha electrons."""
    case = solved(name, "sto-3g")
    o = case.observables
    batch = Batch.of([case.molecule], case.basis)
    d, s = torch.from_numpy(o.density)[None], torch.from_numpy(o.overlap)[None]
    found = mayer_bond_orders(d, s, batch)[0, 0, 1]
    np.testing.assert_allclose(found, order, rtol=0, atol=1e-6)


def test_closed_shells_of_one_and_of_two_spins_are_the_same(solved, together):
    for k in (0, 2, 4, 5):
        case = together.cases[k]
        batch = Batch.of([case.molecule], case.basis)
        d, s = torch.from_numpy(case.observables.density)[None], torch.from_numpy(case.observables.overlap)[None]
        n = case.molecule.n_atoms
        for function in KINDS.values():
            both = function(together.density, together.overlap, together.batch)[k, :n, :n]
            torch.testing.assert_close(function(d, s, batch)[0], both, rtol=0, atol=1e-12)
        assert not mayer_valences(d, s, batch).free.any()


def test_free_valences_are_what_the_bonds_leave(together):
    bonds = mayer_bond_orders(together.density, together.overlap, together.batch).sum(2)
    total, free = mayer_valences(together.density, together.overlap, together.batch)
    for k, case in enumerate(together.cases):
        atoms = together.atoms(k)
        # holds for determinants: 1e-9 is the convergence of the SCF
        rest = total[atoms] - bonds[k, : case.molecule.n_atoms]
        np.testing.assert_allclose(free[atoms], rest, rtol=0, atol=1e-9)
        if not case.molecule.spin:
            np.testing.assert_allclose(free[atoms], 0, atol=1e-12)
    # one unpaired electron in a pure p orbital of carbon, but for polarization of the others' spins
    assert free[together.atoms(1)][0] == pytest.approx(1.0, abs=0.2)


def test_rotation_and_derivatives(solved, random_rotation):
    """Turned matrices give the same orders; derivatives by finite differences, on a batch with padding."""
    from mlsemi.layout import AOLayout

    case = solved("O2", "def2-svp")
    o, layout = case.observables, AOLayout(case.basis, case.molecule.numbers)
    turn = layout.rotation(random_rotation(improper=True))
    batch = Batch.of([case.molecule], case.basis)
    for function in KINDS.values():
        one, other = (
            function(torch.from_numpy(r @ o.density @ r.T)[None], torch.from_numpy(r @ o.overlap @ r.T)[None], batch)
            for r in (np.eye(layout.n_ao), turn)
        )
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_derivatives(solved):
    case = solved("O2", "sto-3g")
    batch = Batch.of([case.molecule], case.basis)
    inputs = [torch.from_numpy(x)[None].requires_grad_() for x in (case.observables.density, case.observables.overlap)]
    assert gradcheck(
        lambda d, s: (
            mayer_bond_orders(d, s, batch),
            wiberg_bond_orders(d, s, batch),
            *mayer_valences(d, s, batch),
        ),
        inputs,
        fast_mode=True,
    )
