"""The chapters of a folder, and the parameters cell of one: what a run may be told.

A chapter is `NN_name.ipynb`. Its parameters cell holds annotated flat literals,

    n_steps: int = 20  # steps; paper: 100

of the kinds int, float, bool, str, and lists of these. The cell holds the values of the preset
`quick`; the files in `presets/` override them (presets.py). Every failure is an `InputError` that
names the file, the field and what is allowed.
"""

import ast
import math
import reprlib
import warnings
from pathlib import Path
from typing import NamedTuple

import nbformat

SCALARS = {"int": int, "float": float, "bool": bool, "str": str}
MAX_INT = 2**63  # what NumPy, torch and other readers of JSON take
KINDS = [*SCALARS, *(f"list[{kind}]" for kind in SCALARS)]


class InputError(ValueError):
    """What was asked for does not exist or has the wrong form. May hold several lines."""


class Parameter(NamedTuple):
    kind: str  # one of KINDS
    default: object  # its value at the preset quick


def find(folder):
    """The notebooks of a folder in reading order. Raises InputError if there are none."""
    found = sorted(Path(folder).glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise InputError(f"{folder}: holds no chapter NN_name.ipynb; run from the book's folder")
    return found


def pick(folder, names):
    """The notebooks that `names` stand for ("03" or "03_name"), all of them if it is empty."""
    found = find(folder)
    picked, problems = [], []
    for name in names:
        matches = [p for p in found if name == p.stem or name.zfill(2) == p.stem[:2]]
        if len(matches) == 1:
            picked += matches
        else:
            what = "stands for several chapters" if matches else "is no chapter"
            known = ", ".join(p.stem for p in matches or found)
            problems.append(f"{reprlib.repr(name)} {what} of {folder}: {known}")
    if problems:
        raise InputError("\n".join(problems))
    return sorted(set(picked)) if names else found


def read(path):
    """The notebook as nbformat 4. Raises InputError if it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about cell ids; form.py reports them
            notebook = nbformat.read(path, as_version=4)
            sound = [
                isinstance(c.source, str) and isinstance(tags(c), list) and c.cell_type
                for c in notebook.cells
            ]
    except Exception as error:  # nbformat raises many kinds on malformed input
        reason = reprlib.repr(f"{type(error).__name__}: {error}")
        raise InputError(f"{path}: is no notebook ({reason}); restore it with git") from None
    if not all(sound):
        number = sound.index(False)
        raise InputError(f"{path}: cell {number} of the notebook is malformed; restore it with git")
    return notebook


def tags(cell):
    return cell.metadata.get("tags", [])


def parameters(path, notebook=None):
    """name -> Parameter, of the one cell that is tagged `parameters`. Raises InputError."""
    notebook = notebook or read(path)
    cells = [c for c in notebook.cells if c.cell_type == "code" and "parameters" in tags(c)]
    if len(cells) != 1:
        raise InputError(f"{path}: {len(cells)} cells are tagged 'parameters'; one must be")
    try:
        statements = ast.parse(cells[0].source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None) or 1
        raise InputError(f"{path}: parameters cell, line {line}: {error}; correct it") from None
    found = {}
    for statement in statements:
        where = f"{path}: parameters cell, line {statement.lineno}"
        name, parameter = _parameter(where, statement)
        if name in found:
            raise InputError(f"{where}: {name} is set twice")
        found[name] = parameter
    return found


def _parameter(where, statement):
    if not (
        isinstance(statement, ast.AnnAssign)
        and isinstance(statement.target, ast.Name)
        and statement.value is not None
    ):
        raise InputError(f"{where}: must read like 'n_steps: int = 20  # unit; paper: 100'")
    name, kind = statement.target.id, ast.unparse(statement.annotation)
    if kind not in KINDS:
        raise InputError(f"{where}: {name} is annotated {kind}; allowed: {', '.join(KINDS)}")
    try:
        value = ast.literal_eval(statement.value)
    except (ValueError, TypeError, RecursionError, MemoryError):
        raise InputError(f"{where}: the value of {name} must be a literal") from None
    problem = misfit(kind, value)
    if problem:
        raise InputError(f"{where}: {name} {problem}")
    return name, Parameter(kind, value)


def misfit(kind, value):
    """Why `value` is none of `kind`, or None if it is. A bool is no int; an int is a float."""
    if kind.startswith("list["):
        inner = kind[5:-1]
        if not isinstance(value, list):
            return f"must be {kind}, not {reprlib.repr(value)} ({type(value).__name__})"
        return next((problem for item in value if (problem := misfit(inner, item))), None)
    allowed = (int, float) if kind == "float" else (SCALARS[kind],)
    if type(value) not in allowed:
        return f"must be {kind}, not {reprlib.repr(value)} ({type(value).__name__})"
    if kind == "int" and abs(value) >= MAX_INT:
        return f"must be below 2**63, not {reprlib.repr(value)}"
    if kind == "float" and not _is_finite(value):
        return f"must be finite, not {reprlib.repr(value)}"
    return None


def _is_finite(value):
    try:
        return math.isfinite(value)
    except OverflowError:  # an int that no float can hold
        return False
