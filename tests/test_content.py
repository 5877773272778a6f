"""What ages a result: exactly the code that its run used, and its parameters; never prose."""

import json
import subprocess

import chapter_maker
import nbformat
import pytest

from booktools import ages, content, plan, source
from booktools.deep_experiments import EXPERIMENTS, NARROW, changed
from learnopt import records

MODULES = {
    "__init__": "",
    "bottom": '"""Words."""\n\n\ndef f():\n    """More."""\n    return 1\n',
    "top": "from learnopt.bottom import f\n",
    "aside": "x = 1\n",
}


@pytest.fixture
def checkout(tmp_path):
    """A folder with a small library, one chapter that imports `top`, and its paper preset."""
    library = tmp_path / "lib" / "learnopt"
    library.mkdir(parents=True)
    for name, text in MODULES.items():
        (library / f"{name}.py").write_text(text)
    bootstrap = "try:\n    from learnopt import top\nexcept ImportError:\n    %pip install it"
    chapter_maker.write(tmp_path / "notebooks", "01_small", bootstrap, "y = top.f()")
    chapter_maker.write_preset(tmp_path / "notebooks", "01_small", "paper", "preset: paper\n")
    return tmp_path


def hashes(checkout, **parameters):
    notebook = checkout / "notebooks" / "01_small.ipynb"
    return content.of(notebook, {"lr": 0.1} | parameters, checkout / "lib" / "learnopt")


def test_the_modules_that_count_are_those_imported_directly_or_not(checkout):
    names = {"parameters", "notebook", "learnopt", "learnopt.top", "learnopt.bottom"}
    assert hashes(checkout).keys() == names


EDITS = [
    ("bottom", "def f():  # why\n    'Better.'\n    return 1\n", ""),
    ("bottom", "def f():\n    return 2\n", "code changed: learnopt.bottom"),
    ("top", "from learnopt.bottom import f\nz = 1\n", "code changed: learnopt.top"),
    ("top", "f = int\n", "code changed: learnopt.bottom, learnopt.top"),
    ("aside", "x = 2\n", ""),
    ("__init__", "version = 2\n", "code changed: learnopt"),
]


@pytest.mark.parametrize(("module", "text", "why"), EDITS)
def test_an_edit_to_the_library_ages_exactly_what_used_it(checkout, module, text, why):
    before = hashes(checkout)
    (checkout / "lib" / "learnopt" / f"{module}.py").write_text(text)
    assert content.changes(before, hashes(checkout)) == why


def test_assertions_make_no_result_unless_they_assign():
    plain = source.without_prose("x = f()\nif x:\n    y = 1\nfor k in x:\n    pass")
    for asserting in (
        "x = f()\nassert x > 0\nif x:\n    assert x < 9, x\n    y = 1\nfor k in x:\n    assert k",
        "x = f()\nif x:\n    y = 1\n    pass\nfor k in x:\n    assert k\n    assert x",
    ):
        assert source.without_prose(asserting) == plain
    assert source.without_prose("x = f()\nassert (y := x)") != source.without_prose("x = f()")
    assert source.without_prose("assert x") == source.without_prose("pass")


def test_a_figure_s_alt_text_makes_no_result_unless_it_is_computed():
    plain = source.without_prose("show(fig, 1)")
    assert source.without_prose("show(fig, 1, alt='Two ' 'lines.')") == plain
    for other in ("show(fig, 1, title='a')", "show(fig, 1, alt=f(x))", "show(fig, 1, 'alt')"):
        assert source.without_prose(other) != plain


def test_changed_parameters_are_named_where_they_are_known(checkout):
    before, now = hashes(checkout), hashes(checkout, lr=0.5)
    assert content.changes(before, now) == "parameters changed"
    words = content.changes(before, now, {"lr": 0.1, "n": 1}, {"lr": 0.5, "n": 1})
    assert words == "parameters changed: lr 0.1 -> 0.5"


# ---- records


def saved(checkout, monkeypatch, **told):
    """A record of the chapter as a batch run of seed 1 leaves it, loaded."""
    values = {"seed": 1, "preset": "paper", "lr": 0.7}
    notebook = checkout / "notebooks" / "01_small.ipynb"
    found = hashes(checkout, **plan.told(notebook, values))
    told = {"hashes": found, "overrides": {"lr": 0.7}, "seed": 1, "mixed": False} | told
    monkeypatch.setenv("LEARNOPT_CONTENT", json.dumps(told))
    path = records.save(
        "01_small", "paper-seed1", parameters={}, metrics={"x": 1.0}, curves={"x": [1.0]},
        seed=1, device="cpu", seconds=1.0, preset="paper", root=checkout / "data" / "results",
    )  # fmt: skip
    return records.load(path)


def edit_cell(checkout, source):
    path = checkout / "notebooks" / "01_small.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[2].source = source
    nbformat.write(notebook, path)


def test_a_record_is_fresh_until_code_or_parameters_change(checkout, monkeypatch):
    record = saved(checkout, monkeypatch)
    assert ages.of(record, checkout) == (ages.FRESH, "")
    edit_cell(checkout, "# a better sentence\ny = top.f()")
    assert ages.of(record, checkout).name == ages.FRESH
    chapter_maker.write_preset(
        checkout / "notebooks", "01_small", "paper", "preset: paper\nlr: 1.0"
    )
    assert ages.of(record, checkout).name == ages.FRESH  # lr was given by hand
    text = "preset: paper\nn_steps: 9"
    chapter_maker.write_preset(checkout / "notebooks", "01_small", "paper", text)
    assert ages.of(record, checkout) == (ages.STALE, "parameters changed")


def test_cells_that_show_recorded_runs_make_no_result(checkout):
    before = hashes(checkout)
    path = checkout / "notebooks" / "01_small.ipynb"
    notebook = nbformat.read(path, as_version=4)
    shown = "from learnopt import aside\nfound = records.find('01_small')"
    notebook.cells += [nbformat.v4.new_code_cell(s) for s in (shown, "print(found)")]
    nbformat.write(notebook, path)
    assert hashes(checkout) == before
    edit_cell(checkout, "y = 2 * top.f()")
    assert hashes(checkout) != before


def test_a_release_ages_nothing(checkout):
    library = checkout / "lib" / "learnopt" / "__init__.py"
    seen = []
    for number, address in (("0.1.0", "lib@v0.1.0"), ("0.2.0", "lib@v0.2.0"), ("0.2.0", "my@v0.2")):
        library.write_text(f"__version__ = {number!r}\n")
        edit_cell(checkout, f"url = 'git+https://example.org/{address}'\ny = top.f()")
        seen.append(hashes(checkout))
    assert seen[0] == seen[1]
    assert seen[2] != seen[1]  # another address is another library


def test_the_modules_that_draw_make_no_result(checkout):
    module = checkout / "lib" / "learnopt" / "figures.py"
    edit_cell(checkout, "from learnopt import figures\ny = top.f()")
    module.write_text("x = 1\n")
    before = hashes(checkout)
    module.write_text("x = 2\n")
    assert hashes(checkout) == before
    older = before | {"learnopt.figures": "0123456789abcdef"}  # when they were hashed as well
    assert content.changes(older, before) == ""


def test_a_module_named_npz_is_code_and_no_input(checkout, monkeypatch):
    module = checkout / "lib" / "learnopt" / "npz.py"
    module.write_text("x = 1\n")
    module.with_name("top.py").write_text("from learnopt.bottom import f\nimport learnopt.npz\n")
    record = saved(checkout, monkeypatch)
    assert ages.of(record, checkout).name == ages.FRESH
    module.write_text("x = 2\n")
    assert ages.of(record, checkout) == (ages.STALE, "code changed: learnopt.npz")


def test_the_ledger_says_which_records_are_stale_and_why(checkout, monkeypatch):
    saved(checkout, monkeypatch)
    edit_cell(checkout, "y = 2 * top.f()")
    assert ages.report(checkout).splitlines() == [
        "STALE 01_small/paper-seed1: code changed: notebook",
        "1 records: 0 fresh, 1 stale, 0 age unknown",
    ]


def test_a_run_that_went_on_from_checkpoints_of_other_code_is_stale(checkout, monkeypatch):
    age = ages.of(saved(checkout, monkeypatch, mixed=True), checkout)
    assert age == (ages.STALE, "its run went on from checkpoints of other code")


def test_the_age_of_a_record_without_hashes_is_unknown(checkout, monkeypatch):
    record = saved(checkout, monkeypatch)
    del record.provenance["content"]
    assert ages.of(record, checkout).name == ages.UNKNOWN


def git(folder, *arguments):
    who = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    run = subprocess.run(
        ["git", "-C", folder, *who, *arguments], check=True, capture_output=True, text=True
    )
    return run.stdout.strip()


@pytest.fixture
def older(checkout, monkeypatch):
    """A record that names its commit and holds no hashes, in a checkout with that commit."""
    git(checkout, "init", "-q")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "as it was")
    record = saved(checkout, monkeypatch)
    del record.provenance["content"]
    record.provenance["commit"] = git(checkout, "rev-parse", "HEAD")
    return record


def test_an_older_record_is_as_old_as_the_files_of_its_commit(checkout, older):
    assert ages.of(older, checkout) == (ages.FRESH, "")
    edit_cell(checkout, "# a better sentence\ny = top.f()")
    assert ages.of(older, checkout).name == ages.FRESH
    edit_cell(checkout, "y = 2 * top.f()")
    why = f"since commit {older.provenance['commit'][:7]} code changed: notebook"
    assert ages.of(older, checkout) == (ages.STALE, why)


def test_hashes_of_an_older_kind_are_checked_against_the_files_of_the_commit(checkout, older):
    values = plan.told(checkout / "notebooks" / "01_small.ipynb", {"seed": 1, "preset": "paper"})
    then = hashes(checkout, **values) | {"notebook": "0" * 16, "learnopt.top": "1" * 16}
    told = {"hashes": then, "overrides": {}, "seed": 1, "mixed": False}
    older.provenance["content"] = told
    assert ages.of(older, checkout) == (ages.FRESH, "")
    edit_cell(checkout, "y = 2 * top.f()")
    assert ages.of(older, checkout).name == ages.STALE
    older.provenance["content"] = told | {"mixed": True}
    assert ages.of(older, checkout).name == ages.STALE


def test_a_record_that_no_chapter_made_is_as_old_as_its_module(checkout, older, monkeypatch):
    monkeypatch.setattr(ages, "MADE_BY", {"narrow": "top"})
    record = older._replace(preset="narrow")
    edit_cell(checkout, "y = 2 * top.f()")
    assert ages.of(record, checkout) == (ages.FRESH, "")
    (checkout / "lib" / "learnopt" / "bottom.py").write_text("def f():\n    return 3\n")
    why = f"since commit {older.provenance['commit'][:7]} code changed: learnopt.bottom"
    assert ages.of(record, checkout) == (ages.STALE, why)
    record.provenance["commit"] = "0" * 40
    assert ages.of(record, checkout).name == ages.UNKNOWN


def test_a_commit_that_is_none_never_reaches_git(checkout, older, tmp_path):
    older.provenance["commit"] = f"--output={tmp_path / 'made'}"
    assert ages.of(older, checkout).name == ages.UNKNOWN
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("key", ["epochs", "width", "training_images", "meta_factor", "arms"])
def test_a_narrow_record_is_as_old_as_its_experiment(key):
    told = {"experiment": "groups", "training_images": NARROW["images"]}
    told |= {name: NARROW[name] for name in ("epochs", "width", "largest_judge", "meta_factor")}
    told["arms"] = EXPERIMENTS["groups"].arms(NARROW["epochs"])
    assert changed(told) is None
    assert changed(told | {key: 3}) == key


def test_an_older_record_with_a_parameter_set_by_hand_is_compared_with_it(checkout, older):
    text = "preset: paper\nlr: 1.0"
    chapter_maker.write_preset(checkout / "notebooks", "01_small", "paper", text)
    assert ages.of(older, checkout).name == ages.STALE
    assert ages.of(older._replace(parameters={"lr": 0.7}), checkout).name == ages.FRESH


@pytest.mark.parametrize("change", ["+dirty", "0", None])
def test_an_older_record_of_a_commit_that_git_lacks_is_of_unknown_age(checkout, older, change):
    commit = older.provenance["commit"]
    older.provenance["commit"] = {"0": "0" * 40, None: None}.get(change, f"{commit}{change}")
    assert ages.of(older, checkout).name == ages.UNKNOWN


@pytest.mark.parametrize("told", [{"hashes": 3}, {"hashes": {}}, {"overrides": []}, {"seed": {}}])
def test_damaged_hashes_are_an_age_and_no_crash(checkout, monkeypatch, told):
    assert ages.of(saved(checkout, monkeypatch, **told), checkout).name != ages.FRESH


def test_a_record_of_a_chapter_that_is_gone_is_stale(checkout, monkeypatch):
    record = saved(checkout, monkeypatch)
    (checkout / "notebooks" / "01_small.ipynb").unlink()
    assert ages.of(record, checkout).name == ages.STALE


def test_a_narrow_record_is_stale_when_its_experiment_changed(checkout, older):
    (checkout / "lib" / "learnopt" / "oho_deep.py").write_text("x = 1\n")
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "the module that runs")
    told = {"experiment": "groups", "training_images": NARROW["images"]}
    told |= {name: NARROW[name] for name in ("epochs", "width", "largest_judge", "meta_factor")}
    told["arms"] = EXPERIMENTS["groups"].arms(NARROW["epochs"])
    older.provenance["commit"] = git(checkout, "rev-parse", "HEAD")
    record = older._replace(preset="narrow", parameters=told)
    assert ages.of(record, checkout) == (ages.FRESH, "")
    record = record._replace(parameters=told | {"largest_judge": 3})
    assert ages.of(record, checkout) == (ages.STALE, "largest_judge of the experiment changed")


def test_a_record_ages_with_the_trained_optimizer_that_the_library_ships(checkout, monkeypatch):
    values = {"seed": 1, "preset": "paper", "lr": 0.7}
    found = hashes(checkout, **plan.told(checkout / "notebooks" / "01_small.ipynb", values))
    found |= {"lstm.npz": source.digest([b"weights".hex()]), "never-shipped.npz": "0" * 16}
    record = saved(checkout, monkeypatch, hashes=found)
    shipped = checkout / "lib" / "learnopt" / "trained" / "lstm.npz"
    shipped.parent.mkdir()
    shipped.write_bytes(b"weights")
    assert ages.of(record, checkout) == (ages.FRESH, "")
    shipped.write_bytes(b"others")
    assert ages.of(record, checkout) == (ages.STALE, "input changed: lstm.npz")


def test_code_that_moves_from_one_cell_to_another_is_other_code():
    assert source.digest(["ab", "c"]) != source.digest(["a", "bc"])


@pytest.mark.parametrize("head", ["class A:", "def f():", "async def f():"])
def test_docstrings_of_classes_and_functions_make_no_result(head):
    plain = source.without_prose(f"{head}\n    x = 1")
    assert source.without_prose(f"{head}\n    'Words.'\n    x = 1  # more") == plain
    assert source.without_prose(f"{head}\n    'Words.'") == source.without_prose(f"{head} pass")


def test_assertions_make_no_result_beside_an_else_either():
    plain = source.without_prose("if x:\n    y = 1\nelse:\n    y = 2")
    assert source.without_prose("if x:\n    y = 1\nelse:\n    assert x == 0\n    y = 2") == plain


def test_a_cell_with_a_magic_counts_as_it_is():
    cells = ("%time f()", "%time f()  # why", "%time g()")
    assert len({source.without_prose(cell) for cell in cells}) == 3


def test_every_module_of_an_import_statement_counts():
    names = source.imported("import learnopt.a, math, learnopt.b\nfrom learnopt import c, d")
    assert names == ["a", "b", "c", "d"]


def test_the_library_that_multiplies_matrices_makes_no_result(checkout):
    module = checkout / "lib" / "learnopt" / "matmul.py"
    edit_cell(checkout, "from learnopt import matmul\ny = top.f()")
    module.write_text("x = 1\n")
    before = hashes(checkout)
    module.write_text("x = 2\n")
    assert hashes(checkout) == before and "learnopt.matmul" not in before
