"""The same numbers elsewhere: how far another device or another precision may lead away.

Devices differ in the order in which they add, so they round differently, as precisions do. The
yardstick is the computation in double precision on this processor; how_to_run.md gives the
tolerances.
"""

import pytest
import torch
from torch.utils._pytree import tree_map

from learnopt import datasets, hypergrad, lstm_optimizer, optimizers, tasks, unroll
from learnopt.seeding import generator

SINGLE = 1e-3  # relative; a rounding is 6e-8, and the steps after it make it grow
DOUBLE = 1e-9  # relative; a rounding is 1e-16
MEAN = 0.1  # relative, of the mean loss of many runs, where each goes its own way
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
PLACES = [
    pytest.param("cpu", torch.float32, SINGLE, id="single precision"),
    pytest.param("cuda", torch.float32, SINGLE, id="single precision on a GPU", marks=CUDA),
    pytest.param("cuda", torch.float64, DOUBLE, id="double precision on a GPU", marks=CUDA),
]


def drawn(n_steps):
    """A small classifier of the digits with its start and its batches, in double precision."""
    data = datasets.load("digits")
    images = data.x_train.double(), data.y_train
    task = tasks.mlp(
        [64, 20, 10],
        batches=lambda draw, n: datasets.minibatches(*images, 128, n, draw),
        dtype=torch.float64,
    )
    theta = task.init(generator(0, "devices", "init"))
    return task, theta, task.batches(generator(0, "devices", "batches"), n_steps)


def at(place, thing):
    """The same on a device; what is floating in a precision."""
    device, dtype = place
    return tree_map(
        lambda leaf: leaf.to(device, dtype if leaf.is_floating_point() else leaf.dtype), thing
    )


def losses(opt, phi, place, n_steps=100):
    """The losses on the way of one run, in double precision on the CPU."""
    task, theta, batches = drawn(n_steps)
    step, phi = unroll.make_step(task, opt), at(place, phi)
    carry = unroll.start(task, opt, at(place, theta))
    feeds = [unroll.Feed(train=at(place, batch)) for batch in batches]

    def loss(carry, feed):
        return task.loss(carry.theta, feed.train)

    _, found = unroll.run(step, phi, carry, feeds, loss)
    return torch.stack(found).detach().to("cpu", torch.float64)


def momentum(place):
    """A hundred steps of SGD with momentum."""
    return losses(optimizers.momentum(), optimizers.hyperparameters(1.0, 0.9), place)


def learned(place):
    """Twenty steps of the LSTM that comes with the book."""
    found = lstm_optimizer.load("digits-seed0")
    return losses(lstm_optimizer.lstm(found.inputs, found.out_scale), found.phi, place, n_steps=20)


def learned_mean(place):
    """The mean loss of ten runs of a hundred steps: by then a rounding has made them other runs."""
    task, _, _ = drawn(1)
    runs = unroll.draw_runs(task, 10, 100, seed=0)
    batches = [[at(place, batch) for batch in run] for run in runs.batches]
    found = lstm_optimizer.load("digits-seed0")
    opt = lstm_optimizer.lstm(found.inputs, found.out_scale)
    moved = unroll.Runs(at(place, runs.theta), batches)
    return unroll.losses(task, opt, at(place, found.phi), moved).mean().to("cpu", torch.float64)


def hypergradient(place):
    """Of the mean loss over twenty steps, for rate and momentum."""
    task, theta, batches = drawn(20)
    opt = optimizers.momentum()
    feeds = [unroll.Feed(at(place, batch), at(place, batch), 1 / 20) for batch in batches]
    carry = unroll.start(task, opt, at(place, theta))
    phi = at(place, optimizers.hyperparameters(0.1, 0.9))
    found, _ = hypergrad.reverse(unroll.make_step(task, opt), phi, carry, feeds)
    return torch.stack([found[name] for name in sorted(found)]).to("cpu", torch.float64)


@pytest.mark.parametrize("work", [momentum, learned, hypergradient])
@pytest.mark.parametrize(("device", "dtype", "tolerance"), PLACES)
def test_another_place_gives_the_same_numbers_within_its_precision(work, device, dtype, tolerance):
    expected = work(("cpu", torch.float64))
    assert expected.isfinite().all() and expected.std() > 0
    torch.testing.assert_close(work((device, dtype)), expected, rtol=tolerance, atol=0.0)


@pytest.mark.parametrize(("device", "dtype", "tolerance"), PLACES)
def test_runs_of_a_learned_optimizer_part_and_their_mean_stays(device, dtype, tolerance):
    expected = learned_mean(("cpu", torch.float64))
    torch.testing.assert_close(learned_mean((device, dtype)), expected, rtol=MEAN, atol=0.0)
