"""Spherical harmonics, their rotations and the bond frames: identities, and e3nn as an independent source."""

from collections.abc import Callable, Iterator
from math import pi, sqrt

import numpy as np
import pytest
import torch
from e3nn import o3

from mlsemi.harmonics import bond_frames, solid_harmonics, wigner_d

L_MAX = 6  # twice f
AXES = torch.cat([torch.eye(3), -torch.eye(3)]).double()


def unit_vectors(rng: np.random.Generator, n: int = 40) -> torch.Tensor:
    v = rng.normal(size=(n, 3))
    return torch.from_numpy(v / np.linalg.norm(v, axis=1, keepdims=True))


def sphere() -> tuple[torch.Tensor, torch.Tensor]:
    """Points and weights that integrate polynomials up to degree 2 L_MAX over the sphere exactly."""
    z, w = np.polynomial.legendre.leggauss(L_MAX + 1)
    phi = 2 * pi * np.arange(2 * L_MAX + 1) / (2 * L_MAX + 1)
    z, phi = np.repeat(z, phi.size), np.tile(phi, z.size)
    rho = np.sqrt(1 - z**2)
    points = np.stack([rho * np.cos(phi), rho * np.sin(phi), z], axis=1)
    return torch.from_numpy(points), torch.from_numpy(np.repeat(w, 2 * L_MAX + 1) * 2 * pi / (2 * L_MAX + 1))


def test_harmonics_are_orthonormal() -> None:
    points, weights = sphere()
    y = torch.cat(solid_harmonics(L_MAX, points), dim=1)
    torch.testing.assert_close(y.T * weights @ y, torch.eye(y.shape[1]).double(), rtol=0, atol=1e-13)


def test_order_and_sign_of_the_first_ones() -> None:
    x, y, z = v = torch.tensor([0.3, -0.5, 0.7]).double()
    s, p, d = solid_harmonics(2, v)
    assert float(s[0]) == pytest.approx(sqrt(1 / (4 * pi)))
    torch.testing.assert_close(p, sqrt(3 / (4 * pi)) * torch.stack([y, z, x]))
    torch.testing.assert_close(
        d,
        sqrt(15 / (4 * pi))
        * torch.stack([x * y, y * z, (2 * z**2 - x**2 - y**2) / sqrt(12), x * z, (x**2 - y**2) / 2]),
    )


def test_harmonics_are_homogeneous(rng: np.random.Generator) -> None:
    v = unit_vectors(rng)
    for l, (once, scaled) in enumerate(zip(solid_harmonics(L_MAX, v), solid_harmonics(L_MAX, 1.7 * v), strict=True)):
        torch.testing.assert_close(scaled, 1.7**l * once)


def test_harmonics_equal_e3nn_in_its_axes(rng: np.random.Generator) -> None:
    v = unit_vectors(rng)
    for l, ours in enumerate(solid_harmonics(L_MAX, v)):
        theirs = o3.spherical_harmonics(l, v[:, [1, 2, 0]], normalize=False, normalization="integral")
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)  # e3nn's generated constants have 13 digits


def test_harmonics_of_the_null_vector_are_finite_with_their_derivatives() -> None:
    v = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    total = torch.cat(solid_harmonics(4, v)).sum()
    (first,) = torch.autograd.grad(total, v, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), v)
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()


@pytest.mark.parametrize("improper", [False, True])
def test_wigner_d_rotates_the_harmonics(
    improper: bool, rng: np.random.Generator, random_rotation: Callable[..., np.ndarray]
) -> None:
    r = torch.from_numpy(random_rotation(improper=improper))
    v = unit_vectors(rng)
    for l, (d, rotated, y) in enumerate(
        zip(wigner_d(L_MAX, r), solid_harmonics(L_MAX, v @ r.T), solid_harmonics(L_MAX, v), strict=True)
    ):
        torch.testing.assert_close(rotated, y @ d.T, rtol=0, atol=1e-13)
        torch.testing.assert_close(d @ d.T, torch.eye(2 * l + 1).double(), rtol=0, atol=1e-13)


def test_wigner_d_is_a_representation(random_rotation: Callable[..., np.ndarray]) -> None:
    a, b = (torch.from_numpy(random_rotation(improper=x)) for x in (False, True))
    stacked = wigner_d(L_MAX, torch.stack([a, b, a @ b, -torch.eye(3).double()]))
    for l, d in enumerate(stacked):
        torch.testing.assert_close(d[0] @ d[1], d[2], rtol=0, atol=1e-13)
        torch.testing.assert_close(d[3], (-1) ** l * torch.eye(2 * l + 1).double(), rtol=0, atol=1e-13)


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """e3nn keeps its generators in the default precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.usefixtures("float64_by_default")
def test_wigner_d_equals_e3nn_in_its_axes(random_rotation: Callable[..., np.ndarray]) -> None:
    r = torch.from_numpy(random_rotation())
    permuted = r[[1, 2, 0]][:, [1, 2, 0]]
    for l, d in enumerate(wigner_d(L_MAX, r)):
        theirs = o3.Irrep(l, (-1) ** l).D_from_matrix(permuted)
        torch.testing.assert_close(d, theirs, rtol=0, atol=1e-12)  # through Euler angles, which costs digits


def test_wigner_d_is_differentiable_at_the_identity() -> None:
    r = torch.eye(3, dtype=torch.float64, requires_grad=True)
    # inputs that leave the orthogonal matrices: the polynomial is the same
    assert torch.autograd.gradcheck(lambda x: tuple(wigner_d(3, x))[1:], r)


def test_bond_frames_carry_z_onto_the_bond(rng: np.random.Generator) -> None:
    directions = torch.cat([AXES, unit_vectors(rng, 200)])
    frames = bond_frames(directions)
    torch.testing.assert_close(frames[..., 2], directions, rtol=0, atol=1e-14)
    eye = torch.eye(3).double().expand_as(frames)
    torch.testing.assert_close(frames @ frames.transpose(-1, -2), eye, rtol=0, atol=1e-14)
    torch.testing.assert_close(torch.linalg.det(frames), torch.ones(len(frames)).double(), rtol=0, atol=1e-14)


def test_the_two_charts_differ_by_a_turn_about_the_bond(rng: np.random.Generator) -> None:
    phi = torch.from_numpy(rng.uniform(0, 2 * pi, 20))
    equator = torch.stack([phi.cos(), phi.sin(), torch.zeros_like(phi)], -1)
    shift = torch.tensor([0.0, 0.0, 1e-12]).double()
    turn = bond_frames(equator + shift).transpose(-1, -2) @ bond_frames(equator - shift)
    expected = torch.zeros(20, 3).double()
    expected[:, 2] = 1
    torch.testing.assert_close(turn[..., 2], expected, rtol=0, atol=1e-11)


def _block(vector: torch.Tensor) -> torch.Tensor:
    """A p-d block that is built in the bond frame and turns with the bond: one number for each |m|."""
    d = wigner_d(2, bond_frames(vector / vector.norm()))
    core = torch.zeros(3, 5, dtype=torch.float64)
    core[0, 1], core[1, 2], core[2, 3] = 0.4, -1.3, 0.4
    return d[1] @ core @ d[2].transpose(-1, -2)


@pytest.mark.parametrize("axis", range(6))
def test_what_is_built_in_the_frame_has_two_derivatives_along_every_axis(axis: int) -> None:
    """Along z Euler angles give NaN; at z = 0 the charts meet. Finite differences cross the border there."""
    vector = (1.9 * AXES[axis]).requires_grad_()
    assert torch.autograd.gradcheck(_block, vector)
    assert torch.autograd.gradgradcheck(_block, vector, fast_mode=True)


@pytest.mark.parametrize("improper", [False, True])
def test_what_is_built_in_the_frame_is_equivariant(
    improper: bool, rng: np.random.Generator, random_rotation: Callable[..., np.ndarray]
) -> None:
    r = torch.from_numpy(random_rotation(improper=improper))
    vector = unit_vectors(rng, 1)[0]
    d = wigner_d(2, r)
    torch.testing.assert_close(_block(r @ vector), d[1] @ _block(vector) @ d[2].T, rtol=0, atol=1e-13)
