"""The form of a chapter: what every NN_name.ipynb holds, in which order, and how it is stored.

`problems(path)` returns one line per fault, each naming the file and the cell (counted from 1).
"""

import ast
import re

from booktools import chapters, content, normalise, presets
from booktools.chapters import InputError, Parameter

REPOSITORY = "optimizers-that-learn/optimizers-that-learn"
COLAB = f"https://colab.research.google.com/github/{REPOSITORY}/blob/"
COST = re.compile(r"quick\b[^\n]*?\d+ ?s\b[^\n]*\b(paper|full)\b[^\n]*\d", re.IGNORECASE)
REQUIRED = {"seed": "int", "n_seeds": "int", "device": "str", "preset": "str"}
PRESETS = ("paper", "smoke")
MAX_CELL_LINES, MAX_IMPORT_LINES, MAX_FILE_BYTES = 30, 10, 1_000_000
CLOSING = {
    "says what was and was not reproduced": r"\breproduced\b",
    "has a heading 'Exercises'": r"^#+ .*Exercises",
    "has a heading 'References'": r"^#+ .*References",
}


def problems(path):
    """Every fault of one chapter and of its presets."""
    try:
        notebook = chapters.read(path)
    except InputError as error:
        return [str(error)]
    if len(notebook.cells) < 4:
        return [f"{path}: {len(notebook.cells)} cells; a chapter has at least 4"]
    found = [f"{path}: {problem}" for problem in _first_cells(path, notebook.cells)]
    found += [f"{path}: {problem}" for problem in _checks_and_closing(notebook.cells)]
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.cell_type == "code":
            found += [f"{path}: cell {number}: {problem}" for problem in _code_cell(cell)]
    found += [f"{path}: {problem}" for problem in _storage(path, notebook)]
    return found + _parameters(path, notebook)


def _first_cells(path, cells):
    opening, bootstrap, imports = cells[:3]
    number, _, _ = path.stem.partition("_")
    if opening.cell_type != "markdown":
        yield "cell 1: must be markdown: Colab badge, title, cost"
    elif not re.search(rf"^# {number}\. \S", opening.source, re.MULTILINE):
        yield f"cell 1: must hold the title '# {number}. Title'"
    if not re.search(re.escape(COLAB) + rf"[^/\s]+/notebooks/{path.name}\)", opening.source):
        yield f"cell 1: must hold a Colab badge that links to {COLAB}<tag>/notebooks/{path.name}"
    if not COST.search(opening.source):
        yield "cell 1: must hold a line like 'quick: 60 s on 2 CPU cores; paper: 10 min on H100'"
    if bootstrap.cell_type != "code" or "remove-cell" not in chapters.tags(bootstrap):
        yield "cell 2: must be the code that installs learnopt in Colab, tagged 'remove-cell'"
    if imports.cell_type != "code" or not _only_imports(imports.source):
        yield f"cell 3: must hold the imports and nothing else, in at most {MAX_IMPORT_LINES} lines"


def _only_imports(source):
    lines = [line for line in source.splitlines() if not line.startswith("%")]
    try:
        statements = ast.parse("\n".join(lines)).body
    except SyntaxError:
        return False
    are_imports = [isinstance(statement, ast.Import | ast.ImportFrom) for statement in statements]
    return any(are_imports) and all(are_imports) and len(lines) <= MAX_IMPORT_LINES


def _checks_and_closing(cells):
    checks = [cell for cell in cells if "check" in chapters.tags(cell)]
    if not checks:
        yield "no cell is tagged 'check'; at least one must be, with an assert"
    if not all(re.search(r"\bassert|\bassert_close", cell.source) for cell in checks):
        yield "a cell is tagged 'check' and asserts nothing"
    sources = [cell.source for cell in cells if cell.cell_type == "code"]
    looks_up = [content.LOOKS_UP in source for source in sources]
    if True in looks_up and any("records.save" in s for s in sources[looks_up.index(True) :]):
        yield "records are looked up (records.find) before the last one is saved (records.save)"
    if cells[-1].cell_type != "markdown":
        yield "the last cell must be markdown"
    for what, pattern in CLOSING.items():
        if not re.search(pattern, cells[-1].source, re.MULTILINE):
            yield f"the last cell must be one that {what}"


def _code_cell(cell):
    n_lines = len(cell.source.splitlines())
    if n_lines > MAX_CELL_LINES:
        yield f"{n_lines} lines of code; at most {MAX_CELL_LINES}"
    for output in cell.outputs:
        if output.output_type == "error":
            yield f"holds an error, {output.ename}; mend it and run `make notebooks`"
        if output.get("name") == "stderr":
            yield "holds output on stderr; mend what warns, or let the progress bar clear itself"


def _storage(path, notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    not_run = [n for n, cell in enumerate(code, start=1) if cell.execution_count is None]
    if not_run or not any(cell.outputs for cell in code):
        yield f"{len(not_run)} code cells hold no stored execution; run `make notebooks`"
    # Covers cell ids too: where one is missing or double, nbformat has put another in its place
    if normalise.text(normalise.normalise(notebook)) != path.read_text("utf-8"):
        yield "is not stored in the normalised form; run `make notebooks`"
    if path.stat().st_size > MAX_FILE_BYTES:
        yield f"larger than {MAX_FILE_BYTES} bytes; draw smaller figures"


def _parameters(path, notebook):
    try:
        parameters = chapters.parameters(path, notebook)
    except InputError as error:
        return [str(error)]
    found = []
    for name, kind in REQUIRED.items():
        if parameters.get(name, Parameter(None, None)).kind != kind:
            found.append(f"{path}: the parameters cell must hold '{name}: {kind}'")
    if parameters.get("preset", Parameter("str", None)).default != presets.QUICK:
        found.append(f'{path}: the parameters cell must say preset: str = "{presets.QUICK}"')
    for preset in sorted({*PRESETS, *presets.names(path)} - {presets.QUICK}):
        try:
            presets.load(path, preset, parameters)
        except InputError as error:
            found += str(error).splitlines()
    return found


def stray_presets(folder):
    """Preset files that belong to no chapter of the folder, or that rival its parameters cell."""
    stems = {path.stem for path in chapters.find(folder)}
    for path in sorted((folder / "presets").glob("*")):
        stem, _, rest = path.name.partition(".")
        if stem not in stems or not re.fullmatch(r"[a-z0-9]+\.yaml", rest):
            yield f"{path}: belongs to no chapter; the name must be NN_name.<preset>.yaml"
        elif rest == f"{presets.QUICK}.yaml":
            yield f"{path}: delete it; {presets.QUICK} is the parameters cell"
