"""The loss surface of a schedule: one pass for all horizons, and the best place on it."""

import math
from functools import partial

import pytest
import torch

from learnopt import checkpoints, optimizers, smd_mlp, surface, tasks, unroll
from learnopt.seeding import generator

F64 = torch.float64
TASK = tasks.mlp([6, 5, 3], "tanh", weight_std=0.5, dtype=F64)
DECAY = optimizers.inverse_time(20.0)
OPT = optimizers.scheduled(optimizers.sgd(), DECAY)
RANGES = {"log_lr": (1e-3, 0.5), "log_decay": (1e-2, 200.0)}


def a_batch(draw, n=20):
    return (
        torch.randn(n, 6, generator=draw, dtype=F64),
        torch.randint(3, (n,), generator=draw),
    )


DRAW = generator(0, "surface")
THETA, SCORED = TASK.init(DRAW), a_batch(DRAW, 50)
BATCHES = [a_batch(DRAW) for _ in range(400)]
PHIS = {name: x.to(F64) for name, x in surface.sobol(7, RANGES, seed=1).items()}


def score(theta):
    return TASK.loss(theta, SCORED)


def rate(phi, t):
    return phi["log_lr"].exp() * DECAY(phi, t)


def losses(horizons, phis=PHIS, **kwargs):
    return surface.losses_at(TASK, OPT, phis, THETA, BATCHES, horizons, score, rate, **kwargs)


def alone(k, n_steps):
    phi = {name: x[k] for name, x in PHIS.items()}
    step, carry = unroll.make_step(TASK, OPT), unroll.start(TASK, OPT, THETA)
    end, _ = unroll.run(step, phi, carry, [unroll.Feed(b) for b in BATCHES[:n_steps]])
    return score(end.theta)


def test_the_loss_at_each_horizon_is_that_of_a_run_of_that_length():
    # specification test 12: the same stream of batches, cut off at each horizon
    found = losses([10, 60])
    assert len(set(found[1].tolist())) == 7  # the schedules differ
    for i, n_steps in enumerate((10, 60)):
        each = torch.stack([alone(k, n_steps) for k in range(7)])
        torch.testing.assert_close(found[i], each, rtol=1e-10, atol=0, check_dtype=False)


def test_a_score_of_several_numbers_is_kept_for_schedules_that_stopped_too():
    fast = {name: x.clone() for name, x in PHIS.items()}
    fast["log_decay"][0] = math.log(200.0)  # its rate is below 1e-6 long before step 150

    def both(theta):
        return torch.stack([score(theta), theta.norm()])

    found = surface.losses_at(TASK, OPT, fast, THETA, BATCHES, [10, 150], both, rate)
    assert found.shape == (2, 7, 2)
    assert torch.equal(found[..., 0], losses([10, 150], fast))
    assert len(set(found[1, :, 1].tolist())) == 7


def test_a_faster_step_gives_the_same_losses():
    opt, held = optimizers.scheduled(optimizers.momentum(), DECAY), torch.full((7,), -1.0).double()
    phis = PHIS | {"log_damping": held}

    def found(train=None):
        each = ([10, 60], score, rate)
        return surface.losses_at(TASK, opt, phis, THETA, BATCHES, *each, train=train)

    fast = partial(smd_mlp.train, TASK, "tanh", factor=DECAY)
    torch.testing.assert_close(found(fast), found(), rtol=1e-9, atol=0)


def test_points_that_no_longer_move_leave_the_pass_and_keep_their_loss():
    still = (rate(PHIS, torch.tensor(200.0, dtype=F64)) < surface.SMALLEST_RATE).nonzero().flatten()
    assert 0 < len(still) < 7
    found = losses([400])[0]
    for k in still.tolist():
        # what is left of the rates, below 1e-6 a step, moves the loss by less than this
        assert found[k].item() == pytest.approx(alone(k, 400).item(), rel=1e-4)


def test_a_diverged_point_stops_and_the_others_go_on():
    phis = {name: x.clone() for name, x in PHIS.items()}
    phis["log_lr"][0] = math.log(1e200)
    phis["log_decay"][0] = math.log(0.01)
    found = losses([200], phis)[0]
    assert not found[0].isfinite() or found[0] > 1e3
    torch.testing.assert_close(found[1:], losses([200])[0, 1:], rtol=1e-6, atol=0)


def test_an_interrupted_pass_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(surface, "EVERY", 10)  # a checkpoint every 100 steps
    whole, calls = losses([50, 250]), []

    def killed(phi, t):
        calls.append(float(t))
        if t > 220:
            raise KeyboardInterrupt
        return rate(phi, t)

    path = tmp_path / "surface.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        surface.losses_at(TASK, OPT, PHIS, THETA, BATCHES, [50, 250], score, killed, path)
    calls.clear()

    def watched(phi, t):
        calls.append(float(t))
        return rate(phi, t)

    rest = surface.losses_at(TASK, OPT, PHIS, THETA, BATCHES, [50, 250], score, watched, path)
    assert min(calls) == 200
    assert torch.equal(whole, rest)


def test_a_checkpoint_of_other_points_is_refused(tmp_path):
    path = tmp_path / "surface.checkpoint"
    losses([5], checkpoint=path, parameters={"seed": 0})
    with pytest.raises(checkpoints.CheckpointError, match="seed"):
        losses([5], checkpoint=path, parameters={"seed": 1})


def test_sobol_points_fill_the_ranges_and_depend_on_the_seed():
    points = surface.sobol(64, RANGES, seed=0)
    for name, (low, high) in RANGES.items():
        assert points[name].min() > math.log(low) and points[name].max() < math.log(high)
        assert points[name].max() - points[name].min() > 0.9 * math.log(high / low)
    assert not torch.equal(points["log_lr"], surface.sobol(64, RANGES, seed=1)["log_lr"])


def bowl(n=400, centre=(0.05, 3.0)):
    points = surface.sobol(n, RANGES, seed=0)
    square = sum((x - math.log(c)) ** 2 for x, c in zip(points.values(), centre, strict=True))
    return points, torch.exp(0.3 * square - 2)


def test_the_best_place_of_a_smooth_bowl_is_its_bottom():
    smooth = surface.smooth(*bowl(), RANGES)
    lr, decay = smooth.best()
    # a cell is a factor of 1.13 by 1.22; the bottom is found to about one of them
    assert abs(math.log(lr / 0.05)) < 0.15 and abs(math.log(decay / 3)) < 0.3
    assert smooth.band((0.05, 3.0)) == 1
    assert smooth.band((1e-3, 200.0)) > 6


def test_diverged_points_count_as_bad_not_as_missing():
    points, values = bowl()
    values[points["log_lr"] > math.log(0.2)] = torch.nan
    smooth = surface.smooth(points, values, RANGES)
    assert smooth.height.isfinite().all()
    assert smooth.band((0.45, 3.0)) == 12
