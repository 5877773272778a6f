"""Tuning: the right rate for each optimizer, common runs, named criteria, divergence."""

import math
from functools import partial

import pytest
import torch
from torch import optim

from learnopt import baselines, tasks, unroll
from learnopt.baselines import RULES, paired_difference, tune

F64 = torch.float64


@pytest.fixture(scope="module")
def task():
    return tasks.quadratic(dtype=F64)


@pytest.fixture(scope="module")
def runs(task):
    return unroll.draw_runs(task, 200, 100, seed=0, stream="tuning")


TORCHS = {
    "Adam": optim.Adam,
    "RMSprop": optim.RMSprop,
    "SGD": optim.SGD,
    "Nesterov": partial(optim.SGD, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", RULES)
def test_a_baseline_is_torchs_optimizer_with_torchs_defaults(name):
    rule, theta = RULES[name], torch.tensor([1.0, -2.0], dtype=F64)
    phi, state = rule.phi(0.01, F64), rule.opt.init(theta)
    torchs = theta.clone().requires_grad_()
    opt = TORCHS[name]([torchs], lr=0.01)
    for _ in range(20):
        slope = torch.tensor([1.0, 30.0]) * theta + 1
        delta, state = rule.opt.update(phi, slope, state, theta)
        theta, torchs.grad = theta + delta, slope
        opt.step()
        torch.testing.assert_close(theta, torchs.detach(), rtol=1e-12, atol=0)


def test_the_grid_has_two_rates_a_decade_from_one_to_a_hundred_thousandth():
    assert baselines.LEARNING_RATES == tuple(float(f"{10 ** (-k / 2):.0e}") for k in range(11))


def test_each_optimizer_gets_its_own_rate(task, runs):
    # The thesis' bug B1: its search tuned plain SGD whatever the optimizer's name.
    tuned = {name: tune(task, rule, runs) for name, rule in RULES.items()}
    assert {name: t.lr for name, t in tuned.items()} == {
        "Adam": 0.3, "RMSprop": 0.03, "SGD": 0.01, "Nesterov": 0.01,
    }  # fmt: skip
    assert len({t.score for t in tuned.values()}) == 4


def test_the_batched_grid_equals_one_run_after_another(task):
    runs = unroll.draw_runs(task, 3, 12, seed=1)
    for rule in RULES.values():
        tuned = tune(task, rule, runs, grid=(0.01, 0.001))
        for lr, score in zip(tuned.grid, tuned.scores, strict=True):
            total = 0.0
            for k in range(3):
                carry = unroll.start(task, rule.opt, runs.theta[k])
                feeds = [unroll.Feed(batch) for batch in runs.batches[k]]
                step = unroll.make_step(task, rule.opt)
                _, seen = unroll.run(
                    step, rule.phi(lr, F64), carry, feeds,
                    record=lambda c, f: task.loss(c.theta, f.train).item(),
                )  # fmt: skip
                total += sum(seen)
            assert score == pytest.approx(total / 3, rel=1e-12)


def test_the_criteria_are_the_sum_and_the_last_ten_steps():
    losses = torch.arange(40.0).view(2, 20)
    assert baselines.sum_of_losses(losses) == losses.sum() / 2
    assert baselines.final_loss(losses) == losses[:, 10:].mean()


@pytest.mark.parametrize("criterion", ["sum", "final"])
def test_a_rate_is_scored_by_the_named_criterion_and_the_lowest_score_wins(task, criterion):
    runs = unroll.draw_runs(task, 5, 30, seed=2)
    tuned = tune(task, RULES["Adam"], runs, criterion, grid=(0.01, 0.1, 0.03))
    assert tuned.lr == 0.1 and tuned.score == min(tuned.scores)
    for lr, score in zip(tuned.grid, tuned.scores, strict=True):
        losses = unroll.losses(task, RULES["Adam"].opt, RULES["Adam"].phi(lr, F64), runs)
        by_hand = losses.sum() / 5 if criterion == "sum" else losses[:, 20:].mean()
        assert score == pytest.approx(by_hand.item(), rel=1e-9)


def test_an_unknown_criterion_is_refused(task, runs):
    with pytest.raises(ValueError, match="'best' is not one of"):
        tune(task, RULES["SGD"], runs, criterion="best")


def test_a_diverging_rate_scores_infinity_and_is_never_chosen(task, runs):
    tuned = tune(task, RULES["SGD"], runs, grid=(1e3, 0.01))
    assert tuned.lr == 0.01 and math.isinf(tuned.scores[0])
    with pytest.raises(ValueError, match="diverged: try smaller ones"):
        tune(task, RULES["SGD"], runs, grid=(1e3, 1e4))


def test_a_loss_of_infinity_counts_as_diverged_before_it_becomes_nan(task):
    runs = unroll.draw_runs(task, 2, 45, seed=0)
    last = unroll.losses(task, RULES["SGD"].opt, RULES["SGD"].phi(1e3, F64), runs)[:, -1]
    assert last.isinf().all()
    assert tune(task, RULES["SGD"], runs, grid=(1e3, 0.01)).scores[0] == math.inf
    with pytest.raises(ValueError, match="diverged: try smaller ones"):
        tune(task, RULES["SGD"], runs, grid=(1e3,))


def test_pairing_narrows_the_interval_of_a_difference():
    common = 10 * torch.randn(500, dtype=F64, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(500, dtype=F64, generator=torch.Generator().manual_seed(1))
    paired = paired_difference(common + 0.5 + noise, common)
    assert paired.low < 0.5 < paired.high and paired.low > 0
    unpaired = paired_difference(common + 0.5 + noise, common.flip(0))
    assert unpaired.high - unpaired.low > 5 * (paired.high - paired.low)


def test_a_difference_is_that_of_the_means_and_its_interval_that_of_student():
    a, b = torch.tensor([1.0, 4.0]), torch.tensor([3.0, 2.0])
    assert paired_difference(a, b).mean == 0.0 and paired_difference(a, b + 1).mean == -1.0
    # Two differences, -2 and 2: mean 0, standard error 2, and t(0.975, 1) = 12.706
    assert paired_difference(a, b)[1:] == pytest.approx((-25.412, 25.412), abs=1e-3)


def test_a_difference_of_unlike_runs_is_refused():
    for n_left, n_right in ((3, 4), (1, 1)):
        with pytest.raises(ValueError, match=r"expected two \(n_runs,\)"):
            paired_difference(torch.zeros(n_left), torch.zeros(n_right))
