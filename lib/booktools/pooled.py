"""Chapter 10 at the size of the specification's pilots, and recorded beside them.

    python -m booktools.pooled --seeds 0 1 2

MNIST in blocks of 2x2 pixels, 196-32-32-10, 2,000 steps, an update every 20: a setting that the
specification has numbers for and the paper has not. It does not say whether a block becomes its
mean or its maximum: both are run. One record a seed and pooling, of all arms, takes one to two
minutes of one CPU core's time. Exit status 2: the data or the folder is not as it must be.
"""

import sys
import time
from functools import partial

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from booktools import beside
from learnopt import datasets, optimizers, smd, smd_mlp, tasks, unroll
from learnopt.seeding import generator

CHAPTER = "10_smd_online"
LRS = (0.1, 0.001, 0.01, 0.1)  # the first is by hand and stays
NAMES = ("manual", "smd_lr0001", "smd_lr001", "smd_lr01")
SIZES, N_STEPS, EVERY, BATCH, N_SCORED = (196, 32, 32, 10), 2000, 20, 100, 5000
POOLINGS = {"mean": F.avg_pool2d, "max": F.max_pool2d}
ARMS = {  # name: steps ahead, Adam's averages kept, one batch for all steps and the loss
    "stochastic": (5, False, False),
    "ahead20": (20, False, False),
    "persistent": (5, True, False),
    "deterministic": (5, False, True),
    "persistent_deterministic": (5, True, True),
}


def images(pooling):
    """Pooled training images ``(60000, 196)`` and labels. Raises ``datasets.DatasetError``."""
    data = datasets.load("mnist", n_valid=0)
    return POOLINGS[pooling](data.x_train[:, None], 2).flatten(1), data.y_train


def run(x, y, seed, n_ahead, persistent, deterministic):
    """(losses at the end, rates in the middle), each ``(4,)``, of one arm."""
    task, opt = tasks.mlp(SIZES, "relu", weight_std=0.1), optimizers.momentum()
    lrs = torch.tensor(LRS)
    phi = {"log_effective_lr": (lrs / 0.1).log(), "log_damping": torch.full_like(lrs, 0.1).log()}
    theta = task.init(generator(seed, "init")).expand(len(lrs), -1)
    carry = torch.func.vmap(lambda one: unroll.start(task, opt, one))(theta)
    rule = smd.Rule(optimizers.adam(eps=smd.FIRST_STEP_EPS), persistent=persistent)
    mode, train = (partial(step, task, "relu") for step in (smd_mlp.slopes, smd_mlp.train))
    plan = smd.Plan(N_STEPS, EVERY, mode=mode, train=train)
    made = partial(datasets.minibatches, x, y, BATCH, drop_last=True)

    def draw(k):
        drawn = made(2 * n_ahead, generator(seed, "look-ahead", k))
        score = tuple(torch.cat(part) for part in zip(*drawn[n_ahead:], strict=True))
        return smd.feeds_ahead(drawn[:n_ahead], score, deterministic)

    batches, tuned = made(N_STEPS, generator(seed, "train")), torch.tensor([0.0, 1.0, 1.0, 1.0])
    step, meta = unroll.make_step(task, opt), rule.start(phi)
    half = partial(smd.online, step, rule, plan)
    meta, carry = half(meta, carry, batches, draw, tuned, 0, plan.middle)
    rates = meta.phi["log_effective_lr"].exp()
    _, carry = half(meta, carry, batches, draw, tuned, plan.middle)
    scored = (x[:N_SCORED], y[:N_SCORED])
    return torch.stack([task.loss(theta, scored) for theta in carry.theta]), rates


def record(x, y, pooling, seed, root=None):
    """Run all arms of a seed, and save its record."""
    began, metrics = time.perf_counter(), {}
    for arm, how in tqdm(ARMS.items(), desc=f"{pooling}, seed {seed}", unit="arm", leave=False):
        losses, rates = run(x, y, seed, *how)
        for name, loss, rate in zip(NAMES, losses.tolist(), rates.tolist(), strict=True):
            metrics |= {f"loss_{arm}_{name}": loss, f"rate_{arm}_{name}": rate}
    told = {"dataset": "mnist", "pooled": 2, "pooling": pooling, "n_steps": N_STEPS}
    told |= {"steps_per_update": EVERY, "hidden": list(SIZES[1:-1]), "batch_size": BATCH}
    told |= {"n_scored": N_SCORED, "weight_std": 0.1, "start_lrs": list(LRS[1:])}
    name = f"paper-pooled-{pooling}"
    return beside.save(CHAPTER, name, seed, began, told, metrics, {}, root)


def main(arguments=None):
    """The command line."""

    def make(pooling, seed, results):
        return record(*images(pooling), pooling, seed, results)

    return beside.command("pooled", __doc__, make, "pooling", POOLINGS, arguments)


if __name__ == "__main__":
    sys.exit(main())
