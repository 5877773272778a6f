"""The runs of a batch: what each is told, where it lives, and whether its result still holds.

A run is one chapter at one preset with one seed. Its folder `<runs>/<preset>/NN_name/seed<k>`
holds

    job.json       what to run; written by the batch
    started.json   the same with a fingerprint of code and parameters; written when it starts
    done.json      the same with the seconds of its last attempt; written when the result is whole
    failed.json    the error, if the last attempt failed
    NN_name.ipynb  the executed notebook, as far as it came
    run.log        what the process printed
    records/       and whatever else the chapter puts into the folder LEARNOPT_RUN_DIR

A result holds as long as its fingerprint is that of the present code and parameters. Comments,
docstrings and markdown are left out of it, so that a better sentence does not age a week of runs.
"""

import ast
import functools
import hashlib
import importlib.util
import json
import time
from pathlib import Path
from typing import NamedTuple

from booktools import chapters, lock
from booktools.chapters import InputError
from learnopt import atomic

JOB, STARTED, DONE, FAILED = "job.json", "started.json", "done.json", "failed.json"
LOCK = "lock"  # held by the job that runs in the folder


class Run(NamedTuple):
    notebook: Path
    preset: str
    seed: int
    folder: Path
    values: dict  # by which it differs from the parameters cell
    parameters: dict  # all of them

    def job(self):
        return {
            "notebook": str(self.notebook.resolve()),
            "preset": self.preset,
            "seed": self.seed,
            "values": self.values,
            "parameters": self.parameters,
        }

    def __str__(self):
        return f"{self.notebook.stem} {self.preset} seed {self.seed}"


class State(NamedTuple):
    name: str  # "finished", "new", "stale", "failed" or "interrupted"
    reason: str


def make(root, notebook, preset, seed, values):
    """The run of `notebook` at `preset` with `seed`; `values` override its parameters cell."""
    folder = root.resolve() / preset / notebook.stem / f"seed{seed}"
    values = values | {"seed": seed, "preset": preset}
    defaults = {name: p.default for name, p in chapters.parameters(notebook).items()}
    return Run(notebook, preset, seed, folder, values, defaults | values)


def state(run):
    """What has become of a run, read from its folder."""
    now = fingerprint(run.notebook, run.parameters)
    if done(run.folder, now):
        return State("finished", f"{done(run.folder, now)['seconds']:.0f} s")
    started = read_json(run.folder / STARTED)
    if started is None:
        return State("new", "never run")
    if started.get("fingerprint") != now:
        before = started.get("fingerprint") or {}
        moved = [part for part in now if before.get(part) != now[part]]
        return State("stale", f"changed since it ran: {', '.join(moved)}")
    failed = read_json(run.folder / FAILED)
    if failed is not None:
        return State("failed", str(failed.get("error")))
    return State("interrupted", "goes on where it was stopped")


def done(folder, fingerprint):
    """What `done.json` says, or None if there is no finished result with that fingerprint."""
    result = read_json(folder / DONE)
    return result if result and result.get("fingerprint") == fingerprint else None


def begin(folder, job, fingerprint):
    """Mark a run as started. Raises InputError if it would go on with checkpoints of other code."""
    started = read_json(folder / STARTED)
    if started and started.get("fingerprint") != fingerprint:
        raise InputError(f"{folder}: the code changed since the batch was planned; start it again")
    (folder / FAILED).unlink(missing_ok=True)
    write_json(folder / STARTED, job | {"fingerprint": fingerprint})


def running_seconds(folder):
    """How long ago the job started; None if it has not since `job.json` was last written."""
    try:
        started = (folder / STARTED).stat().st_mtime
        planned = (folder / JOB).stat().st_mtime
    except FileNotFoundError:
        return None
    return max(time.time() - started, 0.0) if started >= planned else None


def set_aside(folder):
    """Rename the folder of a stale run, so that nothing in it is lost or taken up again."""
    with lock.held(folder / LOCK, f"{folder}: a job of an earlier batch still runs there", 0):
        number = 1
        while (target := folder.with_name(f"{folder.name}.old{number}")).exists():
            number += 1
        folder.rename(target)
    return target


def fingerprint(notebook, parameters):
    """Hashes of what a run depends on: the notebook's code, the library's code, the parameters."""
    cells = [
        _without_prose(cell.source)
        for cell in chapters.read(notebook).cells
        if cell.cell_type == "code" and "parameters" not in chapters.tags(cell)
    ]
    library = Path(importlib.util.find_spec("learnopt").origin).parent
    return {
        "notebook": _hash(cells),
        "library": code_hash(library),
        "parameters": _hash([json.dumps(parameters, sort_keys=True)]),
    }


@functools.cache  # a batch asks for every run
def code_hash(folder):
    """A hash over the Python sources of a folder and their names."""
    files = sorted(folder.rglob("*.py"))
    texts = [
        (f.relative_to(folder).as_posix(), _without_prose(f.read_text("utf-8"))) for f in files
    ]
    return _hash(part for pair in texts for part in pair)


def _hash(texts):
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()[:16]


def _without_prose(source):
    """The code without comments, docstrings and layout. A cell with a %magic is kept as it is."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def read_json(path):
    """The object in a JSON file, or None if there is none or it is damaged."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path, value):
    atomic.write({path: (json.dumps(value, indent=1) + "\n").encode()})
