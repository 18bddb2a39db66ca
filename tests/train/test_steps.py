"""One step after the other: learning rate, clipping, moving average, and what is left out of the loss."""

import math

import pytest
import torch
from torch import nn

from mlsemi.train.config import Config, DataConfig, TrainingConfig
from mlsemi.train.loop import _Run
from mlsemi.train.objective import Objective

TERMS = {"a": 1.0, "b": 0.0}


class Linear(nn.Module):
    """An engine whose network has one weight vector."""

    def __init__(self):
        super().__init__()
        self.network = nn.Linear(3, 1, bias=False)
        nn.init.constant_(self.network.weight, 0.5)


@pytest.fixture
def make_run(tmp_path):
    """A run whose loss is `slope` times the sum of the weights plus `start`; samples are not looked at."""

    def make(slope=1.0, start=0.0, **training):
        config = Config(
            name="line",
            output=tmp_path,
            baseline="atoms",
            overlap_floor=0.0,
            data=DataConfig(("none.h5",)),
            training=TrainingConfig(**training),
        )
        engine = Linear()

        def terms(samples):
            total = slope * engine.network.weight.sum() + start
            return {"a": total.expand(1), "b": (total * torch.nan).expand(1)}

        return _Run(config, None, engine, Objective([0], [0], TERMS, dict.fromkeys(TERMS, "meh"), terms))

    return make


def test_the_learning_rate_rises_linearly_and_falls_as_a_cosine(make_run):
    run = make_run(learning_rate=0.1, warmup=10, steps=110)
    rates = []
    for run.step in (0, 4, 9, 10, 35, 60, 110, 200):
        rates.append(run._learning_rate())
    wanted = [0.01, 0.05, 0.1, 0.1, 0.05 * (1 + math.cos(math.pi / 4)), 0.05, 0.0, 0.0]
    assert rates == pytest.approx(wanted, rel=1e-12, abs=1e-16)


def test_without_warm_up_the_first_rate_is_the_peak(make_run):
    assert make_run(learning_rate=0.1, warmup=0, steps=10)._learning_rate() == 0.1


def test_a_step_is_taken_at_the_rate_of_the_schedule(make_run):
    """AdamW: the first step of each weight is the learning rate, along the sign of its gradient."""
    run = make_run(learning_rate=0.1, warmup=10, steps=110)
    run._one_step(run.optimizer, [0])
    torch.testing.assert_close(run.parameters["weight"].detach(), torch.full((1, 3), 0.49), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("ema", "decays"), [(0.999, (2 / 11, 3 / 12)), (0.1, (0.1, 0.1))])
def test_the_average_follows_the_weights_faster_at_first(make_run, ema, decays):
    run = make_run(learning_rate=0.1, warmup=0, ema=ema)
    wanted = run.parameters["weight"].detach().double()
    for decay in decays:
        run._one_step(run.optimizer, [0])
        now = run.parameters["weight"].detach().double()
        wanted = decay * wanted + (1 - decay) * now
        # the average is float32
        torch.testing.assert_close(run.average["weight"].double(), wanted, rtol=1e-6, atol=0)
        assert not torch.allclose(wanted, now, rtol=1e-4)


@pytest.mark.parametrize(("slope", "norm"), [(40.0, 0.5), (0.1, 0.1 * math.sqrt(3))])
def test_gradients_are_clipped_to_their_largest_norm(make_run, slope, norm):
    run = make_run(slope, clip=0.5)
    run._one_step(run.optimizer, [0])
    assert float(run.parameters["weight"].grad.norm()) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize(("slope", "start"), [(math.inf, 0.0), (1.0, math.inf)])
def test_a_step_whose_loss_or_gradient_is_not_finite_changes_nothing(make_run, slope, start):
    run = make_run(slope, start)
    assert not run._one_step(run.optimizer, [0])
    assert run.step == 1
    assert (run.parameters["weight"] == 0.5).all() and (run.average["weight"] == 0.5).all()


def test_terms_without_weight_are_left_out_of_the_loss(make_run):
    total = make_run().objective.total
    assert total({"a": 2.0, "b": math.nan}) == 2.0
    assert total({"b": math.nan}) == 0


def test_a_batch_without_a_term_of_weight_changes_nothing(make_run):
    run = make_run()
    object.__setattr__(run.objective, "terms", lambda samples: {"a": torch.zeros(0), "b": torch.ones(1)})
    assert run._one_step(run.optimizer, [0])
    assert (run.parameters["weight"] == 0.5).all()
