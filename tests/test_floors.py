"""The library is built in floors: a file imports only from lower ones, and never from booktools."""

import ast
from pathlib import Path

import pytest

from booktools.source import DRAW

LIB = Path(__file__).parents[1] / "lib"

# A new file: put its name on the lowest floor that is above everything it imports.
FLOORS = [
    set("layout seeding atomic npz measure palette provenance".split()),
    {"curves", "download", "matmul"},
    {"tasks", "datasets", "optimizers", "records", "checkpoints", "svg"},
    {"lstm_optimizer", "unroll", "cifar"},
    {"hypergrad", "lstm_window", "mlp_products"},
    set("meta_train baselines noisy_quadratic smd smd_mlp surface".split())
    | {"oho", "oho_mlp", "oho_original"},
    {"curriculum", "oho_guards", "oho_module"},
    {"figures", "interactive", "oho_tuners"},
    {"oho_deep"},
]
FLOOR = {name: floor for floor, names in enumerate(FLOORS) for name in names}
FILES = sorted(path for path in (LIB / "learnopt").glob("*.py") if path.stem != "__init__")


def imported(source: str, modules: set[str]) -> set[str]:
    """Which of learnopt's modules this source imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "learnopt" if node.level else node.module
            base = f"{base}.{node.module}" if node.level and node.module else base
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package == "learnopt" and rest.split(".")[0] in modules:
                found.add(rest.split(".")[0])
    return found


def packages(source: str) -> set[str]:
    """The top-level packages that this source imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
    return {name.split(".")[0] for name in names}


def complaint(name: str, imports: set[str]) -> str | None:
    """What is wrong with a file of this name that imports these, or None."""
    for module in sorted({name, *imports}):
        if module not in FLOOR:
            return f"{module}.py is on no floor: add it to FLOORS in tests/test_floors.py"
    wrong = sorted(module for module in imports if FLOOR[module] >= FLOOR[name])
    if wrong:
        return f"{name}.py (floor {FLOOR[name]}) may not import {wrong}: not on a lower floor"
    return None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_imports_only_from_lower_floors(path):
    modules = {file.stem for file in FILES}
    assert complaint(path.stem, imported(path.read_text(), modules)) is None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_library_does_not_know_what_makes_the_book(path):
    assert "booktools" not in packages(path.read_text())


def test_the_package_itself_imports_nothing():
    assert packages((LIB / "learnopt" / "__init__.py").read_text()) == set()


@pytest.mark.parametrize("name", sorted(DRAW))
def test_what_draws_does_not_train_or_read_records(name):
    path = LIB / "learnopt" / f"{name}.py"
    assert imported(path.read_text(), set(FLOOR)) <= DRAW


def test_every_file_of_the_foundation_is_there():
    foundation = "layout seeding tasks datasets optimizers records lstm_optimizer unroll hypergrad"
    assert {path.stem for path in FILES} >= {*foundation.split(), "meta_train", "baselines"}


# ---- the rule itself ----


@pytest.mark.parametrize(
    "source",
    [
        "import learnopt.unroll",
        "import learnopt.unroll as u",
        "from learnopt import unroll",
        "from learnopt import layout as l, unroll as u",
        "from learnopt.unroll import run",
        "from . import unroll",
        "from .unroll import run",
        "def late():\n    from learnopt import unroll",
        "if True:\n    import learnopt.unroll",
    ],
)
def test_every_way_to_import_is_seen(source):
    assert "unroll" in imported(source, {"unroll", "layout"})


def test_names_that_are_not_modules_are_not_imports_of_modules():
    source = "import torch\nfrom learnopt import __version__\nfrom torch import optim as unroll"
    assert imported(source, {"unroll"}) == set()


def test_an_import_from_above_or_beside_is_refused_by_name():
    above = complaint("tasks", {"unroll", "layout"})
    assert above == "tasks.py (floor 2) may not import ['unroll']: not on a lower floor"
    assert "may not import ['optimizers']" in complaint("tasks", {"optimizers"})
    assert complaint("hypergrad", {"unroll", "layout", "tasks"}) is None


def test_a_file_on_no_floor_is_refused_with_what_to_do():
    message = "helpers.py is on no floor: add it to FLOORS in tests/test_floors.py"
    assert complaint("helpers", set()) == message
    assert complaint("hypergrad", {"helpers"}) == message
