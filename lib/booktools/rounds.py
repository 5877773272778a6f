"""Hands the runs of a batch to Snakemake: once, or in rounds where several batches share a folder.

Batches that share a folder of runs, on one machine or on many, divide the runs by the lock that
every run has: a round holds the runs that nobody else has in hand, and a job that finds its run
taken ends at once. There is nothing between the batches but the folder.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from booktools import lock, plan, progress
from booktools.chapters import InputError

HOLD, RESTART, GO_ON = CHOICES = ("hold", "restart", "go-on")  # for stale runs with checkpoints
WAITING = "waiting"
MAX_ROUNDS = 3  # in which one run is handed out: it may be that it ends its own process
ROUND_SECONDS = 1


def states(runs):
    """The state of each run; "waiting" where it needs a run of this batch that is not finished."""
    found = {}
    for run in runs:
        found[run.folder] = plan.state(run)
        need = found.get(run.need.folder) if run.need else None
        if need and need.name != "finished":
            which = f"{run.need.folder.parent.name} {run.preset} seed {run.seed}"
            found[run.folder] = plan.State(WAITING, f"for {which}, which makes {run.need.name}")
    return list(found.values())


def run_all(runs, arguments, options, descriptor):
    """Run what is not finished, or not by the present code with the present parameters."""
    failures = [_failure(run) for run in runs]
    n_open = sum(state.name != "finished" for state in states(runs))
    print(f"{len(runs)} runs: {len(runs) - n_open} finished before, {n_open} to run")
    (arguments.runs / "engine.log").unlink(missing_ok=True)
    judged, handed = set(), Counter()
    while True:
        ready, n_busy, n_waiting = [], 0, 0
        for run, state, failure in zip(runs, states(runs), failures, strict=True):
            failed_now = _failure(run) not in (None, failure)
            if state.name == "finished" or failed_now or handed[run.folder] == MAX_ROUNDS:
                continue
            if state.name == WAITING and not _may_follow(run, ready):
                n_waiting += 1
            elif state.name not in ("stale", "held") or run.folder not in judged:
                judged.add(run.folder)  # what is stale once more is so by another batch
                is_ready = prepare(run, state, arguments)
                ready += [run] if is_ready else []
                n_busy += is_ready is None
        handed.update(run.folder for run in ready)
        if ready:
            engine(ready, runs, arguments, options, descriptor)
        elif n_busy:
            time.sleep(ROUND_SECONDS)
        if not (ready and n_waiting) and not (arguments.shared and (ready or n_busy)):
            return


def _may_follow(run, ready):
    """Whether the engine can start the run after the one that it needs, in the same round.

    A run that was started before waits for the next: only then is it known whether it is stale.
    """
    is_new = plan.read_json(run.folder / plan.STARTED) is None
    return is_new and run.need.folder in [other.folder for other in ready]


def _failure(run):
    """When the run failed last, in the time of its file system; None if it did not."""
    try:
        return (run.folder / plan.FAILED).stat().st_mtime_ns
    except FileNotFoundError:
        return None


def prepare(run, state, arguments):
    """Make the folder ready: True; False if it is held or was finished, None if it is taken."""
    run.folder.mkdir(parents=True, exist_ok=True)
    busy = f"{run.folder}: a job of an earlier batch still runs there"
    try:
        with lock.held(run.folder / plan.LOCK, busy, 0):
            now = plan.state(run)
            if now.name == "finished":
                return False  # by another batch, a moment ago
            if now.name == "held" and arguments.stale == HOLD:
                return False
            go_on = now.name == "held" and arguments.stale == GO_ON
            if now.name in ("stale", "held") and not go_on:
                print(f"{run}: {now.reason}; the old run is kept in {plan.set_aside(run.folder)}")
            for name in (plan.DONE, plan.FAILED):
                (run.folder / name).unlink(missing_ok=True)
            plan.write_json(run.folder / plan.JOB, run.job() | {"go_on": go_on})
    except InputError:
        if not arguments.shared and state.name in ("stale", "held"):
            raise
        return None if arguments.shared else True  # a job in it waits, and takes over the result
    return True


def engine(ready, runs, arguments, options, descriptor):
    """Let Snakemake run the jobs, under a guard that ends them when this process ends."""
    root = arguments.runs.resolve()
    name = f"engine.{socket.gethostname()}-{os.getpid()}" if arguments.shared else "engine"
    shutil.rmtree(root / f".{name}", ignore_errors=True)
    plan.write_json(root / f"{name}.json", configuration(ready, root, f".{name}", arguments))
    snakefile = Path(__file__).with_name("Snakefile")
    # Results are written in one step, so the engine's own marks of unfinished files are not
    # needed, and a batch that was killed leaves no lock of the engine to be lifted by hand.
    command = [sys.executable, "-m", "booktools.guard", sys.executable, "-m", "snakemake",
               "--snakefile", snakefile, "--directory", root, "--configfile", root / f"{name}.json",
               "--jobs", arguments.jobs, "--keep-going", "--nolock", "--ignore-incomplete",
               "--rerun-triggers", "mtime", "--scheduler", "greedy", *options]  # fmt: skip
    with (
        open(root / f"{name}.log", "ab") as log,
        subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE, stdout=log, stderr=log,
            start_new_session=True, pass_fds=[descriptor],
        ) as guard,
    ):  # fmt: skip
        progress.watch(runs, arguments.jobs, lambda timeout: _has_ended(guard, timeout))
    shutil.rmtree(root / f".{name}", ignore_errors=True)


def configuration(ready, root, marks, arguments):
    """What the Snakefile is told. A mark says to the engine, and to nobody else, that a job ended.

    The engine deletes the outputs of a job before it starts it and after it fails, so that
    done.json, which another batch may just have written, must not be one of them.
    """
    names = {run.folder: str(run.folder.relative_to(root)) for run in ready}
    return {
        "python": sys.executable,
        "notebooks": str(arguments.notebooks.resolve()),
        "wait": "no" if arguments.shared else "yes",
        "marks": marks,
        "targets": [f"{marks}/{name}" for name in names.values()],
        "after": {
            names[run.folder]: [f"{marks}/{names[run.need.folder]}"]
            for run in ready
            if run.need and run.need.folder in names
        },
        "gpu": [names[r.folder] for r in ready if r.parameters.get("device", "cpu") != "cpu"],
    }


def _has_ended(process, timeout_seconds):
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        return False
    return True
