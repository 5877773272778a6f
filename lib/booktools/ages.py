"""Whether recorded results are still those of the present code and parameters.

    python -m booktools.ages

A record of a batch says which hashes its run had (content.py). A change of the chapter's code, of
a module that it imports, of its preset or of its parameters cell makes it stale: the claims are
still decided by it, and `make ledger` says that it is. Older records name only the commit that made
them: their hashes are those of its files, where git has it. Else their age is unknown.
"""

import functools
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

from booktools import chapters, content, deep_experiments, plan, presets, source
from booktools.chapters import InputError
from learnopt import provenance, records

FRESH, STALE, UNKNOWN = "fresh", "stale", "age unknown"
MADE_BY = {"narrow": "oho_deep"}  # preset of records that no chapter makes: the module that runs


class Age(NamedTuple):
    name: str  # FRESH, STALE or UNKNOWN
    reason: str


def of(record, root):
    """The Age of a Record, for the checkout in folder `root`."""
    if record.preset in MADE_BY:
        return _of_module(record, root, MADE_BY[record.preset])
    told = record.provenance.get("content")
    by_commit = told is None and from_git(record, root)
    told = by_commit or told
    hashes = told.get("hashes") if told else None
    if not isinstance(hashes, dict):
        return Age(UNKNOWN, "it does not say which code made it, or git does not have that")
    if told.get("mixed"):
        return Age(STALE, "its run went on from checkpoints of other code")
    notebook = root / "notebooks" / f"{record.chapter}.ipynb"
    try:
        names = chapters.parameters(notebook)
        given = {"seed": told.get("seed"), "preset": record.preset} | told.get("overrides", {})
        values = presets.load(notebook, record.preset, names) | given
        now = content.of(notebook, plan.told(notebook, values), root / "lib" / "learnopt")
    except (InputError, OSError, TypeError) as error:
        return Age(STALE, f"its chapter cannot be read: {error}")
    known = {name: value for name, value in hashes.items() if not content.is_input(name)}
    shipped = root / "lib" / "learnopt" / "trained"
    for name in hashes.keys() - known.keys():  # a trained optimizer: see needs.py
        if (shipped / name).is_file():
            known[name] = hashes[name]
            now[name] = source.digest([(shipped / name).read_bytes().hex()])
    why = content.changes(known, now)
    if why and not by_commit and (then := from_git(record, root)):
        # source.py may have hashed code differently when the record was made
        code = {k: v for k, v in then["hashes"].items() if k != content.PARAMETERS}
        why = content.changes(known | code, now)
    if why and by_commit:
        why = f"since commit {record.provenance['commit'][:7]} {why}"
    return Age(STALE, why) if why else Age(FRESH, "")


def _of_module(record, root, module):
    """The Age of a record whose runs are a module's: by the code that the module imports."""
    commit = record.provenance["commit"]
    files = _files(root, commit, record.chapter)
    if files is None:
        return Age(UNKNOWN, "git does not have the code that made it")
    then, now = (
        source.of_library(Path(folder, "lib", "learnopt"), [module])
        for folder in (files.name, root)
    )
    if module == "oho_deep" and (key := deep_experiments.changed(record.parameters)):
        return Age(STALE, f"{key} of the experiment changed")
    why = content.changes(then, now)
    return Age(STALE, f"since commit {commit[:7]} {why}") if why else Age(FRESH, "")


def from_git(record, root):
    """What a record of a batch would say (provenance.content), from its commit; None if unknown.

    A parameter that the record gives, and the preset gave otherwise, was set by hand.
    """
    files = _files(root, record.provenance["commit"], record.chapter)
    if files is None:
        return None
    folder = Path(files.name)
    notebook = folder / "notebooks" / f"{record.chapter}.ipynb"
    seed = record.provenance["seed"]
    try:
        values = presets.load(notebook, record.preset, chapters.parameters(notebook))
        values = plan.told(notebook, values | {"seed": seed, "preset": record.preset})
        given = {k: v for k, v in record.parameters.items() if values.get(k, v) != v}
        hashes = content.of(notebook, values | given, folder / "lib" / "learnopt")
    except (InputError, OSError):
        return None
    return {"hashes": hashes, "overrides": given, "seed": seed, "mixed": False}


@functools.cache  # the folder lives as long as the cache
def _files(root, commit, chapter):
    """A temporary folder with the library and the chapter as of a commit; None if git lacks it.

    A commit with local changes ('+dirty') is none that git knows.
    """
    if not re.fullmatch("[0-9a-f]{7,40}", commit or ""):  # git would take "--output=..." for more
        return None
    paths = ["lib/learnopt", f"notebooks/{chapter}.ipynb", "notebooks/presets"]
    command = ["git", "-C", root, "archive", "--format=zip", commit, "--", *paths]
    try:
        packed = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    folder = tempfile.TemporaryDirectory()
    zipfile.ZipFile(io.BytesIO(packed)).extractall(folder.name)
    return folder


def report(root):
    """One line for each stale record, then one that counts all of them."""
    results = root / "data" / "results"
    folders = sorted(path.name for path in results.glob("[0-9][0-9]_*"))
    found = [record for name in folders for record in records.find(name, root=results)]
    ages = [of(record, root) for record in found]
    lines = [
        f"STALE {record.chapter}/{record.name}: {age.reason}"
        for record, age in zip(found, ages, strict=True)
        if age.name == STALE
    ]
    names = [age.name for age in ages]
    counts = ", ".join(f"{names.count(name)} {name}" for name in (FRESH, STALE, UNKNOWN))
    return "\n".join([*lines, f"{len(ages)} records: {counts}"])


def main():
    root = provenance.checkout()
    try:
        print(report(root) if root else "this is no checkout of the book")
    except (records.RecordError, OSError) as error:
        print(f"ages: {error}", file=sys.stderr)
        return 2
    return 0 if root else 2


if __name__ == "__main__":
    sys.exit(main())
