"""More seeds of chapter 06's ablations, beside its own: most meta-trainings of a row hang on luck.

    python -m booktools.ablations --seeds 3 4 5

The code is the chapter's: its cells are executed, and a record has the names of the one that the
chapter leaves, with the seeds that no optimizer was trained with in chapter 04. A seed, eight
meta-trainings on digits, takes 5 to 20 minutes of one CPU core's time. Exit status 2: the folder
is not as it must be.
"""

import sys
import time
from pathlib import Path

from booktools import beside

CHAPTER = "06_horizons"
CELLS = ("imports", "parameters", "problem", "ablation-kinds", "ablate")
N_TRAJECTORIES = 100  # of a meta-training, as recorded
ROWS = ("base", "thesis", "pre-thesis", "raw", "log", "large", "small", "second")


def run(notebook, seed, n_trajectories=N_TRAJECTORIES, rows=ROWS):
    """name -> (what was trained, losses ``(10, 201)`` on the held-out half) of the rows.

    Raises InputError if the notebook is none or has lost one of the cells.
    """
    before = {"seed": seed, "n_ablation": n_trajectories, "ablations": " ".join(rows)}
    return beside.executed(notebook, CELLS, {"ablate": before})["ablated"]


def record(notebook, seed, root=None, n_trajectories=N_TRAJECTORIES, rows=ROWS):
    """Run the rows, and save the record."""
    began, metrics, curves = time.perf_counter(), {}, {}
    for name, (trained, losses) in run(notebook, seed, n_trajectories, rows).items():
        key = name.replace("-", "_")
        metrics[f"loss1_{key}"] = losses[:, 1].mean().item()
        metrics[f"sum100_{key}"] = losses[:, :100].sum(1).mean().item()
        metrics[f"final_{key}"] = losses[:, -10:].mean().item()
        metrics[f"seconds_{key}"] = trained.seconds
        curves |= {f"history_{key}": trained.history, f"mean_{key}": losses.mean(0)}
    told = {"n_trajectories": n_trajectories, "dataset": "digits"}
    return beside.save(CHAPTER, "paper-ablations", seed, began, told, metrics, curves, root)


def main(arguments=None):
    """The command line."""

    def make(_, seed, results):
        return record(Path("notebooks", f"{CHAPTER}.ipynb"), seed, results)

    return beside.command("ablations", __doc__, make, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
