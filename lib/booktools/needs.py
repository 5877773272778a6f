"""Runs that start from a file which a run of another chapter leaves: `notebooks/needs.yaml`.

    paper:
      05_transfer: {from: 04_mnist, file: trained.npz, as: "{trained}-seed{seed}.npz"}

says that a paper run of chapter 05 takes `trained.npz` from the run of chapter 04 at the same
preset and seed. It waits for that run where a batch holds both. Where there is no such run, it
takes what comes with the library under the name `as`, into which parameters are put.
"""

import importlib.util
import shutil
from pathlib import Path
from typing import NamedTuple

from booktools import presets
from booktools.chapters import InputError
from learnopt import atomic

FILE = "needs.yaml"
FIELDS = {"from", "file", "as"}
FOLDER = "trained"  # in the folder of the run; the library looks there first


class Need(NamedTuple):
    folder: Path  # of the run that makes it
    file: str  # there
    name: str  # under which the library loads it


def read(folder):
    """{preset: {chapter: {from, file, as}}}, empty without the file. Raises InputError."""
    path = Path(folder) / FILE
    table = presets.read(path) if path.is_file() else {}
    for preset, rows in table.items():
        for chapter, row in rows.items() if isinstance(rows, dict) else [("its value", rows)]:
            where = f"{path}: {preset}, {chapter}"
            if not isinstance(row, dict) or row.keys() != FIELDS:
                raise InputError(f"{where}: must be a mapping of from, file and as")
            if not all(isinstance(value, str) and "/" not in value for value in row.values()):
                raise InputError(f"{where}: from, file and as are names, without a folder")
            if not (isinstance(chapter, str) and row["from"] < chapter):
                raise InputError(f"{where}: from must be an earlier chapter, not {row['from']}")
    return table


def of(table, run):
    """The Need of a run, or None."""
    row = table.get(run.preset, {}).get(run.notebook.stem)
    if row is None:
        return None
    try:
        name = row["as"].format(**run.parameters)
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{FILE}: {run.notebook.stem}, as: {error!r}") from None
    if Path(name).name != name:  # a parameter may hold anything
        raise InputError(f"{FILE}: {run.notebook.stem}, as: {name!r} is no name of a file")
    return Need(run.folder.parents[1] / row["from"] / run.folder.name, row["file"], name)


def source(need, mark):
    """The file that a run would take now: that of a finished run, or else the library's."""
    if (need.folder / mark).is_file():
        return need.folder / need.file
    return Path(importlib.util.find_spec("learnopt").origin).parent / "trained" / need.name


def bring(need, mark, folder):
    """Copy the file into the folder of the run; return what the run is to be told.

    Raises InputError if the other run is finished and has left no such file.
    """
    path, target = source(need, mark), folder / FOLDER / need.name
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    if path.is_file():
        atomic.write({target: path.read_bytes()})
    elif path.parent == need.folder:
        raise InputError(
            f"{path}: not there, though this run is finished; delete its {mark} to run it again"
        )
    return {"LEARNOPT_TRAINED": str(folder / FOLDER)}
