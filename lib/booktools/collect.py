"""Copies the records that finished runs have left in their folders into the book's results."""

from booktools import packages, plan
from booktools.chapters import InputError
from learnopt import atomic, records


def collect(runs, root=None):
    """Copy `records/NN_name/*.{json,npz}` of every run to `<root>/NN_name/`; return the new paths.

    root: the folder of results, learnopt.records.results_root() if None. Every record is read and
    verified before the first is copied. Raises InputError, and then nothing has been copied.
    """
    root = root or records.results_root()
    found, problems = {}, []
    for run in runs:
        for path in sorted((run.folder / "records").rglob("*.json")):
            target = root / run.notebook.stem / path.name
            try:
                record = records.load(path)
            except records.RecordError as error:
                problems.append(str(error))
                continue
            if record.chapter != run.notebook.stem:
                problems.append(f"{path}: is a record of {record.chapter}, not of {run}")
            elif target in found:
                problems.append(f"{path}: {found[target]} has the same name; put the seed into it")
            found[target] = path
    if problems:
        raise InputError("\n".join(problems))
    for run in runs:
        listed = run.folder / plan.VERSIONS
        if listed.is_file() and any(target.parent.name == run.notebook.stem for target in found):
            packages.keep(root, listed.read_text())
    for target, path in found.items():
        curves = path.with_suffix(".npz").read_bytes()
        atomic.write({target.with_suffix(".npz"): curves, target: path.read_bytes()})
    return sorted(found)
