"""What `make bench` times, second part: OHO's step, and SMD's look-ahead."""

import math
from functools import partial

import torch
from torch.func import vmap

from booktools import peers_jax, peers_mlp
from booktools.work import Work
from booktools.works import classifier
from learnopt import hypergrad, oho, oho_mlp, optimizers, smd, smd_mlp, unroll
from learnopt.seeding import generator

N_STEPS, RATE, DECAY = 10, 0.1, 1e-5


def oho_way(learner, theta, feeds, b=1):
    """OHO from theta: the state after the feeds, and the hyperparameters."""

    def way():
        phi = {"lr": RATE, "weight_decay": DECAY}
        phi = {name: torch.full((b, learner.n_groups), value) for name, value in phi.items()}
        phi, state, _ = oho.run(learner, oho.Rule(), phi, learner.start(theta.expand(b, -1)), feeds)
        numbers = {"theta": learner.theta(state)[0], "tangents": learner.tangents(state)[0]}
        return numbers | {name: value[0] for name, value in phi.items()}

    return way


def oho_made():
    """A network of 784-128-128-128-10, its first weights, and pairs of batches of 100."""
    task = classifier([784, 128, 128, 128, 10], "tanh", batch_size=100)
    theta, drawn = task.init(generator(0)), task.batches(generator(0), 2 * N_STEPS)
    return task, theta, list(zip(drawn[::2], drawn[1::2], strict=True))


def oho_sets(n_sets: int) -> Work:
    """A step of OHO with n sets of hyperparameters and their exact tangents, two a set."""
    task, theta, feeds = oho_made()
    groups = oho.layer_groups(task.layout, n_sets) if n_sets < 8 else oho.tensor_groups(task.layout)
    ways = {
        "oho_mlp.MLP": oho_way(oho_mlp.MLP(task, "tanh", groups), theta, feeds),
        "forward mode for any network (oho.Reference)": oho_way(
            oho.Reference(task, optimizers.decayed(optimizers.sgd()), groups=groups), theta, feeds
        ),
    }
    run = (task, "tanh", theta, feeds, (RATE, DECAY), oho.Rule(), groups)
    others = {"one set, two tangents": oho_way(oho_mlp.MLP(task, "tanh"), theta, feeds)}
    return Work(
        f"oho_sets_{n_sets}",
        f"OHO: a step with {n_sets} sets of two knobs, {2 * n_sets} tangents, the same network",
        ways,
        {"jax": lambda: peers_jax.oho(*run)},
        others,
        dict.fromkeys([*ways, *others, "jax"], N_STEPS),
        tolerance=1e-2,
        counted="steps",
    )


def oho_step() -> Work:
    """A step of OHO with a rate and a decay, 784-128-128-128-10, batch 100 + 100."""
    task, theta, feeds = oho_made()
    fast = oho_mlp.MLP(task, "tanh")
    slow = oho.Reference(task, optimizers.decayed(optimizers.sgd()))
    rule = oho.Rule()
    run = (theta, feeds, (RATE, DECAY), rule)
    made = (task, *run)
    four = "a population of 4, a run"
    ways = {
        "oho_mlp.MLP": oho_way(fast, theta, feeds),
        "forward mode for any network (oho.Reference)": oho_way(slow, theta, feeds),
        "double backward": peers_mlp.double_backward(*made),
        "the original's way: central differences, copied models": peers_mlp.differences(
            task, "tanh", *run
        ),
    }
    others = {
        four: oho_way(fast, theta, feeds, 4),
        "plain gradient descent, autograd": peers_mlp.plain_descent(*made),
    }
    title = "OHO: a step with two knobs, 784-128-128-128-10, batch 100 + 100"
    peers = {
        "torch.compile of the step": lambda: peers_mlp.compiled(*made),
        "jax": lambda: peers_jax.oho(task, "tanh", *run),
    }
    units = {name: N_STEPS for name in [*ways, *others, *peers]} | {four: 4 * N_STEPS}
    return Work("oho_step", title, ways, peers, others, units, tolerance=1e-2, counted="steps")


def look_ahead() -> Work:
    """d loss after 10 steps / d (rate, momentum) of a 784-100-100-10 network."""
    task, opt = classifier([784, 100, 100, 10], "relu", batch_size=100), optimizers.momentum()
    theta, batches = task.init(generator(0)), task.batches(generator(0), N_STEPS + 1)
    feeds, step = smd.feeds_ahead(batches[:-1], batches[-1]), unroll.make_step(task, opt)
    logs = {"log_effective_lr": torch.zeros(1), "log_damping": torch.tensor([math.log(0.1)])}
    carry = vmap(lambda one: unroll.start(task, opt, one))(theta[None])
    one = {name: value[0] for name, value in logs.items()}
    begin = unroll.start(task, opt, theta)

    def stacked(slopes):
        return {name: slope[None] for name, slope in slopes.items()}

    def compiled():
        way = peers_mlp.compiled_ahead(*made)
        return lambda: stacked(way())

    made = (task, "relu", theta, batches, one)
    ways = {
        "backwards by hand (smd_mlp)": lambda: smd_mlp.slopes(task, "relu", logs, carry, feeds)[0],
        "reverse mode (smd.slopes)": lambda: smd.slopes(step, logs, carry, feeds, "reverse")[0],
        "forward mode: vmap(jvp(grad))": lambda: stacked(
            hypergrad.forward(step, one, begin, feeds)[0]
        ),
        "plain autograd": lambda: stacked(peers_mlp.autograd_ahead(*made)),
    }
    peers = {
        f"jax, {mode}": partial(peers_jax.ahead, *made, mode) for mode in ("reverse", "forward")
    }
    peers = {"torch.compile of the look-ahead": compiled} | peers
    train = {"plain training, autograd": lambda: peers_mlp.plain_momentum(*made)}
    title = f"SMD: a look-ahead of {N_STEPS} steps with two knobs, 784-100-100-10, batch 100"
    return Work("smd_look_ahead", title, ways, peers, train, counted="look-aheads")


WORKS = {
    "oho_step": oho_step,
    "oho_sets_4": partial(oho_sets, 4),
    "oho_sets_8": partial(oho_sets, 8),
    "smd_look_ahead": look_ahead,
}
