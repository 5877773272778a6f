"""d meta-loss / d phi: closed forms, and forward = reverse = central difference."""

from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves

from learnopt import hypergrad, optimizers, seeding, tasks, unroll
from learnopt.optimizers import Optimizer, hyperparameters
from learnopt.unroll import Carry, Feed

F64 = torch.float64
MODES = [hypergrad.reverse, hypergrad.forward]


def _flat(slopes):
    return torch.cat([slope.flatten() for slope in slopes.values()])


# ---- closed forms ----


def _parabola(h, w0):
    return tasks.noisy_quadratic(*torch.tensor([[h], [0.0], [w0]], dtype=F64))


def _on_a_parabola(mode, h, w0, lr, n_steps, second_order=True):
    task, opt = _parabola(h, w0), optimizers.sgd()
    centre = torch.zeros(1, dtype=F64)
    feeds = [Feed(centre, centre, weight=float(t == n_steps)) for t in range(1, n_steps + 1)]
    step = unroll.make_step(task, opt, second_order)
    carry = unroll.start(task, opt, task.init(None))
    return mode(step, hyperparameters(lr, dtype=F64), carry, feeds)[0]["log_lr"].item()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_steps", [1, 4, 9])
def test_sgd_on_a_parabola_matches_the_closed_form(mode, n_steps):
    # L(w) = h w^2 / 2 gives w_T = (1 - lr h)^T w_0, hence
    # dL(w_T) / d log lr = -T lr h^2 w_0^2 (1 - lr h)^(2T - 1).
    h, w0, lr = 3.0, 2.0, 0.1
    exact = -n_steps * lr * h**2 * w0**2 * (1 - lr * h) ** (2 * n_steps - 1)
    assert _on_a_parabola(mode, h, w0, lr, n_steps) == pytest.approx(exact, rel=1e-13)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_steps", [1, 4, 9])
def test_first_order_on_a_parabola_matches_its_own_closed_form(mode, n_steps):
    # Gradients as constants: dw_T / d log lr = -lr sum_t h w_t = w_T - w_0, so
    # dL(w_T) / d log lr = h w_T (w_T - w_0).
    h, w0, lr = 3.0, 2.0, 0.1
    w_end = (1 - lr * h) ** n_steps * w0
    ours = _on_a_parabola(mode, h, w0, lr, n_steps, second_order=False)
    assert ours == pytest.approx(h * w_end * (w_end - w0), rel=1e-13)


@pytest.mark.parametrize("mode", MODES)
def test_momentum_on_a_parabola_matches_the_closed_form_of_two_steps(mode):
    # w_1 = w_0 (1 - a), w_2 = w_1 - lr (mu h w_0 + h w_1) with a = lr h, so
    # w_2 = w_0 [(1 - a)^2 - a mu]; d w_2 / d mu = -a w_0; d w_2 / d a = -w_0 [2 (1 - a) + mu].
    h, w0, lr, mu = 3.0, 2.0, 0.1, 0.6
    a = lr * h
    w2 = w0 * ((1 - a) ** 2 - a * mu)
    task, opt = _parabola(h, w0), optimizers.momentum()
    centre = torch.zeros(1, dtype=F64)
    slopes, *_ = mode(
        unroll.make_step(task, opt),
        hyperparameters(lr, mu, dtype=F64),
        unroll.start(task, opt, task.init(None)),
        [Feed(centre), Feed(centre, centre, 1.0)],
    )
    # d a / d log lr = a; d mu / d logit = mu (1 - mu)
    lr_slope = h * w2 * -w0 * (2 * (1 - a) + mu) * a
    mu_slope = h * w2 * -a * w0 * mu * (1 - mu)
    assert slopes["log_lr"].item() == pytest.approx(lr_slope, rel=1e-13)
    assert slopes["logit_momentum"].item() == pytest.approx(mu_slope, rel=1e-13)


# ---- three ways, one answer ----

TANH = tasks.mlp([3, 4, 2], "tanh", weight_std=0.7, dtype=F64)


def _per_tensor(opt, layout):
    """The rule with one learning rate per tensor of theta."""

    def update(phi, grad, state, theta):
        return opt.update(phi | {"log_lr": phi["log_lr"][layout.segment]}, grad, state, theta)

    return Optimizer(opt.init, update)


class Problem(NamedTuple):
    step: object
    phi: dict
    carry: Carry
    feeds: list


def _classifier_batch(generator, n=8, shape=(3,), n_classes=2):
    x = torch.randn(n, *shape, generator=generator, dtype=F64)
    return x, torch.randint(n_classes, (n,), generator=generator)


def _problem(opt, phi, n_steps=6, second_order=True, task=TANH, **batch):
    """Train on one batch, judge on another; three of the steps count, with different weights."""
    draw = seeding.generator(0, "hypergrad", task.name)
    weights = [0.0, 0.5, 0.0, 0.0, 1.5, 1.0]
    one = partial(_classifier_batch, draw, **batch)
    feeds = [Feed(one(), one(), weights[t % 6]) for t in range(n_steps)]
    carry = unroll.start(task, opt, task.init(draw))
    return Problem(unroll.make_step(task, opt, second_order), phi, carry, feeds)


def _schedule(opt):
    return optimizers.scheduled(opt, optimizers.inverse_time(4.0))


DECAY = {"log_decay": torch.tensor(-0.3, dtype=F64)}
RATES = {"log_lr": torch.tensor([-2.0, -1.0, -1.5, -0.5], dtype=F64)}  # one for each of 4 tensors
TWO = hyperparameters(0.2, 0.8, dtype=F64)
ONE = hyperparameters(0.1, dtype=F64)

# A new optimizer or knob: one row.
PROBLEMS = {
    "sgd": (optimizers.sgd(), ONE),
    "momentum": (optimizers.momentum(), TWO),
    "nesterov": (optimizers.nesterov(), TWO),
    "rmsprop": (optimizers.rmsprop(0.9), ONE),
    "adam": (optimizers.adam(), ONE),
    "momentum-inverse-time": (_schedule(optimizers.momentum()), TWO | DECAY),
    "adam-inverse-time": (_schedule(optimizers.adam()), ONE | DECAY),
    "sgd-per-tensor": (_per_tensor(optimizers.sgd(), TANH.layout), RATES),
    "adam-per-tensor": (_per_tensor(optimizers.adam(), TANH.layout), RATES),
    "momentum-per-tensor": (_per_tensor(optimizers.momentum(), TANH.layout), TWO | RATES),
}


def _assert_like(slopes, phi):
    assert list(slopes) == list(phi)
    for name, slope in slopes.items():
        assert slope.shape == phi[name].shape and slope.dtype == phi[name].dtype


def _assert_close(ours, reference, rtol):
    """Within rtol of the largest component: small ones carry the rounding of the large."""
    assert ours.keys() == reference.keys()
    ours, reference = _flat(ours), _flat(reference)
    assert reference.abs().min() > 1e-6  # every knob matters, or the comparison says nothing
    scale = reference.abs().max().item()
    torch.testing.assert_close(ours, reference, rtol=0, atol=rtol * scale)


@pytest.mark.parametrize("second_order", [True, False])
@pytest.mark.parametrize("name", PROBLEMS)
def test_forward_is_reverse(name, second_order):
    problem = _problem(*PROBLEMS[name], second_order=second_order)
    backward, end = hypergrad.reverse(*problem)
    forward, same_end, _ = hypergrad.forward(*problem)
    _assert_like(backward, problem.phi)
    _assert_like(forward, problem.phi)
    _assert_close(forward, backward, rtol=1e-10)
    run_end, _ = unroll.run(*problem)
    for leaf, same_leaf, run_leaf in zip(*map(tree_leaves, (end, same_end, run_end)), strict=True):
        # the same arithmetic, but for batched matrix products in the tangent pass
        torch.testing.assert_close(leaf, run_leaf, rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(same_leaf, run_leaf, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", PROBLEMS)
def test_reverse_is_the_central_difference(name):
    # eps = 1e-5: truncation of order 1e-10, rounding 1e-16 / 1e-5 = 1e-11
    problem = _problem(*PROBLEMS[name])
    exact, _ = hypergrad.reverse(*problem)
    difference, end = hypergrad.central_difference(*problem)
    _assert_like(difference, problem.phi)
    _assert_close(difference, exact, rtol=1e-6)
    run_end, _ = unroll.run(*problem)
    assert torch.equal(end.theta, run_end.theta)


def test_the_central_difference_errs_by_the_square_of_its_step():
    problem = _problem(*PROBLEMS["momentum"])
    exact = _flat(hypergrad.reverse(*problem)[0])
    wide, narrow = (
        (_flat(hypergrad.central_difference(*problem, eps)[0]) - exact).abs() for eps in (0.1, 0.05)
    )
    assert wide.min() > 1e-5
    torch.testing.assert_close(wide / narrow, torch.full_like(wide, 4.0), rtol=0.05, atol=0)


def test_forward_is_reverse_through_a_conv_net():
    task = tasks.conv_net((2, 8, 8), (3, 4), hidden=5, n_classes=3, weight_std=0.2, dtype=F64)
    opt = _per_tensor(optimizers.momentum(), task.layout)
    phi = {"log_lr": torch.linspace(-3, -2, 8, dtype=F64), "logit_momentum": TWO["logit_momentum"]}
    problem = _problem(opt, phi, n_steps=6, task=task, n=4, shape=(2, 8, 8), n_classes=3)
    _assert_close(hypergrad.forward(*problem)[0], hypergrad.reverse(*problem)[0], rtol=1e-10)


def test_phi_may_hold_scalars_vectors_and_matrices():
    # meta-loss = 1/2 |w_T|^2 for the linear recursion w <- A w + c b: every slope by hand at T = 1
    draw = partial(torch.randn, generator=seeding.generator(0, "linear"), dtype=F64)
    phi = {"matrix": draw(3, 3), "vector": draw(3), "scale": draw(())}

    def step(phi, carry, feed):
        theta = phi["matrix"] @ carry.theta + phi["scale"] * phi["vector"]
        return Carry(theta, {}, carry.meta_loss + 0.5 * (theta**2).sum())

    start = Carry(draw(3), {}, torch.zeros((), dtype=F64))
    end = phi["matrix"] @ start.theta + phi["scale"] * phi["vector"]
    by_hand = {
        "matrix": torch.outer(end, start.theta),
        "vector": phi["scale"] * end,
        "scale": end @ phi["vector"],
    }
    for mode in (*MODES, hypergrad.central_difference):
        slopes = mode(step, phi, start, [None])[0]
        _assert_like(slopes, phi)
        _assert_close(slopes, by_hand, rtol=1e-13 if mode in MODES else 1e-9)
        assert mode(step, phi, start, [None] * 3)[0]["matrix"].shape == (3, 3)


# ---- what the modes promise ----


@pytest.mark.parametrize("name", ["momentum", "adam-inverse-time", "sgd-per-tensor"])
def test_tangents_handed_over_continue_the_recursion(name):
    # 3 + 3 steps are 6: online hyperparameter optimization keeps its memory of the first three
    step, phi, carry, feeds = _problem(*PROBLEMS[name])
    whole, end, tangents = hypergrad.forward(step, phi, carry, feeds)
    _, middle, handed = hypergrad.forward(step, phi, carry, feeds[:3])
    halves, same_end, same_tangents = hypergrad.forward(step, phi, middle, feeds[3:], handed)
    _assert_close(halves, whole, rtol=1e-13)
    n_phi = _flat(phi).numel()
    for ours, theirs, leaf in zip(
        *map(tree_leaves, (same_tangents, tangents, same_end)), strict=True
    ):
        assert ours.shape == (n_phi, *leaf.shape)
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert torch.equal(same_end.theta, end.theta)
    forgotten, *_ = hypergrad.forward(step, phi, middle, feeds[3:])
    gap = (_flat(forgotten) - _flat(whole)).abs().max() / _flat(whole).abs().max()
    assert gap > 0.01  # without the tangents the first three steps' influence is lost


def test_the_tangents_are_the_derivative_of_the_carry():
    step, phi, carry, feeds = _problem(*PROBLEMS["momentum"])
    _, _, tangents = hypergrad.forward(step, phi, carry, feeds)
    eps = 1e-5
    for k, name in enumerate(phi):
        ends = [
            unroll.run(step, phi | {name: phi[name] + shift}, carry, feeds)[0]
            for shift in (eps, -eps)
        ]
        for tangent, plus, minus in zip(*map(tree_leaves, (tangents, *ends)), strict=True):
            slope = (plus - minus) / (2 * eps)
            assert slope.abs().max() > 1e-3
            torch.testing.assert_close(tangent[k], slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", ["momentum", "nesterov", "momentum-per-tensor"])
def test_first_order_differs_from_second_order_unless_the_rate_is_small(name):
    # What first order drops is lr times curvature times steps; at lr / 100 hardly any is left.
    opt, phi = PROBLEMS[name]
    cosines = []
    for shrink in (1.0, 0.01):
        shrunk = phi | {"log_lr": phi["log_lr"] + torch.tensor(shrink, dtype=F64).log()}
        full, first = (
            _flat(hypergrad.reverse(*_problem(opt, shrunk, second_order=order))[0])
            for order in (True, False)
        )
        cosines.append(torch.cosine_similarity(full, first, dim=0).item())
        ratio = (first.norm() / full.norm()).item()
        print(f"{name}, lr x {shrink}: cosine {cosines[-1]:.5f}, norm ratio {ratio:.4f}")
    assert cosines[0] < 0.99 and 0.999 < cosines[1] < 1 - 1e-9


@pytest.mark.parametrize("mode", MODES)
def test_the_batch_that_scores_is_not_the_batch_that_trains(mode):
    step, phi, carry, feeds = _problem(*PROBLEMS["momentum"])
    on_training = [feed._replace(score=feed.train) for feed in feeds]
    held_out, _ = mode(step, phi, carry, feeds)[:2]
    trained, _ = mode(step, phi, carry, on_training)[:2]
    assert (_flat(held_out) - _flat(trained)).abs().max() > 1e-3
    # the path is the same: only the judgement differs
    ends = [mode(step, phi, carry, given)[1].theta for given in (feeds, on_training)]
    assert torch.equal(*ends)


@pytest.mark.parametrize("mode", MODES)
def test_steps_that_are_not_judged_never_evaluate_their_score(mode):
    def loss(theta, batch):
        assert batch is not None, "an unjudged step looked at its score"
        return TANH.loss(theta, batch)

    opt, phi = PROBLEMS["momentum"]
    _, _, carry, feeds = _problem(opt, phi)
    blank = [feed if feed.weight else feed._replace(score=None) for feed in feeds]
    assert sum(feed.score is None for feed in blank) == 3
    step = unroll.make_step(TANH._replace(loss=loss), opt)
    slopes, _ = mode(step, phi, carry, blank)[:2]
    _assert_close(slopes, mode(step, phi, carry, feeds)[0], rtol=1e-13)


@pytest.mark.parametrize("mode", MODES)
def test_a_run_that_is_never_judged_has_no_slope(mode):
    step, phi, carry, feeds = _problem(*PROBLEMS["momentum"])
    slopes, _ = mode(step, phi, carry, [Feed(feed.train) for feed in feeds])[:2]
    assert not _flat(slopes).any()


@pytest.mark.parametrize("mode", [*MODES, hypergrad.central_difference])
def test_nothing_that_is_handed_in_is_changed(mode):
    problem = _problem(*PROBLEMS["adam-inverse-time"])
    before = [leaf.clone() for leaf in tree_leaves(problem) if isinstance(leaf, torch.Tensor)]
    mode(*problem)
    after = [leaf for leaf in tree_leaves(problem) if isinstance(leaf, torch.Tensor)]
    for leaf, was in zip(after, before, strict=True):
        assert torch.equal(leaf, was) and not leaf.requires_grad


def test_tangents_that_are_handed_in_are_not_changed():
    step, phi, carry, feeds = _problem(*PROBLEMS["momentum"])
    _, middle, handed = hypergrad.forward(step, phi, carry, feeds[:3])
    before = [leaf.clone() for leaf in tree_leaves(handed)]
    hypergrad.forward(step, phi, middle, feeds[3:], handed)
    for leaf, was in zip(tree_leaves(handed), before, strict=True):
        assert torch.equal(leaf, was)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("second_order", [True, False])
def test_the_mean_slope_of_a_population_is_the_mean_of_its_slopes(mode, second_order):
    # meta-training's case: vmap inside, one phi for all runs
    opt, phi = PROBLEMS["momentum"]
    task = tasks.quadratic(4, start_std=1.0, dtype=F64)
    runs = unroll.draw_runs(task, 3, 5, seed=0)
    single = unroll.make_step(task, opt, second_order)
    in_dims = (None, 0, Feed(train=0, score=0, weight=None))
    together = vmap(partial(unroll.start, task, opt))(runs.theta)
    feeds = [feed._replace(score=feed.train, weight=1.0) for feed in runs.feeds()]

    def step(phi, carry, feed):  # the carry of a population, its meta-loss the mean over runs
        meta_loss = carry.meta_loss
        end = vmap(single, in_dims)(phi, carry._replace(meta_loss=meta_loss.expand(3)), feed)
        return end._replace(meta_loss=end.meta_loss.mean())

    small = phi | {"log_lr": torch.tensor(0.005, dtype=F64).log()}
    zero = torch.zeros((), dtype=F64)
    slopes = mode(step, small, together._replace(meta_loss=zero), feeds)[0]
    alone = []
    for k in range(3):
        carry = unroll.start(task, opt, runs.theta[k])
        given = [Feed(batch, batch, 1.0) for batch in runs.batches[k]]
        alone.append(_flat(hypergrad.reverse(single, small, carry, given)[0]))
    alone = torch.stack(alone)
    assert alone.std(0).min() > 1e-3
    torch.testing.assert_close(_flat(slopes), alone.mean(0), rtol=1e-10, atol=0)


def test_every_member_of_a_population_may_have_its_own_phi():
    # the loss surface's case: vmap outside, one phi a run
    step, _, carry, feeds = _problem(*PROBLEMS["momentum"])
    phis = {
        "log_lr": torch.tensor([-3.0, -2.0, -1.0], dtype=F64),
        "logit_momentum": torch.tensor([0.5, 1.0, 1.5], dtype=F64),
    }
    for mode in MODES:
        many = vmap(lambda phi, mode=mode: mode(step, phi, carry, feeds)[0])(phis)
        for k in range(3):
            phi = {name: leaf[k] for name, leaf in phis.items()}
            one = mode(step, phi, carry, feeds)[0]
            _assert_close({name: leaf[k] for name, leaf in many.items()}, one, rtol=1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
def test_in_float32_everything_stays_float32_and_the_modes_agree(name):
    opt, phi = PROBLEMS[name]
    phi = {name: leaf.float() for name, leaf in phi.items()}
    task = tasks.mlp([3, 4, 2], "tanh", weight_std=0.7)
    draw = seeding.generator(0, "float32")
    x, labels = torch.randn(8, 3, generator=draw), torch.randint(2, (8,), generator=draw)
    feeds = [Feed((x, labels), (x, labels), 1.0)] * 6
    carry = unroll.start(task, opt, task.init(draw))
    backward, end = hypergrad.reverse(unroll.make_step(task, opt), phi, carry, feeds)
    forward, same_end, tangents = hypergrad.forward(unroll.make_step(task, opt), phi, carry, feeds)
    for leaf in tree_leaves((backward, end, forward, same_end, tangents)):
        assert leaf.dtype == torch.float32
    _assert_close(forward, backward, rtol=1e-4)  # roundings of 6e-8, 6 steps deep
