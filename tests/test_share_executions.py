"""A chapter that `make test` has executed without a fault is not executed again by `make book`."""

import subprocess
import sys

import chapter_maker
import nbformat
import pytest
from jupyter_cache import get_cache

from booktools import execution_cache

OUTPUTS = [
    "import sys; print('one'); print('more'); print('a warning', file=sys.stderr)",
    "from IPython.display import HTML, display; display(HTML('<b>two</b>')); 3",
]
SOCKETS = """
from ipykernel.connect import get_connection_info
assert get_connection_info(unpack=True)["transport"] == "ipc"
"""  # two kernels that start at once cannot take each other's TCP port
LOST = "from IPython.display import display; display(1, display_id='x').update(2)"


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    """A book of three chapters after nbval has executed them."""
    root = tmp_path_factory.mktemp("book")
    (root / "lib").mkdir()
    chapter_maker.write(root / "notebooks", "01_fine", *OUTPUTS)
    chapter_maker.write(root / "notebooks", "02_fails", "1 / 0", "x = 1")
    chapter_maker.write(root / "notebooks", "03_redraws", LOST, SOCKETS)
    (root / "_toc.yml").write_text("parts: [{chapters: [{file: notebooks/01_fine}]}]")
    options = ["-p", "booktools.share_executions", "--nbval-lax", "--nbval-current-env"]
    command = [sys.executable, "-m", "pytest", *options, "-n", "2", "--dist", "loadscope"]
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    run = subprocess.run([*command, *notebooks], cwd=root, capture_output=True, text=True)
    assert "1 failed, 8 passed" in run.stdout, run.stdout + run.stderr
    return root


def stored(book, name):
    """The code cells of the chapter as the book finds them in its cache; None if it does not."""
    notebook = nbformat.read(book / "notebooks" / f"{name}.ipynb", as_version=4)
    cache = get_cache(str(book / execution_cache.CACHE))
    try:
        _, merged = cache.merge_match_into_notebook(notebook)
    except KeyError:
        return None
    nbformat.validate(merged)
    return merged.cells


def test_a_chapter_without_a_fault_is_found_with_the_outputs_that_the_book_would_make(book):
    from nbclient import execute

    cells = stored(book, "01_fine")
    executed = execute(nbformat.read(book / "notebooks" / "01_fine.ipynb", as_version=4)).cells
    assert [cell.outputs for cell in cells] == [cell.outputs for cell in executed]
    assert sum(len(cell.outputs) for cell in cells) == 4


@pytest.mark.parametrize("name", ["02_fails", "03_redraws"])
def test_a_chapter_that_fails_or_lost_an_output_is_left_to_the_book(book, name):
    assert stored(book, name) is None


def test_the_book_executes_nothing_again_until_its_library_changes(book):
    cache = get_cache(str(book / execution_cache.CACHE))
    [before] = cache.list_cache_records()
    assert before.data["execution_seconds"] > 0  # the status page shows them
    assert execution_cache.warm(book, timeout_seconds=60) == []
    [after] = cache.list_cache_records()
    assert after.data == before.data, "executed a second time"
    assert not execution_cache.refresh(book)
    (book / "lib" / "new.py").touch()
    assert execution_cache.refresh(book)
    assert stored(book, "01_fine") is None
