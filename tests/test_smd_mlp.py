"""The look-ahead by hand has the hypergradients of reverse mode, in float64."""

import math

import pytest
import torch
from torch.func import vmap

from learnopt import optimizers, smd, smd_mlp, tasks, unroll
from learnopt.seeding import generator

F64 = torch.float64
FACTOR = optimizers.inverse_time(5.0)
PLAIN = optimizers.momentum()


def problem(activation, opt, phi, n_before=3, n_ahead=6):
    """A task, a step, phi and the carry of two runs under way, and the feeds of a look-ahead."""
    task = tasks.mlp([6, 5, 4, 3], activation, weight_std=0.5, dtype=F64)
    made = generator(0, "smd by hand", activation)

    def batch(n):
        x = torch.randn(n, 6, generator=made, dtype=F64)
        return x, torch.randint(3, (n,), generator=made)

    step = unroll.make_step(task, opt)
    theta = torch.stack([task.init(made) for _ in range(2)])
    carry = vmap(lambda one: unroll.start(task, opt, one))(theta)
    train = vmap(step, in_dims=(0, 0, None))
    carry, _ = unroll.run(train, phi, carry, [unroll.Feed(batch(12)) for _ in range(n_before)])
    return task, step, carry, smd.feeds_ahead([batch(12) for _ in range(n_ahead)], batch(30))


def logs(**pairs):
    return {name: torch.tensor(values, dtype=F64) for name, values in pairs.items()}


def agree(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("activation", tasks.ACTIVATIONS)
@pytest.mark.parametrize("n_ahead", [1, 6])
def test_two_knobs_of_two_runs(activation, n_ahead):
    phi = logs(log_effective_lr=[-1.0, 0.5], log_damping=[math.log(0.2), math.log(0.6)])
    task, step, carry, feeds = problem(activation, PLAIN, phi, n_ahead=n_ahead)
    agree(smd_mlp.slopes(task, activation, phi, carry, feeds),
          smd.slopes(step, phi, carry, feeds, "reverse"))  # fmt: skip


def test_a_schedule_has_a_knob_of_its_own_and_goes_on_from_where_the_run_is():
    phi = logs(log_lr=[-1.0, -2.0], log_damping=[-1.0, -1.5], log_decay=[0.3, -0.4])
    opt = optimizers.scheduled(PLAIN, FACTOR)
    task, step, carry, feeds = problem("relu", opt, phi)
    agree(smd_mlp.slopes(task, "relu", phi, carry, feeds, FACTOR),
          smd.slopes(step, phi, carry, feeds, "reverse"))  # fmt: skip


def test_a_knob_that_is_fixed_has_no_slope_and_still_counts():
    phi = logs(log_lr=[-1.0, -2.0], logit_momentum=[1.0, 2.0])
    task, step, carry, feeds = problem("tanh", PLAIN, phi)
    free = {"log_lr": phi["log_lr"]}
    held = {"logit_momentum": phi["logit_momentum"]}
    found, _ = smd_mlp.slopes(task, "tanh", free, carry, feeds, fixed=held)
    expected, _ = smd.slopes(step, phi, carry, feeds, "reverse")
    assert found.keys() == free.keys()
    agree([found["log_lr"]], [expected["log_lr"]])


def test_a_knob_that_the_rule_does_not_have_has_slope_zero():
    phi = logs(log_lr=[-1.0, -2.0], logit_momentum=[1.0, 2.0])
    task, _, carry, feeds = problem("tanh", PLAIN, phi)
    found, _ = smd_mlp.slopes(task, "tanh", phi | {"log_decay": phi["log_lr"]}, carry, feeds)
    assert found["log_decay"].eq(0).all()


def test_one_rate_for_all_members_is_a_scalar_that_may_be_fixed():
    phi = logs(log_lr=[-1.0, -2.0])
    held = {"log_damping": torch.tensor(-1.0, dtype=F64)}
    both = phi | {"log_damping": held["log_damping"].expand(2)}
    task, step, carry, feeds = problem("sigmoid", PLAIN, both)
    agree([smd_mlp.slopes(task, "sigmoid", phi, carry, feeds, fixed=held)[0]["log_lr"]],
          [smd.slopes(step, both, carry, feeds, "reverse")[0]["log_lr"]])  # fmt: skip


def test_the_carry_is_left_as_it_was():
    phi = logs(log_lr=[-1.0, -2.0], log_damping=[-1.0, -1.5])
    task, _, carry, feeds = problem("relu", PLAIN, phi)
    theta, velocity = carry.theta.clone(), carry.state["velocity"].clone()
    smd_mlp.slopes(task, "relu", phi, carry, feeds)
    assert torch.equal(carry.theta, theta) and torch.equal(carry.state["velocity"], velocity)


def test_online_takes_the_fast_path_as_its_mode():
    phi = logs(log_effective_lr=[-1.0, -0.5], log_damping=[-1.0, -1.5])
    task, step, carry, feeds = problem("relu", PLAIN, phi)
    rule, batches = smd.Rule(optimizers.adam(), 0.1), [feed.train for feed in feeds]

    def path(mode):
        plan = smd.Plan(6, 2, 3, mode=mode)
        meta, end = smd.online(
            step, rule, plan, rule.start(phi), carry, batches, lambda k: feeds, torch.ones(2)
        )
        return [*meta.phi.values(), end.theta]

    agree(path(lambda phi, carry, feeds: smd_mlp.slopes(task, "relu", phi, carry, feeds)),
          path("reverse"))  # fmt: skip


@pytest.mark.parametrize("factor", [None, FACTOR])
def test_a_step_of_training_is_that_of_vmap(factor):
    opt = optimizers.scheduled(PLAIN, factor) if factor else PLAIN
    phi = logs(log_effective_lr=[-1.0, -0.5], log_damping=[-1.0, -1.5], log_decay=[0.3, -0.4])
    task, step, carry, feeds = problem("relu", opt, phi)
    found = smd_mlp.train(task, "relu", phi, carry, feeds[0], factor)
    expected = vmap(step, in_dims=(0, 0, None))(phi, carry, feeds[0])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_online_takes_the_fast_step():
    phi = logs(log_effective_lr=[-1.0, -0.5], log_damping=[-1.0, -1.5])
    task, step, carry, feeds = problem("relu", PLAIN, phi)
    rule, batches = smd.Rule(optimizers.adam(), 0.1), [feed.train for feed in feeds]

    def end(train):
        plan = smd.Plan(6, 2, 3, mode="reverse", train=train)
        return smd.online(
            step, rule, plan, rule.start(phi), carry, batches, lambda k: feeds, torch.ones(2)
        )[1].theta

    fast = end(lambda phi, carry, feed: smd_mlp.train(task, "relu", phi, carry, feed))
    torch.testing.assert_close(fast, end(None), rtol=1e-10, atol=1e-14)
