"""Each update rule, step for step, against torch.optim; each schedule against its closed form."""

import math
from functools import partial

import pytest
import torch
from torch import optim

from learnopt import hypergrad, optimizers, seeding, tasks, unroll
from learnopt.optimizers import hyperparameters

N_STEPS = 60
MU = 0.9

# A new hand-designed optimizer: one row, (ours, torch's).
PAIRS = {
    "sgd": (optimizers.sgd(), optim.SGD),
    "momentum": (optimizers.momentum(), partial(optim.SGD, momentum=MU)),
    "nesterov": (optimizers.nesterov(), partial(optim.SGD, momentum=MU, nesterov=True)),
    "rmsprop": (optimizers.rmsprop(), optim.RMSprop),
    "rmsprop-0.9": (
        optimizers.rmsprop(decay=0.9, eps=1e-3),
        partial(optim.RMSprop, alpha=0.9, eps=1e-3),
    ),
    "adam": (optimizers.adam(), optim.Adam),
    "adam-0.8": (
        optimizers.adam(0.8, 0.95, eps=1e-4),
        partial(optim.Adam, betas=(0.8, 0.95), eps=1e-4),
    ),
}


def _loss(theta, batch):
    """Neither quadratic nor separable; the last coordinate's gradient is always exactly 0."""
    matrix, target = batch
    residual = matrix @ theta[:-1] - target
    return residual.cosh().log().sum() + 0.3 * (2 * theta[:-1]).sin().prod()


def _problem(dtype, name="optimizers"):
    draw = partial(torch.randn, generator=seeding.generator(0, name), dtype=torch.float64)
    theta = draw(8).to(dtype)
    return theta, [(draw(9, 7).to(dtype), draw(9).to(dtype)) for _ in range(N_STEPS)]


def _ours(opt, phi, theta, batches):
    state, path = opt.init(theta), []
    for batch in batches:
        gradient = torch.func.grad(_loss)(theta, batch)
        delta, state = opt.update(phi, gradient, state, theta)
        theta = theta + delta
        path.append(theta)
    return torch.stack(path)


def _torchs(make, theta, batches, scheduler=None):
    theta = theta.clone().requires_grad_()
    opt, path = make([theta]), []
    schedule = scheduler(opt) if scheduler else None
    for batch in batches:
        opt.zero_grad()
        _loss(theta, batch).backward()
        opt.step()
        path.append(theta.detach().clone())
        if schedule:
            schedule.step()
    return torch.stack(path)


# 60 steps feed each rounding error back through the loss: at most 8 ulp of the largest coordinate
# were seen in float64. A misplaced eps = 1e-8 would be 4e7 ulp.
N_ULP = 50


def _assert_same_path(ours, torchs, start):
    steps = torch.diff(torchs, dim=0, prepend=start[None])[:, :-1]
    assert torch.isfinite(torchs).all()
    assert (steps.abs().amax(1) > 0).all()  # it moved at every step
    assert torch.equal(torchs[-1, -1], start[-1])  # but never where the gradient is 0
    assert ours.dtype == torchs.dtype
    atol = N_ULP * torch.finfo(ours.dtype).eps * torchs.abs().max().item()
    torch.testing.assert_close(ours, torchs, rtol=0, atol=atol)


@pytest.mark.parametrize("lr", [0.03, 0.01, 0.001])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", PAIRS)
def test_every_step_is_torchs_step(name, dtype, lr):
    ours, torchs = PAIRS[name]
    theta, batches = _problem(dtype)
    path = _ours(ours, hyperparameters(lr, MU, dtype=dtype), theta, batches)
    _assert_same_path(path, _torchs(partial(torchs, lr=lr), theta, batches), theta)


def test_the_optimizers_differ_from_one_another():
    # so that a row of PAIRS cannot pass by testing another row's rule
    theta, batches = _problem(torch.float64)
    ends = [_ours(opt, hyperparameters(0.01, MU), theta, batches)[-1] for opt, _ in PAIRS.values()]
    gaps = torch.cdist(torch.stack(ends), torch.stack(ends)) + torch.eye(len(ends))
    assert gaps.min() > 1e-3


def test_a_rate_per_coordinate_is_a_rate_per_parameter_group():
    theta, batches = _problem(torch.float64)
    lrs = torch.tensor([0.03, 0.01, 0.002, 0.001, 0.004, 0.02, 0.005, 0.1], dtype=torch.float64)
    phi = {"log_lr": lrs.log()}
    path = _ours(optimizers.adam(), phi, theta, batches)
    for k, lr in enumerate(lrs.tolist()):
        # a coordinate's own step, given the gradients along our path
        alone = _along(path, theta, batches, k, partial(optim.Adam, lr=lr))
        torch.testing.assert_close(path[:, k], alone, rtol=0, atol=1e-14)


def _along(path, start, batches, k, make):
    """Coordinate k moved by torch's optimizer under the gradients met along a given path."""
    theta, alone = start[k].clone().requires_grad_(), []
    opt = make([theta])
    for at, batch in zip(torch.cat([start[None], path]), batches, strict=False):
        theta.grad = torch.func.grad(_loss)(at, batch)[k]
        opt.step()
        alone.append(theta.detach().clone())
    return torch.stack(alone)


def test_adams_running_bias_corrections_are_one_minus_beta_to_the_t():
    opt, theta = optimizers.adam(), torch.zeros(2)
    phi, state = hyperparameters(0.1), opt.init(theta)
    for t in range(1, 3001):
        _, state = opt.update(phi, torch.ones(2), state, theta)
        if t in (1, 2, 10, 100, 1000, 3000):
            # float32: the recursion forgets old rounding at the rate 1 - beta2 = 1/1000
            assert state["one_minus_b1"].item() == pytest.approx(1 - 0.9**t, rel=1e-6)
            assert state["one_minus_b2"].item() == pytest.approx(1 - 0.999**t, rel=3e-5)


def test_adams_state_may_come_back_in_any_order():
    opt, phi = optimizers.adam(), hyperparameters(0.1, dtype=torch.float64)
    theta, batches = _problem(torch.float64)
    gradient = torch.func.grad(_loss)(theta, batches[0])
    _, state = opt.update(phi, gradient, opt.init(theta), theta)
    delta, moved = opt.update(phi, gradient, state, theta)
    again, same = opt.update(phi, gradient, dict(sorted(state.items())), theta)
    assert torch.equal(delta, again)
    assert moved.keys() == same.keys() == state.keys()
    assert all(torch.equal(moved[name], same[name]) for name in moved)


@pytest.mark.parametrize("name", ["rmsprop", "adam"])
@pytest.mark.parametrize("mode", [hypergrad.reverse, hypergrad.forward])
def test_a_coordinate_that_never_has_a_gradient_leaves_the_hypergradient_finite(mode, name):
    # sqrt has an infinite slope at 0; the last coordinate of _loss always sits there
    theta, batches = _problem(torch.float64)
    task = tasks.Task("log-cosh", None, None, _loss, None)
    opt = PAIRS[name][0]
    feeds = [unroll.Feed(batch, batch, 1.0) for batch in batches[:5]]
    carry = unroll.start(task, opt, theta)
    slope, *_ = mode(unroll.make_step(task, opt), hyperparameters(0.01), carry, feeds)
    assert torch.isfinite(slope["log_lr"]) and slope["log_lr"] != 0


# ---- hyperparameters ----


def test_hyperparameters_are_the_unconstrained_forms_of_rate_and_momentum():
    phi = hyperparameters(0.03, 0.95, dtype=torch.float64)
    assert phi["log_lr"].exp().item() == pytest.approx(0.03, rel=1e-15)
    assert phi["logit_momentum"].sigmoid().item() == pytest.approx(0.95, rel=1e-15)
    assert set(hyperparameters(0.03)) == {"log_lr"}
    assert hyperparameters(0.03)["log_lr"].dtype == torch.get_default_dtype()


@pytest.mark.parametrize(
    "lr, momentum", [(0.0, None), (-0.1, 0.9), (math.nan, 0.9), (0.1, 0.0), (0.1, 1.0), (0.1, -0.5)]
)
def test_hyperparameters_outside_their_range_are_refused(lr, momentum):
    with pytest.raises(ValueError, match="need lr > 0 and 0 < momentum < 1"):
        hyperparameters(lr, momentum)


# ---- schedules ----

SCHEDULES = {
    "exponential": (
        optimizers.exponential(0.97),
        partial(optim.lr_scheduler.ExponentialLR, gamma=0.97),
    ),
    "cosine": (
        optimizers.cosine(N_STEPS, floor=0.01),
        partial(optim.lr_scheduler.CosineAnnealingLR, T_max=N_STEPS, eta_min=0.01 * 0.03),
    ),
    "step": (
        optimizers.step_decay(7, 0.5),
        partial(optim.lr_scheduler.StepLR, step_size=7, gamma=0.5),
    ),
}


@pytest.mark.parametrize("opt_name", ["sgd", "nesterov", "adam"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_scheduled_step_is_torchs(name, opt_name):
    factor, scheduler = SCHEDULES[name]
    ours, torchs = PAIRS[opt_name]
    theta, batches = _problem(torch.float64)
    phi = hyperparameters(0.03, MU, dtype=torch.float64)
    path = _ours(optimizers.scheduled(ours, factor), phi, theta, batches)
    constant = _ours(ours, phi, theta, batches)
    assert (path[0] - constant[0]).abs().max() < 1e-15  # the factor is 1 at t = 0
    assert (path[-1] - constant[-1]).abs().max() > 1e-3  # and not 1 later
    _assert_same_path(path, _torchs(partial(torchs, lr=0.03), theta, batches, scheduler), theta)


def _factors(factor, n_steps, phi=None):
    t = torch.arange(n_steps, dtype=torch.float64)
    return torch.stack([factor(phi, now) for now in t])


def test_the_inverse_time_schedule_keeps_its_invariant():
    # Wu et al. 2018: alpha_t (1 + t/K)^beta = alpha_0 at every t
    beta, time_constant = 1.7, 20.0
    phi = {"log_decay": torch.tensor(math.log(beta), dtype=torch.float64)}
    factors = _factors(optimizers.inverse_time(time_constant), 100, phi)
    t = torch.arange(100, dtype=torch.float64)
    torch.testing.assert_close(factors * (1 + t / time_constant) ** beta, torch.ones_like(t))
    assert factors[0] == 1 and factors[-1] < 0.1


def test_inverse_time_halves_the_rate_at_its_time_constant_when_beta_is_one():
    phi = {"log_decay": torch.tensor(0.0, dtype=torch.float64)}
    factor = optimizers.inverse_time(5000.0)(phi, torch.tensor(5000.0, dtype=torch.float64))
    assert factor.item() == pytest.approx(0.5, rel=1e-15)


def test_the_cosine_goes_from_one_through_the_middle_to_its_floor():
    factors = _factors(optimizers.cosine(10, floor=0.2), 11)
    assert factors[0].item() == pytest.approx(1)
    assert factors[5].item() == pytest.approx(0.6)
    assert factors[10].item() == pytest.approx(0.2)
    assert (factors.diff() < 0).all()


def test_the_cosine_ends_at_a_millionth_where_no_floor_is_asked_for():
    # at 0 the rate's log would not be finite
    assert _factors(optimizers.cosine(10), 11)[-1].item() == pytest.approx(1e-6, rel=1e-9)


def test_the_step_schedule_drops_after_every_so_many_steps():
    factors = _factors(optimizers.step_decay(3, 0.1), 7)
    torch.testing.assert_close(
        factors, torch.tensor([1, 1, 1, 0.1, 0.1, 0.1, 0.01], dtype=torch.float64)
    )


def test_a_schedule_counts_its_steps_in_the_state_as_a_float():
    opt = optimizers.scheduled(optimizers.momentum(), optimizers.exponential(0.5))
    theta, phi = torch.zeros(3), hyperparameters(0.1, 0.9)
    state = opt.init(theta)
    for t in range(3):
        assert state["step"].item() == t and state["step"].is_floating_point()
        _, state = opt.update(phi, torch.ones(3), state, theta)
