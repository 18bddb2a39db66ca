"""The SCF from a predicted density: the exact answer, and nothing else unnoticed."""

import numpy as np
import pytest
import scipy.linalg
from pyscf import scf

from mlsemi.basis import load_basis
from mlsemi.molecule import Molecule
from mlsemi.reference import converge as module
from mlsemi.reference.converge import converge, default_start
from mlsemi.reference.degeneracy import electrons_moved
from mlsemi.reference.mean_field import solve, to_pyscf_mole
from mlsemi.reference.stability import lowest_curvature

WATER = Molecule.from_angstrom([8, 1, 1], [[0, 0, 0.1173], [0, 0.7572, -0.4692], [0, -0.7572, -0.4692]])
CATION = Molecule(WATER.numbers, WATER.positions, charge=1, spin=1)
BASIS = load_basis("def2-svp")


def _near(molecule, method, noise=5e-3):
    """A density near the solution, as a model would predict it, and the solution."""
    obs = solve(molecule, BASIS, method=method).observables
    error = np.random.default_rng(3).normal(size=obs.fock.shape) * noise
    densities = []
    for f, e, occupation in zip(obs.fock, error, obs.mo_occ, strict=True):
        c = scipy.linalg.eigh(f + e + e.T, obs.overlap)[1]
        densities.append((c * -np.sort(-occupation)) @ c.T)
    return np.array(densities), obs


def _excited(n_spins=2):
    """Water's cation with the hole in the second orbital from above: a saddle point above the ground state."""
    c = solve(WATER, BASIS, method="hf").observables.mo_coeff[0]
    beta = c[:, [0, 1, 2, 4]]
    return np.stack([c[:, :5] @ c[:, :5].T, beta @ beta.T])[:n_spins]


@pytest.mark.parametrize(("molecule", "method"), [(WATER, "pbe"), (WATER, "hf"), (CATION, "b3lyp")])
def test_ends_where_pyscf_does(molecule, method):
    density, obs = _near(molecule, method)
    found = converge(molecule, BASIS, density, method=method, conv_tol=1e-11, compare=True)
    assert found.default_start is not None
    # both are converged to 1e-11 Eh; what the grid's blocks leave is less
    assert found.observables.energy == pytest.approx(found.default_start.energy, abs=1e-10)
    assert found.observables.warnings == ()
    assert found.observables.energy_error_estimate < 1e-11
    assert found.observables.residual < 1e-6
    assert 0 < found.electrons_moved < 0.01
    # of first order in the residuals, over the lowest curvature
    np.testing.assert_allclose(found.observables.density, obs.density, atol=1e-5)
    if method != "hf":
        assert found.scheme == "two-grid" and found.cycles <= 3 < found.coarse_cycles
        assert found.cycles <= 0.5 * found.default_start.cycles


def test_a_looser_tolerance_is_cheaper_and_kept():
    density, _ = _near(WATER, "pbe")
    tight, loose = (converge(WATER, BASIS, density, method="pbe", conv_tol=tol) for tol in (1e-11, 1e-7))
    assert loose.cycles + loose.coarse_cycles < tight.cycles + tight.coarse_cycles
    assert abs(loose.observables.energy - tight.observables.energy) < 1e-7
    assert loose.observables.energy_error_estimate < 1e-7


def test_another_solution_is_noticed_and_the_ground_state_returned():
    truth = default_start(CATION, BASIS, method="hf", conv_tol=1e-10)
    # found as a saddle point, and left
    followed = converge(CATION, BASIS, _excited(), method="hf")
    assert any("unstable" in w for w in followed.observables.warnings)
    assert any("away from the predicted state" in w for w in followed.observables.warnings)
    assert followed.observables.energy == pytest.approx(truth.energy, abs=1e-8)
    # without that look it is seen by comparing, if one asks for it
    compared = converge(CATION, BASIS, _excited(), method="hf", stability=False, compare=True)
    assert any("another solution" in w and "lower, and returned" in w for w in compared.observables.warnings)
    assert compared.observables.energy == pytest.approx(truth.energy, abs=1e-8)
    assert compared.electrons_moved > 0.5
    # the work on all three is told
    assert compared.cycles > compared.default_start.cycles + 2
    assert compared.observables.seconds > compared.default_start.seconds
    trusting = converge(CATION, BASIS, _excited(), method="hf", stability=False)
    assert trusting.observables.energy > truth.energy + 0.01


def test_curvature_is_that_of_pyscf():
    """The sign decides; the eigenvalue is an upper bound within the residual that is accepted."""
    for molecule in (WATER, CATION):
        mol = to_pyscf_mole(molecule, BASIS)
        field = (scf.UHF if molecule.spin else scf.RHF)(mol).run(conv_tol=1e-11)
        value, direction = lowest_curvature(field)
        generate = scf.newton(field).gen_g_hop
        _, product, diagonal = generate(field.mo_coeff, field.mo_occ)
        size = diagonal.size
        hessian = 2 * np.array([product(e).ravel() for e in np.eye(size)])
        exact = np.linalg.eigvalsh((hessian + hessian.T) / 2)[0]
        assert exact > 0
        assert exact - 1e-9 < value < 1.5 * exact
        assert np.linalg.norm(direction) == pytest.approx(1)


def test_electrons_moved():
    obs = solve(WATER, BASIS, method="hf").observables
    c = obs.mo_coeff[0]
    other = 2 * c[:, [0, 1, 2, 3, 5]] @ c[:, [0, 1, 2, 3, 5]].T  # HOMO to LUMO
    assert electrons_moved(obs.density, other[None], obs.overlap) == pytest.approx(1, abs=1e-8)
    assert electrons_moved(obs.density, obs.density, obs.overlap) == 0


def test_bad_arguments():
    density, _ = _near(WATER, "hf")
    with pytest.raises(ValueError, match="conv_tol=0 must be a positive energy"):
        converge(WATER, BASIS, density, method="hf", conv_tol=0)
    with pytest.raises(ValueError, match="holds 9.000000 electrons, expected 10"):
        converge(WATER, BASIS, 0.9 * density, method="hf")
    with pytest.raises(ValueError, match="neither 'hf' nor a functional"):
        converge(WATER, BASIS, density, method="nonsense")


def test_a_default_guess_that_fails_is_an_error(monkeypatch):
    monkeypatch.setattr(module, "_MAX_CYCLES", 2)
    with pytest.raises(module.NotConvergedError, match="default guess did not converge in 2 cycles"):
        default_start(WATER, BASIS, method="hf")


def test_a_comparison_that_fails_is_told_unless_it_was_asked_for(monkeypatch):
    monkeypatch.setattr(module, "_MAX_CYCLES", 2)
    found = converge(CATION, BASIS, _excited(), method="hf")
    assert found.default_start is None and found.electrons_moved > 0.5
    assert any("a lower solution may exist" in w for w in found.observables.warnings)
    with pytest.raises(module.NotConvergedError, match="default guess did not converge in 2 cycles"):
        converge(CATION, BASIS, _excited(), method="hf", compare=True)
