"""Source code as hashes: what in a library's modules and in cells can change a result.

Comments, docstrings and layout are left out, and so are assertions, which can stop a run and change
no result, a release's number, and a figure's words for those who cannot see it. Modules that draw
show results and make none; the module that chooses which library multiplies matrices decides, like
the processor and torch itself, which a record names, how sums are rounded, not what is computed.
"""

import ast
import functools
import hashlib
import re

LIBRARY = "learnopt"
DRAW = {"figures", "interactive", "palette", "svg"}  # a test: they import nothing that computes
ROUND = {"matmul"}  # a test: its products are torch's
NO_RESULT = DRAW | ROUND
VERSION, TAG = "__version__", re.compile(r"(?<=@v)[0-9][0-9.]*$")  # the tag ends an address
MAGIC = re.compile(r"^(\s*)[%!].*$", re.MULTILINE)


def of_library(library, names):
    """{'learnopt.tasks': hash}: one entry for each module of a folder that `names` import."""
    names = modules(library, names)
    return {dotted(n): code_of(library, n)[0] for n in names if n not in NO_RESULT}


def modules(library, names):
    """The modules of a folder that `names` import, directly or not, sorted; '' is __init__."""
    found, queue = set(), ["", *names]
    while queue:
        name = queue.pop()
        if name not in found and _file(library, name).is_file():
            found.add(name)
            queue += code_of(library, name)[1]
    return sorted(found)


def dotted(name):
    """A module's name with its package's; of '' that of the package."""
    return ".".join(filter(None, (LIBRARY, name)))


def code_of(library, name):
    """The hash of a module's code, and the names that it imports from the library."""
    path = _file(library, name)
    return _code_of(path, path.stat().st_mtime_ns)


@functools.cache
def _code_of(path, _changed):
    text = path.read_text("utf-8")
    return digest([without_prose(text)]), imported(text)


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
