"""Nearly singular overlaps: functions that are dropped, and the filter that lifts them."""

import numpy as np
import pytest
import torch
from pyscf import gto, scf
from torch.autograd import gradcheck, gradgradcheck

from mlsemi import eigen


def _leaves(*values):
    return tuple(x.clone().requires_grad_() for x in values)


def _canonical(fock, overlap, count):
    """Energies and projected metric of what is left without the `count` eigenvectors of S of least eigenvalue."""
    values, vectors = torch.linalg.eigh(overlap)
    basis = vectors[:, count:] * values[count:] ** -0.5
    energy, turn = torch.linalg.eigh(basis.T @ fock @ basis)
    return energy, basis @ turn


def test_nearly_dependent_basis_drops_a_function_visibly():
    # s functions whose exponents lie 5 % apart: smallest eigenvalue of S 8e-10
    exponents = 0.1 * 1.05 ** np.arange(4)
    mol = gto.M(atom="He 0 0 0", basis={"He": [[0, [a, 1.0]] for a in exponents] + [[0, [3.0, 1.0]]]}, verbose=0)
    s, h = torch.from_numpy(mol.intor("int1e_ovlp")), torch.from_numpy(scf.hf.get_hcore(mol))
    with pytest.warns(RuntimeWarning, match=r"below 1e-07: 1 of molecule 0 of the batch \(smallest .* 7\.6e-10"):
        orbitals = eigen.solve(h[None], s[None])
    assert orbitals.n_dropped.tolist() == [1]
    # 1e-8: kept eigenvalues of 1e-5 amplify rounding
    np.testing.assert_allclose(orbitals.mo_energy[0, :4], _canonical(h, s, 1)[0], atol=1e-8)
    assert float(orbitals.mo_energy[0, 4]) > float(orbitals.mo_energy[0, 3])
    # with a lower threshold nothing is dropped
    assert not eigen.solve(h[None], s[None], linear_dependence=1e-12).n_dropped.any()


@pytest.mark.filterwarnings("ignore:S is nearly singular")
@pytest.mark.parametrize("group", [True, False])
def test_members_of_a_batch_drop_what_they_must(near_dependent, random_problem, padded, occupation, group):
    one, two = near_dependent(1, 1e-9), near_dependent(2, -1e-9, 1e-10, n=6)  # the second has no Cholesky factor
    pairs = [random_problem(9, 1), (one[0][0], one[1][0]), (two[0][0], two[1][0])]
    fock, overlap, mask = padded(pairs)
    orbitals, density = eigen.solve_density(fock, overlap, occupation([3, 3, 2], 9), mask, group=group)
    assert orbitals.n_dropped.tolist() == [0, 1, 2]
    for k, (f, s) in enumerate(pairs):
        count = int(orbitals.n_dropped[k])
        n_mo = len(f) - count
        energy, coeff = _canonical(f, s, count)
        # kept eigenvalues are 0.1 and more
        np.testing.assert_allclose(orbitals.mo_energy[k, :n_mo], energy, atol=1e-12)
        assert (orbitals.mo_energy[k, n_mo:] > energy.max()).all()
        n_occupied = [3, 3, 2][k]
        expected = 2 * coeff[:, :n_occupied] @ coeff[:, :n_occupied].T
        np.testing.assert_allclose(density[k, : len(f), : len(f)], expected, atol=1e-11)
        c = orbitals.mo_coeff[k, : len(f), :n_mo]
        np.testing.assert_allclose(c.T @ s @ c, np.eye(n_mo), atol=1e-11)
        assert not orbitals.mo_coeff[k, :, n_mo:].any()


@pytest.mark.filterwarnings("ignore:S is nearly singular")
def test_derivatives_include_the_turning_of_the_kept_space(near_dependent, occupation):
    fock, overlap = near_dependent(3, 1e-4, n=5)  # a threshold of 1e-3 drops it; a step of 1e-6 does not change that
    options = {"linear_dependence": 1e-3}
    function, inputs = lambda f, s: eigen.density(f, s, occupation([2], 5), **options), _leaves(fock, overlap)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs, fast_mode=True, atol=1e-4, rtol=1e-3)
    assert gradcheck(lambda f, s: eigen.solve(f, s, **options).mo_energy[:, :4], inputs)

    def smeared(f, s):
        found = eigen.solve_smeared(f, s, torch.tensor([3.0]), 0.2, **options)
        return found.density, found.chemical_potential, found.entropy_energy

    assert gradcheck(smeared, inputs, fast_mode=True)
    assert gradgradcheck(smeared, inputs, fast_mode=True, atol=1e-4, rtol=1e-3)


@pytest.mark.filterwarnings("ignore:S is nearly singular")
def test_too_few_orbitals_are_left(near_dependent, occupation):
    fock, overlap = near_dependent(4, 1e-9, n=4)
    with pytest.raises(ValueError, match="occupations of molecule 0 .* beyond its 3 orbitals"):
        eigen.density(fock, overlap, occupation([4], 4))
    with pytest.raises(ValueError, match="8 electrons, but its orbitals hold 0 to 6"):
        eigen.solve_smeared(fock, overlap, torch.tensor([8.0]), 0.1)


@pytest.mark.parametrize("smallest", [1e-4, 1e-6])
def test_the_filter_is_the_function_of_the_overlap_that_it_says(near_dependent, smallest):
    _, overlap = near_dependent(6, smallest, 3 * smallest, n=40)
    values, vectors = torch.linalg.eigh(overlap)
    expected = (vectors / (1 + (3e-3 / values) ** 4).unsqueeze(-2)) @ vectors.mT
    found = eigen.dependency_filter(overlap, torch.ones(1, 40, dtype=torch.bool), 3e-3)
    # (floor / s)^2 = 1e7 times the rounding of the inverse
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=0)


def test_an_orbital_without_norm_is_lifted_and_the_others_stay(near_dependent):
    """An error of 3e-3 Eh in a direction of norm 3e-4 makes an orbital at -10 Eh; the filter puts it at LEVEL."""
    fock, overlap = near_dependent(2, 1e-4)
    mask = torch.ones(1, 8, dtype=torch.bool)
    _, vectors = torch.linalg.eigh(overlap)
    direction = vectors[..., :1]
    wrong = fock - 5e-3 * direction @ direction.mT
    assert float(eigen.solve(wrong, overlap, mask).mo_energy[0, 0]) < -30
    energy = eigen.solve(eigen.lift_near_dependencies(wrong, overlap, mask, 1e-3), overlap, mask).mo_energy
    left, _ = _canonical(fock[0], overlap[0], 1)
    expected = torch.sort(torch.cat([left, torch.tensor([eigen.LEVEL]).double()]))[0]
    # the filter is (s / floor)^4 = 1e-4 in that direction, and 1 - 1e-8 in the others
    torch.testing.assert_close(energy[0], expected, atol=1e-3, rtol=0)


def test_lifting_leaves_a_well_conditioned_problem_and_padding(near_dependent):
    fock, overlap = near_dependent(3, 0.05)
    mask = torch.ones(1, 10, dtype=torch.bool)
    mask[:, 8:] = False
    pad = [torch.nn.functional.pad(x, (0, 2, 0, 2)) for x in (fock, overlap)]
    lifted = eigen.lift_near_dependencies(*pad, mask, 1e-3)
    keep = eigen.dependency_filter(pad[1], mask, 1e-3)
    torch.testing.assert_close(eigen.lift_near_dependencies(*pad, mask, 1e-3, keep=keep), lifted, rtol=0, atol=0)
    # (floor / s)^4 = 1.6e-7 of elements of order 0.1 at most
    torch.testing.assert_close(lifted[:, :8, :8], fock, atol=1e-7, rtol=0)
    assert torch.equal(lifted[:, 8:], torch.zeros_like(lifted[:, 8:]))
    assert eigen.lift_near_dependencies(*pad, mask, 0.0) is pad[0]


def test_lifting_turns_with_the_basis_and_has_derivatives(near_dependent):
    fock, overlap = near_dependent(4, 1e-3)
    mask = torch.ones(1, 8, dtype=torch.bool)
    turn, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5)))
    turned = eigen.lift_near_dependencies(turn @ fock @ turn.T, turn @ overlap @ turn.T, mask, 1e-3)
    torch.testing.assert_close(turned, turn @ eigen.lift_near_dependencies(fock, overlap, mask, 1e-3) @ turn.T)

    def lifted(f, s):
        return eigen.lift_near_dependencies(f, 0.5 * (s + s.mT), mask, 1e-3)

    # the filter changes over 1e-3, so that differences need small steps and are good to 1e-4 at best
    assert gradcheck(lifted, _leaves(fock, overlap), eps=1e-8, atol=1e-4)
    assert gradgradcheck(lifted, _leaves(fock, overlap), eps=1e-8, fast_mode=True, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("size", [2, 164])
@pytest.mark.parametrize("smallest", [1e-9, 1e-8, 8e-8])
def test_an_overlap_with_a_cholesky_factor_by_rounding_alone_is_treated_as_well(random_problem, size, smallest):
    """Its solution fails the check; what is wrong is S and not the solver, and nobody says otherwise."""
    fock, overlap = random_problem(size, 1)
    overlap = torch.eye(size, dtype=torch.float64) if size == 2 else overlap
    overlap[0], overlap[:, 0] = overlap[1], overlap[:, 1]
    overlap[0, 0] = overlap[0, 1] = overlap[1, 0] = overlap[1, 1]
    overlap[0, 0] += 2 * smallest
    with pytest.warns(RuntimeWarning, match="S is nearly singular") as caught:
        orbitals = eigen.solve(fock[None], overlap[None])
    assert len(caught) == 1
    assert orbitals.n_dropped.tolist() == [1]
    c = orbitals.mo_coeff[0, :, : size - 1]
    np.testing.assert_allclose(c.T @ overlap @ c, np.eye(size - 1), atol=1e-9)
