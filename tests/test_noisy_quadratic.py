"""The noisy quadratic: each formula against a second way to the same number, all in float64."""

import math

import pytest
import torch
from torch.func import grad, hessian, vmap

from learnopt import hypergrad, optimizers, seeding, tasks, unroll
from learnopt import noisy_quadratic as nq

F64 = torch.float64
# Rounding alone: sums of at most a few hundred terms of one size, in another order.
ROUNDING = {"rtol": 1e-12, "atol": 1e-14}


def drawn(*shape, name, low=0.2, high=1.5):
    """Numbers that vary, from a stream of this name."""
    uniform = torch.rand(*shape, generator=seeding.generator(0, name), dtype=F64)
    assert shape[-1] == 1 or uniform.std() > 0.1
    return low + (high - low) * uniform


def some_model(n=6):
    return nq.Model(drawn(n, name="curvature"), drawn(n, name="noise"))


def some_moments(model, n_steps=4):
    """The moments after a few steps at changing rates: no moment is 0."""
    moments = nq.start(drawn(model.curvature.shape[-1], name="mean"), var=0.1)
    for t in range(n_steps):
        moments = nq.step(model, moments, 0.3 / (t + 1), 0.5)
    return moments


def excess(model, moments):
    return nq.losses_by_direction(model, moments).sum(-1)


def paper_momentum():
    """The heavy ball with the rate inside the velocity: v <- mu v - lr grad; delta = v."""

    def update(phi, grad, state, theta):
        velocity = phi["logit_momentum"].sigmoid() * state["velocity"] - phi["log_lr"].exp() * grad
        return velocity, {"velocity": velocity}

    return optimizers.Optimizer(optimizers.momentum().init, update)


def sampled_moments(opt, phis, model, start, n_runs):
    """Monte Carlo by the book's inner step: samples (3, n_runs, n) of theta^2, theta v, v^2."""
    task = tasks.noisy_quadratic(model.curvature, model.noise_var.sqrt(), start)
    step = vmap(unroll.make_step(task, opt), in_dims=(None, 0, unroll.PER_RUN))
    theta = start.expand(n_runs, -1)
    carry = unroll.Carry(theta, opt.init(theta), theta.new_zeros(n_runs))
    for t, phi in enumerate(phis):
        noise = torch.randn(theta.shape, generator=seeding.generator(0, "centre", t), dtype=F64)
        carry = step(phi, carry, unroll.Feed(model.noise_var.sqrt() * noise))
    theta, velocity = carry.theta, carry.state["velocity"]
    return torch.stack([theta**2, theta * velocity, velocity**2])


# ---- the recursion ----


@pytest.mark.parametrize(
    ("form", "opt"), [("paper", paper_momentum()), ("torch", optimizers.momentum())]
)
def test_the_moments_are_those_of_a_monte_carlo_run(form, opt):
    # specification test 1: rates and momenta that change at every step, 200,000 runs
    model, start, n_runs = some_model(), drawn(6, name="start"), 200_000
    lrs, momenta = drawn(8, name="lrs", high=0.9), drawn(8, name="momenta", low=0.1, high=0.9)
    moments = nq.start(start)
    for lr, momentum in zip(lrs, momenta, strict=True):
        moments = nq.step(model, moments, lr, momentum, form)
    phis = [
        {"log_lr": lr.log(), "logit_momentum": momentum.logit()}
        for lr, momentum in zip(lrs, momenta, strict=True)
    ]
    samples = sampled_moments(opt, phis, model, start, n_runs)
    error = samples.std(1) / math.sqrt(n_runs)
    z = (samples.mean(1) - torch.stack(moments)) / error
    # 18 numbers: 5 standard errors are exceeded by chance in 1 of 100,000 tests
    assert z.abs().max() < 5
    assert (error / samples.mean(1))[0].max() < 0.01  # so it sees an error of 5 % in E[theta^2]
    loss = (0.5 * model.curvature * samples[0]).sum(-1)
    assert abs(loss.mean() - excess(model, moments)) < 5 * loss.std() / math.sqrt(n_runs)


def test_both_forms_of_the_heavy_ball_agree_at_a_constant_rate():
    model, lr = some_model(), 0.4
    paper = torch_form = nq.start(drawn(6, name="mean"))
    for _ in range(10):
        paper = nq.step(model, paper, lr, 0.7)
        torch_form = nq.step(model, torch_form, lr, 0.7, form="torch")
    # the paper's velocity is -lr times torch's
    scale = torch.tensor([1.0, -lr, lr**2], dtype=F64)[:, None]
    torch.testing.assert_close(torch.stack(paper), scale * torch.stack(torch_form), **ROUNDING)


def test_the_forms_differ_where_the_rate_moves():
    model = some_model()
    paper = torch_form = nq.start(drawn(6, name="mean"))
    for lr in (0.4, 0.1):
        paper = nq.step(model, paper, lr, 0.7)
        torch_form = nq.step(model, torch_form, lr, 0.7, form="torch")
    assert (paper.square / torch_form.square - 1).abs().min() > 0.05


def test_means_and_variances_obey_the_recursion_apart():
    # theorem 1 as the paper writes it: five numbers for each direction
    model, lr, mu = some_model(), 0.3, 0.6
    h, s2 = model
    m, n = drawn(6, name="mean"), torch.zeros(6, dtype=F64)
    P, C, Q = torch.full((6,), 0.1, dtype=F64), torch.zeros(6, dtype=F64), torch.zeros(6, dtype=F64)
    moments = nq.start(m, var=P)
    for _ in range(12):
        n = mu * n - lr * h * m
        m = m + n
        C1 = mu * C - lr * h * P
        Q = mu**2 * Q + (lr * h) ** 2 * (P + s2) - 2 * mu * lr * h * C
        P, C = P + 2 * C1 + Q, C1 + Q
        moments = nq.step(model, moments, lr, mu)
    expected = torch.stack([m**2 + P, m * n + C, n**2 + Q])
    torch.testing.assert_close(torch.stack(moments), expected, **ROUNDING)


def test_the_step_without_momentum_is_the_short_step():
    model, moments = some_model(), nq.start(drawn(6, name="mean"))
    for lr in drawn(9, name="lrs"):
        short = nq.sgd_step(model, moments.square, lr)
        moments = nq.step(model, moments, lr)
        torch.testing.assert_close(short, moments.square, **ROUNDING)


@pytest.mark.parametrize("n_steps", [1, 2, 40])
def test_the_closed_form_at_a_constant_rate_is_the_iterated_step(n_steps):
    model = some_model()
    square = begin = drawn(6, name="mean") ** 2
    for _ in range(n_steps):
        square = nq.sgd_step(model, square, 0.5)
    torch.testing.assert_close(nq.sgd_square(model, begin, 0.5, n_steps), square, **ROUNDING)


def test_the_stationary_variance_is_where_the_recursion_ends():
    # specification test 5, after 3,000 steps: (1 - lr h)^3000 is 0 in float64
    model = nq.fisher_noise(torch.tensor([0.3], dtype=F64), 1.0)
    moments = nq.start(torch.tensor([2.0], dtype=F64))
    for _ in range(3000):
        moments = nq.step(model, moments, 0.4, 0.8)
    variance = nq.stationary_variance(model, 0.4, 0.8)
    torch.testing.assert_close(moments.square, variance, **ROUNDING)
    assert variance.item() == pytest.approx(1.0344827586, abs=1e-10)  # the printed digits


def test_the_stationary_variance_without_momentum_is_the_floor_of_the_closed_form():
    model = some_model()
    floor = nq.sgd_square(model, torch.ones(6, dtype=F64), 0.5, 10_000)
    torch.testing.assert_close(nq.stationary_variance(model, 0.5), floor, **ROUNDING)


def test_the_spectrum_runs_from_flat_to_steep():
    h = nq.chebyshev(101, condition=50.0)
    assert h.dtype == F64 and (h.diff() > 0).all()
    assert h[50].item() == pytest.approx((1 + 1 / 50) / 2, rel=1e-15)  # the middle node
    assert 1 / 50 < h[0] < 1.01 / 50 and 0.999 < h[-1] < 1
    # the variance of the gradient is (h sigma)^2
    torch.testing.assert_close(h**2 * nq.fisher_noise(h, 0.3).noise_var, 0.3 * h, **ROUNDING)


# ---- greedy ----


def test_greedy_is_the_minimum_of_the_loss_one_step_ahead():
    # specification test 2. That loss is a quadratic in (lr, momentum): one Newton step from
    # anywhere, by autodiff through the recursion, lands on its minimum.
    model, moments = some_model(), some_moments(some_model())

    def after(knobs):
        return excess(model, nq.step(model, moments, knobs[0], knobs[1]))

    at = torch.tensor([0.2, 0.3], dtype=F64)
    best = at - torch.linalg.solve(hessian(after)(at), grad(after)(at))
    lr, momentum = nq.greedy(model, with_momentum=True)(0, moments)
    torch.testing.assert_close(torch.cat([lr, momentum]), best, rtol=1e-9, atol=0)
    assert torch.linalg.eigvalsh(hessian(after)(at)).min() > 0  # a minimum, not a saddle
    rate_only = at[0] - grad(after)(at * torch.tensor([1, 0]))[0] / hessian(after)(at)[0, 0]
    lr, momentum = nq.greedy(model)(0, moments)
    # with a velocity and momentum 0 the old velocity is forgotten
    torch.testing.assert_close(lr[0], rate_only, rtol=1e-9, atol=0)
    assert momentum == 0


def test_before_the_first_step_momentum_has_nothing_to_act_on():
    model, moments = some_model(), nq.start(drawn(6, name="mean"))
    lr, momentum = nq.greedy(model, with_momentum=True)(0, moments)
    torch.testing.assert_close(lr, nq.greedy(model)(0, moments)[0], rtol=0, atol=0)
    assert momentum == 0


def test_one_dimension_gives_the_rates_of_the_specification():
    # specification test 3: A_0 = 4, sigma^2 = 2, h = 1/2
    model = nq.Model(torch.tensor([0.5], dtype=F64), torch.tensor([2.0], dtype=F64))
    path = nq.follow(model, nq.start(torch.tensor([2.0], dtype=F64)), nq.greedy(model), 6)
    expected = torch.tensor([4 / 3, 4 / 5, 4 / 7, 4 / 9, 4 / 11, 4 / 13], dtype=F64)
    torch.testing.assert_close(path.lrs, expected, **ROUNDING)
    assert path.losses[-1].item() == pytest.approx(0.5 * 0.5 * 4 / 13, rel=1e-12)


def test_a_sphere_decays_like_one_over_t():
    # specification test 3: A_0 = 9, sigma^2 = 2, h = 0.7, T = 30
    model = nq.Model(torch.full((5,), 0.7, dtype=F64), torch.full((5,), 2.0, dtype=F64))
    path = nq.follow(model, nq.start(torch.full((5,), 3.0, dtype=F64)), nq.greedy(model), 30)
    t = torch.arange(30, dtype=F64)
    torch.testing.assert_close(path.lrs, 1 / (0.7 * (t + 1 + 2 / 9)), **ROUNDING)
    square = path.by_direction[-1] / (0.5 * 0.7)
    torch.testing.assert_close(square, torch.full_like(square, 1 / (1 / 9 + 30 / 2)), **ROUNDING)
    assert square[0].item() == pytest.approx(0.06617647, abs=1e-8)  # the printed digits


def conjugate_gradients(h, theta, n_steps):
    """The textbook's algorithm for 1/2 theta^T diag(h) theta: (n_steps + 1, n)."""
    points, residual = [theta], -h * theta
    direction = residual
    for _ in range(n_steps):
        lr = residual @ residual / (direction @ (h * direction))
        theta = theta + lr * direction
        new = residual - lr * h * direction
        direction = new + (new @ new) / (residual @ residual) * direction
        residual = new
        points.append(theta)
    return torch.stack(points)


def heavy_ball(h, theta, path):
    """The points that the rates and momenta of a path lead through, without noise."""
    points, velocity = [theta], torch.zeros_like(theta)
    for lr, momentum in zip(path.lrs, path.momenta, strict=True):
        velocity = momentum * velocity - lr * h * theta
        theta = theta + velocity
        points.append(theta)
    return torch.stack(points)


@pytest.mark.parametrize(("n", "condition"), [(30, 50), (200, 1000)])
def test_without_noise_greedy_is_conjugate_gradients(n, condition):
    # specification test 4; rounding grows with the steps, 1e-14 was seen after 20
    model = nq.Model(nq.chebyshev(n, condition), torch.zeros(n, dtype=F64))
    start = torch.ones(n, dtype=F64)
    path = nq.follow(model, nq.start(start), nq.greedy(model, with_momentum=True), 20)
    expected = conjugate_gradients(model.curvature, start, 20)
    difference = heavy_ball(model.curvature, start, path) - expected
    assert (difference.norm(dim=1) / expected.norm(dim=1)).max() < 1e-10
    loss = 0.5 * (model.curvature * expected**2).sum(-1)
    torch.testing.assert_close(path.losses, loss, rtol=1e-10, atol=0)
    assert path.momenta[2:].min() > 0.1  # it is momentum that is tested


def test_greedy_stays_finite_once_everything_is_solved():
    # in one dimension a single step without noise ends at 0: there is nothing left to divide by
    model = nq.Model(torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64))
    moments = nq.start(torch.ones(1, dtype=F64))
    moments = nq.step(model, moments, *nq.greedy(model, with_momentum=True)(0, moments))
    assert moments.square == 0
    _, momentum = nq.greedy(model, with_momentum=True)(1, moments)
    assert not momentum.isinf()


def test_one_step_ahead_on_sample_paths_points_to_the_greedy_rate():
    # specification test 8: the hypergradient of one ordinary step, averaged over runs, is 0 there
    model, n_runs = some_model(), 40_000
    std, start = model.noise_var.sqrt(), drawn(6, name="start")
    task, opt = tasks.noisy_quadratic(model.curvature, std, start), optimizers.sgd()
    centres = std * torch.randn(n_runs, 6, generator=seeding.generator(0, "c"), dtype=F64)

    def hypergradient(lr):
        def one(centre):
            feed = unroll.Feed(centre, torch.zeros_like(centre), 1.0)  # judged without noise
            phi = {"log_lr": torch.as_tensor(lr, dtype=F64).log()}
            carry = unroll.start(task, opt, start)
            return hypergrad.reverse(unroll.make_step(task, opt), phi, carry, [feed])[0]["log_lr"]

        slopes = vmap(one)(centres)
        return slopes.mean(), slopes.std() / math.sqrt(n_runs)

    lr = nq.greedy(model)(0, nq.start(start))[0].item()
    mean, error = hypergradient(lr)
    assert abs(mean) < 5 * error
    for factor, sign in ((0.9, -1), (1.1, 1)):
        mean, error = hypergradient(factor * lr)
        assert sign * mean > 5 * error  # it would have seen a rate that is 10 % off


# ---- gradients of schedules ----


def schedule_problem(n_steps, with_momentum):
    model = some_model()
    phi = {"log_lr": drawn(n_steps, 1, name="phi", low=-2.0, high=-0.3)}
    if with_momentum:
        phi["momentum"] = drawn(n_steps, 1, name="phi momentum", low=0.1, high=0.8)
    carry = nq.Carry(nq.start(drawn(6, name="mean")), torch.zeros((), dtype=F64))
    feeds = [unroll.Feed(t, weight=float(t == n_steps - 1)) for t in range(n_steps)]
    return nq.schedule_step(model), phi, carry, feeds


@pytest.mark.parametrize("with_momentum", [False, True])
def test_the_gradient_of_every_rate_matches_forward_mode_and_finite_differences(with_momentum):
    # specification test 7, first half
    problem = schedule_problem(7, with_momentum)
    reverse, end = hypergrad.reverse(*problem)
    forward, _, _ = hypergrad.forward(*problem)
    numeric, _ = hypergrad.central_difference(*problem)
    model, moments = some_model(), problem[2].moments
    loss = nq.follow(model, moments, nq.schedule(problem[1]), 7).losses[-1]
    torch.testing.assert_close(end.meta_loss, loss.log(), **ROUNDING)
    for name, slope in reverse.items():
        assert slope[1:].abs().min() > 1e-5  # the first momentum acts on no velocity: 0
        torch.testing.assert_close(slope, forward[name], rtol=1e-10, atol=1e-14)
        # eps 1e-5: truncation 1e-10, rounding 1e-16 / 1e-5
        torch.testing.assert_close(slope, numeric[name], rtol=1e-6, atol=1e-9)


def test_at_greedy_rates_the_next_loss_has_no_slope():
    # specification test 7, second half
    model, moments = some_model(), nq.start(drawn(6, name="mean"))
    for t in range(5):
        lr, _ = nq.greedy(model)(t, moments)

        def after(lr, moments=moments):
            return excess(model, nq.step(model, moments, lr)).sum()

        assert grad(after)(1.1 * lr).abs() > 1e-3
        assert grad(after)(lr).abs() < 1e-13  # against slopes of order 1
        moments = nq.step(model, moments, lr)


# ---- policies, grids, optimised schedules ----


def test_a_population_is_its_runs_one_by_one():
    h = torch.stack([nq.chebyshev(8, 10.0), nq.chebyshev(8, 100.0)])
    noise = torch.tensor([[0.1], [1.0]], dtype=F64)
    model = nq.fisher_noise(h, noise)
    both = nq.follow(model, nq.start(torch.ones_like(h)), nq.greedy(model, True), 20)
    assert both.losses.shape == (21, 2) and both.lrs.shape == both.momenta.shape == (20, 2)
    for k in range(2):
        one = nq.fisher_noise(h[k], noise[k])
        path = nq.follow(one, nq.start(torch.ones(8, dtype=F64)), nq.greedy(one, True), 20)
        torch.testing.assert_close(both.losses[:, k], path.losses, **ROUNDING)
        torch.testing.assert_close(both.lrs[:, k], path.lrs, **ROUNDING)
        torch.testing.assert_close(both.momenta[:, k], path.momenta, rtol=1e-9, atol=1e-12)


def test_a_policy_of_python_floats_loses_no_digits():
    model, moments = some_model(), nq.start(drawn(6, name="mean"))
    path = nq.follow(model, moments, nq.decaying(0.3, 0.8), 1)
    exact = torch.tensor([0.3, 0.8], dtype=F64)
    torch.testing.assert_close(torch.cat([path.lrs, path.momenta]), exact, rtol=0, atol=0)
    assert nq.tune(model, moments, 3, [0.3], [0.8]) == (0.3, 0.8, 1.0)


def test_horizon_one_is_greedy():
    model = nq.fisher_noise(nq.chebyshev(30, 100.0), 0.1)
    start = nq.start(torch.ones(30, dtype=F64))
    path = nq.follow(model, start, nq.receding(model, 1, 40), 40)
    expected = nq.follow(model, start, nq.greedy(model), 40)
    # the documented 0.1 % of a rate; the loss is flat around the best one
    torch.testing.assert_close(path.lrs, expected.lrs, rtol=2e-3, atol=0)
    torch.testing.assert_close(path.losses, expected.losses, rtol=1e-4, atol=0)


def test_the_longest_plan_starts_with_the_best_constant_rate():
    model = nq.fisher_noise(nq.chebyshev(30, 100.0), 0.1)
    start = nq.start(torch.ones(30, dtype=F64))
    lr, _ = nq.receding(model, horizon=99, n_steps=40)(0, start)
    lrs = torch.logspace(-4, math.log10(1.9), 4000, dtype=F64)  # 0.25 % apart
    best, _, _ = nq.tune(model, start, 40, lrs)
    assert lr.item() == pytest.approx(best, rel=4e-3)


def test_tuning_finds_the_best_of_its_grid():
    model = nq.fisher_noise(nq.chebyshev(20, 100.0), 0.1)
    start = nq.start(torch.ones(20, dtype=F64))
    lrs, momenta, factors = [0.01, 0.1, 1.0, 50.0], [0.0, 0.5], [1.0, 0.1]
    losses = {}
    for lr in lrs:
        for momentum in momenta:
            for factor in factors:
                policy = nq.decaying(lr, momentum, factor, 50)
                losses[lr, momentum, factor] = nq.follow(model, start, policy, 50).losses[-1].item()
    best = min((loss, knobs) for knobs, loss in losses.items() if math.isfinite(loss))[1]
    found = nq.tune(model, start, 50, lrs, momenta, factors)
    assert found == pytest.approx(best, rel=1e-15)
    path = nq.follow(model, start, nq.decaying(*found, 50), 50)
    assert path.lrs[0].item() == pytest.approx(found[0])
    assert path.lrs[-1].item() == pytest.approx(found[0] * found[2])


def test_in_one_dimension_the_optimised_schedule_is_the_greedy_one():
    model = nq.Model(torch.tensor([0.5], dtype=F64), torch.tensor([2.0], dtype=F64))
    start = nq.start(torch.tensor([2.0], dtype=F64))
    phi = nq.optimise(model, start, 30, lr=0.2)
    path = nq.follow(model, start, nq.schedule(phi), 30)
    # the search stops when log(loss) gains less than 1e-10 of itself in a step
    assert path.losses[-1].item() == pytest.approx(0.25 / (1 / 4 + 30 / 2), rel=1e-7)


def test_an_optimised_schedule_keeps_its_bounds_and_beats_greedy_and_tuned():
    model = nq.fisher_noise(nq.chebyshev(30, 1000.0), 0.01)
    start, T = nq.start(torch.ones(30, dtype=F64)), 60
    ends = []
    for lr in (0.1, 1.0):
        path = nq.follow(model, start, nq.schedule(nq.optimise(model, start, T, lr)), T)
        assert path.lrs.max() <= nq.MAX_LR * (1 + 1e-12)
        ends.append(path.losses[-1].item())
    assert ends[0] == pytest.approx(ends[1], rel=1e-6)  # the same from both starts
    assert ends[0] < 0.8 * nq.follow(model, start, nq.greedy(model), T).losses[-1]
    knobs = nq.tune(model, start, T, torch.logspace(-3, 0.27, 40), (0.0,), (1.0, 0.1, 0.01))
    assert ends[0] < nq.follow(model, start, nq.decaying(*knobs, T), T).losses[-1]
    phi = nq.optimise(model, start, T, 0.1, momentum=0.3)
    path = nq.follow(model, start, nq.schedule(phi), T)
    assert 0 <= path.momenta.min() and path.momenta.max() <= nq.MAX_MOMENTUM
    assert path.losses[-1] < ends[0]


def test_without_noise_no_schedule_ends_below_conjugate_gradients():
    model = nq.Model(nq.chebyshev(200, 1000.0), torch.zeros(200, dtype=F64))
    start = nq.start(torch.ones(200, dtype=F64))
    best = nq.follow(model, start, nq.greedy(model, with_momentum=True), 12).losses[-1]
    phi = nq.optimise(model, start, 12, lr=0.5, momentum=0.5, max_lr=10.0)
    ours = nq.follow(model, start, nq.schedule(phi), 12).losses[-1]
    assert best * (1 - 1e-9) < ours < best * 1.001  # and the search gets there


def test_without_noise_as_many_rates_as_steps_do_without_momentum():
    # a polynomial of degree T in the curvature, 1 at 0, is a product of T factors 1 - lr h
    model, T = nq.Model(nq.chebyshev(200, 1000.0), torch.zeros(200, dtype=F64)), 12
    start = nq.start(torch.ones(200, dtype=F64))
    lrs = 1 / nq.chebyshev(T, 1000.0)[:, None]  # a rate of its own for every step to start from
    phi = nq.optimise(model, start, T, lrs, max_lr=1e4)
    best = nq.follow(model, start, nq.greedy(model, with_momentum=True), T).losses[-1]
    ours = nq.follow(model, start, nq.schedule(phi), T).losses[-1]
    assert best * (1 - 1e-9) < ours < best * 1.00001
    assert nq.follow(model, start, nq.greedy(model), T).losses[-1] > 3 * best


# ---- the measured references of the specification, section 1.7 ----


@pytest.mark.parametrize(
    ("n", "condition", "noise", "rate_only", "both"),
    [(1000, 100, 1.0, 0.01906, 0.01899), (1000, 1000, 1.0, 0.01811, 0.01805),
     (200, 1000, 0.01, 0.00240, 0.00236)],
)  # fmt: skip
def test_greedy_ends_at_the_reference(n, condition, noise, rate_only, both):
    model = nq.fisher_noise(nq.chebyshev(n, condition), noise)
    start = nq.start(torch.ones(n, dtype=F64))
    for with_momentum, expected in ((False, rate_only), (True, both)):
        losses = nq.follow(model, start, nq.greedy(model, with_momentum), 250).losses
        assert (losses[-1] / losses[0]).item() == pytest.approx(expected, abs=6e-6)  # its digits


def test_longer_plans_end_at_the_reference():
    model = nq.fisher_noise(nq.chebyshev(200, 1000), 0.01)
    start = nq.start(torch.ones(200, dtype=F64))
    for horizon, expected in ((1, 0.00239), (25, 0.00190), (100, 0.00156), (250, 0.00168)):
        losses = nq.follow(model, start, nq.receding(model, horizon, 250), 250).losses
        # the reference searched another grid and cut its digits
        assert (losses[-1] / losses[0]).item() == pytest.approx(expected, abs=1.1e-5)
