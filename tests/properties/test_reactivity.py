"""Frontier orbitals, conceptual DFT, Fukui functions: closed forms on PySCF's orbitals, degenerate sets included."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from mlsemi.batch import Batch
from mlsemi.properties.populations import mulliken_populations, orbital_populations
from mlsemi.properties.reactivity import (
    differentiable_frontier_densities,
    frontier,
    frontier_densities,
    frontier_occupations,
    fukui,
)
from mlsemi.state import solve_state


def orbitals_of(t):
    return t.mo_energy, t.mo_coeff, t.mo_occ


def alone(case):
    """A batch of one, and its tensors."""
    o = case.observables
    batch = Batch.of([case.molecule], case.basis)
    return batch, *(torch.from_numpy(x)[None] for x in (o.mo_energy, o.mo_coeff, o.mo_occ, o.overlap, o.fock))


def test_frontier_orbitals_and_what_is_made_of_them(together):
    found = frontier(together.mo_energy, together.mo_occ, together.batch)
    for k, case in enumerate(together.cases):
        o = case.observables
        i, a = -o.homo, -o.lumo
        expected = {
            "homo": -i, "lumo": -a, "gap": i - a, "hardness": (i - a) / 2, "electronegativity": (i + a) / 2,
            "electrophilicity": (i + a) ** 2 / (8 * (i - a)),
        }  # fmt: skip
        for name, value in expected.items():
            assert float(getattr(found, name)[k]) == pytest.approx(value, rel=1e-13), name


def test_no_electrophilicity_without_a_gap(solved):
    batch, energy, _, occ, *_ = alone(solved("N2", "sto-3g"))
    found = frontier(torch.zeros_like(energy), occ, batch)
    assert found.hardness == 0 and found.electrophilicity.isnan().all()


def test_orbitals_that_are_missing(solved):
    batch, energy, _, occ, *_ = alone(solved("N2", "sto-3g"))
    assert frontier(energy, torch.zeros_like(occ), batch).homo.isnan().all()
    full = frontier(energy, torch.full_like(occ, 2.0), batch)
    assert full.lumo.isnan().all() and full.gap.isnan().all()
    minus, plus = frontier_occupations(energy, torch.full_like(occ, 2.0), batch)
    assert minus.sum() == 1 and not plus.any()


@pytest.mark.parametrize("kind", ["mulliken", "loewdin"])
def test_fukui_functions_are_populations_of_orbitals(together, kind):
    """By hand from PySCF's coefficients, over both spins; sets are known: e of NH3 is not at the edges, pi of N2 is."""
    densities = frontier_densities(*orbitals_of(together), together.batch)
    found = fukui(densities, together.overlap, together.batch, kind=kind)
    for k, case in enumerate(together.cases):
        f = case.field
        energy, coeff, occ = (np.reshape(x, (-1, *np.shape(x)[-n:])) for x, n in
                              ((f.mo_energy, 1), (f.mo_coeff, 2), (f.mo_occ, 1)))  # fmt: skip
        s = f.get_ovlp()
        values, vectors = np.linalg.eigh(s)
        root = (vectors * values**0.5) @ vectors.T
        homo, lumo = energy[occ > 0].max(), energy[occ == 0].min()
        for ours, members in (
            (found.minus, (occ > 0) & (energy > homo - 1e-6)),
            (found.plus, (occ == 0) & (energy < lumo + 1e-6)),
        ):
            c = np.concatenate([coeff[spin][:, members[spin]] for spin in range(len(energy))], axis=1)
            share = c * (s @ c) if kind == "mulliken" else (root @ c) ** 2
            on_aos = share.sum(1) / c.shape[1]
            expected = [on_aos[a:b].sum() for a, b in f.mol.aoslice_by_atom()[:, 2:]]
            np.testing.assert_allclose(ours[together.atoms(k)], expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.zero, (found.minus + found.plus) / 2)
    total = torch.zeros(len(together.cases), dtype=torch.float64).index_add(0, together.batch.molecule, found.zero)
    np.testing.assert_allclose(total, 1, atol=1e-10)


def test_degenerate_sets_are_averaged(solved, rng):
    """HOMO and LUMO of benzene are pairs: equal on all six carbons, whichever orbitals of the pairs are taken."""
    batch, energy, coeff, occ, overlap, _ = alone(solved("benzene", "sto-3g"))
    minus, plus = frontier_occupations(energy, occ, batch)
    assert (minus > 0).sum() == (plus > 0).sum() == 2
    before = fukui(frontier_densities(energy, coeff, occ, batch), overlap, batch, kind="mulliken")
    mixed = coeff.clone()
    angle = rng.uniform(0.3, 1.2)
    turn = torch.tensor([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    for pair in (minus, plus):
        columns = (pair[0, 0] > 0).nonzero().flatten()
        mixed[0, 0, :, columns] = coeff[0, 0, :, columns] @ turn
    after = fukui(frontier_densities(energy, mixed, occ, batch), overlap, batch, kind="mulliken")
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
        # the positions have full precision, the SCF is converged to 1e-9
        np.testing.assert_allclose(one[:6], float(one[0]), rtol=0, atol=1e-7)
    np.testing.assert_allclose(before.minus[:6], 1 / 6, atol=1e-6)  # pure pi orbitals: nothing on hydrogen


def test_differentiable_densities_are_the_same(together):
    """In a batch of closed and open shells with padding."""
    fock = torch.zeros_like(together.density)
    for k, case in enumerate(together.cases):
        i = slice(int(together.batch.n_ao[k]))
        fock[k, :, i, i] = torch.from_numpy(case.observables.fock)
    state = solve_state(fock, together.overlap, together.batch)
    ours = frontier_densities(state.mo_energy, state.mo_coeff, state.mo_occ, together.batch)
    again = differentiable_frontier_densities(fock, together.overlap, state.mo_energy, state.mo_occ, together.batch)
    for one, other in zip(ours, again, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    pyscf = frontier_densities(*orbitals_of(together), together.batch)
    for one, other in zip(ours, pyscf, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)  # convergence of the SCF over the distance of levels


def test_derivatives_by_finite_differences(solved):
    """Of frontier energies and Fukui functions in the Fock matrix, with a pair as the HOMO."""
    case = solved("OH-", "sto-3g")
    batch, *_, overlap, fock = alone(case)

    def function(f, s):
        f, s = (f + f.mT) / 2, (s + s.mT) / 2
        state = solve_state(f, s, batch)
        densities = differentiable_frontier_densities(f, s, state.mo_energy, state.mo_occ, batch)
        edges = frontier(state.mo_energy, state.mo_occ, batch)
        # the HOMO is a pair, whose energies a finite difference would split
        return *fukui(densities, s, batch, kind="loewdin")[:2], edges.lumo

    # steps of 1e-7 leave the pi pair within what counts as degenerate
    assert gradcheck(function, [fock.requires_grad_(), overlap.requires_grad_()], eps=1e-6, atol=1e-6, fast_mode=True)


@pytest.mark.parametrize("kind", ["mulliken", "loewdin"])
def test_shares_of_atoms_in_orbitals(together, kind):
    shares = orbital_populations(together.mo_coeff, together.overlap, together.batch, kind=kind)
    exists = torch.arange(shares.shape[-1]) < together.batch.n_ao[:, None, None]
    np.testing.assert_allclose(shares.sum(2), exists.expand_as(together.mo_occ), rtol=0, atol=1e-10)
    if kind == "mulliken":
        electrons = torch.einsum("ksam,ksm->ka", shares, together.mo_occ)
        expected = mulliken_populations(together.density.sum(1), together.overlap, together.batch)
        for k, case in enumerate(together.cases):
            atoms = together.atoms(k)
            torch.testing.assert_close(electrons[k, : case.molecule.n_atoms], expected[atoms], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="kind='hirshfeld' must be"):
        orbital_populations(together.mo_coeff, together.overlap, together.batch, kind="hirshfeld")
