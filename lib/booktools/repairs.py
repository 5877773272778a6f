"""Chapter 06's repair with one thing changed, beside its own: which part of the recipe does what?

    python -m booktools.repairs --seeds 0 1 2 --only imitation

The code is the chapter's, at the settings of its recorded runs: its cells are executed, and what
they train is judged on the same test runs. A seed of one change takes 7 to 40 minutes of one CPU
core's time; with LEARNOPT_RUN_DIR set to a folder it keeps checkpoints there and goes on from them.
Exit status 2: the data or the folder is not as it must be.
"""

import os
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

from booktools import beside, chapters, presets
from learnopt import baselines, curriculum, lstm_optimizer

CHAPTER = "06_horizons"
CELLS = ("imports", "parameters", "problem", "walk", "walk-loop", "repair", "rivals")
CHANGES = {  # what differs from the recorded repair
    "imitation": {},  # of Adam at 0.03 on 30 % of the trajectories, as Chen et al. 2020
    "no-scales": {"bound": 0.0},
    "no-clip": {"clip": 1e9},  # above all of their norms
    "short": {"stages": "300x60"},
    "long": {"stages": "1000x60"},
}


def trained(notebook, change, seed, values):
    """The names that the chapter's cells leave, the repair among them, with one change.

    values: the chapter's parameters. Raises InputError as ``beside.executed``.
    """
    values = values | CHANGES[change] | {"seed": seed}
    adam = baselines.RULES["Adam"]
    teacher = curriculum.Teacher(adam.opt, adam.phi(0.03)) if change == "imitation" else None
    draw = partial(curriculum.trajectories, teacher=teacher)
    folder = os.environ.get("LEARNOPT_RUN_DIR")
    folder = folder and Path(folder, f"{change}-seed{seed}")
    before = {
        "curriculum": SimpleNamespace(**vars(curriculum) | {"trajectories": draw}),
        "learned": lstm_optimizer.load(f"{values['trained']}-seed{seed}"),
        "run_dir": folder,
    }
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    return beside.executed(
        notebook, CELLS, {"problem": values, "repair": before, "rivals": {"adam": adam}}
    )


def record(notebook, change, seed, root=None, **values):
    """Repair, judge on the chapter's problems, and save the record. values: of its parameters."""
    began, metrics, curves = time.perf_counter(), {}, {}
    values = presets.load(notebook, "paper", chapters.parameters(notebook)) | values
    found = trained(notebook, change, seed, values)
    (rule,) = found["repairs"].values()
    for name in values["problems"].split():
        _, task, data = found["problem"](name)
        losses, accuracy = found["judged"](task, partial(found["learned_mover"], rule), data)
        key = name.replace("-", "_")
        metrics[f"sum1000_{key}"] = losses.sum(1).mean().item()
        metrics[f"final_{key}"] = losses[:, -50:].mean().item()
        metrics[f"accuracy_{key}"] = accuracy
        curves[f"mean_{key}"] = losses.mean(0)
    for k, stage in enumerate(found["history"]):
        curves[f"history_stage{k}"] = stage.history
    names = ("trained", "repair_on", "pool", "n_small", "stages", "bound", "meta_lr", "clip")
    told = {name: found[name] for name in (*names, "n_test", "n_steps")} | {"change": change}
    return beside.save(CHAPTER, f"paper-{change}", seed, began, told, metrics, curves, root)


def main(arguments=None):
    """The command line."""

    def make(change, seed, results):
        return record(Path("notebooks", f"{CHAPTER}.ipynb"), change, seed, results)

    return beside.command("repairs", __doc__, make, "only", tuple(CHANGES), arguments)


if __name__ == "__main__":
    sys.exit(main())
