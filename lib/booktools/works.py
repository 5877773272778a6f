"""What `make bench` times, first part: the LSTM's windows, and populations of runs."""

import math

import torch
from torch.func import vmap

from booktools import peers, peers_jax
from booktools.work import Work
from learnopt import (
    hypergrad,
    lstm_optimizer,
    lstm_window,
    measure,
    meta_train,
    optimizers,
    surface,
    tasks,
    unroll,
)
from learnopt.lstm_optimizer import features
from learnopt.seeding import generator

N_UNROLL = 20
WINDOW_PEERS = {
    "torchopt": peers.torchopt_window,
    "higher": peers.higher_window,
    "jax, a jitted scan": peers_jax.window,
}


def classifier(sizes, activation="sigmoid", n_images=2000, batch_size=128):
    """A network on random images: times do not depend on what they show."""
    x = torch.rand(n_images, sizes[0], generator=generator(0, "images"))
    y = torch.randint(0, sizes[-1], (n_images,), generator=generator(0, "labels"))

    def batches(g, n):
        order = torch.randint(0, n_images, (n, batch_size), generator=g)
        return [(x[rows], y[rows]) for rows in order]

    return tasks.mlp(sizes, activation, batches, weight_std=0.1)


def window_way(task, n_steps, n_tasks=1, **options):
    """The meta-gradient of a window of this many steps and tasks: a way."""
    phi, opt = lstm_optimizer.init_phi("log", generator(0)), lstm_optimizer.lstm("log", 0.1)
    theta = torch.cat([task.init(generator(0, "theta", k)) for k in range(n_tasks)])
    carry = unroll.start(task, opt, theta)
    batches = task.batches(generator(0), n_steps + 1)
    stacked = [(x.expand(n_tasks, *x.shape), y.expand(n_tasks, *y.shape)) for x, y in batches]
    fast = lstm_window.Window("log", 0.1, n_steps, len(theta), **options)
    gradient, weights = meta_train.task_gradients(task, n_tasks), (1.0,) * n_steps
    return lambda: meta_train.window_gradient(fast, gradient, phi, carry, stacked, weights)[0]


def window() -> Work:
    """The meta-gradient of one window of 20 steps, 784-20-10: 15,910 coordinates."""
    task = classifier([784, 20, 10])
    phi, opt = lstm_optimizer.init_phi("log", generator(0)), lstm_optimizer.lstm("log", 0.1)
    carry = unroll.start(task, opt, task.init(generator(0, "theta", 0)))
    batches = task.batches(generator(0), N_UNROLL + 1)
    feeds = [unroll.Feed(batches[t], batches[t + 1], 1.0) for t in range(N_UNROLL)]
    step = unroll.make_step(task, opt, second_order=False)

    def peer(make):
        def way():
            return {name: slope.view_as(phi[name]) for name, slope in work().items()}

        work = make(task, phi, carry, batches, lambda g: features(g, "log"))
        return way

    return Work(
        "lstm_window",
        f"LSTM window: meta-gradient of {N_UNROLL} steps of a 784-20-10 network",
        {
            "window by hand": window_way(task, N_UNROLL),
            "autograd through the same steps": lambda: hypergrad.reverse(step, phi, carry, feeds)[
                0
            ],
        },
        {name: lambda make=make: peer(make) for name, make in WINDOW_PEERS.items()},
        rounds=5,
    )


def window_steps() -> Work:
    """Time a step at three lengths of the window, and at the longest with denormals flushed."""
    task, lengths = classifier([784, 20, 10]), {f"{n} steps": n for n in (N_UNROLL, 5, 100)}
    first, *rest = [(name, window_way(task, n)) for name, n in lengths.items()]
    longest, way = rest[-1]
    flushed = f"{longest}, denormals flushed"

    def flushing():
        torch.set_flush_denormal(True)
        try:
            return way()
        finally:
            torch.set_flush_denormal(False)

    return Work(
        "lstm_steps",
        "LSTM window: time a step, by the length of the window",
        dict([first]),
        others=dict(rest) | {flushed: flushing},
        units=lengths | {flushed: lengths[longest]},
        counted="steps",
        rounds=3,
    )


def window_tasks() -> Work:
    """Time a task, with 16 tasks side by side."""
    task, many, short = classifier([784, 20, 10]), 16, "16 tasks at once, forward pass repeated"
    crowd = window_way(task, N_UNROLL, many, recompute=True)

    def made_and_used():
        window_way(task, N_UNROLL, many, recompute=True)()

    return Work(
        "lstm_tasks",
        "LSTM window: time a task, with 16 tasks at once",
        {"one task": window_way(task, N_UNROLL)},
        others={short: crowd},
        units={short: many},
        facts={"Gigabytes for all 16": round(measure.peak_bytes(made_and_used) / 1e9, 3)},
        rounds=3,
    )


def trials(name, sizes, batch_size, n=256, n_steps=5, n_sample=16) -> Work:
    """n schedules of momentum, from one start, in one batched pass and one after another."""
    task = classifier(sizes, "relu", batch_size=batch_size)
    factor = optimizers.inverse_time(100)
    opt = optimizers.scheduled(optimizers.momentum(), factor)
    phis = surface.sobol(n, {"log_lr": (0.01, 0.3), "log_decay": (0.1, 3.0)})
    phis |= {"log_damping": torch.full((n,), math.log(0.1))}
    theta, batches = task.init(generator(0)), task.batches(generator(0), n_steps + 1)
    train, (x, y) = batches[:-1], batches[-1]
    step = vmap(unroll.make_step(task, opt), in_dims=(0, 0, None))
    start = vmap(lambda theta: unroll.start(task, opt, theta))(theta.expand(n, -1))

    def batched():
        end, _ = unroll.run(step, phis, start, map(unroll.Feed, train))
        return {"loss": torch.stack([task.loss(theta, (x, y)) for theta in end.theta])}

    def one(k):
        phi, at = {name: logs[k] for name, logs in phis.items()}, theta.clone().requires_grad_()
        velocity = torch.zeros_like(theta)
        for t, batch in enumerate(train):
            (slope,) = torch.autograd.grad(task.loss(at, batch), at)
            rate = (phi["log_lr"].exp() * factor(phi, torch.tensor(float(t)))).item()
            with torch.no_grad():
                at.sub_(velocity.mul_(0.9).add_(slope), alpha=rate)
        return task.loss(at, (x, y)).detach()

    sample = f"one after another (a sample of {n_sample})"
    network = "-".join(map(str, sizes))
    return Work(
        name,
        f"{n} schedules of a {network} network, {n_steps} steps, batch {batch_size}",
        {
            "one batched pass": batched,
            sample: lambda: {"loss": torch.stack([one(k) for k in range(n_sample)])},
        },
        units={"one batched pass": n * n_steps, sample: n_sample * n_steps},
        counted="schedules times steps",
        rounds=3,
    )


WORKS = {
    "lstm_window": window,
    "lstm_steps": window_steps,
    "lstm_tasks": window_tasks,
    "trials_small": lambda: trials("trials_small", [64, 32, 32, 10], 50, n_steps=20),
    "trials_large": lambda: trials("trials_large", [784, 100, 100, 10], 100),
}
