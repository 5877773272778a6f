"""Records beside a chapter, which a script makes and not its notebook: saving, command line."""

import argparse
import contextlib
import io
import sys
import time
from pathlib import Path

import torch

from booktools import chapters, packages
from booktools.chapters import InputError
from learnopt import provenance, records
from learnopt.checkpoints import CheckpointError
from learnopt.datasets import DatasetError
from learnopt.lstm_optimizer import OptimizerError
from learnopt.records import RecordError

ERRORS = CheckpointError, DatasetError, InputError, OptimizerError, OSError, RecordError


def save(chapter, name, seed, began, told, metrics, curves, root=None):
    """Save the record of a run on the CPU that began at ``time.perf_counter()`` = began."""
    path = records.save(
        chapter, f"{name}-seed{seed}", parameters=told, metrics=metrics, curves=curves, seed=seed,
        device="cpu", preset="paper", root=root, seconds=time.perf_counter() - began,
    )  # fmt: skip
    packages.keep(path.parents[1], provenance.installed())
    return path


def executed(notebook, cells, before):
    """The names that some cells of a notebook leave, executed in this order, without their tables.

    before: cell -> {name: value} to set just before it. Raises InputError if the notebook is none
    or has lost one of the cells.
    """
    sources = {cell.id: cell.source for cell in chapters.read(notebook).cells}
    if missing := set(cells) - set(sources):
        raise InputError(f"{notebook}: no cell {sorted(missing)}; its script names them in CELLS")
    found = {}
    for cell in cells:
        found |= before.get(cell, {})
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(sources[cell], f"{notebook}, {cell}", "exec"), found)
    return found


def command(name, doc, make, option=None, choices=(None,), arguments=None):
    """The command line: for each choice and seed, ``make(choice, seed, results)``; exit status."""
    parser = argparse.ArgumentParser(
        prog=f"python -m booktools.{name}", description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    if option:
        parser.add_argument(f"--{option}", choices=choices, nargs="+", default=list(choices))
    parser.add_argument("--results", type=Path, help="folder of records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        for choice in getattr(options, option) if option else choices:
            for seed in options.seeds:
                print(f"record: {make(choice, seed, options.results)}", flush=True)
    except ERRORS as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    return 0
