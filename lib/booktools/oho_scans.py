"""Figures 6B and 10 on MNIST, beside chapter 12: how large a validation batch, how long a memory.

    python -m booktools.oho_scans --seeds 0 1 2

The paper has both on CIFAR-10 alone, over 300 epochs of a ResNet18; here the network is its MNIST
one, 784-128-128-128-10, for 10 epochs of 500 steps. Two records a seed take 10 to 20 minutes of one
CPU core's time. Exit status 2: the data or the folder is not as it must be.
"""

import sys
import time

import torch
from tqdm.auto import tqdm

from booktools import beside
from learnopt import datasets, oho, tasks
from learnopt.oho_mlp import MLP
from learnopt.seeding import generator

CHAPTER = "12_oho"
EXPERIMENTS = ("reset", "batch")
HIDDEN, BATCH, N_EPOCHS, N_STEPS = (128, 128, 128), 100, 10, 500
META_RATE = 1e-4  # of the rate; the decay's is a hundredth, as in the chapter
RESETS = (1, 10, 100, 1000, 0)  # steps; 0: never. Published: without 10
JUDGES = (10, 100, 500, 1000)  # images of a validation batch; published: without 10
STARTS = (0.1, 0.01, 0.001)  # initial rates under OHO, without decay
FIXED = (0.15, 0.01)  # rates of figure 6B's fixed runs


def arms(experiment):
    """name -> (rule, initial rates, images of a validation batch)."""
    rule = oho.Rule({"lr": META_RATE, "weight_decay": META_RATE / 100})
    if experiment == "reset":
        return {
            f"reset{every}" if every else "never": (rule._replace(reset_every=every), STARTS, BATCH)
            for every in RESETS
        }
    found = {f"batch{size}": (rule, STARTS, size) for size in JUDGES}
    return found | {"fixed": (oho.Rule(rates={}), FIXED, 1)}


def run(data, seed, rule, lrs, n_judge, n_epochs=N_EPOCHS, n_steps=N_STEPS, hidden=HIDDEN):
    """Test losses and rates, each ``(n_lrs, n_epochs + 1)``."""
    train = data.x_train.flatten(1), data.y_train
    valid = data.x_valid.flatten(1), data.y_valid
    test = data.x_test.flatten(1), data.y_test
    task = tasks.mlp([train[0].shape[1], *hidden, data.n_classes], "tanh", weight_std=None)
    learner = MLP(task, "tanh", tuned=bool(rule.rates))

    def draw(epoch):
        batches = [
            datasets.minibatches(*part, size, n_steps, generator(seed, name, epoch), drop_last=True)
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
    *_, seen = oho.train(learner, rule, phi, theta, draw, n_epochs, look)
    return [torch.stack(part, 1) for part in zip(*seen, strict=True)]


def record(data, experiment, seed, root=None, **size):
    """Run all arms of a seed, and save the record of an experiment: "reset" or "batch"."""
    began, metrics, curves = time.perf_counter(), {}, {}
    for arm, how in tqdm(arms(experiment).items(), desc=f"{experiment}, seed {seed}", leave=False):
        losses, rates = run(data, seed, *how, **size)
        curves |= {f"loss_{arm}": losses, f"rate_{arm}": rates}
        for lr, loss, rate in zip(how[1], losses, rates[:, -1], strict=True):
            name = f"{arm}_lr{lr:g}".replace(".", "")
            metrics |= {f"loss_{name}": loss[-1].item(), f"rate_{name}": rate.item()}
            metrics[f"broke_{name}"] = int(not (loss < 3).all())
    told = {"dataset": "mnist", "hidden": list(HIDDEN), "n_epochs": N_EPOCHS, "n_steps": N_STEPS}
    told |= {"batch_size": BATCH, "meta_rate": META_RATE, "start_lrs": list(STARTS)}
    told |= {"resets": list(RESETS)} if experiment == "reset" else {"judges": list(JUDGES)}
    name = f"paper-scan-{experiment}"
    return beside.save(CHAPTER, name, seed, began, told | size, metrics, curves, root)


def main(arguments=None):
    """The command line."""

    def make(experiment, seed, results):
        return record(datasets.load("mnist"), experiment, seed, results)

    return beside.command("oho_scans", __doc__, make, "only", EXPERIMENTS, arguments)


if __name__ == "__main__":
    sys.exit(main())
