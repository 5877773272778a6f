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

from booktools import beside, chapters, presets

CHAPTER = "06_horizons"
CELLS = ("imports", "parameters", "problem", "ablation-kinds", "ablate")


def run(notebook, seed, **values):
    """name -> (what was trained, losses ``(10, 201)`` on the held-out half) of the rows.

    values: of the chapter's parameters. Raises InputError if the notebook is none or has lost one
    of the cells.
    """
    return beside.executed(notebook, CELLS, {"ablate": values | {"seed": seed}})["ablated"]


def record(notebook, seed, root=None, **values):
    """Run the rows at the settings of the recorded runs but for ``values``, and save the record."""
    began, metrics, curves = time.perf_counter(), {}, {}
    values = presets.load(notebook, "paper", chapters.parameters(notebook)) | values
    for name, (trained, losses) in run(notebook, seed, **values).items():
        key = name.replace("-", "_")
        metrics[f"loss1_{key}"] = losses[:, 1].mean().item()
        metrics[f"sum100_{key}"] = losses[:, :100].sum(1).mean().item()
        metrics[f"final_{key}"] = losses[:, -10:].mean().item()
        metrics[f"seconds_{key}"] = trained.seconds
        curves |= {f"history_{key}": trained.history, f"mean_{key}": losses.mean(0)}
    told = {"n_trajectories": values["n_ablation"], "dataset": "digits"}
    return beside.save(CHAPTER, "paper-ablations", seed, began, told, metrics, curves, root)


def main(arguments=None):
    """The command line."""

    def make(_, seed, results):
        return record(Path("notebooks", f"{CHAPTER}.ipynb"), seed, results)

    return beside.command("ablations", __doc__, make, arguments=arguments)


if __name__ == "__main__":
    sys.exit(main())
