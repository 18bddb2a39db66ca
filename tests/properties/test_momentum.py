"""Momentum-space orbitals and profiles: closed forms, norms, kinetic energies, numerical transforms, rotations."""

import numpy as np
import pytest
import torch
from pyscf import scf
from pyscf.dft.gen_grid import MakeAngularGrid
from scipy.special import spherical_jn
from torch.autograd import gradcheck

from mlsemi.basis import Basis, Shell, load_basis
from mlsemi.batch import Batch
from mlsemi.integrals import one_electron, plan
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.properties.grids import ao_values
from mlsemi.properties.momentum import (
    ao_momentum,
    averaged_matrices,
    degenerate_average,
    density_profile,
    orbitals_at_momenta,
    profiles,
    reduced_bessel,
)
from mlsemi.reference.mean_field import to_pyscf_mole

NITROGEN = Molecule.from_angstrom(np.array([7, 7]), np.array([[0.1, 0, 0], [0.4, 0.9, 0.55]]))
METHYL = Molecule.from_angstrom(
    np.array([6, 1, 1, 1]), np.array([[0.1, 0, 0], [0, 1.08, 0.1], [0.94, -0.54, 0], [-0.94, -0.54, 0]]), spin=1
)
HYDROGEN_FLUORIDE = Molecule.from_angstrom(np.array([1, 9]), np.array([[0.3, 0.2, 0.1], [0.5, 1.0, 0.4]]))
MOLECULES = [NITROGEN, METHYL, HYDROGEN_FLUORIDE]


def up_to_f() -> Basis:
    """STO-3G with a contracted d shell and an f shell."""
    small = load_basis("sto-3g").subset((1, 6, 7, 9))
    d, f = Shell.normalized(2, (1.3, 0.4), (0.4, 0.7)), Shell.normalized(3, (0.6,), (1.0,))
    return Basis("f", {z: (*s, d, f) for z, s in small.elements.items()})


@pytest.fixture(scope="module")
def case():
    """A batch with two spins, orbitals by PySCF, and orbital energies."""
    batch = Batch.of(MOLECULES, load_basis("6-31g"))
    n = batch.ao_mask.shape[1]
    coefficients = torch.zeros(len(MOLECULES), 2, n, n, dtype=torch.float64)
    energies = torch.full((len(MOLECULES), 2, n), 1e3, dtype=torch.float64) + torch.arange(n)
    for k, molecule in enumerate(MOLECULES):
        field = scf.UHF(to_pyscf_mole(molecule, batch.basis)).run(conv_tol=1e-12)
        layout = AOLayout(batch.basis, molecule.numbers)
        i = slice(layout.n_ao)
        coefficients[k, :, i, i] = torch.from_numpy(layout.from_pyscf(np.asarray(field.mo_coeff), axes=(-2,)))
        energies[k, :, i] = torch.from_numpy(np.asarray(field.mo_energy))
    return batch, coefficients, energies


def radial_rule() -> tuple[torch.Tensor, torch.Tensor]:
    """Nodes and weights of int 4 pi p^2 f(p) dp: Gauss-Legendre on panels that resolve sin(p R), then core tails."""
    x, w = np.polynomial.legendre.leggauss(12)
    edges = np.concatenate([np.arange(0, 40, 1.0), np.arange(40, 240, 2.0), np.geomspace(240, 900, 6)])
    half = np.diff(edges)[:, None] / 2
    p = (edges[:-1, None] + half * (1 + x)).ravel()
    return torch.from_numpy(p), torch.from_numpy(4 * np.pi * p**2 * (half * w).ravel())


def test_transform_is_that_of_the_orbitals(rng):
    """Against a sum over a regular grid in real space, which is exact for functions that are smooth and localized."""
    shells = (
        Shell.normalized(0, (1.1, 0.5), (0.6, 0.5)),
        Shell.normalized(1, (0.7,), (1.0,)),
        Shell.normalized(2, (0.8, 0.5), (0.3, 0.8)),
        Shell.normalized(3, (0.6,), (1.0,)),
    )
    batch = Batch.of([HYDROGEN_FLUORIDE], Basis("smooth", {1: shells[:2], 9: shells}))
    step = 0.35
    axis = step * np.arange(-26, 27)
    points = torch.from_numpy(np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(1, -1, 3))
    momenta = torch.from_numpy(rng.normal(size=(1, 6, 3)))
    phase = momenta[0] @ points[0].T
    values = ao_values(batch, points)[0]
    factor = step**3 / (2 * np.pi) ** 1.5
    real, imaginary = factor * torch.cos(phase) @ values, -factor * torch.sin(phase) @ values
    # 1e-9: what the Gaussians have left at the faces of the box and at the largest momentum of the grid
    np.testing.assert_allclose(ao_momentum(batch, momenta)[0], torch.complex(real, imaginary), atol=1e-9)


def test_average_is_that_over_directions(rng):
    batch = Batch.of(MOLECULES, up_to_f())
    p = torch.tensor([0.0, 0.1, 0.7, 1.5, 2.5], dtype=torch.float64)
    matrices = averaged_matrices(batch, p)
    lebedev = MakeAngularGrid(1202)
    directions, weight = torch.from_numpy(lebedev[:, :3]), torch.from_numpy(lebedev[:, 3])
    for i, value in enumerate(p.tolist()):
        chi = ao_momentum(batch, (value * directions).expand(len(MOLECULES), -1, -1))
        expected = torch.einsum("q,kqm,kqn->kmn", weight.to(chi.dtype), chi.conj(), chi)
        # 1e-12: the Lebedev grid is exact to degree 59, far above p R = 10
        np.testing.assert_allclose(matrices[:, i], expected.real, atol=1e-12)
        assert expected.imag.abs().max() < 1e-12


def test_norm_and_kinetic_energy(case):
    batch, coefficients, _ = case
    _, kinetic, _ = one_electron(batch, plan(batch))
    p, weight = radial_rule()
    rho = profiles(batch, coefficients, p)
    exist = coefficients.abs().sum(-2) > 0
    # 1e-8: the radial quadrature
    np.testing.assert_allclose((rho @ weight)[exist], 1.0, atol=1e-8)
    expected = torch.einsum("ksmi,kmn,ksni->ksi", coefficients, kinetic, coefficients)
    np.testing.assert_allclose((rho @ (weight * p * p / 2))[exist], expected[exist], rtol=1e-8)
    assert not rho[~exist].any()


def test_profiles_of_the_density(case):
    """The sum over occupied orbitals is the profile of the density; electrons are counted."""
    batch, coefficients, _ = case
    occupied = torch.zeros_like(coefficients[:, :, 0])
    for k, m in enumerate(MOLECULES):
        occupied[k, 0, : (m.n_electrons + m.spin) // 2] = 1
        occupied[k, 1, : (m.n_electrons - m.spin) // 2] = 1
    density = (coefficients * occupied.unsqueeze(-2)) @ coefficients.mT
    p, weight = radial_rule()
    total = density_profile(batch, density.sum(1), p)
    np.testing.assert_allclose(
        total, (profiles(batch, coefficients, p) * occupied.unsqueeze(-1)).sum((1, 2)), atol=1e-12, rtol=1e-9
    )
    np.testing.assert_allclose(total @ weight, [14, 9, 10], atol=1e-7)
    spin = density_profile(batch, density[:, 0] - density[:, 1], p)
    np.testing.assert_allclose(spin @ weight, [0, 1, 0], atol=1e-8)


def test_orbitals_and_their_average(case):
    batch, coefficients, _ = case
    lebedev = torch.from_numpy(MakeAngularGrid(770))
    phi = orbitals_at_momenta(batch, coefficients, (0.9 * lebedev[:, :3]).expand(len(MOLECULES), -1, -1))
    expected = (phi.abs() ** 2) @ lebedev[:, 3]
    found = profiles(batch, coefficients, torch.tensor([0.9], dtype=torch.float64)).squeeze(-1)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_profiles_do_not_turn(case, random_rotation):
    batch, coefficients, _ = case
    rotation = random_rotation(improper=True)
    turned = coefficients.clone()
    for k, m in enumerate(MOLECULES):
        layout = AOLayout(batch.basis, m.numbers)
        i = slice(layout.n_ao)
        turned[k, :, i] = torch.from_numpy(layout.rotation(rotation)) @ coefficients[k, :, i]
    moved = batch.with_positions(batch.positions @ torch.from_numpy(rotation.T) + 1.5)
    p = torch.linspace(0, 3, 7, dtype=torch.float64)
    np.testing.assert_allclose(profiles(moved, turned, p), profiles(batch, coefficients, p), atol=1e-11)


def test_degenerate_sets(case, rng):
    """The pi orbitals of N2: any two of them have the same mean profile."""
    batch, coefficients, energies = case
    p = torch.linspace(0, 2, 5, dtype=torch.float64)
    close = torch.diff(energies[0, 0, :7]) < 1e-6
    first = int(close.nonzero()[0])
    angle = 0.7
    mixed = coefficients.clone()
    a, b = coefficients[0, :, :, first], coefficients[0, :, :, first + 1]
    mixed[0, :, :, first] = np.cos(angle) * a + np.sin(angle) * b
    mixed[0, :, :, first + 1] = np.cos(angle) * b - np.sin(angle) * a
    before = degenerate_average(profiles(batch, coefficients, p), energies)
    after = degenerate_average(profiles(batch, mixed, p), energies)
    np.testing.assert_allclose(after, before, atol=1e-10)
    np.testing.assert_allclose(before[0, 0, first], before[0, 0, first + 1], atol=1e-12)
    # an orbital that is alone keeps its own
    np.testing.assert_allclose(before[2, 0, 0], profiles(batch, coefficients, p)[2, 0, 0], atol=1e-12)


def test_resolution(case):
    """A Gaussian blurred with a Gaussian is a wider one; norms are kept; it is the average over shifted momenta."""
    batch = Batch.of([Molecule(np.array([1]), np.zeros((1, 3)), spin=1)], Basis("s", {1: (Shell(0, (0.3,), (1.0,)),)}))
    p = torch.linspace(0, 3, 31, dtype=torch.float64)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    for fwhm in (0.05, 0.1, 0.5):
        variance = 0.3 + (fwhm**2 / (8 * np.log(2)))  # |phi|^2 = exp(-p^2 / 2 a), variance a
        expected = torch.exp(-p * p / (2 * variance)) / (2 * np.pi * variance) ** 1.5
        np.testing.assert_allclose(profiles(batch, one, p, fwhm=fwhm)[0, 0, 0], expected, atol=1e-12)
    batch, coefficients, _ = case
    valence = coefficients[..., 3:5]
    p, weight = radial_rule()
    inside = p < 30
    rho = profiles(batch, valence, p[inside], fwhm=0.3)
    np.testing.assert_allclose(rho @ weight[inside], 1.0, atol=2e-4)


def test_bessel_functions():
    x = np.concatenate([[0.0, 1e-6, 4.99, 5.01], np.geomspace(0.01, 300, 60)])
    found = reduced_bessel(6, torch.from_numpy(x**2))
    for l, g in enumerate(found):
        # 1e-13: the recursion loses a digit or two where the two branches meet
        np.testing.assert_allclose(g * torch.from_numpy(x**l), spherical_jn(l, x), atol=1e-13)


def test_derivatives(rng):
    batch = Batch.of([HYDROGEN_FLUORIDE, METHYL], load_basis("sto-3g"))
    n = batch.ao_mask.shape[1]
    c = torch.from_numpy(rng.normal(size=(2, 1, n, 2))) * batch.ao_mask[:, None, :, None]
    p = torch.tensor([0.3, 1.7], dtype=torch.float64)

    def values(c, p, x):
        moved = batch.with_positions(x)
        phi = orbitals_at_momenta(moved, c, torch.stack([p, p, -p], -1).expand(2, -1, -1))
        return profiles(moved, c, p), profiles(moved, c, p, fwhm=0.4), phi.real, phi.imag

    inputs = tuple(v.clone().requires_grad_() for v in (c, p, batch.positions))
    assert gradcheck(values, inputs, fast_mode=True)


def test_chunks_change_nothing(case, monkeypatch):
    batch, coefficients, _ = case
    p = torch.linspace(0, 2, 9, dtype=torch.float64)
    whole = profiles(batch, coefficients, p)
    monkeypatch.setattr("mlsemi.properties.momentum.CHUNK", 1)
    np.testing.assert_allclose(profiles(batch, coefficients, p), whole, atol=1e-14)


def test_refusals(case):
    batch, coefficients, _ = case
    with pytest.raises(ValueError, match="none negative"):
        profiles(batch, coefficients, torch.tensor([-0.1], dtype=torch.float64))
    with pytest.raises(ValueError, match="fwhm=-1"):
        profiles(batch, coefficients, torch.tensor([0.1], dtype=torch.float64), fwhm=-1.0)
    with pytest.raises(ValueError, match="momenta must have shape"):
        ao_momentum(batch, torch.zeros(1, 3, dtype=torch.float64))
