"""The original's experiments on CIFAR-10, run on a GPU and recorded for the ledger.

    python -m learnopt.datasets fetch cifar10
    python -m booktools.deep objective --device cuda
    python -m booktools.deep groups --device cuda --runs 3        # seeds 0, 1 and 2
    python -m booktools.deep shaken-rate --device cuda --arms oho_epoch30 fixed_epoch30
    python -m booktools.deep objective --narrow                   # on a CPU, 20 minutes
    python -m booktools.ledger

An experiment is a number of arms, one run each. A run leaves a checkpoint after each epoch: the
same command goes on where it was killed, and several commands with other --arms can share the work.
Checkpoints of other code are refused.
An arm that two experiments share is run once. When all arms of a seed are finished, one record is
written, paper-<experiment>-seed<seed>. A whole experiment (CIFAR-10, 300 epochs, all images) goes
to data/results, where the ledger finds it; anything smaller to runs/deep/results, unless --results
says otherwise. The record's parameters say how many epochs and images it had. Moments of a
disturbance scale with the number of epochs.

--narrow is a scale of its own, of claims of its own, for a machine without a GPU: narrow-... are
its records, and booktools.deep_experiments says what is smaller in it.

experiments:
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from booktools import packages, source
from booktools.deep_experiments import EXPERIMENTS, NARROW, ORIGINAL, last
from learnopt import atomic, checkpoints, cifar, datasets, oho_deep, provenance, records
from learnopt.oho_deep import Settings

CHAPTER = "15_oho_cifar"
SIZES = ("data", "epochs", "images")  # of a whole experiment they are as its scale has them


def settings_of(options, experiment, data, seed):
    """{arm: Settings}, fitted to the number of images."""
    n_train, made = len(data.train[1]), {}
    for name, changes in experiment.arms(options.epochs).items():
        told = Settings(**changes)
        judges = getattr(data, told.judge_on)[1]
        batch = min(told.batch_size, n_train)
        made[name] = told._replace(
            n_epochs=options.epochs, batch_size=batch, n_steps=options.steps or n_train // batch,
            judge_size=min(told.judge_size, options.largest_judge, len(judges)),
            meta_rate=told.meta_rate * options.meta_factor, width=options.width, tf32=options.tf32,
            seed=seed,
        )  # fmt: skip
    return made


def described(told):
    """Part of a file's name: what in the settings is not as it is by default."""
    usual, words = Settings(), []
    for name, value in told._asdict().items():
        if value != getattr(usual, name):
            values = value if isinstance(value, tuple) else (value,)
            words.append("-".join(str(x) for x in (name, *values)))
    return "_".join(words)


def gradients(told):
    """About how many gradients of a training batch a step costs."""
    return 5 + told.judge_size / told.batch_size if told.arm == "oho" else 1


class Clock:
    """Says, after the first epoch of a command, how long an arm and all of them will take."""

    def __init__(self, arms, write=print):
        self.arms, self.write, self.told = arms, write, False
        self.began = time.perf_counter()

    def start(self, name):
        """An arm begins."""
        self.name, self.began = name, time.perf_counter()

    def __call__(self, rows):
        if self.told:
            return
        self.told, now = True, self.arms[self.name]
        seconds = time.perf_counter() - self.began
        arm = seconds * (now.n_epochs - len(rows) + 2)
        rest = sum(gradients(told) for told in self.arms.values()) / gradients(now)
        self.write(
            f"{self.name}: {seconds:.0f} s for an epoch; about {hours(arm)} for this arm, "
            f"{hours(seconds * now.n_epochs * rest)} for all {len(self.arms)} from the beginning"
        )


def hours(seconds):
    """Text: 41 s, 12 min, 3.4 h."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def note_code(folder):
    """Note beside checkpoints which code makes them. Raises ValueError if it was other code."""
    path = folder / "code.json"
    now = source.of_library(Path(oho_deep.__file__).parent, ["cifar", "oho_deep"])
    if not path.is_file() and not any(folder.glob("*.pt")):
        folder.mkdir(parents=True, exist_ok=True)
        atomic.write({path: json.dumps(now, indent=1).encode()})
        return
    try:
        made = json.loads(path.read_text()) if path.is_file() else {}
        moved = sorted(name for name in now if made.get(name) != now[name])
    except (ValueError, AttributeError):
        moved = list(now)
    if moved:
        raise ValueError(
            f"{folder}: its checkpoints are not of this code ({', '.join(moved)}). Name another "
            "folder with --checkpoints, or go on at the commit that made them"
        )


def run_seed(options, data, seed, network, device):
    """All arms that are asked for; the record's path, or None while arms are missing."""
    experiment = EXPERIMENTS[options.experiment]
    arms = settings_of(options, experiment, data, seed)
    chosen = {name: arms[name] for name in options.arms or arms}
    clock, found = Clock(chosen), {}
    for name, told in chosen.items():
        size = f"{data.name}_{len(data.train[1])}-images_{data.train[0].shape[-1]}-pixels"
        path = options.checkpoints / f"{size}_{described(told)}.pt"
        clock.start(name)
        found[name] = oho_deep.run(told, data, path, device, network, clock)
        print(f"seed {seed}, {name}: test loss {last(found[name]):.4g}", flush=True)
    return save(options, experiment, arms, found, data, seed) if len(found) == len(arms) else None


def save(options, experiment, arms, found, data, seed):
    """Write the record of one seed; sets are averaged in the curves of rates and decays."""
    told = next(iter(arms.values()))
    parameters = {
        "experiment": options.experiment, "data": data.name, "epochs": options.epochs,
        "original_epochs": ORIGINAL["epochs"], "training_images": len(data.train[1]),
        "validation_images": len(data.validation[1]), "test_images": len(data.test[1]),
        "steps_an_epoch": told.n_steps, "batch": told.batch_size, "tf32": options.tf32,
        "width": options.width, "pixels": data.train[0].shape[-1],
        "largest_judge": options.largest_judge, "meta_factor": options.meta_factor,
        "arms": experiment.arms(options.epochs),
    }  # fmt: skip
    kept = ("test_loss", "test_accuracy", "lr", "weight_decay")
    kept += ("train_loss", "norm_lr", "norm_weight_decay", "cosine_sd") if len(arms) < 20 else ()
    curves = {
        f"{key}_{name}": values[key] if values[key].dim() == 1 else values[key].mean(1)
        for name, values in found.items() for key in kept if key in values
    }  # fmt: skip
    metrics = experiment.metrics(found, options.epochs)
    scale = "narrow" if options.narrow else "paper"
    path = records.save(
        CHAPTER, f"{scale}-{options.experiment}-seed{seed}", parameters=parameters,
        metrics={key: float(value) for key, value in metrics.items()}, curves=curves, seed=seed,
        device=options.device, preset=scale, root=options.results,
        seconds=sum(values["seconds"].nansum().item() for values in found.values()),
    )  # fmt: skip
    packages.keep(path.parents[1], provenance.installed())
    return path


def parse(arguments):
    """The options, with the folders filled in."""
    lists = "\n".join(f"  {k:18}{e.item}, {len(e.arms(300))} arms" for k, e in EXPERIMENTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m booktools.deep", description=__doc__ + lists,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("experiment", choices=list(EXPERIMENTS), metavar="EXPERIMENT")
    parser.add_argument("--narrow", action="store_true", help="a scale for a CPU, see above")
    parser.add_argument("--epochs", type=int, help="default: 300, narrow: 20")
    parser.add_argument("--images", type=int, help="of each part, 0: all; default: 0, narrow: 5000")
    parser.add_argument("--steps", type=int, default=0, help="an epoch; default: one pass")
    parser.add_argument("--data", help="default: cifar10")
    parser.add_argument("--device", help="cuda (default), cuda:1, cpu (default if narrow)")
    parser.add_argument("--seed", type=int, default=0, help="the first; default: 0")
    parser.add_argument("--runs", type=int, default=1, help="seeds; default: 1")
    parser.add_argument("--arms", nargs="+", help="only these, and no record; default: all")
    parser.add_argument("--tf32", action="store_true", help="faster convolutions, 10-bit mantissas")
    parser.add_argument("--results", type=Path, help="folder of records")
    parser.add_argument("--checkpoints", type=Path, help="default: runs/deep/checkpoints")
    parser.set_defaults(**ORIGINAL)
    options = parser.parse_args(arguments)
    scale = NARROW if options.narrow else ORIGINAL
    options = parser.parse_args(arguments, argparse.Namespace(**scale))
    if min(options.epochs, options.runs) < 1 or min(options.images, options.steps) < 0:
        parser.error("--epochs and --runs must be at least 1, --images and --steps at least 0")
    known = EXPERIMENTS[options.experiment].arms(options.epochs)
    if unknown := sorted(set(options.arms or ()) - set(known)):
        parser.error(f"no arms {unknown}; there are {' '.join(known)}")
    runs = (provenance.checkout() or Path()) / "runs" / "deep"
    whole = not options.steps and all(vars(options)[k] == scale[k] for k in SIZES)
    options.checkpoints = options.checkpoints or runs / "checkpoints"
    options.results = options.results or (None if whole else runs / "results")
    return options


def main(arguments=None, network=cifar.resnet18):
    """The command line. Exit status 2: data, device, checkpoint or folder is not as it must be."""
    options = parse(arguments)
    try:
        device = torch.device(options.device)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ValueError("torch finds no GPU; --device cpu runs too, for trials on few images")
        note_code(options.checkpoints)
        data = cifar.images(options.data, options.images, device, pool=options.pool)
        for seed in range(options.seed, options.seed + options.runs):
            path = run_seed(options, data, seed, network, device)
            print(f"record: {path}" if path else "no record: run the other arms too")
    except (datasets.DatasetError, checkpoints.CheckpointError, records.RecordError,
            RuntimeError, ValueError, OSError) as error:  # fmt: skip
        print(f"deep: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
