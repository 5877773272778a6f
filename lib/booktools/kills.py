"""Kills batches at random moments, takes them up again, and looks for damage.

    counts = kills.batches(folder, n_kills=20)     # Counter

It raises an AssertionError if a finished run is lost or repeated, if a reader meets half a record,
if a process outlives a kill, or if the results differ from those of the same work uninterrupted.
"""

import contextlib
import glob
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import nbformat
import psutil

from learnopt import records

LONGEST_SECONDS = 14  # a kill comes at a moment between 0 and this after the start of a batch,
RUN_SECONDS = 3  # or between 0 and this after the start of a run
PATIENCE_SECONDS = 900  # the machine may be busy
PARAMETERS = """\
seed: int = 0
preset: str = "quick"
n_steps: int = 20"""
CHAPTER = """\
import os, time
from pathlib import Path
import torch
from learnopt import checkpoints, records, seeding
run = Path(os.environ["LEARNOPT_RUN_DIR"])
with open(run / "starts", "a") as file:
    print("start", file=file)
told = {"seed": seed, "n_steps": n_steps}
state = {"x": torch.ones(5), "done": 0, "losses": []}
state = checkpoints.load(run / "run.pt", told, state) or state
while state["done"] < n_steps:
    noise = torch.randn(5, generator=seeding.generator(seed, "noise", state["done"]))
    x = state["x"] - 0.1 * (state["x"] + noise)
    losses = [*state["losses"], x.square().sum().item()]
    state = {"x": x, "done": state["done"] + 1, "losses": losses}
    checkpoints.save(run / "run.pt", state, told)
    time.sleep(0.05)
records.save(NAME, f"quick-seed{seed}", parameters=told, metrics={"last": state["losses"][-1]},
             curves={"loss": state["losses"]}, seed=seed, device="cpu", seconds=0, preset=preset,
             root=run / "records")"""


def batches(folder, n_kills, n_chapters=2, n_seeds=3, random_seed=0):
    """Kill batches until there were n_kills kills; Counter of what happened.

    Every other kill hits the batch's process group alone, as a user would; the others hit all its
    processes at once, as when the machine goes down. Half of the kills come when a run has begun. A
    batch that has finished is followed by one in a fresh folder. The batch to compare with runs
    beside them, undisturbed.
    """
    _write_book(folder, n_chapters)
    with contextlib.ExitStack() as at_the_end:
        return _batches(folder, n_kills, n_chapters, n_seeds, random_seed, at_the_end)


def _batches(folder, n_kills, n_chapters, n_seeds, random_seed, at_the_end):
    moments, counts = random.Random(random_seed), Counter()
    started, longest = time.monotonic(), LONGEST_SECONDS
    whole = _start(folder, "whole", n_seeds, at_the_end)
    n_rounds = 1
    while counts["kills"] < n_kills:
        before = _finished(folder / f"runs{n_rounds}")
        batch = _start(folder, f"{n_rounds}", n_seeds, at_the_end)
        is_early = counts["kills"] % 4 < 2
        seconds = moments.uniform(0, longest if is_early else RUN_SECONDS)
        _read_for(batch, seconds, folder, counts, None if is_early else folder / f"runs{n_rounds}")
        if batch.poll() is None:
            _kill(batch, everything=counts["kills"] % 2 == 1)
            counts["kills"] += 1
            counts["finished runs kept"] += len(_finished(folder / f"runs{n_rounds}")) // 2
            counts["runs cut short"] += _under_way(folder / f"runs{n_rounds}")
        else:
            n_rounds += 1
        if whole.poll() is not None and longest == LONGEST_SECONDS:
            longest = max(longest, time.monotonic() - started)  # the machine may be slow
        _assert_kept(before)
    last = _start(folder, f"{n_rounds}", n_seeds, at_the_end)
    _read_for(last, PATIENCE_SECONDS, folder, counts)
    codes = whole.wait(PATIENCE_SECONDS), last.wait(1)
    assert codes == (0, 0), f"exit codes {codes}: {_complaints(folder)}"
    expected = _results(folder / "resultswhole")
    assert len(expected) == 2 * n_chapters * n_seeds
    for number in range(1, n_rounds + 1):
        assert _results(folder / f"results{number}") == expected, f"round {number} differs"
        counts["records compared"] += len(expected) // 2
    return counts


def _write_book(folder, n_chapters):
    """Notebooks, and a copy of the library, so that nobody edits it under the batches."""
    lib = Path(__file__).parents[1]
    shutil.copytree(lib, folder / "lib", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for number in range(1, n_chapters + 1):
        path = folder / "notebooks" / f"0{number}_small.ipynb"
        path.parent.mkdir(exist_ok=True)
        cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})]
        cells += [nbformat.v4.new_code_cell(CHAPTER.replace("NAME", repr(path.stem)))]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


def _start(folder, name, n_seeds, at_the_end):
    """A batch as a process that leads a group of its own; what still runs at the end is killed."""
    seeds = " ".join(map(str, range(n_seeds)))
    command = [sys.executable, "-m", "booktools.batch", "--seeds", seeds, "--jobs", "2",
               "--record", "--runs", f"runs{name}", "--results", f"results{name}"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(folder / "lib"), "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    at_the_end.callback(lambda: process.poll() is None and _kill(process, everything=True))
    return process


def _kill(process, everything):
    family = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for member in family if everything else ():
        try:
            member.kill()
        except psutil.NoSuchProcess:
            pass
    process.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive, f"outlived the batch: {alive}"


def _read_for(process, seconds, folder, counts, runs=None):
    """Read every record there is, again and again, while the batch writes them.

    With a folder of runs, the seconds count from the moment at which one of them begins.
    """
    begun = runs and _begun(runs)
    end = math.inf if runs else time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < end:
        if end == math.inf and _begun(runs) > begun:
            end = time.monotonic() + seconds
        results = _found(folder, "results*/*/*.json")
        for path in [*results, *_found(folder, "runs*/*/*/*/records/*/*.json")]:
            try:
                records.load(path)
                counts["records read meanwhile"] += 1
            except records.RecordError as error:
                # Absent while it is replaced, which a reader takes for no record
                assert "No such file" in str(error), error
        time.sleep(0.1)


def _found(folder, pattern):
    """The paths that match; unlike Path.glob, this bears a folder that vanishes meanwhile."""
    return [folder / path for path in glob.glob(pattern, root_dir=folder)]


def _complaints(folder):
    """What the batches have said of runs that did not finish."""
    lines = (folder / "log").read_text().splitlines()
    return [line for line in lines if line.startswith(("FAILED", "ENDED", "NOT", "batch:"))]


def _finished(runs):
    """What must never change again: {path: bytes} of done.json, and how often the run started."""
    done = _found(runs, "*/*/*/done.json")
    paths = [path for marker in done for path in (marker, marker.with_name("starts"))]
    return {path: path.read_bytes() for path in paths}


def _begun(runs):
    return sum(path.read_text().count("start") for path in _found(runs, "*/*/*/starts"))


def _under_way(runs):
    folders = [path.parent for path in _found(runs, "*/*/*/starts")]
    return sum(not (folder / "done.json").exists() for folder in folders)


def _assert_kept(before):
    for path, content in before.items():
        assert path.exists(), f"{path} is lost"
        assert path.read_bytes() == content, f"{path}: the run was repeated"


def _results(folder):
    """The records of a folder without their provenance: {name: bytes or dict}."""
    found = {}
    for path in sorted(folder.glob("*/*.json")):
        records.load(path)
        raw = json.loads(path.read_text())
        del raw["provenance"]
        name = str(path.relative_to(folder))
        found |= {name: raw, f"{name} curves": path.with_suffix(".npz").read_bytes()}
    return found
