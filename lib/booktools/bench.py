"""Time the library's hot paths side by side: `make bench`, or `python -m booktools.bench`.

Every work is done in two or more ways in turn, A B A B ..., on one thread; the figures are CPU time
(so that a busy machine distorts them less), as ratios to the first way: median, lowest, highest
over the rounds. Absolute times are not printed: they belong to the machine. The machine's own limit
is measured in the same run: a large matrix product, in operations a second. Where the libraries of
``booktools.peers`` are installed (the extra `bench`), they take part; each must first give the same
answer. ``--write FILE`` keeps the ratios.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from pathlib import Path

# XLA reads this once, before jax is imported: one thread, as for the others
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import torch

from booktools import peers
from learnopt import (
    atomic,
    hypergrad,
    lstm_optimizer,
    lstm_window,
    meta_train,
    optimizers,
    provenance,
    tasks,
    unroll,
)
from learnopt.layout import Layout
from learnopt.lstm_optimizer import features
from learnopt.matmul import matmul
from learnopt.seeding import generator

N_UNROLL = 20
PEERS = {"torchopt": peers.torchopt_window, "higher": peers.higher_window, "jax": peers.jax_window}
kept = []  # one entry a ratio, for --write


def seconds(work) -> float:
    """CPU time of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def compare(title: str, ways: dict, rounds: int) -> dict[str, float]:
    """Print the ratios to the first way; returns the median seconds of each."""
    spent = {name: [] for name in ways}
    for work in ways.values():  # warm up
        work()
    for _ in range(rounds):
        for name, work in ways.items():
            spent[name].append(seconds(work))
    first = next(iter(ways))
    print(f"\n{title}")
    for name, times in spent.items():
        ratios = [t / t0 for t, t0 in zip(times, spent[first], strict=True)]
        middle, low, high = statistics.median(ratios), min(ratios), max(ratios)
        print(f"  {name:<52} {middle:6.2f}  ({low:.2f} to {high:.2f})", flush=True)
        kept.append({"work": title, "way": name, "over": first, "ratio": round(middle, 3)})
        kept[-1] |= {"low": round(low, 3), "high": round(high, 3), "rounds": rounds}
    return {name: statistics.median(times) for name, times in spent.items()}


def classifier(sizes, n_images=2000):
    """A network on random images: times do not depend on what they show."""
    x = torch.rand(n_images, sizes[0], generator=generator(0, "images"))
    y = torch.randint(0, sizes[-1], (n_images,), generator=generator(0, "labels"))

    def batches(g, n):
        order = torch.randint(0, n_images, (n, 128), generator=g)
        return [(x[rows], y[rows]) for rows in order]

    return tasks.mlp(sizes, batches=batches)


def matmul_rate() -> float:
    """Operations a second in a product of 1024 x 1024 matrices, by the faster of two libraries."""
    a = torch.randn(1024, 1024)
    ways = (lambda: a @ a, lambda: matmul(a, a))
    return max(2 * 1024**3 / min(seconds(way) for _ in range(9)) for way in ways)


def window(rounds: int) -> None:
    """The meta-gradient of one window of 20 steps, 784-20-10: 15,910 coordinates."""
    task = classifier([784, 20, 10])
    phi = lstm_optimizer.init_phi("log", generator(0))
    opt = lstm_optimizer.lstm("log", 0.1)
    carry = unroll.start(task, opt, task.init(generator(0)))
    batches = task.batches(generator(0), N_UNROLL + 1)
    feeds = [unroll.Feed(batches[t], batches[t + 1], 1.0) for t in range(N_UNROLL)]
    fast = lstm_window.Window("log", 0.1, N_UNROLL, task.layout.size)
    gradient = meta_train.task_gradients(task, 1)
    stacked = [(x[None], y[None]) for x, y in batches]
    weights = (1.0,) * N_UNROLL
    step = unroll.make_step(task, opt, second_order=False)
    ways = {
        "hand-written window": lambda: meta_train.window_gradient(
            fast, gradient, phi, carry, stacked, weights
        ),
        "autograd through the same steps (hypergrad.reverse)": lambda: hypergrad.reverse(
            step, phi, carry, feeds
        ),
    }
    wanted = Layout.of(phi).flatten(ways["hand-written window"]()[0])
    for name, make in PEERS.items():
        try:
            work = make(task, phi, carry, batches, lambda g: features(g, "log"))
        except ImportError:
            print(f"  {name} is not installed and is left out: pip install -e '.[bench]'")
            continue
        found = Layout.of(phi).flatten({k: v.view_as(phi[k]) for k, v in work().items()})
        error = ((found - wanted).norm() / wanted.norm()).item()
        if not error < 1e-3:  # float32 over 20 steps
            raise RuntimeError(f"{name} gives another meta-gradient: relative error {error:.1e}")
        ways[name] = work
    spent = compare("LSTM window, 784-20-10, 20 steps, meta-gradient", ways, rounds)
    operations = 3 * 2 * 4980 * task.layout.size * N_UNROLL
    rate = operations / spent["hand-written window"]
    print(f"  the window reaches {100 * rate / matmul_rate():.0f} % of the machine's matmul rate")


def populations(rounds: int) -> None:
    """64 learning rates of a small network, 20 steps: one batched pass against one by one."""
    task, opt = classifier([64, 20, 10]), optimizers.momentum()
    runs = unroll.draw_runs(task, 1, 20, seed=0)
    each = [optimizers.hyperparameters(lr, 0.9) for lr in torch.logspace(-3, 0, 64).tolist()]
    phis = {name: torch.stack([phi[name] for phi in each]) for name in each[0]}
    ways = {
        "one batched pass": lambda: unroll.grid_losses(task, opt, phis, runs),
        "64 runs one after another": lambda: [unroll.losses(task, opt, p, runs) for p in each],
    }
    compare("Population of 64 learning rates, 64-20-10, 20 steps", ways, rounds)


def hypergradients(rounds: int) -> None:
    """d loss after 10 steps / d (log_lr, logit_momentum) of a 784-100-100-10 network."""
    task, opt = classifier([784, 100, 100, 10]), optimizers.momentum()
    phi = optimizers.hyperparameters(0.1, 0.9)
    carry = unroll.start(task, opt, task.init(generator(0)))
    batches = task.batches(generator(0), 11)
    feeds = [unroll.Feed(batches[t], batches[t + 1], float(t == 9)) for t in range(10)]
    step = unroll.make_step(task, opt)
    ways = {
        "plain training": lambda: unroll.run(step, phi, carry, feeds),
        "reverse": lambda: hypergrad.reverse(step, phi, carry, feeds),
        "forward, 2 knobs": lambda: hypergrad.forward(step, phi, carry, feeds),
        "central difference": lambda: hypergrad.central_difference(step, phi, carry, feeds),
    }
    compare("Hypergradient of 10 steps, 784-100-100-10, 2 knobs", ways, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each comparison")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the ratios as JSON")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    if rounds < 1:
        parser.error("--rounds must be 1 or more")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the peers, which are older than torch
    began = time.perf_counter()
    print(f"torch {torch.__version__}, one thread, {rounds} rounds; CPU time over the first")
    print(f"matmul rate of this machine: {matmul_rate() / 1e9:.0f} GFLOP/s")
    for work in (window, populations, hypergradients):
        work(rounds)
    if arguments.write:
        origin = provenance.describe(seed=0, device="cpu", seconds=time.perf_counter() - began)
        text = json.dumps({"ratios": kept, "provenance": origin}, indent=1)
        atomic.write({arguments.write: text.encode()})


if __name__ == "__main__":
    main()
