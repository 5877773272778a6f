"""The book notices an edit to the library, the data or the pins, and only such an edit."""

import pytest

from booktools import execution_cache


@pytest.fixture
def checkout(tmp_path):
    (tmp_path / "lib" / "learnopt").mkdir(parents=True)
    (tmp_path / "data" / "results").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "lib" / "learnopt" / "tasks.py").write_text("x = 1\n")
    (tmp_path / "data" / "results" / "run.json").write_text("{}\n")
    return tmp_path


def stored(checkout):
    """A stand-in for a stored execution."""
    file = checkout / execution_cache.CACHE / "global.db"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("stored")
    return file


def test_the_first_refresh_finds_everything_changed(checkout):
    assert execution_cache.refresh(checkout)


def test_executions_are_kept_while_nothing_changes(checkout):
    execution_cache.refresh(checkout)
    file = stored(checkout)
    assert not execution_cache.refresh(checkout)
    assert file.exists()


@pytest.mark.parametrize(
    "path", ["pyproject.toml", "lib/learnopt/tasks.py", "data/results/run.json", "data/new.yaml"]
)
def test_an_edit_to_what_a_chapter_reads_empties_the_cache(checkout, path):
    execution_cache.refresh(checkout)
    file = stored(checkout)
    (checkout / path).write_text("edited\n")
    assert execution_cache.refresh(checkout)
    assert not file.exists()


def test_renaming_a_file_counts_as_an_edit(checkout):
    execution_cache.refresh(checkout)
    module = checkout / "lib" / "learnopt" / "tasks.py"
    module.rename(module.with_name("task.py"))
    assert execution_cache.refresh(checkout)


@pytest.mark.parametrize(
    "path", ["data/cache/mnist.npz", "lib/learnopt/__pycache__/tasks.pyc", "lib/a.egg-info/PKG"]
)
def test_downloads_and_byproducts_do_not_count(checkout, path):
    execution_cache.refresh(checkout)
    file = checkout / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("by-product")
    assert not execution_cache.refresh(checkout)


def test_chapters_are_the_notebooks_of_the_table_of_contents_in_its_order(checkout):
    (checkout / "notebooks").mkdir()
    for stem in ("01_first", "02_second", "03_not_listed"):
        (checkout / "notebooks" / f"{stem}.ipynb").write_text("{}")
    (checkout / "_toc.yml").write_text(
        "root: book/intro\n"
        "parts:\n"
        "  - chapters: [{file: notebooks/02_second}, {file: notebooks/01_first}]\n"
        "  - chapters: [{file: book/notation}]\n"
    )
    found = execution_cache.chapters(checkout)
    assert [path.stem for path in found] == ["02_second", "01_first"]


def test_a_folder_that_is_no_checkout_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["execution_cache"])
    with pytest.raises(SystemExit, match="root of the repository"):
        execution_cache.main()
