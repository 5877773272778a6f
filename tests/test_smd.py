"""SMD: hypergradients three ways, what a meta-step does, and a look-ahead that leaves no mark."""

import itertools
import math

import pytest
import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from learnopt import datasets, hypergrad, noisy_quadratic, optimizers, smd, tasks, unroll
from learnopt.seeding import generator

F64 = torch.float64
MLP = tasks.mlp([6, 5, 4, 3], "relu", weight_std=0.5, dtype=F64)
CONV = tasks.conv_net((1, 8, 8), (3, 4), 6, 3, weight_std=0.4, dtype=F64)
RATES = {"log_lr": math.log(0.1), "log_effective_lr": 0.0}
MOMENTA = {"log_momentum": math.log(0.9), "log_damping": math.log(0.1)}


def values(**logs):
    return {name: torch.tensor(x, dtype=F64) for name, x in logs.items()}


def batch(task, draw, n=12):
    shape = (6,) if task is MLP else (1, 8, 8)
    x = torch.randn(n, *shape, generator=draw, dtype=F64)
    return x, torch.randint(3, (n,), generator=draw)


def problem(task, n_steps=5, opt=None):
    """A step, the carry of a run that is under way, and the feeds of one look-ahead."""
    draw = generator(0, "smd", task.name)
    opt = opt or optimizers.scheduled(optimizers.momentum(), optimizers.inverse_time(5.0))
    step = unroll.make_step(task, opt)
    carry = unroll.start(task, opt, task.init(draw))
    phi = values(log_effective_lr=-1.0, log_damping=math.log(0.2), log_decay=0.3)
    carry, _ = unroll.run(step, phi, carry, [unroll.Feed(batch(task, draw)) for _ in range(3)])
    feeds = smd.feeds_ahead([batch(task, draw) for _ in range(n_steps)], batch(task, draw, 30))
    return step, phi, carry, feeds


def flat(slopes):
    return torch.stack(list(slopes.values()))


def population(tree, n=1):
    return tree_map(lambda leaf: leaf.expand(n, *leaf.shape).clone(), tree)


# ---- test 6: forward = reverse = central difference ----


@pytest.mark.parametrize("task", [MLP, CONV], ids=["mlp", "conv_net"])
@pytest.mark.parametrize("rate,momentum", list(itertools.product(RATES, MOMENTA)))
def test_three_ways_agree_in_all_four_parametrisations(task, rate, momentum):
    step, _, carry, feeds = problem(task)
    phi = values(**{rate: RATES[rate] - 1, momentum: MOMENTA[momentum], "log_decay": math.log(3)})
    forward = flat(hypergrad.forward(step, phi, carry, feeds)[0])
    reverse = flat(hypergrad.reverse(step, phi, carry, feeds)[0])
    # eps 1e-6: truncation 1e-12, rounding 1e-10; a ReLU's kink is not met in these draws
    numeric = flat(hypergrad.central_difference(step, phi, carry, feeds, 1e-6)[0])
    scale = reverse.abs().max()
    assert (reverse.abs() > 1e-5 * scale).all()  # no slope is trivially zero
    assert (forward - reverse).abs().max() < 1e-12 * scale
    assert (numeric - reverse).abs().max() < 2e-6 * scale


def test_the_parametrisations_are_one_heavy_ball():
    grads = torch.randn(4, 7, generator=generator(0, "grads"), dtype=F64)
    opt, ends = optimizers.momentum(), []
    logit = {"log_lr": RATES["log_lr"], "logit_momentum": math.log(9)}
    pairs = [{r: RATES[r], m: MOMENTA[m]} for r in RATES for m in MOMENTA]
    for logs in [logit, *pairs]:
        theta = torch.zeros(7, dtype=F64)
        state = opt.init(theta)
        for grad in grads:
            delta, state = opt.update(values(**logs), grad, state, theta)
            theta = theta + delta
        ends.append(theta)
    torch.testing.assert_close(torch.stack(ends), ends[0].expand(5, 7), rtol=1e-12, atol=0)


def test_no_momentum_at_all_has_finite_slopes():
    step, phi, carry, feeds = problem(MLP)
    slopes, _ = hypergrad.reverse(step, phi | values(log_damping=0.0), carry, feeds)
    assert all(slope.isfinite() for slope in slopes.values())


@pytest.mark.parametrize("task", [MLP, CONV], ids=["mlp", "conv_net"])
@pytest.mark.parametrize("mode", smd.MODES)
def test_a_population_is_its_runs_one_by_one(task, mode):
    step, phi, carry, feeds = problem(task)
    shift = torch.tensor([0.0, -1.0, 0.5], dtype=F64)
    phis = {name: x + shift for name, x in phi.items()}
    slopes, losses = smd.slopes(step, phis, population(carry, 3), feeds, mode)
    for k in range(3):
        one, end = hypergrad.reverse(step, {n: x[k] for n, x in phis.items()}, carry, feeds)
        torch.testing.assert_close(flat(slopes)[:, k], flat(one), rtol=1e-10, atol=1e-14)
        torch.testing.assert_close(losses[k], end.meta_loss, rtol=1e-12, atol=0)


# ---- tests 7 and 8 are on the noisy quadratic: see test_noisy_quadratic.py; here through SMD ----


def test_a_look_ahead_on_sample_paths_points_to_the_greedy_rate():
    h, sigma = torch.tensor([0.3, 1.0], dtype=F64), torch.tensor([1.0, 0.7], dtype=F64)
    begin = torch.tensor([2.0, -1.0], dtype=F64)
    model = noisy_quadratic.Model(h, sigma**2)
    lr, _ = noisy_quadratic.greedy(model)(0, noisy_quadratic.start(begin))
    task, opt = tasks.noisy_quadratic(h, sigma, begin), optimizers.sgd()
    step, n_runs = unroll.make_step(task, opt), 20_000
    carry = unroll.start(task, opt, begin)
    draw = generator(0, "paths")

    def slope(train, score):
        feeds = smd.feeds_ahead([train], score)
        return hypergrad.reverse(step, {"log_lr": lr[0].log()}, carry, feeds)[0]["log_lr"]

    train, score = (torch.stack(task.batches(draw, n_runs)) for _ in range(2))
    slopes = vmap(slope)(train, score)
    # at the greedy rate the expected slope is 0: accept 5 standard errors
    assert slopes.std() > 0.1
    assert abs(slopes.mean()) < 5 * slopes.std() / n_runs**0.5


# ---- test 9: the schedule ----


def test_the_rate_times_its_divisor_is_constant():
    opt = optimizers.scheduled(optimizers.momentum(), optimizers.inverse_time(5000.0))
    phi = values(log_effective_lr=0.0, log_damping=0.0, log_decay=math.log(1.7))  # lr = 1, mu = 0
    for t in (0, 1, 100, 5000, 20000):
        state = opt.init(torch.zeros(1, dtype=F64)) | {"step": torch.tensor(float(t), dtype=F64)}
        delta, _ = opt.update(phi, torch.ones(1, dtype=F64), state, None)
        assert -delta.item() * (1 + t / 5000) ** 1.7 == pytest.approx(1, rel=1e-12)


def test_decay_one_halves_the_rate_after_one_time_constant():
    phi = values(log_decay=0.0)
    assert optimizers.inverse_time(5000.0)(phi, torch.tensor(5000.0, dtype=F64)).item() == 0.5


# ---- test 10: a look-ahead leaves no mark ----


def test_a_look_ahead_leaves_weights_velocity_and_step_bit_identical():
    step, phi, carry, feeds = problem(MLP)
    meta, carry = smd.Rule(optimizers.adam()).start(population(phi)), population(carry)
    before = [leaf.clone() for leaf in tree_leaves(carry)]
    rule = smd.Rule(optimizers.adam())
    after = smd.look_ahead(step, rule, meta, carry, feeds)
    assert not torch.equal(flat(after.phi), flat(meta.phi))
    for old, new in zip(before, tree_leaves(carry), strict=True):
        assert torch.equal(old, new)


def online(plan, tuned=1.0, begin_end=((0, None),), lr=0.01, persistent=False, log_rate=-1.0):
    draw, n = generator(0, "online"), plan.n_steps
    step, phi, carry, _ = problem(MLP, opt=optimizers.momentum())
    phi = {name: phi[name] for name in ("log_effective_lr", "log_damping")}
    phi |= values(log_effective_lr=log_rate)
    batches = [batch(MLP, draw) for _ in range(n)]
    ahead = [[batch(MLP, draw) for _ in range(6)] for _ in range(n)]
    rule = smd.Rule(optimizers.adam(eps=smd.FIRST_STEP_EPS), lr, persistent)
    meta, carry = rule.start(population(phi)), population(carry)

    def feeds(k):
        return smd.feeds_ahead(ahead[k][:5], ahead[k][5])

    for begin, end in begin_end:
        meta, carry = smd.online(
            step, rule, plan, meta, carry, batches, feeds, torch.tensor([tuned]), begin, end
        )
    return meta, carry


@pytest.mark.parametrize("persistent", [False, True])
def test_looking_ahead_draws_no_random_number(persistent):
    before = torch.get_rng_state()
    online(smd.Plan(12, 4, n_meta_steps=3), persistent=persistent)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_untuned_member_trains_as_if_there_were_no_look_ahead():
    _, without = online(smd.Plan(12, 4, n_meta_steps=0))
    _, held = online(smd.Plan(12, 4, n_meta_steps=3), tuned=0.0)
    _, tuned = online(smd.Plan(12, 4, n_meta_steps=3))
    assert torch.equal(without.theta, held.theta)
    assert not torch.equal(without.theta, tuned.theta)


@pytest.mark.parametrize("persistent", [False, True])
def test_a_run_cut_in_two_is_the_whole_run(persistent):
    plan = smd.Plan(12, 3, n_meta_steps=2)
    whole, cut = (online(plan, 1.0, parts, 0.01, persistent) for parts in (
        [(0, None)], [(0, 5), (5, None)]))  # fmt: skip
    for a, b in zip(tree_leaves(whole), tree_leaves(cut), strict=True):
        assert torch.equal(a, b)


# ---- test 11: what a meta-step does ----


def test_a_rolled_back_adam_takes_steps_of_one_size():
    rule = smd.Rule(optimizers.adam(eps=smd.FIRST_STEP_EPS))
    meta = rule.start({"log_effective_lr": torch.tensor([-1.0, -2.0, 0.5], dtype=F64)})
    for slope in (torch.tensor([3.0, -0.02, 1e-3], dtype=F64),) * 2:
        now = rule.update(meta, {"log_effective_lr": slope})
        moved = now.phi["log_effective_lr"] - meta.phi["log_effective_lr"]
        # eps makes it a little less than 0.01 where the slope is as small as 1e-3
        torch.testing.assert_close(moved, -0.01 * slope.sign(), rtol=4e-4, atol=0)
        meta = now


def test_a_persistent_adam_averages_noise_away():
    moved = {}
    for persistent in (False, True):
        rule = smd.Rule(optimizers.adam(), persistent=persistent)
        meta = rule.start({"log_effective_lr": torch.zeros(1, dtype=F64)})
        # rarely a large slope up, often a small one down: the mean is 0, the sign is not
        for k in range(400):
            slope = torch.tensor([-3.0 if k % 4 == 3 else 1.0], dtype=F64)
            meta = rule.update(meta, {"log_effective_lr": slope})
        moved[persistent] = meta.phi["log_effective_lr"].item()
    assert moved[False] == pytest.approx(-2.0, rel=1e-3)  # 300 down, 100 up, 0.01 each
    assert abs(moved[True]) < 0.2


def test_the_raw_slope_is_clipped_before_the_factor_of_log_space():
    rule = smd.Rule(optimizers.sgd(), lr=1.0)
    meta = rule.start({"log_effective_lr": torch.tensor([0.02], dtype=F64).log()})
    now = rule.update(meta, {"log_effective_lr": torch.tensor([5.0], dtype=F64)})
    moved = now.phi["log_effective_lr"] - meta.phi["log_effective_lr"]
    assert moved.item() == pytest.approx(-10 * 0.02)  # d loss / d value is 250, clipped to 10


def test_values_stay_in_their_limits():
    rule = smd.Rule(optimizers.sgd(), lr=1e3, clip=0)
    start = torch.tensor([[1.0], [0.5], [1.0]], dtype=F64).log()
    meta = rule.start(dict(zip(smd.LIMITS, start, strict=True)))
    for sign, at in ((1.0, 0), (-1.0, 1)):
        slope = {name: torch.full((1,), sign, dtype=F64) for name in smd.LIMITS}
        phi = rule.update(meta, slope).phi
        for name, limits in smd.LIMITS.items():
            assert phi[name].exp().item() == pytest.approx(limits[at])


def test_a_member_that_diverged_stays_where_it_is():
    rule = smd.Rule(optimizers.adam(), persistent=True)
    meta = rule.start({"log_effective_lr": torch.zeros(3, dtype=F64)})
    slope = torch.tensor([1.0, torch.nan, torch.inf], dtype=F64)
    moved = rule.update(meta, {"log_effective_lr": slope}).phi["log_effective_lr"]
    assert moved[0] < 0 and (moved[1:] == 0).all()


# ---- online, offline ----


def test_the_rate_falls_to_its_last_value_in_a_straight_line_of_logs():
    plan = smd.Plan(n_steps=100)
    log_rate = torch.tensor([0.0, -2.0], dtype=F64)
    assert torch.equal(plan.rate_log(50, log_rate), log_rate)
    middle, end = (plan.rate_log(t, log_rate) for t in (75, 100))
    torch.testing.assert_close(end, torch.full_like(end, math.log(1e-4)))
    torch.testing.assert_close(middle, (log_rate + end) / 2)


def test_nothing_is_tuned_from_the_middle_on():
    plan = smd.Plan(n_steps=100, steps_per_update=20)
    assert [t for t in range(100) if plan.updates_at(t)] == [0, 20, 40]


def test_a_deterministic_look_ahead_has_one_batch():
    feeds = smd.feeds_ahead(["a", "b", "c"], "d", deterministic=True)
    assert [feed.train for feed in feeds] == ["a"] * 3
    assert [(feed.score, feed.weight) for feed in feeds] == [(None, 0.0)] * 2 + [("a", 1.0)]


def test_offline_descends_the_loss_of_its_horizon():
    step, phi, carry, feeds = problem(MLP, n_steps=8)
    rule = smd.Rule(optimizers.adam(), lr=0.05, persistent=True)
    path, losses = smd.offline(step, rule, population(phi), population(carry), lambda k: feeds, 40)
    assert path["log_decay"].shape == (41, 1) and losses.shape == (40, 1)
    assert losses[-1] < 0.95 * losses[0]


def test_a_knob_that_is_fixed_gets_no_slope():
    step, phi, carry, feeds = problem(MLP)
    held = {"log_damping": phi["log_damping"]}
    free = {name: x for name, x in phi.items() if name not in held}
    partly, _ = hypergrad.reverse(smd.fixing(step, held), free, carry, feeds)
    whole, _ = hypergrad.reverse(step, phi, carry, feeds)
    assert partly.keys() == free.keys()
    for name, slope in partly.items():
        torch.testing.assert_close(slope, whole[name], rtol=1e-12, atol=0)


def test_online_sign_steps_are_at_most_a_tenth_an_update_in_log_space():
    meta, _ = online(smd.Plan(8, 2, n_meta_steps=10), log_rate=-1.0)
    moved = abs(meta.phi["log_effective_lr"].item() + 1.0)
    assert 0 < moved <= 2 * 10 * 0.01 + 1e-9  # updates before steps 0 and 2


def test_the_batches_of_digits_serve_an_online_run():
    data = datasets.load("digits")
    made = datasets.minibatches(data.x_train, data.y_train, 100, 6, generator(0), drop_last=True)
    assert all(len(x) == 100 for x, _ in made)
