"""Fermi's function: divided differences, the chemical potential, and the density with its derivatives."""

import mpmath
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from mlsemi import eigen
from mlsemi.eigen.occupations import fermi_difference, fermi_second_difference

FAST = {"fast_mode": True, "atol": 1e-4, "rtol": 1e-3}  # as for the other densities


def _leaves(*values):
    return tuple(x.clone().requires_grad_() for x in values)


def _second(x, y, z):
    first = (fermi_difference(x, y), fermi_difference(y, z), fermi_difference(x, z))
    return float(fermi_second_difference(*(t.reshape(1) for t in (x, y, z, *first))))


def test_divided_differences_lose_no_digits():
    """Against 80 digits, where a tiny separation makes quotients of all; levels apart, near, and equal."""
    rng = np.random.default_rng(0)
    with mpmath.workdps(80):

        def first(x, y):
            return (1 / (1 + mpmath.exp(2 * x)) - 1 / (1 + mpmath.exp(2 * y))) / (x - y)

        for trial in range(120):
            spread = 10 ** rng.uniform(-14, 1)
            levels = rng.choice([2.0, 20.0]) * rng.uniform(-1, 1) + spread * rng.uniform(-1, 1, 3)
            if trial % 5 == 0:
                levels[1] = levels[0]
            if trial % 10 == 0:
                levels[2] = levels[0]
            x, y, z = (mpmath.mpf(float(v)) + k * mpmath.mpf(10) ** -25 for k, v in enumerate(levels))
            largest = float(mpmath.sech(min(abs(levels))) ** 2)
            given = torch.tensor(levels)
            assert float(fermi_difference(given[0], given[1])) == pytest.approx(float(first(x, y)), rel=1e-14)
            second = float((first(x, y) - first(y, z)) / (x - z))
            assert abs(_second(*given) - second) < 1e-14 * (largest + abs(second))
    far = torch.tensor([500.0, 500.0, -1e5], dtype=torch.float64)
    assert _second(*far) == pytest.approx(0.0, abs=1e-4)
    assert _second(far[0], far[0], far[0]) == 0.0


@pytest.mark.parametrize("kt", [1e-4, 0.02, 0.5])
@pytest.mark.parametrize("capacity", [1.0, 2.0])
def test_chemical_potential_holds_the_electrons(kt, capacity):
    energy = torch.sort(torch.randn(6, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    electrons = capacity * torch.tensor([0.0, 1.0, 3.7, 6.0, 11.5, 12.0], dtype=torch.float64)
    f, mu = eigen.fermi_occupations(energy, electrons, kt, capacity=capacity)
    np.testing.assert_allclose(f.sum(1), electrons, atol=1e-12)  # rounding of 24 electrons
    expected = capacity / (1 + ((energy - mu[:, None]) / kt).clamp(-700, 700).exp())
    np.testing.assert_allclose(f, expected, atol=1e-12)
    assert (f[0] == 0).all() and (f[-1] == capacity).all()


def test_chemical_potential_of_a_cold_insulator_lies_where_it_should():
    # two levels below, one above: f_a = 2 f_hole, so that mu is the middle plus kT / 2 ln 2, though both are 1e-100
    energy = torch.tensor([[-0.5, -0.5, 0.5]], dtype=torch.float64)
    _, mu = eigen.fermi_occupations(energy, torch.tensor([4.0]), 0.002)
    assert float(mu) == pytest.approx(0.001 * np.log(2), abs=1e-12)


def test_free_occupations_are_differentiable():
    energy = torch.tensor([[-0.5, -0.1, -0.1, 0.05, 0.3]], dtype=torch.float64, requires_grad=True)

    def function(e):
        return eigen.fermi_occupations(e, torch.tensor([4.5]), 0.1)

    assert gradcheck(function, (energy,)) and gradgradcheck(function, (energy,))


def _smeared(n_electrons, kt, mask=None, capacity=2.0):
    def function(f, s):
        found = eigen.solve_smeared(f, s, n_electrons, kt, mask, capacity=capacity)
        return found.density, found.chemical_potential, found.entropy_energy, found.orbitals.mo_energy[:, :2].sum(1)

    return function


def test_hydrogen_chain(hartree_fock):
    fock, overlap, _ = hartree_fock("H8")
    function, inputs = _smeared(torch.tensor([8.0]), 0.02), _leaves(fock, overlap)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs, **FAST)


def test_open_degenerate_shell(hartree_fock):
    """C6H6 with 40 electrons: two of them in the four-fold set e1g, exactly degenerate, at a small kT."""
    fock, overlap, _ = hartree_fock("C6H6")
    found = eigen.solve_smeared(fock, overlap, torch.tensor([40.0]), 0.01)
    top = found.occupation[0, 19:21]
    assert 0.5 < float(top[0]) < 1.5 and abs(float(top[0] - top[1])) < 1e-6
    function, inputs = _smeared(torch.tensor([40.0]), 0.01), _leaves(fock, overlap)
    assert gradcheck(function, inputs, **FAST)
    assert gradgradcheck(lambda f, s: function(f, s)[:3], inputs, **FAST)


def test_exactly_degenerate_levels_and_padding(random_problem, padded):
    degenerate = torch.diag(torch.tensor([-0.2, 0.1, 0.1, 0.1], dtype=torch.float64)), torch.eye(4, dtype=torch.float64)
    fock, overlap, mask = padded([degenerate, random_problem(2, 1), random_problem(4, 2)])
    smeared = _smeared(torch.tensor([3.0, 1.2, 4.1]), 0.3, mask)
    assert gradcheck(lambda f, s: smeared(f, s)[:3], _leaves(fock, overlap), fast_mode=True)
    assert gradgradcheck(lambda f, s: smeared(f, s)[:3], _leaves(fock, overlap), fast_mode=True)


def test_batch_equals_singles_however_hot(random_problem, padded):
    """Padding takes no electrons, even where kT is as large as the distance to its levels."""
    pairs = [random_problem(n, n) for n in (7, 3)]
    electrons = torch.tensor([5.0, 2.5])
    batch = padded(pairs)
    for group in (True, False):
        found = eigen.solve_smeared(*batch[:2], electrons, 50.0, batch[2], group=group)
        for k, (f, s) in enumerate(pairs):
            single = eigen.solve_smeared(f[None], s[None], electrons[k : k + 1], 50.0)
            np.testing.assert_allclose(found.density[k, : len(f), : len(f)], single.density[0], atol=1e-12)
            np.testing.assert_allclose(found.chemical_potential[k], single.chemical_potential[0], atol=1e-11)
            np.testing.assert_allclose(found.entropy_energy[k], single.entropy_energy[0], atol=1e-11)


def test_entropy_makes_the_free_energy_stationary(hartree_fock):
    """-T S = kT sum (n ln n + (1 - n) ln (1 - n)); d(Tr[DF] - T S)/dF = D (Mermin 1965)."""
    fock, overlap, _ = hartree_fock("H8")
    (f,) = _leaves(fock)
    found = eigen.solve_smeared(f, overlap, torch.tensor([8.0]), 0.05)
    n = found.occupation / 2
    expected = 2 * 0.05 * (n * n.log() + (1 - n) * (1 - n).log()).sum()
    assert found.entropy_energy.item() == pytest.approx(expected.item(), abs=1e-12)
    (gradient,) = torch.autograd.grad((found.density * f).sum() + found.entropy_energy.sum(), f)
    np.testing.assert_allclose(gradient, found.density.detach(), atol=1e-12)


def test_cold_limit_is_the_closed_shell(hartree_fock):
    fock, overlap, occupation = hartree_fock("H2O")
    inputs = _leaves(fock, overlap)
    cold = eigen.solve_smeared(*inputs, torch.tensor([10.0]), 1e-4)
    exact = eigen.density(*inputs, occupation)
    torch.testing.assert_close(cold.density, exact, atol=1e-12, rtol=0)
    first, second = (torch.autograd.grad(d.square().sum(), inputs, create_graph=True) for d in (cold.density, exact))
    for x, y in zip(first, second, strict=True):
        torch.testing.assert_close(x, y, atol=1e-10, rtol=0)
    first, second = (torch.autograd.grad(g[1].square().sum(), inputs) for g in (first, second))
    for x, y in zip(first, second, strict=True):
        # second derivatives of order 1e3
        torch.testing.assert_close(x, y, atol=1e-8, rtol=0)


def test_no_electrons_and_full_orbitals(random_problem):
    f, s = (x[None].expand(2, -1, -1) for x in random_problem(5, 3))
    inputs = _leaves(f, s)
    found = eigen.solve_smeared(*inputs, torch.tensor([0.0, 5.0]), 0.02, capacity=1.0)
    assert not found.density[0].any() and not found.entropy_energy.detach().abs().gt(1e-12).any()
    torch.testing.assert_close(found.density[1], torch.linalg.inv(inputs[1][1]), atol=1e-12, rtol=1e-12)
    for x in torch.autograd.grad(found.density.square().sum() + found.entropy_energy.sum(), inputs):
        assert x.isfinite().all() and not x[0].any()


def test_what_makes_no_sense_is_refused(random_problem):
    f, s = (x[None] for x in random_problem(3, 4))
    with pytest.raises(ValueError, match="kt must be a positive energy .* got 0.0"):
        eigen.solve_smeared(f, s, torch.tensor([2.0]), 0.0)
    with pytest.raises(ValueError, match="molecule 0 of the batch has 7 electrons, but its orbitals hold 0 to 6"):
        eigen.solve_smeared(f, s, torch.tensor([7.0]), 0.1)
    with pytest.raises(ValueError, match="n_electrons must have shape"):
        eigen.solve_smeared(f, s, torch.tensor([2.0, 2.0]), 0.1)
    with pytest.raises(ValueError, match="n_electrons requires a gradient"):
        eigen.solve_smeared(f, s, torch.tensor([2.0], requires_grad=True), 0.1)


def test_a_bad_member_is_marked(random_problem):
    f, s = (x.repeat(2, 1, 1) for x in random_problem(4, 5))
    f[0, 0, 0] = torch.nan
    (leaf,) = _leaves(f)
    found = eigen.solve_smeared(leaf, s, torch.tensor([3.0, 3.0]), 0.1, errors="mark")
    assert "not finite" in found.orbitals.problems[0] and found.density[0].isnan().all()
    many = eigen.solve_smeared(s, s, torch.tensor([9.0, 3.0]), 0.1, errors="mark")
    assert "9 electrons" in many.orbitals.problems[0] and many.density[1].isfinite().all()
    loss = found.density[1].square().sum() + found.entropy_energy[1] + found.chemical_potential[1]
    (first,) = torch.autograd.grad(loss, leaf, create_graph=True)
    (second,) = torch.autograd.grad(first[1].square().sum(), leaf)
    for x in (first, second):
        assert not x[0].any() and x[1].isfinite().all() and x[1].any()
