"""The original's experiments on CIFAR-10: the arms of each, and the metrics that the ledger wants.

Sources: Im, Savin & Cho 2021, and the plotting and job scripts of their public code, from which the
grids, rates and moments are. All arms: 100 images a batch, judged on 1,000, from a rate of 0.1 and
no decay, meta-rate 1e-5, unless an arm says otherwise. Not as in the original: figure 4 compares
all numbers of sets at the same rates; in figure 7 the fixed rate is struck too; schedules decay.
"""

import json
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from learnopt.oho_deep import SCHEDULES, Settings

ORIGINAL = {
    "data": "cifar10", "epochs": 300, "images": 0, "device": "cuda",  # 0: all images
    "width": 64,  # channels of the first stage
    "pool": 1,  # a square of so many pixels by so many becomes one
    "largest_judge": 1000,  # images
    "meta_factor": 1,  # of every meta-rate
}  # fmt: skip
# An eighth of the channels and of the images, a quarter of the pixels, 1,000 steps instead of
# 120,000. The meta-rates are 10 times as large. For the same steps times meta-rate it would be 100,
# but of two runs tried so (seed 0) one was NaN after 10 epochs, one above its first loss after 11.
NARROW = ORIGINAL | {
    "epochs": 20, "images": 5000, "device": "cpu", "width": 8, "pool": 2, "largest_judge": 200,
    "meta_factor": 10,
}  # fmt: skip
MOMENTS = (30, 50, 90, 180, 270)  # epochs of 300, figure 7
PER_TENSOR = {"sets": "tensor", "decay_limit": 2e-4}
RATES = (0.2, 0.15, 0.1, 0.05, 0.01, 0.005, 0.001)
DECAYS = (0.0, 1e-4, 1e-5)
METHODS = {name: {"arm": name} for name in SCHEDULES} | {
    "oho_global": {},
    "oho_full": PER_TENSOR | {"meta_rate": 1e-4},
}


class Experiment(NamedTuple):
    """``arms(n_epochs)``: name -> changes of Settings. ``metrics(curves by arm, n_epochs)``."""

    item: str
    arms: Callable
    metrics: Callable


def moment(epoch, n_epochs):
    """The epoch of a run of n_epochs that stands for an epoch of 300."""
    return min(max(1, round(epoch * n_epochs / ORIGINAL["epochs"])), n_epochs - 1)


def last(curves):
    """The final test loss; inf where the run broke."""
    loss = curves["test_loss"][-1].item()
    return math.inf if math.isnan(loss) else loss


def lasts(found, n_epochs=None):
    """loss_<arm> for each arm."""
    return {f"loss_{name}": last(curves) for name, curves in found.items()}


def spread(losses):
    """Largest minus smallest; inf where a run broke."""
    losses = list(losses)
    return max(losses) - min(losses) if max(losses) < math.inf else math.inf


def grid(n_epochs):
    """Figure 1: every method from every initial rate and decay."""
    return {
        f"{name}-lr{lr:g}-decay{decay:g}": {**method, "lr": lr, "weight_decay": decay}
        for name, method in METHODS.items()
        for lr in RATES
        for decay in DECAYS
    }


def distribution(found, n_epochs):
    """Figure 1: of each method, the final test losses; diverged: NaN, or above the first."""
    metrics = {}
    for name in METHODS:
        mine = [curves for arm, curves in found.items() if arm.startswith(f"{name}-")]
        ends = torch.tensor([last(curves) for curves in mine])
        begins = torch.tensor([curves["test_loss"][0] for curves in mine])
        metrics |= {f"max_{name}": ends.max(), f"median_{name}": ends.median()}
        metrics |= {f"min_{name}": ends.min(), f"spread_{name}": spread(ends.tolist())}
        metrics[f"n_diverged_{name}"] = (~(ends < begins)).sum()
    return metrics


def initial_rates(n_epochs):
    """Figure 3B."""
    return {
        f"{name}_lr{100 * lr:03.0f}": {**how, "lr": lr}
        for name, how in (("global", {}), ("full", PER_TENSOR))
        for lr in (0.1, 0.15, 0.2)
    }


def meet(found, n_epochs):
    """Figure 3B: final losses, and how far they lie apart over the initial rates."""
    metrics = lasts(found)
    for name in ("global", "full"):
        mine = (loss for key, loss in metrics.items() if key.startswith(f"loss_{name}_"))
        metrics |= {f"spread_{name}": spread(list(mine))}
    return metrics


def groups(found, n_epochs):
    """Figure 4: final losses and seconds of training."""
    seconds = {f"seconds_{k}": c["seconds"].nansum() for k, c in found.items()}
    return lasts(found) | seconds


def objectives(found, n_epochs):
    """Figure 6A: final and lowest test losses."""
    metrics = {}
    for name, curves in found.items():
        lowest = curves["test_loss"].nan_to_num(nan=math.inf).min()
        metrics |= {f"loss_{name}_objective": last(curves), f"lowest_{name}_objective": lowest}
    return metrics


def shaken(knob, value, **changes):
    """Figure 7: OHO and a fixed rate, struck alike at each moment, and left alone."""

    def arms(n_epochs):
        blows = {f"_epoch{at}": (moment(at, n_epochs), knob, value) for at in MOMENTS}
        return {
            arm + name: {"disturbance": blow, **how}
            for name, blow in (blows | {"_alone": None}).items()
            for arm, how in (("oho", {}), ("fixed", {"arm": "fixed", **changes}))
        }

    return arms


def struck(found, n_epochs):
    """What both halves of figure 7 share: final losses, the worst and the best of those struck."""
    metrics = lasts(found)
    for arm in ("oho", "fixed"):
        ends = [metrics[f"loss_{arm}_epoch{at}"] for at in MOMENTS]
        metrics |= {f"loss_{arm}_worst": max(ends), f"loss_{arm}_best": min(ends)}
        metrics[f"loss_{arm}_mean"] = sum(ends) / len(ends)
    return metrics


def rate_returns(found, n_epochs):
    """Figure 7A, B: and after how many epochs, of 300, a rate is below 0.02; inf: never."""
    metrics = struck(found, n_epochs)
    for at in MOMENTS:
        after = found[f"oho_epoch{at}"]["lr"][moment(at, n_epochs) + 1 :, 0]
        below = (after < 0.02).nonzero()
        epochs = (below[0].item() + 1) * ORIGINAL["epochs"] / n_epochs if len(below) else math.inf
        metrics[f"epochs_to_return_epoch{at}"] = epochs
    return metrics | {"loss_fixed": metrics["loss_fixed_alone"]}


def decay_returns(found, n_epochs):
    """Figure 7C, D: mean final losses of the runs struck; growth an epoch until limit or end."""
    metrics, slopes = struck(found, n_epochs), []
    for at in MOMENTS:
        after = found[f"oho_epoch{at}"]["weight_decay"][moment(at, n_epochs) + 1 :, 0]
        full = (after >= 0.999 * Settings().decay_limit).nonzero()
        k = full[0].item() if len(full) else len(after) - 1
        slopes.append(after[k].item() / (k + 1))
        metrics[f"decay_slope_epoch{at}"] = slopes[-1]
    metrics |= {f"loss_{arm}": metrics[f"loss_{arm}_mean"] for arm in ("oho", "fixed")}
    return metrics | {"decay_slope": sum(slopes) / len(slopes)}


def tangents(found, n_epochs):
    """Figure 8: norms at the ends of the epochs; the gradients' cosines in the last one."""
    metrics = lasts(found)
    for name, key in (("rate", "lr"), ("decay", "weight_decay")):
        norms = found["oho"][f"norm_{key}"][1:]
        metrics |= {f"norm_{name}_max": norms.max(), f"norm_{name}_median": norms.median()}
    for name, curves in found.items():
        for key in ("cosine_mean", "cosine_sd"):  # none where an epoch has one step
            metrics[f"{key}_{name}"] = curves[key][-1] if key in curves else math.nan
    return metrics


def forgetting(n_epochs):
    """Of figure 7A two blows, and tangents that are forgotten every 100 steps."""
    struck = shaken("lr", 0.2)(n_epochs)
    return {f"reset_epoch{at}": struck[f"oho_epoch{at}"] | {"reset_every": 100} for at in (30, 180)}


def changed(told):
    """The first of a narrow record's parameters that the experiment has otherwise now, or None."""
    experiment = EXPERIMENTS.get(told.get("experiment"))
    arms = experiment and experiment.arms(NARROW["epochs"])
    now = {key: NARROW[key] for key in ("epochs", "width", "largest_judge", "meta_factor")}
    now |= {"arms": json.loads(json.dumps(arms)), "training_images": NARROW["images"]}
    return next((key for key, value in now.items() if told.get(key) != value), None)


def always(arms):
    """Arms that do not depend on the number of epochs."""
    return lambda n_epochs: arms


FEW = {"n_cosines": 80}
EXPERIMENTS = {
    "robustness": Experiment("figure 1", grid, distribution),
    "initial-rates": Experiment("figure 3B", initial_rates, meet),
    "groups": Experiment(
        "figure 4",
        always({"q1": {}} | {f"q{k}": {"sets": k} for k in (2, 3, 4)} | {"full": PER_TENSOR}),
        groups,
    ),
    "objective": Experiment(
        "figure 6A", always({name: {"judge_on": name} for name in ("validation", "train")}),
        objectives,
    ),
    "validation-batch": Experiment(
        "figure 6B",
        always({f"batch{n}": {"judge_size": n, "weight_decay": 1e-5} for n in (100, 500, 1000)} | {
            f"fixed_lr{100 * lr:03.0f}": {"arm": "fixed", "lr": lr, "weight_decay": 1e-5}
            for lr in (0.15, 0.01)
        }),
        lasts,
    ),
    "shaken-rate": Experiment("figure 7A and 7B", shaken("lr", 0.2), rate_returns),
    "shaken-decay": Experiment(
        "figure 7C and 7D", shaken("weight_decay", 0.0, weight_decay=3e-4), decay_returns
    ),
    "tangents": Experiment(
        "figure 8", always({"oho": FEW, "sgd": {"arm": "fixed", **FEW}}), tangents
    ),
    "reset": Experiment(
        "figure 10",
        always({f"reset_{k or 'never'}": {"reset_every": k} for k in (1, 100, 1000, 0)}), lasts,
    ),
    "schedules": Experiment(
        "no figure: what a schedule does",
        always({
            f"{name}_lr{100 * lr:03.0f}": {"arm": name, "lr": lr}
            for name in SCHEDULES for lr in (0.05, 0.1, 0.2)
        }),
        lasts,
    ),
    "shaken-reset": Experiment("no figure: a blow, and short memory", forgetting, lasts),
}  # fmt: skip
