"""Meta-training: window bookkeeping, the meta-gradient it steps along, resuming, divergence."""

import math

import pytest
import torch

from learnopt import checkpoints, hypergrad, lstm_optimizer, lstm_window, meta_train, tasks, unroll
from learnopt.meta_train import Settings, train, windows
from learnopt.seeding import generator

F64 = torch.float64
SMALL = Settings(n_steps=10, n_unroll=5, n_trajectories=6, evaluate_every=2, n_tasks=2)


@pytest.fixture(scope="module")
def task():
    return tasks.quadratic()


@pytest.fixture(scope="module")
def validation(task):
    return unroll.draw_runs(task, 5, 10, seed=0, stream="validation")


@pytest.mark.parametrize("rule, credited", [("thesis", 76), ("pre-thesis", 95), ("deepmind", 100)])
def test_each_window_rule_credits_the_counted_number_of_updates(rule, credited):
    cut = windows(rule)
    # a window's loss at step t judges every update before t: update s has credit if any later
    # loss of its own window is counted
    seen = [w.start + s for w in cut for s in range(len(w.weights)) if any(w.weights[s:])]
    assert len(seen) == len(set(seen)) == credited
    if rule == "thesis":
        assert 0 not in seen and max(seen) == 79
        assert cut[0].weights == (0.0,) and cut[-1].stop == 81


def test_a_horizon_that_the_window_does_not_divide_ends_in_a_shorter_window():
    assert [(w.start, w.stop) for w in windows("deepmind", 25, 10)] == [(0, 10), (10, 20), (20, 25)]


def test_an_unknown_window_rule_is_refused():
    with pytest.raises(ValueError, match="'Deepmind' is not one of"):
        windows("Deepmind")


@pytest.mark.parametrize("rule", meta_train.RULES)
@pytest.mark.parametrize("n_tasks", [1, 3])
def test_the_window_gradient_equals_reverse_mode(rule, n_tasks):
    task, opt = tasks.quadratic(dtype=F64), lstm_optimizer.lstm("raw", 1.0)
    phi = lstm_optimizer.init_phi("raw", generator(0), dtype=F64)
    runs = unroll.draw_runs(task, n_tasks, 11, seed=0)
    batches = [feed.train for feed in runs.feeds()]
    fast = lstm_window.Window("raw", 1.0, 10, 10 * n_tasks, F64)
    gradient = meta_train.task_gradients(task, n_tasks)
    window = windows(rule, 10, 10)[-1]
    found, _, losses = meta_train.window_gradient(
        fast, gradient, phi, unroll.start(task, opt, runs.theta.flatten()), batches, window.weights
    )

    expected = {name: torch.zeros_like(leaf) for name, leaf in phi.items()}
    step = unroll.make_step(task, opt, second_order=False)
    for k in range(n_tasks):
        batch = runs.batches[k][0]
        feeds = [unroll.Feed(batch, batch, w) for w in window.weights]
        slopes, _ = hypergrad.reverse(step, phi, unroll.start(task, opt, runs.theta[k]), feeds)
        expected = {name: expected[name] + slopes[name] for name in phi}
    for name in phi:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12)
    assert losses.shape == (len(window.weights), n_tasks)


@pytest.mark.parametrize("inputs", ["log", "rnnprop"])
def test_the_window_gradient_equals_reverse_mode_on_the_network_of_the_thesis(inputs):
    draw = generator(0, "images")
    x = torch.rand(4, 8, 784, generator=draw, dtype=F64)
    y = torch.randint(0, 10, (4, 8), generator=draw)
    batches = list(zip(x, y, strict=True))
    task = tasks.mlp([784, 20, 10], batches=lambda _, n: batches[:n], dtype=F64)
    opt, phi = lstm_optimizer.lstm(inputs, 0.1), lstm_optimizer.init_phi(inputs, draw, F64)
    runs = unroll.draw_runs(task, 1, 4, seed=0)
    start = unroll.start(task, opt, runs.theta[0])
    window = windows("deepmind", 3, 3)[0]
    found, end, _ = meta_train.window_gradient(
        lstm_window.Window(inputs, 0.1, 3, 15_910, F64),
        meta_train.task_gradients(task, 1),
        phi,
        start,
        [feed.train for feed in runs.feeds()],
        window.weights,
    )

    step = unroll.make_step(task, opt, second_order=False)
    pairs = zip(batches, batches[1:], window.weights, strict=False)
    expected, last = hypergrad.reverse(step, phi, start, [unroll.Feed(*feed) for feed in pairs])
    for name in phi:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-14)
        assert found[name].norm() > 1e-8
    torch.testing.assert_close(end.theta, last.theta, rtol=1e-12, atol=1e-15)


def test_the_thesis_first_window_has_a_zero_gradient():
    task = tasks.quadratic()
    settings = SMALL._replace(rule="thesis", n_steps=1, n_unroll=5)
    assert windows("thesis", 1, 5) == [meta_train.Window(0, 1, (0.0,))]
    start = lstm_optimizer.init_phi(settings.inputs, generator(settings.seed, "phi"))
    result = train(task, settings, unroll.draw_runs(task, 2, 3, 0, "validation"))
    torch.testing.assert_close(result.last_phi, start)


def test_a_training_can_go_on_from_a_phi_whatever_the_order_of_its_names(task, validation):
    first = train(task, SMALL, validation).last_phi
    one = train(task, SMALL, validation, start=first)
    two = train(task, SMALL, validation, start=dict(reversed(first.items())))
    assert torch.equal(one.history, two.history)
    assert not torch.equal(one.history, train(task, SMALL, validation).history)


def test_training_lowers_the_validation_score(task):
    validation = unroll.draw_runs(task, 50, 20, seed=0, stream="validation")
    settings = Settings(n_steps=20, n_unroll=10, n_trajectories=60, evaluate_every=20, n_tasks=16)
    result = train(task, settings, validation)
    assert result.history[:, 0].tolist() == [20, 40, 60]
    assert result.history[-1, 1] < 0.9 * result.history[0, 1]


def test_the_best_phi_is_the_one_that_scored_best(task, validation):
    result = train(task, SMALL, validation)
    losses = meta_train.losses(task, SMALL.inputs, SMALL.out_scale, result.phi, validation)
    score = losses.sum(1).mean()
    torch.testing.assert_close(score, result.history[:, 1].min())


def test_an_interrupted_training_ends_bit_for_bit_as_an_uninterrupted_one(
    task, validation, tmp_path, monkeypatch
):
    whole = train(task, SMALL, validation)
    path = tmp_path / "run.checkpoint"
    calls = 0
    real = meta_train.one_trajectory

    def killed(*args):
        nonlocal calls
        calls += 1
        if calls == 4:  # in the middle of the second stretch
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(meta_train, "one_trajectory", killed)
    with pytest.raises(KeyboardInterrupt):
        train(task, SMALL, validation, checkpoint=path)
    monkeypatch.setattr(meta_train, "one_trajectory", real)
    resumed = train(task, SMALL, validation, checkpoint=path)

    for name in whole.phi:
        assert torch.equal(whole.phi[name], resumed.phi[name])
        assert torch.equal(whole.last_phi[name], resumed.last_phi[name])
    assert torch.equal(whole.history, resumed.history)


def test_a_checkpoint_of_other_settings_is_refused(task, validation, tmp_path):
    path = tmp_path / "run.checkpoint"
    train(task, SMALL, validation, checkpoint=path)
    with pytest.raises(checkpoints.CheckpointError, match="lr is 0.1, was 0.003"):
        train(task, SMALL._replace(lr=0.1), validation, checkpoint=path)


def test_a_diverged_training_is_a_result_and_not_a_crash(task, validation):
    result = train(task, SMALL._replace(lr=1e30), validation)
    assert math.isinf(result.history[-1, 1])
    assert len(result.history) >= 1


def test_a_collapsed_training_is_given_up_after_three_evaluations(task, validation):
    endless = SMALL._replace(n_trajectories=100, evaluate_every=1)
    assert len(train(task, endless._replace(give_up=-1.0), validation).history) == 3
    assert len(train(task, SMALL._replace(give_up=1e9), validation).history) > 1


def test_clipping_bounds_the_meta_gradient_and_leaves_small_ones_alone(task, validation):
    free = train(task, SMALL, validation)
    loose = train(task, SMALL._replace(clip=1e9), validation)
    tight = train(task, SMALL._replace(clip=1e-12), validation)
    assert torch.equal(free.history, loose.history)
    assert not torch.equal(free.history, tight.history)


@pytest.mark.parametrize("n_runs", [1, 4])
def test_the_fast_evaluation_equals_the_reference(n_runs):
    task = tasks.quadratic(dtype=F64)
    runs = unroll.draw_runs(task, n_runs, 12, seed=0)
    phi = lstm_optimizer.init_phi("log", generator(0), dtype=F64)
    found = meta_train.trajectories(task, "log", 0.1, phi, runs)
    expected = unroll.trajectories(task, lstm_optimizer.lstm("log", 0.1), phi, runs)
    assert found[0].std() > 0 and found[1].shape == (n_runs, 10)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
