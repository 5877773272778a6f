"""Evolution strategies: which of the three is unbiased, and what its noise depends on."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from learnopt import hypergrad, optimizers, seeding, tasks, unroll
from learnopt import noisy_quadratic as nq
from learnopt.layout import Layout
from learnopt.unroll import Carry, Feed

F64 = torch.float64
PERSISTENT = [hypergrad.pes, hypergrad.es_single]


def _draw(*shape, name):
    return torch.randn(*shape, generator=seeding.generator(0, "evolution", name), dtype=F64)


def _flat(slopes):
    return Layout.of(slopes).flatten(slopes)


# ---- a problem whose meta-loss is a quadratic in phi: there smoothing changes no gradient ----

MATRIX = 0.3 * _draw(3, 3, name="matrix") + 0.7 * torch.eye(3, dtype=F64)
QUADRATIC = {"push": _draw(3, name="push"), "scale": torch.tensor(0.4, dtype=F64)}


def _linear_step(phi, carry, feed):
    """theta <- A theta + push + scale b_t, and the meta-loss gains 1/2 |theta|^2."""
    theta = MATRIX @ carry.theta + phi["push"] + phi["scale"] * feed.train
    return Carry(theta, {}, carry.meta_loss + feed.weight * 0.5 * (theta**2).sum())


def _linear_problem(n_steps=6, weights=None):
    inputs = _draw(n_steps, 3, name="inputs")
    weights = [1.0] * n_steps if weights is None else weights
    feeds = [Feed(b, weight=w) for b, w in zip(inputs, weights, strict=True)]
    carry = Carry(_draw(3, name="start"), {}, torch.zeros((), dtype=F64))
    return _linear_step, QUADRATIC, carry, feeds


def _windows(feeds, n_unroll):
    return [feeds[k : k + n_unroll] for k in range(0, len(feeds), n_unroll)]


def _whole_run(method, problem, n_unroll, n_pairs, generator, sigma=0.1):
    """The estimates of all windows, summed; phi stays what it is."""
    step, phi, carry, feeds = problem
    total = 0.0
    if method is hypergrad.es:
        for window in _windows(feeds, n_unroll):
            slopes, carry = method(step, phi, carry, window, n_pairs, sigma, generator)
            total = total + _flat(slopes)
        return total
    crowd = hypergrad.particles(carry, n_pairs)
    for window in _windows(feeds, n_unroll):
        slopes, crowd = method(step, phi, crowd, window, sigma, generator)
        total = total + _flat(slopes)
    return total


class Estimates(NamedTuple):
    mean: Tensor  # (P,)
    error: Tensor  # (P,) standard error of the mean
    variance: Tensor  # () trace of the covariance of one estimate


def _repeat(method, problem, n_unroll, n_repeats=400, n_pairs=8):
    generator = seeding.generator(0, method.__name__, n_unroll)
    many = torch.stack(
        [_whole_run(method, problem, n_unroll, n_pairs, generator) for _ in range(n_repeats)]
    )
    return Estimates(many.mean(0), many.std(0) / n_repeats**0.5, many.var(0).sum())


def _exact(problem):
    return _flat(hypergrad.reverse(*problem)[0])


def _greedy(problem, n_unroll):
    """The exact gradients of the windows, each of which takes its start for given, summed."""
    step, phi, carry, feeds = problem
    total = 0.0
    for window in _windows(feeds, n_unroll):
        zero = torch.zeros((), dtype=F64)
        slopes, carry = hypergrad.reverse(step, phi, carry._replace(meta_loss=zero), window)
        total = total + _flat(slopes)
    return total


FINAL = [0.0] * 5 + [1.0]


# ---- bias ----


@pytest.mark.parametrize("n_unroll", [1, 2, 3, 6])
@pytest.mark.parametrize("method", PERSISTENT)
def test_the_persistent_estimators_are_unbiased_on_a_quadratic(method, n_unroll):
    problem = _linear_problem()
    z = (lambda e: (e.mean - _exact(problem)) / e.error)(_repeat(method, problem, n_unroll))
    assert z.abs().max() < 4  # four components a case: chance passes 4 about once in 4,000 cases


@pytest.mark.parametrize("n_unroll", [1, 2, 3])
def test_truncated_evolution_strategies_estimate_the_greedy_gradient(n_unroll):
    problem = _linear_problem()
    estimates, greedy = _repeat(hypergrad.es, problem, n_unroll), _greedy(problem, n_unroll)
    assert ((estimates.mean - greedy) / estimates.error).abs().max() < 4
    # which is far from the gradient of the whole run
    assert ((estimates.mean - _exact(problem)) / estimates.error).abs().max() > 20


def test_over_the_whole_run_truncated_evolution_strategies_are_unbiased():
    problem = _linear_problem()
    estimates = _repeat(hypergrad.es, problem, 6)
    assert ((estimates.mean - _exact(problem)) / estimates.error).abs().max() < 4


def _set_meta_loss(phi, carry, feed):
    """The meta-loss *is* 1/2 |theta|^2 now: its growth over the windows sums to the final one."""
    end = _linear_step(phi, carry._replace(meta_loss=torch.zeros_like(carry.meta_loss)), feed)
    return end if feed.weight else end._replace(meta_loss=carry.meta_loss)


@pytest.mark.parametrize("method", PERSISTENT)
def test_a_final_loss_is_the_sum_of_what_the_windows_add_to_it(method):
    # specification test 13: within 4 standard errors of the full gradient. Telescoping: judged at
    # the end of every window, the whole is judged at the end of the run
    _, phi, carry, feeds = _linear_problem(weights=[0.0, 1.0] * 3)
    estimates = _repeat(method, (_set_meta_loss, phi, carry, feeds), 2)
    exact = _exact(_linear_problem(weights=FINAL))
    assert ((estimates.mean - exact) / estimates.error).abs().max() < 4


def test_no_window_sees_a_final_loss_that_lies_behind_it():
    # es, one window of six judged: the other five add exactly nothing
    problem = _linear_problem(weights=FINAL)
    step, phi, carry, feeds = problem
    draw = seeding.generator(0, "blind")
    for window in _windows(feeds, 1)[:-1]:
        slopes, carry = hypergrad.es(step, phi, carry, window, 8, 0.1, draw)
        assert torch.equal(_flat(slopes), torch.zeros(4, dtype=F64))


# ---- identities that hold for every draw ----


@pytest.mark.parametrize("method", PERSISTENT)
def test_one_window_is_plain_antithetic_evolution_strategies(method):
    problem = _linear_problem()
    plain = _whole_run(hypergrad.es, problem, 6, 8, seeding.generator(0, "one"))
    ours = _whole_run(method, problem, 6, 8, seeding.generator(0, "one"))
    assert torch.equal(ours, plain) and plain.abs().min() > 1e-3


@pytest.mark.parametrize("n_unroll", [1, 2, 3])
def test_es_single_does_not_depend_on_the_number_of_windows(n_unroll):
    problem = _linear_problem()
    whole = _whole_run(hypergrad.es_single, problem, 6, 8, seeding.generator(0, "single"))
    split = _whole_run(hypergrad.es_single, problem, n_unroll, 8, seeding.generator(0, "single"))
    torch.testing.assert_close(split, whole, rtol=1e-11, atol=0)  # sums in another order


def test_the_estimate_is_the_mean_over_pairs_of_a_central_difference_along_each():
    # written out, one particle at a time, for two windows of PES
    step, phi, carry, feeds = _linear_problem()
    sigma, n_pairs, layout = 0.1, 3, Layout.of(QUADRATIC)
    draw = seeding.generator(0, "by hand")
    noise = [sigma * torch.randn(n_pairs, 4, generator=draw, dtype=F64) for _ in range(2)]
    total = torch.zeros(4, dtype=F64)
    for pair in range(n_pairs):
        grown = torch.zeros(2, 2, dtype=F64)  # (sign, window)
        for row, sign in enumerate((1, -1)):
            now = carry
            for k, window in enumerate(_windows(feeds, 3)):
                moved = layout.views(layout.flatten(phi) + sign * noise[k][pair])
                end, _ = unroll.run(step, moved, now, window)
                grown[row, k], now = end.meta_loss - now.meta_loss, end
        summed = noise[0][pair]
        for k in range(2):
            summed = summed if k == 0 else summed + noise[1][pair]
            total += summed * (grown[0, k] - grown[1, k]) / (2 * sigma**2) / n_pairs
    ours = _whole_run(
        hypergrad.pes, (step, phi, carry, feeds), 3, n_pairs, seeding.generator(0, "by hand")
    )
    torch.testing.assert_close(ours, total, rtol=1e-11, atol=0)


def test_the_truncated_estimator_hands_on_the_unperturbed_carry():
    step, phi, carry, feeds = _linear_problem()
    _, end = hypergrad.es(step, phi, carry, feeds, 4, 0.1, seeding.generator(0, "carry"))
    assert torch.equal(end.theta, unroll.run(step, phi, carry, feeds)[0].theta)


@pytest.mark.parametrize("method", PERSISTENT)
def test_perturbations_come_in_mirrored_pairs(method):
    step, phi, carry, feeds = _linear_problem()
    crowd, draw = hypergrad.particles(carry, 4), seeding.generator(0, "pairs")
    for window in _windows(feeds, 2):
        _, crowd = method(step, phi, crowd, window, 0.1, draw)
        assert crowd.shift.shape == (8, 4)
        assert torch.equal(crowd.shift[:4], -crowd.shift[4:]) and crowd.shift.std() > 0.01


def test_pes_adds_a_perturbation_each_window_and_es_single_keeps_its_own():
    step, phi, carry, feeds = _linear_problem(n_steps=30)
    spread = {}
    for method in PERSISTENT:
        crowd, draw = hypergrad.particles(carry, 2000), seeding.generator(0, "spread")
        shifts = []
        for window in _windows(feeds, 10):
            _, crowd = method(step, phi, crowd, window, 0.1, draw)
            shifts.append(crowd.shift)
        spread[method] = torch.stack([shift.std() for shift in shifts])
        if method is hypergrad.es_single:
            assert all(torch.equal(shift, shifts[0]) for shift in shifts)
    # 8,000 independent numbers: a standard deviation is known to 0.8 %
    grown = 0.1 * torch.tensor([1.0, 2.0, 3.0], dtype=F64).sqrt()
    torch.testing.assert_close(spread[hypergrad.pes], grown, rtol=0.03, atol=0)


# ---- variance ----


def _variances(method, slopes_of_windows):
    """Of one pair, in a run whose k-th window adds slopes[k] phi, whatever came before."""

    def step(phi, carry, feed):
        return Carry(carry.theta, {}, carry.meta_loss + feed.train * phi["knob"])

    carry = Carry(torch.zeros(1, dtype=F64), {}, torch.zeros((), dtype=F64))
    problem = (
        step,
        {"knob": torch.zeros((), dtype=F64)},
        carry,
        list(map(Feed, slopes_of_windows)),
    )
    return 50 * _repeat(method, problem, 1, n_repeats=400, n_pairs=50).variance.item()


@pytest.mark.parametrize("n_windows", [1, 4, 16])
def test_where_the_windows_slopes_cancel_pes_gets_noisier_with_every_window(n_windows):
    # Slopes a_k of alternating sign and one pair: the estimate is sum_k a_k e_k x_k, x_k the sum of
    # k standard normals e_1 ... e_k. Var[e_k x_k] = k + 1 and different windows are uncorrelated,
    # apart from the means 1: the variance is sum_k (k + 1). That of ES-Single is 2 (sum_k a_k)^2,
    # and here the slopes sum to 1, as in a single window.
    slopes = torch.ones(n_windows, dtype=F64)
    slopes[1::2] = -1
    slopes[0] += 1 - slopes.sum()
    k = torch.arange(1, n_windows + 1, dtype=F64)
    expected = (slopes**2 * (k + 1)).sum().item()
    # 400 estimates, nearly normal, give a variance to 7 %
    assert _variances(hypergrad.pes, slopes) == pytest.approx(expected, rel=0.25)
    assert _variances(hypergrad.es_single, slopes) == pytest.approx(2.0, rel=0.25)


def test_where_all_windows_slopes_are_equal_pes_is_the_quieter_one():
    # the other side of it: 16 slopes of 1/16 give (1/256) sum_k (k + 1) = 0.6 against 2
    slopes = torch.full((16,), 1 / 16, dtype=F64)
    assert _variances(hypergrad.pes, slopes) < 0.5 * _variances(hypergrad.es_single, slopes)


# ---- on training runs ----


def test_on_a_network_the_three_agree_with_the_gradient_of_a_whole_run():
    # the meta-loss is no quadratic here: smoothing biases by order sigma^2, so sigma is small
    task, opt = tasks.mlp([3, 4, 2], "tanh", weight_std=0.7, dtype=F64), optimizers.momentum()
    draw = seeding.generator(0, "network")
    x = torch.randn(16, 3, generator=draw, dtype=F64)
    batch = (x, torch.randint(2, (16,), generator=draw))
    feeds = [Feed(batch, batch, 1.0)] * 4
    carry = unroll.start(task, opt, task.init(draw))
    problem = (unroll.make_step(task, opt), optimizers.hyperparameters(0.2, 0.8, F64), carry, feeds)
    exact = _exact(problem)
    for method in (hypergrad.es, *PERSISTENT):
        n_unroll = 4 if method is hypergrad.es else 2
        generator = seeding.generator(0, "network", method.__name__)
        ours = torch.stack(
            [_whole_run(method, problem, n_unroll, 64, generator, 1e-3) for _ in range(20)]
        )
        error = ours.std(0) / 20**0.5
        assert ((ours.mean(0) - exact) / error).abs().max() < 4
        assert error.max() < 0.1 * exact.abs().max()  # or the comparison would say nothing


def test_on_the_noisy_quadratic_windows_of_ten_steps_turn_the_decay_the_wrong_way():
    # chapter 11's starting point: the whole run wants a slower fall of the rate than windows do
    model = nq.fisher_noise(nq.chebyshev(20, 1000), 0.01)

    def step(phi, carry, feed):
        lr = (phi["log_lr"] - phi["log_decay"].exp() * torch.log1p(feed.train / 25)).exp()
        square = nq.sgd_step(model, carry.moments.square, lr)
        loss = (0.5 * model.curvature * square).sum().log()
        return nq.Carry(carry.moments._replace(square=square), loss if feed.weight else loss * 0)

    phi = {
        "log_lr": torch.tensor(1.5).double().log(),
        "log_decay": torch.tensor(2.0).double().log(),
    }
    begin = nq.Carry(nq.start(torch.ones(20, dtype=F64)), torch.zeros((), dtype=F64))
    feeds = [Feed(torch.tensor(float(t), dtype=F64), weight=float(t % 10 == 9)) for t in range(250)]
    exact = hypergrad.reverse(step, phi, begin, feeds)[0]["log_decay"].item()
    greedy, carry = 0.0, begin
    for window in _windows(feeds, 10):
        slopes, carry = hypergrad.reverse(step, phi, carry, window)
        greedy += slopes["log_decay"].item()
    assert exact > 0.05 and greedy < -0.05


# ---- what they promise ----


@pytest.mark.parametrize("method", [hypergrad.es, *PERSISTENT])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_estimates_are_shaped_like_phi_and_nothing_handed_in_is_changed(method, dtype):
    task, opt = tasks.quadratic(4, start_std=1.0, dtype=dtype), optimizers.adam()
    phi = {"log_lr": torch.full((4,), -3.0, dtype=dtype)}  # a vector: one rate for each coordinate
    draw = seeding.generator(0, "promise")
    carry = unroll.start(task, opt, task.init(draw))
    feeds = [Feed(batch, batch, 1.0) for batch in task.batches(draw, 3)]
    step, crowd = unroll.make_step(task, opt), hypergrad.particles(carry, 2)
    given = (carry, 2) if method is hypergrad.es else (crowd,)
    pieces = [leaf for leaf in tree_leaves((phi, carry, crowd)) if isinstance(leaf, Tensor)]
    before = [leaf.clone() for leaf in pieces]
    if method is hypergrad.es:
        slopes, end = method(step, phi, carry, feeds, *given[1:], 0.1, draw)
    else:
        slopes, (end, shift) = method(step, phi, *given, feeds, 0.1, draw)
        assert shift.dtype == dtype
    assert slopes["log_lr"].shape == (4,) and slopes["log_lr"].abs().min() > 0
    for leaf in tree_leaves((slopes, end)):
        assert leaf.dtype == dtype
    for leaf, was in zip(pieces, before, strict=True):
        assert torch.equal(leaf, was)


def test_the_same_generator_gives_the_same_estimate():
    problem = _linear_problem()
    for method in (hypergrad.es, *PERSISTENT):
        one, two, other = (
            _whole_run(method, problem, 2, 4, seeding.generator(seed, "same")) for seed in (0, 0, 1)
        )
        assert torch.equal(one, two) and not torch.equal(one, other)
