"""Gauss-Newton: a linear problem in one step, a curved one downhill, and a fine-tuned model by way of the loop."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mlsemi.checkpoint import load, read_header
from mlsemi.data.store import LabelStore, write_store
from mlsemi.train.config import FinetuneConfig, read_config
from mlsemi.train.finetune import observables_objective
from mlsemi.train.gauss_newton import GaussNewton
from mlsemi.train.loop import train


def problem(n_labels, n_weights, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    matrix, labels, start = (
        torch.randn(*shape, dtype=torch.float64, generator=generator)
        for shape in ((n_labels, n_weights), (n_labels,), (n_weights,))
    )
    return matrix, labels, nn.Parameter(start.to(dtype))


@pytest.mark.parametrize("n_labels", [5, 40])  # fewer and more than weights; 40 are more than a chunk
def test_a_linear_problem_is_ridge_regression_about_the_start(n_labels):
    matrix, labels, weights = problem(n_labels, 12)
    start, damping = weights.detach().clone(), 0.3
    optimizer = GaussNewton({"w": weights}, lambda rows: matrix[rows] @ weights - labels[rows], damping=damping)
    rows = list(range(n_labels))
    optimizer.step(rows)
    normal = matrix.T @ matrix + damping * torch.eye(12, dtype=torch.float64)
    exact = start + torch.linalg.solve(normal, matrix.T @ (labels - matrix @ start))
    # normal equations in double precision, condition number below 1e3
    torch.testing.assert_close(weights.detach(), exact, rtol=0, atol=1e-11)
    assert not optimizer.converged
    optimizer.step(rows)
    assert optimizer.converged
    torch.testing.assert_close(weights.detach(), exact, rtol=0, atol=1e-11)


def test_every_step_goes_downhill_where_the_full_one_would_not():
    """The full step for arctan(w) = 0 from w = 2 overshoots further each time."""
    weights = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = GaussNewton({"w": weights}, lambda rows: weights.arctan(), damping=1e-9)
    losses = [float(weights.detach().arctan() ** 2)]
    while not optimizer.converged:
        optimizer.step([0])
        losses.append(float(weights.detach().arctan() ** 2))
    assert all(after <= before for before, after in zip(losses, losses[1:], strict=False))
    # the damping holds the weight at 4e-9 of its start
    assert abs(float(weights.detach())) < 1e-6


def test_weights_that_the_errors_do_not_hang_on_stay():
    matrix, labels, weights = problem(3, 4)
    idle = nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = GaussNewton(
        {"w": weights, "idle": idle}, lambda rows: matrix[rows] @ weights - labels[rows], damping=0.1
    )
    optimizer.step([0, 1, 2])
    assert torch.equal(idle, torch.ones(2, dtype=torch.float64))


def test_what_does_not_fit_into_memory_or_is_not_finite_is_refused(monkeypatch):
    matrix, labels, weights = problem(3, 4)
    optimizer = GaussNewton({"w": weights}, lambda rows: matrix[rows] @ weights - labels[rows], damping=0.1)
    monkeypatch.setattr("mlsemi.train.gauss_newton.available_bytes", lambda _: 150)
    with pytest.raises(MemoryError, match="3 components of labels times 4 weights.*trained = 'readout', or optimizer"):
        optimizer.step([0, 1, 2])
    monkeypatch.undo()
    labels[1] = torch.nan
    with pytest.raises(RuntimeError, match="not finite"):
        optimizer.step([0, 1, 2])


def configuration(folder, labels, *, weights="energy = 1.0\ndipole = 1.0", training=""):
    path = folder / "tune.toml"
    path.write_text(
        f'output = "tuned"\n[data]\nlabels = ["{labels}"]\nlimit = 6\nvalidation = 0.34\n[finetune]\n{weights}\n'
        f'[training]\noptimizer = "gauss-newton"\nsteps = 6\nvalidate_every = 1\nthreads = 1\n{training}\n'
    )
    return read_config(path)


def test_residuals_are_the_components_of_the_terms(engine, tmp_path, water_labels):
    """Of labels of which two have a gradient."""
    with LabelStore.open(water_labels) as store:
        records = [store.record(i) for i in range(4)]
        for k in (1, 3):
            gradient = np.random.default_rng(k).normal(scale=0.02, size=(3, 3))
            records[k] = replace(records[k], observables=replace(records[k].observables, gradient=gradient))
        write_store(tmp_path / "some.h5", records, attrs=dict(store.attrs))
    settings = FinetuneConfig(energy=2.0, gradient=0.5, dipole=3.0)
    with LabelStore.open(tmp_path / "some.h5") as store:
        objective = observables_objective(engine, [store], [([0, 1, 2], [3])], settings, "cpu")
    terms = objective.terms(objective.samples)
    residuals = objective.residuals(objective.samples).detach()
    assert residuals.shape == (3 * 1 + 1 * 9 + 3 * 3,)
    energy = residuals[[0, 4, 17]]
    gradient = residuals[5:14]
    dipole = residuals[[1, 2, 3, 14, 15, 16, 18, 19, 20]]
    for found, weight, name in ((energy, 2.0, "energy"), (gradient, 0.5, "gradient"), (dipole, 3.0, "dipole")):
        # sums in another order
        torch.testing.assert_close(found.abs().mean() / weight, terms[name].mean().detach(), rtol=1e-10, atol=0)
    one_by_one = torch.cat([objective.residuals([sample]).detach() for sample in objective.samples])
    # float32 networks of one and of three molecules
    torch.testing.assert_close(one_by_one, residuals, rtol=1e-4, atol=1e-3)


def test_a_model_is_tuned_and_a_run_goes_on_where_it_was(base, tmp_path, water_labels):
    config = configuration(tmp_path, water_labels)
    path = train(config, start=base)
    rows = [row.split(",") for row in (path.parent / "curves.csv").read_text().splitlines()]
    column = rows[0].index("train_energy_meh")
    # even an untrained network, whose errors are far from linear in the weights, comes nearer to four labels
    assert float(rows[-1][column]) < 0.5 * float(rows[1][column])
    halves = replace(config, output=tmp_path / "halves")
    train(replace(halves, training=replace(config.training, steps=2)), start=base)
    again = train(halves, start=base)
    assert read_header(again).training["steps"] == read_header(path).training["steps"]
    one, other = (load(p)[1].network.state_dict() for p in (path, again))
    for name, values in one.items():
        torch.testing.assert_close(other[name], values, rtol=0, atol=1e-6, msg=name)


def test_wrong_use_is_refused(tmp_path, water_labels):
    with pytest.raises(ValueError, match="fock = 0.1 must be 0 with optimizer = 'gauss-newton'"):
        configuration(tmp_path, water_labels, weights="energy = 1.0\nfock = 0.1")
    with pytest.raises(ValueError, match="damping = 0 must be positive"):
        configuration(tmp_path, water_labels, weights="energy = 1.0\ndamping = 0.0")
    (tmp_path / "plain.toml").write_text('[data]\nlabels = "x.h5"\n[training]\noptimizer = "gauss-newton"\n')
    with pytest.raises(ValueError, match="'gauss-newton' is for fine-tuning, with .finetune."):
        read_config(tmp_path / "plain.toml")
    (tmp_path / "plain.toml").write_text('[data]\nlabels = "x.h5"\n[training]\noptimizer = "newton"\n')
    with pytest.raises(ValueError, match="optimizer = 'newton' must be one of muon, gauss-newton"):
        read_config(tmp_path / "plain.toml")
