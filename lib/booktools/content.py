"""What a result depends on, as hashes: the code that the run used, and its parameters.

The code is that of the notebook and of the modules of the library that it imports, directly or
through one another, without what changes no result (source.py), so that a better sentence does not
age a week of runs, nor a release. The parameters cell is left out too, since its values are hashed,
and so are the cells from the first one on that looks up recorded runs: they show results and make
none.
"""

import functools
import importlib.util
import itertools
import json
from pathlib import Path

from booktools import chapters, source
from booktools.source import LIBRARY

PARAMETERS, NOTEBOOK = "parameters", "notebook"
LOOKS_UP = "records.find("
MAX_NAMES = 5  # of changed files in a line


def of(notebook, parameters, library=None):
    """{what: hash}: 'parameters', 'notebook', and one entry a module, as 'learnopt.tasks'.

    notebook: path. parameters: all of them, JSON values. library: its folder, by default that of
    the library that is installed. Raises InputError if the notebook is none.
    """
    library = Path(library or importlib.util.find_spec(LIBRARY).origin).resolve()
    library = library if library.is_dir() else library.parent
    code, names = code_of_notebook(Path(notebook))
    found = {PARAMETERS: source.digest([json.dumps(parameters, sort_keys=True)]), NOTEBOOK: code}
    return found | source.of_library(library, names)


def code_of_notebook(path):
    """The hash of the cells that make results, and the names that they import from the library."""
    return _code_of_notebook(path, path.stat().st_mtime_ns if path.is_file() else None)


@functools.cache  # a batch asks for every run, often; the time of change is part of the key
def _code_of_notebook(path, _changed):
    cells = [
        cell.source
        for cell in chapters.read(path).cells
        if cell.cell_type == "code" and "parameters" not in chapters.tags(cell)
    ]
    cells = list(itertools.takewhile(lambda text: LOOKS_UP not in text, cells))
    names = [name for cell in cells for name in source.imported(cell)]
    return source.digest([source.without_prose(cell) for cell in cells]), names


def is_input(name):
    """Whether a name of a fingerprint is that of a trained optimizer, and not of a module npz."""
    return name.endswith(".npz") and not name.startswith(f"{LIBRARY}.")


def changes(before, now, told_before=None, told_now=None):
    """In words, what differs between two results of `of`; '' if nothing does.

    told: the parameters themselves, where they are known, to say which of them differ.
    """
    before = before if isinstance(before, dict) else {}
    names = now.keys() | before.keys() - {source.dotted(name) for name in source.NO_RESULT}
    moved = [k for k in sorted(names) if before.get(k) != now.get(k)]
    parts = []
    if PARAMETERS in moved:
        old, new = told_before or {}, told_now or {}
        names = [k for k in {**old, **new} if old.get(k) != new.get(k)] if old and new else []
        pairs = [f"{name} {old.get(name)!r} -> {new.get(name)!r}" for name in names]
        parts.append(f"parameters changed: {', '.join(pairs)}".removesuffix(": "))
    files = [k for k in moved if is_input(k)]
    code = [k for k in moved if k != PARAMETERS and k not in files]
    if code:
        more = f" and {len(code) - MAX_NAMES} more" if len(code) > MAX_NAMES else ""
        parts.append(f"code changed: {', '.join(code[:MAX_NAMES])}{more}")
    if files:
        parts.append(f"input changed: {', '.join(files)}")
    return "; ".join(parts)
