"""The generalized eigenproblem: identities of its solution, padding, what is refused, and what is repaired."""

import numpy as np
import pytest
import scipy.linalg
import torch
from pyscf import gto, scf

from mlsemi import eigen

OCCUPIED = [3, 1, 5, 2, 1]


@pytest.fixture(scope="module")
def pairs(random_problem):
    return [random_problem(n, seed) for seed, n in enumerate([7, 3, 12, 7, 1])]


@pytest.fixture
def batch(pairs, padded):
    return padded(pairs)


@pytest.mark.parametrize("group", [True, False])
def test_batch_equals_singles_and_scipy(pairs, batch, occupation, group):
    fock, overlap, mask = batch
    fock = torch.where(mask[:, :, None] & mask[:, None], fock, torch.nan)  # padding must not matter
    orbitals, density = eigen.solve_density(fock, overlap, occupation(OCCUPIED, 12), mask, group=group)
    for k, (f, s) in enumerate(pairs):
        n = len(f)
        single, single_density = eigen.solve_density(f[None], s[None], occupation([OCCUPIED[k]], n))
        reference = scipy.linalg.eigh(f.numpy(), s.numpy(), eigvals_only=True)
        # 1e-12: rounding of two LAPACK drivers on spectra of order 10
        np.testing.assert_allclose(single.mo_energy[0], reference, atol=1e-12)
        np.testing.assert_allclose(orbitals.mo_energy[k, :n], reference, atol=1e-12)
        np.testing.assert_allclose(density[k, :n, :n], single_density[0], atol=1e-12)
        c = orbitals.mo_coeff[k, :n, :n]
        np.testing.assert_allclose(c.T @ s @ c, np.eye(n), atol=1e-12)
        np.testing.assert_allclose(f @ c, s @ c * orbitals.mo_energy[k, :n], atol=1e-12)
        assert not orbitals.mo_coeff[k, n:].any() and not orbitals.mo_coeff[k, :, n:].any()
        assert not density[k, n:].any() and not density[k, :, n:].any()
    assert not orbitals.n_dropped.any() and not orbitals.problems


def test_large_members_go_through_lapack_and_agree(random_problem, padded, occupation):
    pairs = [random_problem(n, n) for n in (164, 20, 120)]
    fock, overlap, mask = padded(pairs)
    filled = occupation([30, 5, 30], 164)
    one, two = (eigen.solve_density(fock, overlap, filled, mask, group=group)[1] for group in (True, False))
    # spectra of order 30: rounding times a few hundred operations
    np.testing.assert_allclose(one, two, atol=1e-11)


@pytest.mark.parametrize("group", [True, False])
def test_padding_orbitals_stand_a_few_spectral_widths_above(pairs, batch, group):
    energy = eigen.solve(*batch, group=group).mo_energy
    for k, (f, _) in enumerate(pairs):
        real, padding = energy[k, : len(f)], energy[k, len(f) :]
        assert (padding > real.max()).all()
        assert (padding < 100 * (1 + real.abs().max())).all()


def test_matches_pyscf(occupation, hartree_fock):
    mol = gto.M(atom="O 0 0 0.1173; H 0 0.7572 -0.4692; H 0 -0.7572 -0.4692", basis="sto-3g", verbose=0)
    field = scf.RHF(mol).run(conv_tol=1e-13)
    orbitals, density = eigen.solve_density(*hartree_fock("H2O"))
    # 1e-6: PySCF's orbitals belong to the last but one Fock matrix, converged to the root of its 1e-13 in energy
    np.testing.assert_allclose(orbitals.mo_energy[0], field.mo_energy, atol=1e-6)
    np.testing.assert_allclose(density[0], field.make_rdm1(), atol=1e-6)
    # the gap of water in STO-3G, far from closed
    assert float(orbitals.gap[0]) == pytest.approx(field.mo_energy[5] - field.mo_energy[4], abs=1e-6)


def test_float32_is_solved_in_float64_and_its_rounding_passes(pairs, occupation):
    f, s = (x[None].float() for x in pairs[2])
    f[0, 0, 1] *= 1 + 1e-6
    f.requires_grad_()
    orbitals, density = eigen.solve_density(f, s, occupation([5], 12))
    assert orbitals.mo_energy.dtype == orbitals.mo_coeff.dtype == density.dtype == torch.float64
    (gradient,) = torch.autograd.grad(density.square().sum(), f)
    assert gradient.dtype == torch.float32 and gradient.isfinite().all()
    exact = eigen.density(pairs[2][0][None], pairs[2][1][None], occupation([5], 12))
    # float32 rounds elements of order 5 by 3e-7; the smallest gap is 0.2
    np.testing.assert_allclose(density.detach(), exact, atol=1e-4)


def _broken(fock, overlap, kind):
    if kind == "nan":
        fock[3, 1, 1] = torch.nan
    elif kind == "infinite":
        fock[3, 1, 2] = fock[3, 2, 1] = torch.inf
    elif kind == "nan in S":
        overlap[3, 0, 0] = torch.nan
    elif kind == "indefinite":
        overlap[3, 2, :7] = overlap[3, :7, 2] = 0.0
        overlap[3, 2, 2] = -0.25
    elif kind == "asymmetric":
        fock[3, 1, 2] += 0.25
    return fock, overlap


PROBLEMS = {
    "nan": r"fock of molecule 3 of the batch holds values that are not finite",
    "infinite": r"fock of molecule 3 of the batch holds values that are not finite",
    "nan in S": r"overlap of molecule 3 of the batch holds values that are not finite",
    "indefinite": r"overlap of molecule 3 of the batch .* smallest eigenvalue is -2\.500e-01",
    "asymmetric": r"fock of molecule 3 of the batch is not symmetric: .* up to 2\.5e-01",
}


@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_bad_member_is_named_and_spoils_no_other(batch, occupation, kind, group):
    fock, overlap, mask = batch
    filled = occupation(OCCUPIED, 12)
    good = torch.arange(5) != 3

    def gradients(f, s, **options):
        f, s = f.clone().requires_grad_(), s.clone().requires_grad_()
        orbitals, density = eigen.solve_density(f, s, filled, mask, group=group, **options)
        loss = density.square().sum((1, 2)) + orbitals.mo_energy.sum(1)
        # the loss of the bad member is NaN, and left out afterwards as callers do
        first = torch.autograd.grad(loss.nan_to_num().sum(), (f, s), create_graph=True)
        second = torch.autograd.grad(sum(x.square().sum() for x in first), (f, s))
        return orbitals, density.detach(), [x.detach() for x in (*first, *second)]

    expected = gradients(fock, overlap)
    fock, overlap = _broken(fock.clone(), overlap.clone(), kind)
    with pytest.raises(ValueError, match=PROBLEMS[kind]):
        eigen.solve(fock, overlap, mask, group=group)
    orbitals, density, found = gradients(fock, overlap, errors="mark")
    assert list(orbitals.problems) == [3]
    with pytest.raises(ValueError, match=PROBLEMS[kind]):
        raise ValueError(orbitals.problems[3])
    for value in (orbitals.mo_energy, orbitals.mo_coeff, density):
        assert value[3].isnan().all() and value[good].isfinite().all()
    np.testing.assert_allclose(density[good], expected[1][good], atol=1e-12)
    for x, y in zip(found, expected[2], strict=True):
        # second derivatives of order 1e3
        np.testing.assert_allclose(x[good], y[good], atol=1e-9)
        assert not x[3].any()


def test_members_have_the_names_that_are_given(batch):
    fock, overlap = _broken(batch[0].clone(), batch[1], "nan")
    with pytest.raises(ValueError, match="fock of water, spin down, holds"):
        eigen.solve(fock, overlap, batch[2], names=["a", "b", "c", "water, spin down,", "e"])
    with pytest.raises(ValueError, match="one name for each of the 5 members"):
        eigen.solve(*batch, names=["a"])
    with pytest.raises(ValueError, match="errors must be 'raise' or 'mark', got 'ignore'"):
        eigen.solve(*batch, errors="ignore")


@pytest.mark.parametrize("failure", ["wrong vectors", "no convergence"])
def test_failed_solver_is_found_and_repaired(monkeypatch, batch, occupation, failure):
    fock, overlap, mask = batch
    expected = eigen.solve(fock, overlap, mask)
    honest = torch.linalg.eigh

    def broken(matrix):
        if failure == "no convergence":
            raise torch.linalg.LinAlgError("as CUDA's Jacobi solver says it")
        energy, vectors = honest(matrix)
        vectors = vectors.clone()
        vectors[2, :, 0] = vectors[2, :, 1]
        return energy, vectors

    monkeypatch.setattr(torch.linalg, "eigh", broken)
    named = "molecule 2 of the batch" if failure == "wrong vectors" else "molecule 0 .* molecule 4 of the batch"
    with pytest.warns(RuntimeWarning, match=rf"failed for {named} \(relative"):
        repaired = eigen.solve(fock, overlap, mask, group=False)
    np.testing.assert_allclose(repaired.mo_energy[mask], expected.mo_energy[mask], atol=1e-12)
    assert (repaired.mo_energy[~mask] > 0).all()
    filled = occupation(OCCUPIED, 12).unsqueeze(1)
    d = [(c * filled) @ c.mT for c in (repaired.mo_coeff, expected.mo_coeff)]
    np.testing.assert_allclose(d[0], d[1], atol=1e-12)


def _corrupted(energy, coeff, kind, size):
    """One solution with an error of relative size `size`, in place."""
    if kind == "one vector":
        coeff[:, 3] += size * coeff[:, 7]
    elif kind == "scaled":
        coeff[:, 3] *= 1 + size
    elif kind == "energy":
        energy[3] += size * np.abs(energy).max()
    elif kind == "turned":  # the residual matrix has rank two
        coeff[:, 3], coeff[:, 7] = coeff[:, 3] + size * coeff[:, 7], coeff[:, 7] - size * coeff[:, 3]
    elif kind == "along one direction":  # it has rank one: the worst case for a vector to find
        coeff += size * np.outer(coeff[:, 3], np.sin(np.arange(len(energy)) + 1))
    elif kind == "not a number":
        coeff[0, 0] = np.nan


KINDS = ["one vector", "scaled", "energy", "turned", "along one direction", "not a number"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [12, 120, 164])
def test_every_corrupted_solution_is_found_and_repaired(monkeypatch, random_problem, kind, n):
    pairs = [random_problem(n, seed) for seed in range(3)]
    fock, overlap = (torch.stack([pair[i] for pair in pairs]) for i in (0, 1))
    expected = eigen.solve(fock, overlap)
    eigh, sygvd, syevd = torch.linalg.eigh, scipy.linalg.lapack.dsygvd, scipy.linalg.lapack.dsyevd
    calls = []

    def batched(matrix, out=None):
        energy, vectors = eigh(matrix, out=out)
        if len(matrix) == 3:
            # 1e-6 of the norm: a hundred times below what a solver that fails leaves
            _corrupted(energy[1].numpy(), vectors[1].numpy(), kind, 1e-6)
        return energy, vectors

    def single(*matrices, **options):
        energy, vectors, info = (sygvd if len(matrices) == 2 else syevd)(*matrices, **options)
        calls.append(len(energy))
        if len(calls) == 2:
            _corrupted(energy, vectors, kind, 1e-6)
        return energy, vectors, info

    with monkeypatch.context() as patch:
        patch.setattr(torch.linalg, "eigh", batched)
        patch.setattr(scipy.linalg.lapack, "dsygvd", single)
        patch.setattr(scipy.linalg.lapack, "dsyevd", single)
        with pytest.warns(RuntimeWarning, match=r"failed for molecule 1 of the batch \(relative"):
            found = eigen.solve(fock, overlap)
    # rounding of two LAPACK drivers on spectra of order 30
    np.testing.assert_allclose(found.mo_energy, expected.mo_energy, atol=1e-11)
    for c, d, s in zip(found.mo_coeff, expected.mo_coeff, overlap, strict=True):
        np.testing.assert_allclose((c.T @ s @ d).abs(), np.eye(n), atol=1e-9)


@pytest.mark.parametrize("n", [120, 164])
def test_large_members_that_are_wrong_spoil_no_other(random_problem, occupation, n):
    pairs = [random_problem(n, seed) for seed in range(4)]
    fock, overlap = (torch.stack([pair[i] for pair in pairs]) for i in (0, 1))
    filled = occupation([20] * 4, n)
    expected = eigen.density(fock, overlap, filled)
    rounded = fock.clone()
    rounded[0, 3, 5] += 1e-7  # as float32 rounds: averaged
    rounded[1, 0, 0] = torch.nan
    broken = overlap.clone()
    broken[2, 0] = broken[2, :, 0] = 0.0
    broken[2, 0, 0] = -0.25
    orbitals, density = eigen.solve_density(rounded, broken, filled, errors="mark")
    assert list(orbitals.problems) == [1, 2]
    assert density[1:3].isnan().all()
    # 1e-6: the change of F by rounding over the smallest gap
    np.testing.assert_allclose(density[0], expected[0], atol=1e-6)
    np.testing.assert_allclose(density[3], expected[3], atol=1e-11)
    symmetric = (rounded[:1] + rounded[:1].mT) / 2
    np.testing.assert_allclose(density[:1], eigen.density(symmetric, overlap[:1], filled[:1]), atol=1e-11)


def test_lapack_that_fails_too_is_an_error(monkeypatch, batch):
    def broken(*_, **__):
        raise np.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", lambda a: (torch.full_like(a[..., 0], torch.nan), a))
    monkeypatch.setattr(scipy.linalg, "eigh", broken)
    with pytest.warns(RuntimeWarning, match="failed for"), pytest.raises(RuntimeError, match="molecule 0 .* cannot"):
        eigen.solve(*batch, group=False)


def test_shapes_and_occupations_are_checked(pairs, occupation):
    f, s = pairs[0]
    with pytest.raises(ValueError, match="fock must have shape"):
        eigen.solve(f, s)
    with pytest.raises(ValueError, match="overlap must have the shape of fock"):
        eigen.solve(f[None], s[None, :3, :3])
    with pytest.raises(ValueError, match="ao_mask must have shape"):
        eigen.solve(f[None], s[None], torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="first AOs"):
        eigen.solve(f[None], s[None], torch.arange(7)[None] != 2)
    with pytest.raises(ValueError, match="occupation must have shape"):
        eigen.density(f[None], s[None], occupation([3], 5))
    with pytest.raises(ValueError, match="occupations of molecule 0 .* beyond its 4 orbitals"):
        eigen.density(f[None], s[None], occupation([5], 7), torch.arange(7)[None] < 4)


def test_square_root(batch):
    _, overlap, mask = batch
    root = eigen.square_root(overlap, mask)
    np.testing.assert_allclose(root @ root, overlap, atol=1e-12)  # zero in the padding as well
    with pytest.raises(ValueError, match="overlap of molecule 1 .* smallest eigenvalue"):
        eigen.square_root(torch.stack([torch.eye(2), torch.ones(2, 2)]) - 1e-3 * torch.eye(2))
    with pytest.raises(ValueError, match="overlap of molecule 1 .* not finite"):
        eigen.square_root(torch.stack([torch.eye(2), torch.full((2, 2), torch.nan)]))
