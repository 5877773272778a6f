"""Whether recorded results are still those of the present code and parameters.

    python -m booktools.ages

A record of a batch says which hashes its run had (content.py). A change of the chapter's code, of
a module that it imports, of its preset or of its parameters cell makes it stale: the claims are
still decided by it, and `make ledger` says that it is. Older records say nothing: age unknown.
"""

import sys
from typing import NamedTuple

from booktools import chapters, content, plan, presets
from booktools.chapters import InputError
from learnopt import provenance, records

FRESH, STALE, UNKNOWN = "fresh", "stale", "age unknown"


class Age(NamedTuple):
    name: str  # FRESH, STALE or UNKNOWN
    reason: str


def of(record, root):
    """The Age of a Record, for the checkout in folder `root`."""
    told = record.provenance.get("content")
    hashes = told.get("hashes") if told else None
    if not isinstance(hashes, dict):
        return Age(UNKNOWN, "it does not say which code made it")
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
    known = {name: value for name, value in hashes.items() if not name.endswith(".npz")}
    shipped = root / "lib" / "learnopt" / "trained"
    for name in hashes.keys() - known.keys():  # a trained optimizer: see needs.py
        if (shipped / name).is_file():
            known[name] = hashes[name]
            now[name] = content.digest([(shipped / name).read_bytes().hex()])
    why = content.changes(known, now)
    return Age(STALE, why) if why else Age(FRESH, "")


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


if __name__ == "__main__":
    root = provenance.checkout()
    print(report(root) if root else "this is no checkout of the book")
    sys.exit(0 if root else 2)
