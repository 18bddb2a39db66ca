"""First and second derivatives of the density, the orbital energies and S^1/2, degenerate levels included."""

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from mlsemi import eigen

# fast_mode compares one random projection of the whole derivative; elements of second derivatives are of order 1e2,
# where central differences with a step of 1e-6 are good to 1e-5 or so
FAST = {"fast_mode": True, "atol": 1e-4, "rtol": 1e-3}


def _leaves(*values):
    return tuple(x.clone().requires_grad_() for x in values)


@pytest.fixture(scope="module")
def small(random_problem, padded):
    return padded([random_problem(4, 5), random_problem(2, 6), random_problem(4, 7)])


def _density_and_trace(overlap, occupation, mask=None):
    """The density and Tr[DX]."""
    weight = torch.randn(overlap.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def function(f, s):
        density = eigen.density(f, s, occupation, mask)
        return density, (density * weight).sum((1, 2))

    return function


@pytest.mark.parametrize("name", ["H2O", "NH3", "CH4", "C6H6", "O2"])
def test_molecules_with_degenerate_orbitals(hartree_fock, name):
    fock, overlap, occupation = hartree_fock(name)
    function, inputs = _density_and_trace(overlap, occupation), _leaves(fock, overlap)
    assert gradcheck(function, inputs, **FAST)
    assert gradgradcheck(function, inputs, **FAST)


def test_water_element_by_element(hartree_fock):
    fock, overlap, occupation = hartree_fock("H2O")
    weight = torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def function(f, s):
        return (eigen.density(f, s, occupation) * weight).sum()

    inputs = _leaves(fock, overlap)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def test_padded_batch(small, occupation):
    fock, overlap, mask = small
    function = _density_and_trace(overlap, occupation([2, 1, 3], 4), mask)
    assert gradcheck(function, _leaves(fock, overlap))
    assert gradgradcheck(function, _leaves(fock, overlap), fast_mode=True)


def test_methane_has_the_hessian_of_finite_differences(hartree_fock):
    """The case in which saved orbitals, differentiated once more, go wrong silently."""
    fock, overlap, occupation = hartree_fock("CH4")
    generator = torch.Generator().manual_seed(3)
    weight, a, b = (x + x.T for x in torch.randn(3, 9, 9, dtype=torch.float64, generator=generator))
    (f,) = _leaves(fock)
    loss = (eigen.density(f, overlap, occupation) * weight).sum()
    (first,) = torch.autograd.grad(loss, f, create_graph=True)
    (second,) = torch.autograd.grad((first * a).sum(), f)

    def energy(x, y):
        return float((eigen.density(fock + x * a + y * b, overlap, occupation) * weight).sum())

    h = 2e-4
    differences = (energy(h, h) - energy(h, -h) - energy(-h, h) + energy(-h, -h)) / (4 * h * h)
    # truncation of order h^2 = 4e-8, relative to third and fourth derivatives of order 1e2
    assert float((second * b).sum()) == pytest.approx(differences, rel=2e-5)


def test_given_fractional_occupations(small):
    fock, overlap, mask = small
    # three unlike fillings, equal ones among them, and one negative: any number will do
    f = torch.tensor([[2.0, 1.5, 1.5, 0.3], [1.0, 0.5, 0.0, 0.0], [2.0, -0.3, 0.0, 0.0]]).double()
    exists = (f != 0).double()

    def function(a, s, occupation):
        return eigen.density(a, s, occupation * exists, mask)

    assert gradcheck(function, _leaves(fock, overlap, f))
    assert gradgradcheck(lambda a, s: eigen.density(a, s, f, mask), _leaves(fock, overlap), fast_mode=True)
    inputs = _leaves(fock, overlap, f)
    first = torch.autograd.grad(function(*inputs).square().sum(), inputs, create_graph=True)
    for part in first:
        with pytest.raises(RuntimeError, match="while the occupations require a gradient"):
            torch.autograd.grad(part.sum(), inputs[0], retain_graph=True)


def test_single_orbital_energies(hartree_fock):
    fock, overlap, _ = hartree_fock("H2O")  # C2v: no degenerate orbitals
    weight = torch.linspace(0.5, 1.5, 7, dtype=torch.float64)

    def function(f, s):
        energy = eigen.solve(f, s).mo_energy
        return (energy * weight).sum(), energy.pow(3).sum()

    assert gradcheck(lambda f, s: eigen.solve(f, s).mo_energy, _leaves(fock, overlap))
    assert gradgradcheck(function, _leaves(fock, overlap), **FAST)


def test_functions_of_degenerate_energies(hartree_fock):
    fock, overlap, occupation = hartree_fock("CH4")
    inputs = _leaves(fock, overlap)

    def power_sums(f, s):
        energy = eigen.solve(f, s).mo_energy
        return energy.square().sum(), (energy * occupation).sum(), (energy * occupation).square().sum()

    assert gradcheck(power_sums, inputs, **FAST)
    # constant weights: the sum of the occupied energies is Tr[DF]
    direction = torch.randn(9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(4))

    def twice(value):
        first = torch.autograd.grad(value, inputs, create_graph=True)
        return torch.autograd.grad(sum((x * direction).sum() for x in first), inputs)

    f, s = inputs
    expected = twice((eigen.density(f, s, occupation) * f).sum())
    for x, y in zip(twice((eigen.solve(f, s).mo_energy * occupation).sum()), expected, strict=True):
        torch.testing.assert_close(x, y, atol=1e-9, rtol=1e-9)
    with pytest.raises(RuntimeError, match=r"member\(s\) \[0\] .* degenerate orbitals, whose energies have no second"):
        twice(power_sums(f, s)[0])
    # one orbital of a degenerate set has no derivative, but what it gets is finite
    (single,) = torch.autograd.grad(eigen.solve(f, s).mo_energy[0, 4], f)
    assert single.isfinite().all()


def test_orbitals_where_they_have_a_derivative(hartree_fock, small):
    fock, overlap, mask = small
    assert not eigen.solve(fock.clone().requires_grad_(), overlap, mask).mo_coeff.requires_grad

    def squares(f, s):  # no phases
        return eigen.solve(f, s, mask, orbital_gradient=True).mo_coeff.square()

    assert gradcheck(squares, _leaves(fock, overlap))
    f, s, occupation = hartree_fock("CH4")
    inputs = _leaves(f, s)
    for loss, fails in ((lambda c: c[..., 2].pow(4).sum(), True), (lambda c: (c * occupation) @ c.mT, False)):
        orbitals = eigen.solve(*inputs, orbital_gradient=True)
        if fails:
            with pytest.raises(ValueError, match=r"choice of degenerate orbitals of member\(s\) \[0\]"):
                torch.autograd.grad(loss(orbitals.mo_coeff), inputs)
            continue
        found = torch.autograd.grad(loss(orbitals.mo_coeff).square().sum(), inputs, create_graph=True)
        expected = torch.autograd.grad(eigen.density(*inputs, occupation).square().sum(), inputs)
        for x, y in zip(found, expected, strict=True):
            torch.testing.assert_close(x, y, atol=1e-10, rtol=1e-10)
        with pytest.raises(RuntimeError, match="second derivative through orbital coefficients"):
            torch.autograd.grad(found[0].sum(), inputs)


def test_exact_degeneracy_leaves_no_trace_in_the_gradient(random_problem, occupation):
    fock = torch.diag(torch.tensor([-1.0, -1.0, 0.5, 0.5, 0.5], dtype=torch.float64))[None].requires_grad_()
    overlap = torch.eye(5, dtype=torch.float64)[None].requires_grad_()
    weight = random_problem(5, 8)[0][None]
    (eigen.density(fock, overlap, occupation([2], 5)) * weight).sum().backward()
    # by hand, C = 1: dL/dF_ia = -(2 / 1.5) W_ia, zero in oo and vv; dL/dS_oo = -2 W_oo, zero in vv
    expected = torch.zeros(5, 5, dtype=torch.float64)
    expected[:2, 2:] = weight[0, :2, 2:] * 2 / -1.5
    np.testing.assert_allclose(fock.grad[0], expected + expected.T, atol=1e-14)
    np.testing.assert_allclose(overlap.grad[0, :2, :2], -2 * weight[0, :2, :2], atol=1e-14)
    assert not overlap.grad[0, 2:, 2:].any()
    assert gradgradcheck(lambda f, s: eigen.density(f, s, occupation([2], 5)), _leaves(fock, overlap), fast_mode=True)


def test_padding_has_no_gradient(random_problem, padded, occupation):
    fock, overlap, mask = padded([random_problem(n, n) for n in (7, 3, 9)])
    fock, overlap = _leaves(fock, overlap)
    orbitals, density = eigen.solve_density(fock, overlap, occupation([3, 1, 4], 9), mask)
    loss = density.pow(2).sum() + density.sum() + orbitals.mo_energy.sum()
    first = torch.autograd.grad(loss, (fock, overlap), create_graph=True)
    second = torch.autograd.grad(sum(x.square().sum() for x in first), (fock, overlap))
    outside = ~(mask[:, :, None] & mask[:, None])
    for x in (*first, *second):
        assert not x[outside].any()


def test_a_closed_gap_is_solved_but_has_no_derivative(occupation):
    level = torch.tensor([[-1.0, 0.3, 0.3 + 1e-11, 2.0], [-1.0, 0.1, 0.3, 2.0]], dtype=torch.float64)
    fock = torch.diag_embed(level).requires_grad_()
    overlap = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    filled = occupation([2, 2], 4)
    orbitals, density = eigen.solve_density(fock, overlap, filled)
    # rounding of energies of order one
    np.testing.assert_allclose(orbitals.gap, [1e-11, 0.2], atol=1e-14)
    np.testing.assert_allclose(density.detach().sum((1, 2)), [4.0, 4.0], atol=1e-12)
    with pytest.raises(ValueError, match=r"density of molecule 0 of the batch has no derivative: .* 1\.0e-11 Eh apart"):
        torch.autograd.grad(density.sum(), fock, retain_graph=True)
    (only_the_other,) = torch.autograd.grad(density[1].sum(), fock)
    assert only_the_other[1].any() and not only_the_other[0].any()
    orbitals, density = eigen.solve_density(fock, overlap, filled, errors="mark")
    assert list(orbitals.problems) == [0] and "no derivative" in orbitals.problems[0]
    (gradient,) = torch.autograd.grad(density.sum(), fock, create_graph=True)
    np.testing.assert_allclose(gradient.detach(), only_the_other, atol=1e-14)
    assert not torch.autograd.grad(gradient.sum(), fock)[0][0].any()
    # half an electron in each of the two is as good as any
    (even,) = torch.autograd.grad(
        eigen.density(fock, overlap, torch.tensor([2.0, 1, 1, 0]).double().repeat(2, 1)).sum(), fock
    )
    assert even.isfinite().all()


def test_square_root_twice(small):
    _, overlap, mask = small
    assert gradcheck(lambda s: eigen.square_root(s, mask), _leaves(overlap))
    assert gradgradcheck(lambda s: eigen.square_root(s, mask), _leaves(overlap), fast_mode=True)
    degenerate = _leaves(torch.eye(3, dtype=torch.float64)[None])
    assert gradcheck(eigen.square_root, degenerate) and gradgradcheck(eigen.square_root, degenerate)


@pytest.mark.parametrize("kind", ["density", "energy", "root", "smeared"])
def test_a_third_derivative_is_refused(random_problem, occupation, kind):
    f, s = (x[None] for x in random_problem(4, 9))
    f, s = _leaves(f, s)
    value = {
        "density": lambda: eigen.density(f, s, occupation([2], 4)),
        "energy": lambda: eigen.solve(f, s).mo_energy,
        "root": lambda: eigen.square_root(s),
        "smeared": lambda: eigen.solve_smeared(f, s, torch.tensor([3.0]), 0.1).density,
    }[kind]()
    (first,) = torch.autograd.grad(value.square().sum(), s, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), s, create_graph=True)
    assert second.isfinite().all()
    with pytest.raises(RuntimeError, match="a third derivative .* was asked"):
        torch.autograd.grad(second.sum(), s)
