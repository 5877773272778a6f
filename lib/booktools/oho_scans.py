"""Scans beside chapter 12: how long a memory, how large a validation batch, which guard.

    python -m booktools.oho_scans --seeds 0 1 2
    python -m booktools.oho_scans --seeds 0 1 2 3 4 5 6 7 8 9 --only guards-digits

"reset" and "batch" are figures 10 and 6B, which the paper has on CIFAR-10 alone; here they are on
MNIST, with the paper's network for it, 784-128-128-128-10. The two records of a seed take 10 to 20
minutes of one CPU core's time. "guards" and "guards-digits" are no figures: ways to keep the rate
from being thrown away, from starts that are too low, fair and too high. On MNIST they take 40
minutes a seed, for runs break late there; on the chapter's digits a minute or two. Exit status 2:
the data or the folder is not as it must be.
"""

import sys
import time
from typing import NamedTuple

import torch
from tqdm.auto import tqdm

from booktools import beside
from learnopt import datasets, oho, tasks
from learnopt.oho_guards import Bounded
from learnopt.oho_mlp import MLP
from learnopt.seeding import generator

CHAPTER = "12_oho"
BATCH = 100
META_RATE = 1e-4  # of the rate; the decay's is a hundredth, as in the chapter
RESETS = (1, 10, 100, 1000, 0)  # steps; 0: never. Published: without 10
JUDGES = (10, 100, 500, 1000)  # images of a validation batch; published: without 10
STARTS = (0.1, 0.01, 0.001)  # initial rates under OHO, without decay
FIXED = (0.15, 0.01)  # rates of figure 6B's fixed runs
GUARDED = {"guards": (0.001, 0.5), "guards-digits": (0.001, 0.1, 0.5, 1.0)}  # initial rates
LOG = oho.Rule({"lr": 0.01}, {"lr": (1e-6, 10.0)}, in_log=True, largest=0.02)  # no decay to tune


class Scale(NamedTuple):
    dataset: str = "mnist"
    hidden: tuple[int, ...] = (128, 128, 128)
    n_epochs: int = 10
    n_steps: int = 500  # an epoch


EXPERIMENTS = {
    "reset": Scale(), "batch": Scale(), "guards": Scale(n_epochs=50),
    "guards-digits": Scale("digits", (32, 32), n_epochs=100, n_steps=50),
}  # fmt: skip


def arms(experiment):
    """name -> (rule, initial rates, images of a validation batch)."""
    rates = {"lr": META_RATE, "weight_decay": META_RATE / 100}
    rule = oho.Rule(rates)
    if experiment == "reset":
        return {
            f"reset{every}" if every else "never": (rule._replace(reset_every=every), STARTS, BATCH)
            for every in RESETS
        }
    if experiment in GUARDED:
        bounded = Bounded(rates, largest=LOG.largest)
        rules = {
            "plain": rule, "reset": rule._replace(reset_every=100), "log": LOG,
            "bounded": bounded, "bounded_reset": bounded._replace(reset_every=1000),
        }  # fmt: skip
        return {name: (rule, GUARDED[experiment], BATCH) for name, rule in rules.items()}
    found = {f"batch{size}": (rule, STARTS, size) for size in JUDGES}
    return found | {"fixed": (oho.Rule(rates={}), FIXED, 1)}


def run(data, seed, rule, lrs, n_judge, scale):
    """Test losses and rates, each ``(n_lrs, n_epochs + 1)``."""
    train = data.x_train.flatten(1), data.y_train
    valid = data.x_valid.flatten(1), data.y_valid
    test = data.x_test.flatten(1), data.y_test
    task = tasks.mlp([train[0].shape[1], *scale.hidden, data.n_classes], "tanh", weight_std=None)
    learner = MLP(task, "tanh", tuned=bool(rule.rates))

    def draw(epoch):
        batches = [
            datasets.minibatches(
                *part, size, scale.n_steps, generator(seed, name, epoch), drop_last=True
            )
            for part, size, name in ((train, BATCH, "train"), (valid, n_judge, "judge"))
        ]
        return list(zip(*batches, strict=True))

    def look(epoch, phi, state):
        with torch.no_grad():
            losses = [task.loss(theta, test) for theta in learner.theta(state)]
        return torch.stack(losses), phi["lr"][:, 0]

    lr = torch.tensor(lrs)[:, None]
    theta = task.init(generator(seed, "init")).expand(len(lrs), -1)
    phi = {"lr": lr, "weight_decay": torch.zeros_like(lr)}
    *_, seen = oho.train(learner, rule, phi, theta, draw, scale.n_epochs, look)
    return [torch.stack(part, 1) for part in zip(*seen, strict=True)]


def record(data, experiment, seed, root=None, scale=None):
    """Run all arms of a seed, and save the record of one of EXPERIMENTS."""
    began, metrics, curves = time.perf_counter(), {}, {}
    scale = scale or EXPERIMENTS[experiment]
    for arm, how in tqdm(arms(experiment).items(), desc=f"{experiment}, seed {seed}", leave=False):
        losses, rates = run(data, seed, *how, scale)
        curves |= {f"loss_{arm}": losses, f"rate_{arm}": rates}
        for lr, loss, rate in zip(how[1], losses, rates[:, -1], strict=True):
            name = f"{arm}_lr{lr:g}".replace(".", "")
            metrics |= {f"loss_{name}": loss[-1].item(), f"rate_{name}": rate.item()}
            metrics[f"broke_{name}"] = int(not (loss < 3).all())
    told = scale._asdict() | {"hidden": list(scale.hidden), "batch_size": BATCH}
    told |= {"meta_rate": META_RATE, "start_lrs": list(GUARDED.get(experiment, STARTS))}
    if experiment in GUARDED:
        told |= {"log_rate": LOG.rates["lr"], "largest": LOG.largest}
    else:
        told |= {"resets": list(RESETS)} if experiment == "reset" else {"judges": list(JUDGES)}
    name = f"paper-scan-{experiment}"
    return beside.save(CHAPTER, name, seed, began, told, metrics, curves, root)


def main(arguments=None):
    """The command line."""

    def make(experiment, seed, results):
        return record(datasets.load(EXPERIMENTS[experiment].dataset), experiment, seed, results)

    return beside.command("oho_scans", __doc__, make, "only", EXPERIMENTS, arguments)


if __name__ == "__main__":
    sys.exit(main())
