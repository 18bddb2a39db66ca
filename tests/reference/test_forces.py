"""Exact gradients of E[D] and of E[D] - c dE2 at predicted densities, against differences of the same energies."""

import numpy as np
import pytest
import torch

from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.reference.forces import chain, predicted, variational_gradient
from mlsemi.reference.gradients import explicit_gradient
from mlsemi.reference.mean_field import mean_field, to_pyscf_mole
from mlsemi.reference.second_order import second_order
from mlsemi.reference.variational import variational

WATER = Molecule.from_angstrom([8, 1, 1], [[0.01, 0.06, 0.02], [-0.78, -0.49, 0.1], [0.76, -0.52, -0.1]])
LINEAR = Molecule.from_angstrom([1, 8, 1], [[0, 0, -0.95], [0, 0, 0.0], [0, 0, 1.0]])
CATION = Molecule(WATER.numbers, WATER.positions, charge=1, spin=1)
PEROXYL = Molecule.from_angstrom([8, 8, 1], [[0.0, 0.66, 0.01], [0.05, -0.67, 0.0], [0.9, 0.88, -0.03]], spin=1)
CASES = [
    (WATER, "hf", 0.0),
    (WATER, "b3lyp", 0.7),
    (LINEAR, "pbe", 0.0),
    (CATION, "hf", 0.7),
    (CATION, "pbe", 0.0),
    (PEROXYL, "b3lyp", 0.7),
    (WATER, "camb3lyp", 0.0),  # range-separated
    (CATION, "tpss", 0.0),  # the kinetic energy density
]


def _moved(molecule, positions):
    return Molecule(molecule.numbers, positions, charge=molecule.charge, spin=molecule.spin)


def _energy(engine, molecule, method, correction):
    with torch.no_grad():
        (density,), _, _ = predicted([molecule], engine)
    found = variational(molecule, engine.basis, density.numpy(), method=method, correction=correction)
    return found.corrected_energy


def _slope(energy, step):
    """Derivative at zero by four points: their error is of fourth order in the step."""
    return (8 * (energy(step) - energy(-step)) - energy(2 * step) + energy(-2 * step)) / (12 * step)


@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0].formula}-{c[0].spin}-{c[1]}-{c[2]}")
def test_gradient_is_the_derivative_of_the_energy(open_engine, rng, case):
    molecule, method, correction = case
    found, gradient = variational_gradient(open_engine, molecule, method=method, correction=correction)
    direction = rng.normal(size=gradient.shape)

    def energy(step):
        return _energy(open_engine, _moved(molecule, molecule.positions + step * direction), method, correction)

    assert found.corrected_energy == pytest.approx(energy(0.0), abs=1e-11)
    # rounding of energies of 1e2 Eh leaves 1e-13 / 1e-3, the fifth derivative 1e-3 ** 4
    assert np.sum(gradient * direction) == pytest.approx(_slope(energy, 1e-3), abs=2e-8)
    np.testing.assert_allclose(gradient.sum(axis=0), 0, atol=1e-10)  # moving all atoms changes nothing


def test_the_parts_matter(open_engine):
    """The response of the density and that of the grid are there, and not small."""
    found, gradient = variational_gradient(open_engine, WATER, method="pbe")
    assert np.abs(gradient - found.derivative.explicit).max() > 0.01
    with torch.no_grad():
        (density,), _, _ = predicted([WATER], open_engine)
    field = mean_field(to_pyscf_mole(WATER, open_engine.basis), "pbe", 3)
    derivative = field.nuc_grad_method()
    inside = AOLayout(open_engine.basis, WATER.numbers).to_pyscf(density[0].numpy())
    fixed = derivative.get_veff(field.mol, inside)  # PySCF's default, without the derivative of the grid
    derivative.grid_response = True
    moving = derivative.get_veff(field.mol, inside)
    slices = field.mol.aoslice_by_atom()[:, 2:]
    change = [2 * np.einsum("xij,ij->x", (moving - fixed)[:, a:b], inside[a:b]) for a, b in slices] + moving.exc1_grid
    assert np.abs(change).max() > 1e-7
    explicit = explicit_gradient(field, inside)
    np.testing.assert_allclose(explicit, found.derivative.explicit, atol=1e-12)


def test_one_backward_pass_serves_a_batch(open_engine):
    molecules = [WATER, CATION, PEROXYL]
    densities, overlaps, positions = predicted(molecules, open_engine)
    assert [len(d) for d in densities] == [1, 2, 2]
    found = [
        variational(m, open_engine.basis, d.detach().numpy(), method="hf", derivative=True)
        for m, d in zip(molecules, densities, strict=True)
    ]
    together = chain([f.derivative for f in found], densities, overlaps, positions)
    alone = [variational_gradient(open_engine, m, method="hf")[1] for m in molecules]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-9)
    with pytest.raises(ValueError, match=r"densities must have shape \(2, 7, 7\) here, got \(1, 7, 7\)"):
        chain([found[1].derivative], densities[:1], overlaps[:1], positions)


@pytest.mark.parametrize("spins", [1, 2])
def test_derivatives_of_the_estimate(rng, spins):
    """dE2 as a function of F and of orbitals: of D and S, which are functions of these."""
    n_ao, occupied = 7, (3, 2)[:spins]
    factor = 2.0 / spins

    def symmetric(shape=()):
        x = rng.normal(size=(*shape, n_ao, n_ao))
        return x + x.swapaxes(-1, -2)

    orbitals, change = (rng.normal(size=(spins, n_ao, n_ao)) for _ in range(2))
    metric = np.eye(n_ao) + 0.05 * symmetric()
    fock, fock_change, metric_change = symmetric((spins,)), symmetric((spins,)), 0.1 * symmetric()

    def state(t):
        s = metric + t * metric_change
        values, vectors = np.linalg.eigh(s)
        half = (vectors / np.sqrt(values)) @ vectors.T
        densities = []
        for c, d, n in zip(orbitals, change, occupied, strict=True):
            q = half @ np.linalg.qr(c + t * d)[0][:, :n]
            densities.append(factor * q @ q.T)
        return s, np.array(densities)

    s, d = state(0.0)
    # a gap: the occupied orbitals low, the virtual ones high
    fock = 0.3 * fock - 4 * np.array([s @ x @ s for x in d])
    found = second_order(fock, s, d, occupied)

    def energy(t):
        s, d = state(t)
        return second_order(fock + t * fock_change, s, d, occupied).energy

    h = 1e-4
    by_density = (state(h)[1] - state(-h)[1]) / (2 * h)
    expected = (
        np.sum(found.by_fock * fock_change)
        + np.sum(found.by_density * by_density)
        + np.sum(found.by_overlap * metric_change)
    )
    assert found.energy > 0.01
    assert _slope(energy, h) == pytest.approx(expected, abs=1e-6)  # the difference of D is of second order in h
