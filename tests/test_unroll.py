"""The inner loop: a step, a run, a population; and published means over 20,000 functions."""

import math
from functools import cache

import pytest
import torch
from torch.func import grad

from learnopt import optimizers, seeding, tasks, unroll
from learnopt.optimizers import hyperparameters
from learnopt.unroll import Feed

F64 = torch.float64


def _parabola(h=3.0, w0=2.0):
    return tasks.noisy_quadratic(*torch.tensor([[h], [0.0], [w0]], dtype=F64))


def _noisy(n=5):
    h = torch.logspace(-1, 1, n, dtype=F64)
    return tasks.noisy_quadratic(h, 0.3 * torch.ones(n, dtype=F64), torch.ones(n, dtype=F64))


# ---- one step, one run ----


def test_a_step_moves_theta_and_scores_the_new_point():
    # L = 3 w^2 / 2 at w = 2 with lr 0.1: w <- 2 - 0.1 * 6 = 1.4; score 0.5 * 3 * (1.4 - 1)^2 / 2
    task, opt = _parabola(), optimizers.sgd()
    carry = unroll.start(task, opt, task.init(None))
    here, there = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
    step = unroll.make_step(task, opt)
    end = step(hyperparameters(0.1, dtype=F64), carry, Feed(here, there, weight=0.5))
    assert end.theta.item() == pytest.approx(1.4)
    assert end.meta_loss.item() == pytest.approx(0.5 * 3 * 0.4**2 / 2)


def test_the_meta_loss_adds_up_the_weighted_scores():
    task, opt = _parabola(), optimizers.sgd()
    centre = torch.zeros(1, dtype=F64)
    weights = [0.0, 2.0, 0.0, 1.0]
    feeds = [Feed(centre, centre, weight) for weight in weights]
    carry = unroll.start(task, opt, task.init(None))
    step = unroll.make_step(task, opt)
    end, _ = unroll.run(step, hyperparameters(0.1, dtype=F64), carry, feeds)
    # w_t = 2 * 0.7^t, scored after the step
    scores = [3 * (2 * 0.7 ** (t + 1)) ** 2 / 2 for t in range(4)]
    expected = sum(w * s for w, s in zip(weights, scores, strict=True))
    assert end.meta_loss.item() == pytest.approx(expected, rel=1e-12)


def test_a_step_that_is_not_judged_costs_no_extra_loss():
    calls = []
    task = _parabola()

    def counted(theta, batch):
        calls.append(batch)
        return task.loss(theta, batch)

    step = unroll.make_step(task._replace(loss=counted), optimizers.sgd())
    carry = unroll.start(task, optimizers.sgd(), task.init(None))
    centre = torch.zeros(1, dtype=F64)
    for feed in (Feed(centre), Feed(centre, centre, weight=0.0)):
        end = step(hyperparameters(0.1, dtype=F64), carry, feed)
        assert end.meta_loss == 0
    assert len(calls) == 2  # one for each step's gradient
    step(hyperparameters(0.1, dtype=F64), carry, Feed(centre, centre, weight=1.0))
    assert len(calls) == 4


def test_first_order_drops_the_slope_of_the_gradient_and_keeps_that_of_the_weight_decay():
    # w <- w - lr (g + w / 2), g = 3 w, at lr 0.1: w = 2, 1.3, 0.845. With g held constant
    # dw / dlr = -(3 + 1/2) 2 = -7 after one step, then -7 (1 - 0.1 / 2) - (3 + 1/2) 1.3 = -11.2.
    task, opt = _parabola(), optimizers.decayed(optimizers.sgd())
    centre = torch.zeros(1, dtype=F64)
    carry = unroll.start(task, opt, task.init(None))
    step = unroll.make_step(task, opt, second_order=False)

    def end(lr):
        phi = {"lr": lr, "weight_decay": 0.5}
        return unroll.run(step, phi, carry, [Feed(centre)] * 2)[0].theta.sum()

    lr = torch.tensor(0.1, dtype=F64)
    assert end(lr).item() == pytest.approx(0.845) and grad(end)(lr).item() == pytest.approx(-11.2)


def test_a_run_records_before_each_step():
    task, opt = _parabola(), optimizers.sgd()
    feeds = [Feed(torch.zeros(1, dtype=F64))] * 3
    carry = unroll.start(task, opt, task.init(None))
    end, recorded = unroll.run(
        unroll.make_step(task, opt),
        hyperparameters(0.1, dtype=F64),
        carry,
        feeds,
        record=lambda carry, feed: carry.theta.item(),
    )
    assert recorded == pytest.approx([2, 2 * 0.7, 2 * 0.7**2])
    assert end.theta.item() == pytest.approx(2 * 0.7**3)


def test_a_run_of_no_steps_is_where_it_started():
    task, opt = _parabola(), optimizers.adam()
    carry = unroll.start(task, opt, task.init(None))
    end, recorded = unroll.run(unroll.make_step(task, opt), hyperparameters(0.1), carry, [])
    assert end is carry and recorded == []


def test_two_runs_of_three_steps_are_one_run_of_six():
    task, opt = _noisy(), optimizers.adam()
    feeds = [Feed(c, c, 1.0) for c in task.batches(seeding.generator(0, "feeds"), 6)]
    phi = hyperparameters(0.1, dtype=F64)
    step, carry = unroll.make_step(task, opt), unroll.start(task, opt, task.init(None))
    middle, _ = unroll.run(step, phi, carry, feeds[:3])
    halves, _ = unroll.run(step, phi, middle, feeds[3:])
    whole, _ = unroll.run(step, phi, carry, feeds)
    assert torch.equal(halves.theta, whole.theta) and torch.equal(halves.meta_loss, whole.meta_loss)


# ---- populations ----


def test_more_runs_begin_with_the_same_runs():
    task = tasks.quadratic(n=3, start_std=1.0)
    few = unroll.draw_runs(task, 4, 6, seed=0)
    many = unroll.draw_runs(task, 9, 6, seed=0)
    assert torch.equal(few.theta, many.theta[:4])
    for ours, theirs in zip(few.batches, many.batches[:4], strict=True):
        assert torch.equal(ours[0][0], theirs[0][0]) and torch.equal(ours[0][1], theirs[0][1])
    assert many.theta.unique(dim=0).shape == (9, 3)
    assert few.n_steps == 6


def test_other_seeds_and_streams_give_other_runs():
    task = tasks.quadratic(n=3, start_std=1.0)
    thetas = [
        unroll.draw_runs(task, 2, 1, seed=0).theta,
        unroll.draw_runs(task, 2, 1, seed=1).theta,
        unroll.draw_runs(task, 2, 1, seed=0, stream="validation").theta,
    ]
    assert torch.cat(thetas).unique(dim=0).shape == (6, 3)


def test_the_start_and_the_data_of_a_run_have_each_their_own_named_stream():
    runs = unroll.draw_runs(tasks.quadratic(n=3, start_std=1.0), 2, 1, seed=4)
    for k in range(2):
        start, data = (seeding.generator(4, "test", part, k) for part in ("init", "batches"))
        assert torch.equal(runs.theta[k], torch.randn(3, generator=start))
        assert torch.equal(runs.batches[k][0][0], torch.randn(3, 3, generator=data))


def test_batches_are_stacked_anew_where_one_run_alone_moves_on():
    still, first, second = torch.arange(3.0)
    runs = unroll.Runs(torch.zeros(2, 1), [[still, still], [first, second]])
    assert [feed.train.tolist() for feed in runs.feeds()] == [[0, 1], [0, 2]]


def test_a_batch_that_stays_the_same_is_stacked_once():
    fixed = list(unroll.draw_runs(tasks.quadratic(), 3, 4, seed=0).feeds())
    assert len(fixed) == 4 and all(feed.train is fixed[0].train for feed in fixed)
    assert fixed[0].train[0].shape == (3, 10, 10) and fixed[0].train[1].shape == (3, 10)
    fresh = list(unroll.draw_runs(_noisy(), 3, 4, seed=0).feeds())
    assert torch.stack([feed.train for feed in fresh]).flatten(0, 1).unique(dim=0).shape == (12, 5)


def test_feeds_hold_each_runs_own_batches_in_order():
    runs = unroll.draw_runs(_noisy(), 3, 4, seed=0)
    for t, feed in enumerate(runs.feeds()):
        for k in range(3):
            assert torch.equal(feed.train[k], runs.batches[k][t])


@pytest.mark.parametrize("task", [tasks.quadratic(4, start_std=1.0, dtype=F64), _noisy()])
def test_the_losses_of_a_population_are_those_of_each_run_alone(task):
    opt, phi = optimizers.momentum(), hyperparameters(0.02, 0.8, dtype=F64)
    runs = unroll.draw_runs(task, 5, 7, seed=0)
    together = unroll.losses(task, opt, phi, runs)
    assert together.shape == (5, 7)
    for k in range(5):
        theta, state, alone = runs.theta[k], opt.init(runs.theta[k]), []
        for batch in runs.batches[k]:
            alone.append(task.loss(theta, batch))  # before the update
            delta, state = opt.update(phi, grad(task.loss)(theta, batch), state, theta)
            theta = theta + delta
        assert torch.stack(alone).std() > 0.01
        torch.testing.assert_close(together[k], torch.stack(alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("opt", [optimizers.nesterov(), optimizers.adam()])
def test_a_grid_of_phis_gives_the_losses_of_each_phi(opt):
    task = tasks.quadratic(4, dtype=F64)
    runs = unroll.draw_runs(task, 3, 8, seed=0)
    phis = [hyperparameters(lr, 0.9, dtype=F64) for lr in (0.001, 0.01, 0.03, 0.1)]
    stacked = {name: torch.stack([phi[name] for phi in phis]) for name in phis[0]}
    grid = unroll.grid_losses(task, opt, stacked, runs)
    assert grid.shape == (4, 3, 8)
    assert grid[:, :, -1].std(0).min() > 1e-3  # the phis differ
    for losses, phi in zip(grid, phis, strict=True):
        # batched and single matrix products round differently
        torch.testing.assert_close(losses, unroll.losses(task, opt, phi, runs), rtol=1e-10, atol=0)


def test_a_diverging_run_is_reported_as_inf_or_nan_and_disturbs_no_other():
    task, opt = _parabola(), optimizers.sgd()
    runs = unroll.draw_runs(task, 2, 400, seed=0)
    phis = {"log_lr": torch.tensor([100.0, 0.1], dtype=F64).log()}
    diverged, fine = unroll.grid_losses(task, opt, phis, runs)
    assert torch.isfinite(diverged[:, :10]).all() and not torch.isfinite(diverged[:, -1]).any()
    alone = unroll.losses(task, opt, hyperparameters(0.1, dtype=F64), runs)
    torch.testing.assert_close(fine, alone)


def test_a_classifier_without_data_cannot_be_run():
    with pytest.raises(ValueError, match="mlp-4-3-tanh has no data: pass batches"):
        unroll.draw_runs(tasks.mlp([4, 3], "tanh"), 2, 2, seed=0)


def test_a_classifier_draws_its_batches_from_the_given_function():
    def batches(generator, n_batches):
        x = torch.rand(n_batches, 5, 4, generator=generator)
        return [(image, torch.arange(5) % 3) for image in x]

    task = tasks.mlp([4, 3], "tanh", batches)
    losses = unroll.losses(
        task, optimizers.sgd(), hyperparameters(1.0), unroll.draw_runs(task, 2, 4, seed=0)
    )
    assert losses.shape == (2, 4) and losses[0, 0].item() == pytest.approx(math.log(3), abs=0.01)


# ---- published: the thesis' quadratics, means over 20,000 functions (specification, 6.1) ----

N_FUNCTIONS = 20_000
RULES = {
    "adam": optimizers.adam(),
    "rmsprop": optimizers.rmsprop(),
    "sgd": optimizers.sgd(),
    "nesterov": optimizers.nesterov(),
}
# optimizer, lr: sum of the losses of steps 0..99, loss at step 99, half a unit of each last digit
PUBLISHED = {
    ("adam", 0.3): (116.6, 0.05, 0.340, 0.0005),
    ("adam", 0.1): (119.8, 0.05, 0.451, 0.0005),
    ("adam", 0.03): (195.9, 0.05, 0.815, 0.0005),
    ("rmsprop", 0.1): (295.8, 0.05, 1.09, 0.005),
    ("rmsprop", 0.03): (129.2, 0.05, 0.680, 0.0005),
    ("rmsprop", 0.01): (175.6, 0.05, 0.944, 0.0005),
    ("sgd", 0.01): (186.5, 0.05, 1.075, 0.0005),
    ("sgd", 0.003): (304.0, 0.5, 1.81, 0.005),
    ("nesterov", 0.01): (94.9, 0.05, 0.417, 0.0005),
    ("nesterov", 0.003): (147.0, 0.5, 0.693, 0.0005),
}


@cache
def _functions():
    """Seed 1's functions, less those on which some listed run diverges: there are none.

    Nesterov momentum on curvature c contracts while lr c < (2 + 2 mu) / (1 + 2 mu), here
    lr c < 1.357, so c = 2 lambda_max(W^T W) < 135.7 at lr 0.01. About one function in 50,000 lies
    beyond; a sample with one has a mean near 1e5, and the published sample had none. So the
    published means are over stable functions, and the rule that leaves the others out is decided
    by W alone, before anything is run.
    """
    runs = unroll.draw_runs(tasks.quadratic(), N_FUNCTIONS, 100, seed=1)
    matrices = torch.stack([batches[0][0] for batches in runs.batches])
    curvature = 2 * torch.linalg.matrix_norm(matrices, ord=2) ** 2
    stable = 0.01 * curvature < (2 + 2 * 0.9) / (1 + 2 * 0.9)
    assert (~stable).sum() <= 3  # 0.4 are expected
    kept = [batches for batches, keep in zip(runs.batches, stable, strict=True) if keep]
    return unroll.Runs(runs.theta[stable], kept)


@cache
def _population(name, lr):
    phi = hyperparameters(lr, 0.9)
    return unroll.losses(tasks.quadratic(), RULES[name], phi, _functions()).double()


@pytest.mark.parametrize("name, lr", PUBLISHED)
def test_the_mean_over_20000_quadratics_is_the_published_one(name, lr):
    losses = _population(name, lr)
    total, total_rounding, last, last_rounding = PUBLISHED[name, lr]
    assert torch.isfinite(losses).all()
    for ours, published, rounding in (
        (losses.sum(1), total, total_rounding),
        (losses[:, 99], last, last_rounding),
    ):
        # both are means over 20,000 functions: 3 sd of their difference, 1 to 4 % of the mean
        standard_error = (ours.std() / len(ours) ** 0.5).item()
        tolerance = 3 * 2**0.5 * standard_error + rounding
        assert tolerance < 0.08 * published
        assert ours.mean().item() == pytest.approx(published, abs=tolerance)


@pytest.mark.parametrize("name, lr, median", [("nesterov", 0.01, 58.9), ("adam", 0.3, 83.5)])
def test_half_of_the_quadratics_lie_below_the_published_median(name, lr, median):
    # the number below a population's median is binomial: sd 1 / (2 sqrt n), twice as two samples
    below = (_population(name, lr).sum(1) < median).double().mean().item()
    assert below == pytest.approx(0.5, abs=3 * 2**0.5 * 0.5 / N_FUNCTIONS**0.5)


def test_gradient_descent_at_lr_003_diverges_on_about_a_third_of_the_quadratics():
    # "~34 %" is published, without when a run counts as diverged; here: it ends above its start.
    # Where lr c < 2 the loss falls at every step, so only sharper functions can do that.
    first, last = (_population("sgd", 0.03)[:, t] for t in (0, 99))
    diverged = ~(last < first)  # or NaN
    assert diverged.double().mean().item() == pytest.approx(0.34, abs=0.04)
    matrices = torch.stack([batches[0][0] for batches in _functions().batches])
    curvature = 2 * torch.linalg.matrix_norm(matrices, ord=2) ** 2
    assert (0.03 * curvature[diverged]).min() > 2 - 1e-3
    assert (0.03 * curvature[~diverged]).max() < 2.1  # just above 2, 100 steps may be too few


def test_the_population_starts_at_mean_loss_ten():
    start = _population("adam", 0.3)[:, 0]
    assert abs(start.mean().item() - 10) < 4 * start.std().item() / len(start) ** 0.5
