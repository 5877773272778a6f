"""The original's experiments on CIFAR-10, run by run: ResNet18, tuned by OHO or not.

    data = cifar.images("cifar10", device="cuda")
    curves = run(Settings(sets="tensor"), data, path="run.pt", device="cuda")
    curves["test_loss"]                      # (n_epochs + 1,), the first before training

Im, Savin & Cho 2021, figures 1, 3B, 4, 6, 7, 8 and 10, and their public code; ``booktools.deep``
puts runs together into experiments. As there: the network, torch's default initialization, batches
of 100, crops and mirror images for training and judging alike, plain gradient descent that decays
every tensor, evaluation with running statistics. Not as there: the recursion is that of ``oho``,
exact and in its order, where the original takes finite differences after the step; judge batches
are drawn and cropped anew, where the original has ten frozen ones; and groups count modules, a
batch norm too, of which there are 41, with one rate and one decay for all tensors of a group, where
the original counts 21 layers of weights and has a second rate for biases and batch norms.

Arms of the same seed see the same first weights, training batches and crops.
"""

import math
import time
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm.auto import tqdm

from learnopt import checkpoints, cifar, datasets
from learnopt.oho import Rule
from learnopt.oho_module import NAMES, OHO
from learnopt.oho_tuners import Exact, Shared, Untuned
from learnopt.seeding import generator

# factor(share of the run that is over) of the learning rate, in the arms that nothing tunes
SCHEDULES = {
    "fixed": lambda share: 1.0,
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
    "step": lambda share: 0.1 ** ((share >= 1 / 2) + (share >= 3 / 4)),
    "exponential": lambda share: 0.01**share,
}


class Settings(NamedTuple):
    """One run; the defaults are those of the original's global OHO."""

    arm: str = "oho"  # or one of SCHEDULES
    sets: str | int = "one"  # "one", "tensor", or a number of groups of layers
    shared: bool = True  # one pair of tangents for all sets; False: exact ones, a pair for each
    lr: float = 0.1
    weight_decay: float = 0.0
    meta_rate: float = 1e-5  # of both
    decay_limit: float = 3e-4  # original: 2e-4 with a set per tensor
    reset_every: int = 0  # steps; 0: never forget
    judge_on: str = "validation"  # or "train"
    judge_size: int = 1000  # images
    disturbance: tuple | None = None  # (epoch, "lr" or "weight_decay", value): set at its beginning
    n_epochs: int = 300
    n_steps: int = 400  # an epoch
    batch_size: int = 100  # images
    n_cosines: int = 0  # gradients of an epoch whose cosines are taken; original: 80
    tf32: bool = False  # GPU: convolutions in TF32, with 10 bits of mantissa
    width: int = 64  # channels of the network's first stage
    seed: int = 0


def tuner(settings: Settings, model: nn.Module):
    """What trains the model: ``Shared``, ``Exact`` or ``Untuned``. Raises ValueError for no arm."""
    at, end = (settings.lr, settings.weight_decay), settings.n_epochs * settings.n_steps
    if settings.arm in SCHEDULES:
        schedule = SCHEDULES[settings.arm]
        return Untuned(model, F.cross_entropy, *at, lambda step: schedule(step / end))
    if settings.arm != "oho":
        raise ValueError(f"arm is {settings.arm!r}: must be oho or one of {', '.join(SCHEDULES)}")
    limits = {"lr": (0.0, math.inf), "weight_decay": (0.0, settings.decay_limit)}
    rates = dict.fromkeys(NAMES, settings.meta_rate)
    rule = Rule(rates, limits, reset_every=settings.reset_every)
    kind = Shared if settings.shared else Exact
    return kind(model, F.cross_entropy, *at, rule, sets=settings.sets)


def feeds(settings: Settings, data: cifar.Images, epoch: int):
    """An epoch's pairs of a training batch and a judge batch, cropped; None where nothing is tuned.

    Raises ValueError where a batch is larger than its images.
    """
    names = {"train": settings.batch_size, settings.judge_on + " judge": settings.judge_size}
    parts = []
    for name, size in list(names.items())[: 2 if settings.arm == "oho" else 1]:
        made = generator(settings.seed, "deep", name, epoch)
        x, y = getattr(data, name.split()[0])
        batches = datasets.minibatches(x, y, size, settings.n_steps, made, drop_last=True)
        parts.append((batches, generator(settings.seed, "deep crops", name, epoch)))
    for k in range(settings.n_steps):
        pair = []
        for batches, made in parts:
            x, y = batches[k]
            pair.append((data.look(cifar.shifted(x, made)), y))
        yield (*pair, None)[:2]


@torch.no_grad()
def look(model: nn.Module, data: cifar.Images, tuner, size=1000) -> dict:
    """Test loss and accuracy in eval mode, the rates and decays, the norms of the tangents."""
    model.eval()
    x, y = data.test
    outputs = torch.cat([model(data.look(part)) for part in x.split(size)])
    model.train()
    seen = {"test_loss": F.cross_entropy(outputs, y).item()}
    seen["test_accuracy"] = (outputs.argmax(1) == y).float().mean().item()
    seen |= {name: value.tolist() for name, value in tuner.phi.items()}
    if isinstance(tuner, OHO):  # of exact tangents: those of all sets together
        norms = tuner.tangents[0].unflatten(0, (2, -1)).flatten(1).norm(dim=1).tolist()
        seen |= {f"norm_{name}": norm for name, norm in zip(NAMES, norms, strict=True)}
    return seen


def train_epoch(settings: Settings, data: cifar.Images, tuner, epoch: int) -> dict:
    """One epoch: mean training loss, seconds, mean and deviation of the gradients' cosines.

    A disturbance that falls on this epoch comes first.
    """
    if settings.disturbance and settings.disturbance[0] == epoch:
        _, name, value = settings.disturbance
        tuner.phi = {**tuner.phi, name: torch.full_like(tuner.phi[name], value)}
    began, losses, taken = time.perf_counter(), [], []
    every = max(1, settings.n_steps // settings.n_cosines) if settings.n_cosines else math.inf
    for k, (batch, judge) in enumerate(feeds(settings, data, epoch)):
        losses.append(tuner.step(batch, judge))
        if (k + 1) % every == 0:
            taken.append(tuner.gradient / tuner.gradient.norm())
    seen = {"train_loss": torch.stack(losses).mean().item()}
    seen["seconds"] = time.perf_counter() - began
    if len(taken) > 1:
        unit = torch.stack(taken)
        pairs = (unit @ unit.T)[torch.triu_indices(len(unit), len(unit), 1).unbind()]
        seen |= {"cosine_mean": pairs.mean().item(), "cosine_sd": pairs.std(correction=0).item()}
    return seen


def run(settings, data, path=None, device="cpu", network=cifar.resnet18, watch=None) -> dict:
    """Curves of one run, by name, each ``(n_epochs + 1,)``; of rates and decays ``(.., n_sets)``.

    What an epoch measures stands at its end, so nan comes first. A run whose training loss is NaN
    has diverged: it stops, and NaN stands in the rest of its curves. ``path``: a checkpoint, saved
    after each epoch; an interrupted run goes on from it, on a CPU bit for bit, and a finished one
    is not run again. It does not know ``network`` or the size of the images: another path for each.
    ``network``: (generator, width) -> module. ``watch(rows)`` is called after
    each epoch, with what was measured so far. Raises ValueError for settings that fit no arm or no
    batch, ``checkpoints.CheckpointError`` for the checkpoint of other settings.
    """
    model = network(generator(settings.seed, "deep", "init"), settings.width).to(device)
    trains = tuner(settings, model)
    told = {**settings._asdict(), "data": data.name, "n_images": [len(p[1]) for p in data[1:4]]}
    found = path and checkpoints.load(path, told, ("model", "tuner", "rows"))
    rows, n_epochs = found["rows"] if found else [], settings.n_epochs
    if rows and not _finished(rows, n_epochs):
        model.load_state_dict(found["model"])
        trains.load_state_dict(found["tuner"])
    # float32 means float32: torch's default lets convolutions run in TF32
    exact = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=settings.tf32)
    bar = tqdm(initial=max(0, len(rows) - 1), total=n_epochs, leave=False)
    with exact, bar:
        rows = rows or [look(model, data, trains)]
        while not _finished(rows, n_epochs):
            row = train_epoch(settings, data, trains, len(rows) - 1)
            rows = [*rows, row | look(model, data, trains)]
            if path:
                kept = {} if _finished(rows, n_epochs) else trains.state_dict()
                kept = {"model": model.state_dict(), "tuner": kept, "rows": rows}
                checkpoints.save(path, kept, told)
            bar.update()
            if watch:
                watch(rows)
    return _curves(rows, n_epochs)


def _finished(rows, n_epochs) -> bool:
    return len(rows) > n_epochs or math.isnan(rows[-1].get("train_loss", 0.0))


def _curves(rows, n_epochs) -> dict:
    """Rows, one an epoch, as curves by name; NaN where a row lacks a name or is not there."""
    found = [{k: torch.tensor(x, dtype=torch.float64) for k, x in row.items()} for row in rows]
    found += [{}] * (n_epochs + 1 - len(found))
    gaps = {name: torch.full_like(value, math.nan) for name, value in found[len(rows) - 1].items()}
    return {name: torch.stack([row.get(name, gap) for row in found]) for name, gap in gaps.items()}
