"""The runs of a batch: what each is told, where it lives, and whether its result still holds.

A run is one chapter at one preset with one seed. Its folder `<runs>/<preset>/NN_name/seed<k>`
holds

    job.json       what to run; written by the batch
    started.json   the same with a fingerprint of code and parameters; written when it starts
    done.json      the same with the seconds of its last attempt; written when the result is whole
    failed.json    the error, if the last attempt failed
    NN_name.ipynb  the executed notebook, as far as it came
    run.log        what the process printed
    versions.txt   the packages of the Python that ran it
    trained/       the file that it took from another chapter's run (needs.py)
    records/       and whatever else the chapter puts into the folder LEARNOPT_RUN_DIR

A result holds as long as its fingerprint is that of the present code and parameters (content.py).
"""

import json
import os
import socket
import time
from pathlib import Path
from typing import NamedTuple

from booktools import chapters, content, needs, source
from booktools.chapters import InputError
from learnopt import atomic

JOB, STARTED, DONE, FAILED = "job.json", "started.json", "done.json", "failed.json"
LOCK = "lock"  # held by the job that runs in the folder
LOG, VERSIONS, RECORDS = "run.log", "versions.txt", "records"
NO_CHECKPOINT = {JOB, STARTED, DONE, FAILED, LOCK, LOG, VERSIONS, RECORDS, needs.FOLDER}


class Run(NamedTuple):
    notebook: Path
    preset: str
    seed: int
    folder: Path
    values: dict  # by which it differs from the parameters cell
    parameters: dict  # all of them
    overrides: dict | None = None  # those among the values that are in no preset file
    need: needs.Need | None = None  # what it takes from another run

    def job(self):
        need = self.need and self.need._asdict()
        if need:  # relative, since machines that share the folder may see it under other paths
            need["folder"] = os.path.relpath(self.need.folder, self.folder)
        return {
            "notebook": str(self.notebook.resolve()),
            "preset": self.preset,
            "seed": self.seed,
            "values": self.values,
            "parameters": self.parameters,
            "overrides": self.overrides or {},
            "need": need,
        }

    def __str__(self):
        return f"{self.notebook.stem} {self.preset} seed {self.seed}"


class State(NamedTuple):
    name: str  # "finished", "new", "stale", "held", "failed" or "interrupted"
    reason: str


def make(root, notebook, preset, seed, values, overrides=None):
    """The run of `notebook` at `preset` with `seed`; `values` override its parameters cell."""
    folder = root.resolve() / preset / notebook.stem / f"seed{seed}"
    values = values | {"seed": seed, "preset": preset}
    return Run(notebook, preset, seed, folder, values, told(notebook, values), overrides)


def told(notebook, values):
    """All parameters of a run: those of the parameters cell, overridden by `values`."""
    return {name: p.default for name, p in chapters.parameters(notebook).items()} | values


def state(run):
    """What has become of a run, read from its folder."""
    now = fingerprint(run.notebook, run.parameters, run.need)
    if found := done(run.folder, now):
        return State("finished", f"{found['seconds']:.0f} s")
    started, failed = (read_json(run.folder / name) for name in (STARTED, FAILED))
    if started is None and written(run.folder):
        return State("held", f"{STARTED} is missing or damaged: which code wrote there?")
    if started is None and failed is None:
        return State("new", "never run")
    if started is None:  # refused before it could start
        return State("failed", f"failed before: {failed.get('error')}")
    if started.get("fingerprint") != now:
        before = started.get("parameters")
        before = before if isinstance(before, dict) else None
        why = content.changes(started.get("fingerprint"), now, before, run.parameters)
        kept = checkpoints(run.folder, run.notebook)
        if kept and not read_json(run.folder / DONE):
            size = sum(path.stat().st_size for path in kept) / 1e6
            return State("held", f"{why}; it has {len(kept)} checkpoint files, {size:.1f} MB")
        return State("stale", why)
    if failed is not None:
        # its checkpoints may be what it failed at: someone decides again
        name = "held" if started.get("mixed") else "failed"
        return State(name, f"failed before: {failed.get('error')}")
    return State("interrupted", "goes on where it was stopped")


def checkpoints(folder, notebook):
    """The files that a chapter has put into the folder of its run, other than records."""
    return [path for path in written(folder) if path != folder / notebook.name]


def written(folder):
    """The same, and the executed notebook."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp"]
    return [path for path in paths if path.relative_to(folder).parts[0] not in NO_CHECKPOINT]


def done(folder, fingerprint):
    """What `done.json` says, or None if there is no finished result with that fingerprint."""
    result = read_json(folder / DONE)
    if not result or not isinstance(result.get("seconds"), int | float):
        return None
    return result if result.get("fingerprint") == fingerprint else None


def begin(folder, job, fingerprint):
    """Mark a run as started; return what is new in the mark.

    mixed: whether it goes on with checkpoints of other code. earlier_seconds: how long its earlier
    attempts went on, together. Raises InputError if it would be mixed, and nobody asked for that.
    """
    earlier = earlier_seconds(folder)
    unknown = {} if written(folder) else {"fingerprint": fingerprint}
    started = read_json(folder / STARTED) or unknown
    is_other = started.get("fingerprint") != fingerprint
    if is_other and not job.get("go_on"):
        raise InputError(f"{folder}: the code changed since the batch was planned; start it again")
    attempts = started.get("attempts")
    told = {
        "fingerprint": fingerprint,
        "mixed": is_other or bool(started.get("mixed")),
        "attempts": attempts + 1 if isinstance(attempts, int) else 1,
        "earlier_seconds": round(earlier, 3),
        "machine": socket.gethostname(),
    }
    (folder / FAILED).unlink(missing_ok=True)
    write_json(folder / STARTED, job | told)
    return told


def earlier_seconds(folder):
    """From the start of each earlier attempt to the last file that it is known to have written."""
    started = read_json(folder / STARTED)
    if started is None:
        return 0.0
    begun = (folder / STARTED).stat().st_mtime
    spent = max((path.stat().st_mtime - begun for path in written(folder)), default=0.0)
    before = started.get("earlier_seconds")
    is_sound = isinstance(before, float) and 0 <= before < 1e9  # the file may be damaged
    return max(spent, 0.0) + (before if is_sound else 0.0)


def running_seconds(folder):
    """How long ago the job started; None if it has not since `job.json` was last written."""
    try:
        started = (folder / STARTED).stat().st_mtime
        planned = (folder / JOB).stat().st_mtime
    except FileNotFoundError:
        return None
    return max(time.time() - started, 0.0) if started >= planned else None


def set_aside(folder):
    """Rename the folder of a stale run, so that nothing in it is lost or taken up again.

    The caller holds the lock in it.
    """
    number = 1
    while (target := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    folder.rename(target)
    return target


def fingerprint(notebook, parameters, need=None):
    """Hashes of what a run depends on: see content.of; and of the file that it needs."""
    found = content.of(notebook, parameters)
    path = need and needs.source(need, DONE)
    if path and path.is_file():
        found[need.name] = source.digest([path.read_bytes().hex()])
    return found


def read_json(path):
    """The object in a JSON file, or None if there is none or it is damaged."""
    try:
        value = json.loads(path.read_text("utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # half letters could not be printed
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path, value):
    atomic.write({path: (json.dumps(value, indent=1) + "\n").encode()})
