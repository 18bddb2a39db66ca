import numpy as np
import pytest
from pyscf import dft, scf

from mlsemi.basis import load_basis
from mlsemi.layout import AOLayout
from mlsemi.molecule import Molecule
from mlsemi.reference import mean_field
from mlsemi.reference.mean_field import NotConvergedError, resolve_functional, solve, to_pyscf_mole

BASIS = load_basis("def2-svp")
WATER = np.array([[0.05, 0.0, 0.12], [0.0, 0.78, -0.46], [0.1, -0.75, -0.5]])


def water(charge=0, spin=0):
    return Molecule.from_angstrom([8, 1, 1], WATER, charge=charge, spin=spin)


@pytest.mark.parametrize(("method", "charge", "spin"), [("pbe", 0, 0), ("b3lyp", 1, 1), ("svwn", 0, 2)])
def test_two_grids_give_what_plain_pyscf_gives(method, charge, spin):
    molecule = water(charge, spin)
    field = (dft.RKS if spin == 0 else dft.UKS)(to_pyscf_mole(molecule, BASIS), xc=method)
    field.conv_tol, field.conv_tol_grad = 1e-12, 1e-7
    field.kernel()
    result = solve(molecule, BASIS, method=method)
    obs, layout = result.observables, AOLayout(BASIS, molecule.numbers)
    assert result.scheme == "two-grid"
    assert result.fock_builds <= 4
    assert obs.residual <= 1e-6
    # the energy is of second order in the residual
    assert obs.energy == pytest.approx(field.e_tot, abs=1e-9)
    fock = np.asarray(field.get_fock()).reshape(-1, layout.n_ao, layout.n_ao)
    # the Fock matrix is of first order in the residual; S^-1 enlarges it a few times
    np.testing.assert_allclose(layout.to_pyscf(obs.fock), fock, rtol=0, atol=1e-5)
    np.testing.assert_allclose(obs.dipole, field.dip_moment(unit="AU", verbose=0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("spin", [0, 2])
def test_hartree_fock(spin):
    result = solve(water(spin=spin), BASIS, method="HF")
    field = (scf.RHF if spin == 0 else scf.UHF)(to_pyscf_mole(water(spin=spin), BASIS)).run(conv_tol=1e-12)
    assert result.resolved_functional == "HF"
    assert result.observables.energy == pytest.approx(field.e_tot, abs=1e-9)  # second order in a residual of 1e-6


@pytest.mark.parametrize("spin", [0, 2])
def test_label_is_consistent(spin):
    obs = solve(water(spin=spin), BASIS, method="pbe").observables
    F, D, S = obs.fock, obs.density, obs.overlap
    assert len(F) == (1 if spin == 0 else 2)
    np.testing.assert_allclose(np.abs(F @ D @ S - S @ D @ F).max(), obs.residual, atol=1e-12)  # float64 products
    np.testing.assert_allclose(np.einsum("sij,ij->", D, S), 10, atol=1e-10)
    residual = F @ obs.mo_coeff - S @ obs.mo_coeff * obs.mo_energy[:, None, :]
    np.testing.assert_allclose(residual, 0, atol=1e-10)
    np.testing.assert_array_equal(obs.mo_occ.sum(axis=1), [10] if spin == 0 else [6, 4])


@pytest.mark.parametrize("method", ["hf", "pbe"])
def test_gradient_is_the_derivative_of_the_energy(method):
    molecule, step = water(), 1e-3
    gradient = solve(molecule, BASIS, method=method, gradient=True).observables.gradient

    def energy(shift):
        positions = molecule.positions.copy()
        positions[0, 2] += shift
        return solve(Molecule(molecule.numbers, positions), BASIS, method=method).observables.energy

    numerical = (energy(step) - energy(-step)) / (2 * step)
    # the error of the central difference is step^2 times a third derivative of order 1
    assert gradient[0, 2] == pytest.approx(numerical, abs=2e-6)
    # without the derivative of the grid those of PBE would add up to more than 1e-6
    assert np.abs(gradient.sum(axis=0)).max() < 1e-9


def test_start_from_a_density_saves_builds_and_changes_nothing():
    first = solve(water(), BASIS, method="pbe")
    again = solve(water(), BASIS, method="pbe", initial_density=lambda _: first.observables.density)
    assert again.observables.energy == pytest.approx(first.observables.energy, abs=1e-9)  # second order
    assert again.fock_builds <= first.fock_builds


@pytest.mark.parametrize("method", ["hf", "bhandhlyp"])
def test_an_unstable_solution_is_left_for_a_lower_one(method):
    """H2O+ with the hole in the second orbital from above, its 2A1 state, is a saddle above 2B1."""
    cation = water(charge=1, spin=1)
    obs = solve(water(), BASIS, method=method).observables
    orbitals = obs.mo_coeff[0]

    def excited(_):
        beta = orbitals[:, [0, 1, 2, 4]]
        return np.stack([orbitals[:, :5] @ orbitals[:, :5].T, beta @ beta.T])

    ground = solve(cation, BASIS, method=method)
    saddle = solve(cation, BASIS, method=method, initial_density=excited, stability=False)
    followed = solve(cation, BASIS, method=method, initial_density=excited)
    assert saddle.observables.energy > ground.observables.energy + 0.01
    assert followed.observables.energy == pytest.approx(ground.observables.energy, abs=1e-9)  # second order
    assert "unstable" in followed.observables.warnings[0]
    assert ground.observables.warnings == ()
    assert followed.scheme.endswith("+lower")
    assert followed.fock_builds > saddle.fock_builds


def test_a_scheme_that_raises_is_followed_by_the_next(monkeypatch):
    def astray(*_, **__):
        raise np.linalg.LinAlgError("SVD did not converge")

    whole = solve(water(), BASIS, method="lda").observables
    monkeypatch.setattr(mean_field, "solve_two_grid", astray)
    result = solve(water(), BASIS, method="lda")
    assert result.scheme == "plain"
    assert result.observables.energy == pytest.approx(whole.energy, abs=1e-9)  # second order in a residual of 1e-6
    monkeypatch.setattr(mean_field, "plain_scf", astray)
    assert solve(water(), BASIS, method="lda").scheme == "newton"
    monkeypatch.setattr(mean_field, "newton_scf", astray)
    with pytest.raises(NotConvergedError, match="two-grid LinAlgError: SVD did not converge"):
        solve(water(), BASIS, method="lda")


def test_unconverged_is_an_error():
    with pytest.raises(NotConvergedError, match=r"not converged to a residual of 1e-18.*two-grid.*plain.*newton"):
        solve(Molecule([1, 1], [[0, 0, 0], [0, 0, 1.4]]), BASIS, method="lda", residual_tolerance=1e-18)


def test_names_are_resolved():
    # libxc's numbers: 101 and 130 are PBE, 402 is B3LYP with VWN(RPA)
    assert resolve_functional("PBE") == "1*GGA_X_PBE[101] + 1*GGA_C_PBE[130]; exact exchange 0"
    assert resolve_functional("b3lyp") == "1*HYB_GGA_XC_B3LYP[402]; exact exchange 0.2"
    with pytest.raises(ValueError, match="method='nonsense' is neither 'hf' nor a functional"):
        resolve_functional("nonsense")
    with pytest.raises(ValueError, match="dispersion"):
        resolve_functional("b3lyp-d3bj")


def test_element_outside_of_the_basis_is_refused():
    with pytest.raises(ValueError, match="has no functions for O"):
        solve(water(), BASIS.subset([1]), method="hf")


def test_a_stability_check_that_fails_is_told(monkeypatch):
    from mlsemi.reference import mean_field as module

    def fail(*_):
        raise np.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(module, "lowest_curvature", fail)
    amino = Molecule.from_angstrom([7, 1, 1], [[0, 0, 0], [0, 0.8, 0.6], [0, -0.8, 0.6]], spin=1)
    label = solve(amino, load_basis("sto-3g"), method="hf")
    assert any("stable could not be checked: LinAlgError: no convergence" in w for w in label.observables.warnings)


def test_a_sign_that_stays_open_is_told(monkeypatch):
    from mlsemi.reference import stability

    monkeypatch.setattr(stability, "_MAX_PRODUCTS", 1)
    label = solve(water(charge=1, spin=1), BASIS, method="hf")
    assert any("could not be checked: ArithmeticError" in w and "1 products" in w for w in label.observables.warnings)


def _start_at_a_saddle():
    """H2O+ in its 2A1 state, converged, see above."""
    orbitals = solve(water(), BASIS, method="hf").observables.mo_coeff[0]
    beta = orbitals[:, [0, 1, 2, 4]]
    excited = np.stack([orbitals[:, :5] @ orbitals[:, :5].T, beta @ beta.T])
    return {"method": "hf", "initial_density": lambda _: excited}


def test_a_saddle_that_cannot_be_left_is_told(monkeypatch):
    cation, arguments = water(charge=1, spin=1), _start_at_a_saddle()
    whole = mean_field._solution
    calls = []

    def once(*args):
        calls.append(args)
        if len(calls) > 1:
            raise NotConvergedError("astray")
        return whole(*args)

    with monkeypatch.context() as patch:
        patch.setattr(mean_field, "_solution", once)
        (warning,) = solve(cation, BASIS, **arguments).observables.warnings
        assert "is a saddle point" in warning and "no lower solution was reached: astray" in warning
    with monkeypatch.context() as patch:
        patch.setattr(mean_field, "_MAX_DESCENTS", 0)
        (warning,) = solve(cation, BASIS, **arguments).observables.warnings
        assert "is a saddle point" in warning and "given up after 0 descents" in warning
    with monkeypatch.context() as patch:
        patch.setattr(mean_field, "_DESCENT", 10.0)  # no descent is deep enough
        (warning,) = solve(cation, BASIS, **arguments).observables.warnings
        assert "may be a saddle point" in warning


def test_a_state_that_is_not_aufbau_is_left_or_told(monkeypatch):
    """Both electrons of H2 in sigma_u: by symmetry a solution, with sigma_g empty below it."""
    basis, hydrogen = load_basis("sto-3g"), Molecule([1, 1], [[0, 0, 0], [0, 0, 1.4]])
    ground = solve(hydrogen, basis, method="lda")
    truth = dft.RKS(to_pyscf_mole(hydrogen, basis), xc="lda").run(conv_tol=1e-12)
    # the sum of the atoms has no residual either, and is no determinant
    assert ground.observables.energy == pytest.approx(truth.e_tot, abs=1e-9)  # second order
    high = ground.observables.mo_coeff[0][:, 1]
    arguments = {"method": "lda", "initial_density": lambda _: 2 * np.outer(high, high)[None], "gradient": True}
    left = solve(hydrogen, basis, **arguments)
    assert left.scheme == "plain"
    assert left.observables.energy == pytest.approx(ground.observables.energy, abs=1e-9)  # second order
    assert left.observables.warnings == ()

    def astray(*_):
        raise RuntimeError

    monkeypatch.setattr(mean_field, "plain_scf", astray)
    monkeypatch.setattr(mean_field, "newton_scf", astray)
    told = solve(hydrogen, basis, **arguments).observables
    assert any("not aufbau: 1.00 electrons" in w for w in told.warnings)
    assert told.energy > ground.observables.energy + 0.5
    # the orbitals are those of the density
    np.testing.assert_allclose((told.mo_coeff * told.mo_occ[:, None]) @ told.mo_coeff.mT, told.density, atol=1e-8)
