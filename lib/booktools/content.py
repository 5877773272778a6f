"""What a result depends on, as hashes: the code that the run used, and its parameters.

The code is that of the notebook and of the modules of the library that it imports, directly or
through one another. Comments, docstrings, markdown and layout are left out, so that a better
sentence does not age a week of runs, and the library's version, so that a release does not; the
parameters cell is, since its values are hashed. So are the cells from the first one on that looks
up recorded runs, and the modules that draw: they show results and make none. And so is the module
that chooses which library multiplies matrices: like the processor and torch itself, which a record
names, it decides how sums are rounded, not what is computed. And so are assertions, which can stop
a run and change no result, and a figure's words for those who cannot see it.
"""

import ast
import functools
import hashlib
import importlib.util
import itertools
import json
import re
from pathlib import Path

from booktools import chapters

LIBRARY = "learnopt"
PARAMETERS, NOTEBOOK = "parameters", "notebook"
LOOKS_UP = "records.find("
DRAW = {"figures", "interactive", "palette", "svg"}  # a test: they import nothing that computes
ROUND = {"matmul"}  # a test: its products are torch's
MAX_NAMES = 5  # of changed files in a line
VERSION, TAG = "__version__", re.compile(r"(?<=@v)[0-9][0-9.]*$")  # the tag ends an address
MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)


def of(notebook, parameters, library=None):
    """{what: hash}: 'parameters', 'notebook', and one entry a module, as 'learnopt.tasks'.

    notebook: path. parameters: all of them, JSON values. library: its folder, by default that of
    the library that is installed. Raises InputError if the notebook is none.
    """
    library = Path(library or importlib.util.find_spec(LIBRARY).origin).resolve()
    library = library if library.is_dir() else library.parent
    code, names = code_of_notebook(Path(notebook))
    found = {PARAMETERS: digest([json.dumps(parameters, sort_keys=True)]), NOTEBOOK: code}
    return found | of_library(library, names)


def of_library(library, names):
    """{'learnopt.tasks': hash}: one entry for each module of a folder that `names` import."""
    names = modules(library, names)
    return {_dotted(n): code_of(library, n)[0] for n in names if n not in DRAW | ROUND}


def modules(library, names):
    """The modules of a folder that `names` import, directly or not, sorted; '' is __init__."""
    found, queue = set(), ["", *names]
    while queue:
        name = queue.pop()
        if name not in found and _file(library, name).is_file():
            found.add(name)
            queue += code_of(library, name)[1]
    return sorted(found)


def _dotted(name):
    return ".".join(filter(None, (LIBRARY, name)))


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
    cells = list(itertools.takewhile(lambda source: LOOKS_UP not in source, cells))
    names = [name for cell in cells for name in imported(cell)]
    return digest([without_prose(cell) for cell in cells]), names


def code_of(library, name):
    """The hash of a module's code, and the names that it imports from the library."""
    path = _file(library, name)
    return _code_of(path, path.stat().st_mtime_ns)


@functools.cache
def _code_of(path, _changed):
    source = path.read_text("utf-8")
    return digest([without_prose(source)]), imported(source)


def _file(library, name):
    return library / f"{name or '__init__'}.py"


def imported(source):
    """The names after 'learnopt.' that a source imports. Some may be no modules."""
    try:
        tree = ast.parse(MAGIC.sub(r"\1pass", source))
    except SyntaxError:
        return []
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == LIBRARY:
            names += [f"{LIBRARY}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    return [name.split(".")[1] for name in names if name.startswith(f"{LIBRARY}.")]


class _WithoutAssertions(ast.NodeTransformer):
    """Assertions that assign nothing become ``pass``; a ``pass`` beside other statements goes."""

    def visit_Assert(self, node):
        assigns = any(isinstance(part, ast.NamedExpr) for part in ast.walk(node))
        return node if assigns else ast.Pass()

    def generic_visit(self, node):
        super().generic_visit(node)
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list) and block:
                kept = [one for one in block if not isinstance(one, ast.Pass)]
                setattr(node, field, kept or block[:1])
        return node


def _is_alt(keyword):
    text = keyword.value
    return keyword.arg == "alt" and isinstance(text, ast.Constant) and isinstance(text.value, str)


def without_prose(source):
    """The code without comments, docstrings, assertions, alt texts, layout, a release's number.

    A cell with a %magic is kept as it is.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    tree = _WithoutAssertions().visit(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets) == VERSION:
            node.value = ast.Constant("")
        elif isinstance(node, ast.Call):
            node.keywords = [part for part in node.keywords if not _is_alt(part)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            node.value = TAG.sub("", node.value)
    return ast.unparse(tree)


def digest(texts):
    """16 hexadecimal digits over texts, each ended by a zero byte."""
    found = hashlib.sha256()
    for text in texts:
        found.update(text.encode() + b"\0")
    return found.hexdigest()[:16]


def is_input(name):
    """Whether a name of a fingerprint is that of a trained optimizer, and not of a module npz."""
    return name.endswith(".npz") and not name.startswith(f"{LIBRARY}.")


def changes(before, now, told_before=None, told_now=None):
    """In words, what differs between two results of `of`; '' if nothing does.

    told: the parameters themselves, where they are known, to say which of them differ.
    """
    before = before if isinstance(before, dict) else {}
    names = now.keys() | before.keys() - {_dotted(name) for name in DRAW | ROUND}
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
