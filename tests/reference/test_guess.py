import pickle

import numpy as np
import pytest
from typer.testing import CliRunner

from mlsemi.basis import load_basis
from mlsemi.cli import app
from mlsemi.data.store import LabelStore
from mlsemi.molecule import Molecule
from mlsemi.reference.farm import label
from mlsemi.reference.guess import ModelGuess
from mlsemi.reference.mean_field import solve

BASIS = load_basis("sto-3g")


def test_same_label_from_the_guess(tiny_checkpoint, molecules):
    water = molecules["water"]
    guess = pickle.loads(pickle.dumps(ModelGuess(tiny_checkpoint)))
    found = solve(water, BASIS, method="hf", initial_density=guess).observables
    plain = solve(water, BASIS, method="hf").observables
    # the energy is of second order in the residual, which is 1e-6 Eh at most; F is of first order in it, and the
    # response of the density to it is of order one per Eh over the gap of about an Eh
    assert found.energy == pytest.approx(plain.energy, abs=1e-9)
    np.testing.assert_allclose(found.fock, plain.fock, atol=1e-5)
    assert found.residual < 1e-6


def test_the_guess_is_a_density_of_all_electrons(tiny_checkpoint, tiny_engine, molecules):
    water = molecules["water"]
    density = ModelGuess(tiny_checkpoint)(water)
    overlap = solve(water, BASIS, method="hf").observables.overlap
    assert density.shape == (1, *overlap.shape)
    assert np.vdot(density[0], overlap) == pytest.approx(water.n_electrons, abs=1e-10)
    expected = tiny_engine(tiny_engine.batch([water])).state.density[0].numpy()
    np.testing.assert_allclose(density, expected, atol=1e-5)  # float32 network against float64


def test_the_command_records_the_guess_and_goes_on_without(tiny_checkpoint, examples, tmp_path):
    path = tmp_path / "l.h5"
    arguments = [str(examples / "water.xyz"), "-o", str(path), "--method", "hf", "--basis", "sto-3g"]
    result = CliRunner().invoke(app, ["label", *arguments, "--guess", str(tiny_checkpoint)])
    assert result.exit_code == 0, result.output
    with LabelStore.open(path) as store:
        assert (len(store), store.attrs["guess"]) == (1, "tiny (hf/sto-3g)")
    result = CliRunner().invoke(app, ["label", *arguments])
    assert result.exit_code == 0, result.output
    assert "1 from before" in result.output
    with LabelStore.open(path) as store:
        assert store.attrs["guess"] == "tiny (hf/sto-3g)"


def test_uncovered_molecules_are_refused_before_work_begins(tiny_checkpoint, molecules, tmp_path):
    guess, path = ModelGuess(tiny_checkpoint), tmp_path / "l.h5"
    options = {"method": "hf", "basis": BASIS, "initial_density": guess}
    hydronium = Molecule.from_angstrom(
        np.array([8, 1, 1, 1]), np.array([[0, 0, 0], [0.97, 0, 0], [-0.4, 0.9, 0], [-0.4, -0.6, 0.6]]), charge=1
    )
    for molecule, message in [
        (molecules["formamide"], r"guess='tiny' does not cover 1 of 2 molecules.*formamide holds C, N.*covers H, O"),
        (hydronium, "charge 1.*covers charge 0"),
        (molecules["hydroxyl"], "OH has spin .2S. 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            label([molecules["water"], molecule], path, **options)
    with pytest.raises(ValueError, match="model in 'sto-3g', labels are asked for in 'def2-svp'"):
        label([molecules["water"]], path, **{**options, "basis": load_basis("def2-svp")})
    with pytest.raises(ValueError, match="no such checkpoint"):
        label([molecules["water"]], path, **{**options, "initial_density": ModelGuess(tmp_path / "none")})
    assert not list(tmp_path.iterdir())


def test_unknown_model_is_an_error_of_one_line(examples, tmp_path):
    arguments = ["label", str(examples / "water.xyz"), "-o", str(tmp_path / "l.h5"), "--guess", "nonsense"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "error: no model 'nonsense'" in result.output
