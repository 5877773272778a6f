"""Budgets and bans that keep the library readable and its files safe to load."""

import ast
from pathlib import Path

import pytest

LIB = Path(__file__).parents[1] / "lib"
LIBRARY = sorted((LIB / "learnopt").glob("*.py"))
ALL = sorted(LIB.rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 250, 30
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
BANNED_NAMES = {"utils", "util", "helpers", "common", "misc"}
GLOBAL_SEEDS = {"torch.manual_seed", "torch.cuda.manual_seed_all", "np.random.seed", "random.seed"}
GLOBAL_SETTINGS = {"torch.set_default_dtype", "torch.set_default_device"}


def long_functions(source: str) -> list[str]:
    """Functions of more than 30 lines, the docstring not counted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, FUNCTIONS):
            n_lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                n_lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            if n_lines > MAX_FUNCTION_LINES:
                found.append(f"{node.name}: {n_lines} lines")
    return found


def undocumented(source: str) -> list[str]:
    """Public functions and methods with no docstring; and the module itself."""
    tree = ast.parse(source)
    found = [] if ast.get_docstring(tree) else ["the module"]
    for owner in (tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))):
        if getattr(owner, "name", "").startswith("_"):
            continue
        for node in owner.body:
            public = isinstance(node, FUNCTIONS) and not node.name.startswith("_")
            if public and not ast.get_docstring(node):
                found.append(node.name)
    return found


def unsafe(source: str) -> list[str]:
    """Ways to run code from a file: pickle, allow_pickle=True, weights_only=False or left out."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {option.arg: ast.unparse(option.value) for option in node.keywords}
        if name.split(".")[0] in {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}:
            found.append(name)
        if options.get("allow_pickle", "False") != "False":
            found.append(f"{name}: allow_pickle")
        if name == "torch.load" and options.get("weights_only") != "True":
            found.append(f"{name}: needs weights_only=True")
        if options.get("weights_only", "True") != "True":
            found.append(f"{name}: weights_only")
        if name in {"eval", "exec"}:
            found.append(name)
    return sorted(set(found))


def global_state(source: str) -> list[str]:
    """Calls that seed or set what every other part of the process shares."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = {ast.unparse(node.func).replace("numpy.", "np.") for node in calls}
    return sorted(names & (GLOBAL_SEEDS | GLOBAL_SETTINGS))


by_name = pytest.mark.parametrize("path", LIBRARY, ids=lambda path: path.stem)
everywhere = pytest.mark.parametrize(
    "path", ALL, ids=lambda path: str(path.relative_to(LIB).with_suffix(""))
)


@by_name
def test_a_library_file_is_at_most_250_lines(path):
    assert len(path.read_text().splitlines()) <= MAX_FILE_LINES


@by_name
def test_a_library_function_is_at_most_30_lines(path):
    assert long_functions(path.read_text()) == []


@by_name
def test_every_public_function_of_the_library_says_what_it_does(path):
    assert undocumented(path.read_text()) == []


@everywhere
def test_no_file_is_named_for_having_no_subject(path):
    assert path.stem not in BANNED_NAMES


@everywhere
def test_nothing_read_from_a_file_can_run_code(path):
    # a chapter is code: scripts beside one execute its cells, and no command takes its path
    allowed = ["exec"] if path.stem == "beside" else []
    assert unsafe(path.read_text()) == allowed


@everywhere
def test_no_global_seed_dtype_or_device_is_set(path):
    assert global_state(path.read_text()) == []


# ---- the rules themselves ----


def test_the_length_of_a_function_leaves_out_its_docstring():
    body = "\n".join("    x = 1" for _ in range(29))
    document = '    """One.\n\n    Two.\n    """\n'
    assert long_functions(f"def f():\n{document}{body}") == []
    assert long_functions(f"def f():\n{body}\n    x = 2") == ["f: 31 lines"]


def test_a_missing_docstring_is_found_wherever_it_is_public():
    functions = "def f(): ...\ndef _g(): ...\n"
    methods = "class C:\n    def m(self): ...\n    def _n(self): ...\n    def d(self): 'Done.'\n"
    assert undocumented(functions + methods) == ["the module", "f", "m"]


@pytest.mark.parametrize(
    "source",
    [
        "pickle.load(f)",
        "np.load(f, allow_pickle=True)",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "load(f, weights_only=flag)",
        "eval(text)",
    ],
)
def test_every_unsafe_way_to_load_is_found(source):
    assert unsafe(source)


def test_safe_ways_to_load_are_let_through():
    assert unsafe("torch.load(f, weights_only=True); np.load(f, allow_pickle=False)") == []


@pytest.mark.parametrize("source", ["torch.manual_seed(0)", "np.random.seed(0)", "random.seed()"])
def test_global_seeds_are_found_and_generators_are_not(source):
    assert global_state(source)
    assert global_state("torch.Generator().manual_seed(0); np.random.default_rng(0)") == []
