"""The chapters have the form of a chapter, and what is stored in them does not drift."""

import base64
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import chapter_maker
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from booktools import chapters, form, normalise, notebooks

CHAPTERS = sorted((Path(__file__).parents[1] / "notebooks").glob("[0-9]*.ipynb"))


def run(*arguments):
    # Settings of a shell that must not reach a chapter: no figures, several threads
    shell = {"MPLBACKEND": "agg", "OMP_NUM_THREADS": "3"}
    return subprocess.run(
        [sys.executable, "-m", "booktools.notebooks", *map(str, arguments)],
        capture_output=True, text=True, timeout=300, env=os.environ | shell,
    )  # fmt: skip


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_chapter_has_the_form_of_a_chapter(path):
    assert form.problems(path) == []


def test_every_preset_file_belongs_to_a_chapter():
    if CHAPTERS:
        assert list(form.stray_presets(CHAPTERS[0].parent)) == []


# ---- the form, on made-up chapters


@pytest.fixture
def whole(tmp_path):
    """A faultless chapter, with the outputs that a run would have stored."""
    path = chapter_maker.write_whole(tmp_path, "01_small", "print(lr)")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = 1
    notebook.cells[4].outputs = [new_output("stream", text="0.1\n")]
    path.write_text(normalise.text(normalise.normalise(notebook)))
    return path


def test_a_whole_chapter_has_no_fault(whole):
    assert form.problems(whole) == []


def spoil(path, change):
    notebook = nbformat.read(path, as_version=4)
    change(notebook.cells)
    path.write_text(normalise.text(normalise.normalise(notebook)))
    return form.problems(path)


def replaced(number, old, new):
    def change(cells):
        assert old in cells[number].source
        cells[number].source = cells[number].source.replace(old, new)

    return change


def output(**fields):
    return lambda cells: cells[4].outputs.append(new_output(**fields))


FAULTS = [
    (replaced(0, "blob/v0.1.0/notebooks/01_small", "blob/v0.1.0/notebooks/02_other"), "Colab"),
    (replaced(0, "# 01.", "# 1."), "title '# 01. Title'"),
    (replaced(0, "quick: 5 s", "fast"), "a line like 'quick: 60 s"),
    (lambda cells: cells[1].metadata.clear(), "cell 2: must be the code that installs"),
    (replaced(2, "import math", "import math\nx = 1"), "cell 3: must hold the imports"),
    (replaced(2, "import math", "import math\n" * 11), "cell 3: must hold the imports"),
    (lambda cells: cells[3].metadata.clear(), "0 cells are tagged 'parameters'"),
    (replaced(3, "seed: int", "sead: int"), "must hold 'seed: int'"),
    (replaced(3, "n_seeds: int", "n_seeds: float"), "must hold 'n_seeds: int'"),
    (replaced(3, '"quick"', '"paper"'), 'must say preset: str = "quick"'),
    (lambda cells: cells[5].metadata.clear(), "no cell is tagged 'check'"),
    (replaced(5, "assert ", ""), "is tagged 'check' and asserts nothing"),
    (lambda cells: cells.pop(), "the last cell must be markdown"),
    (replaced(6, "not reproduced", "not done"), "what was and was not reproduced"),
    (replaced(6, "## Exercises", "Exercises"), "heading 'Exercises'"),
    (replaced(6, "## References", ""), "heading 'References'"),
    (replaced(4, "print(lr)", "print(lr)\n" * 31), "cell 5: 31 lines of code; at most 30"),
    (lambda cells: cells[4].update(execution_count=None), "1 code cells hold no stored execution"),
    (lambda cells: cells[4].update(outputs=[]), "0 code cells hold no stored execution"),
    (
        output(output_type="error", ename="ValueError", evalue="", traceback=[]),
        "an error, ValueError",
    ),
    (output(output_type="stream", name="stderr", text="a warning"), "output on stderr"),
    (replaced(4, "print(lr)", f"print('{'x' * 1_000_000}')"), "larger than 1000000 bytes"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[message for _, message in FAULTS])
def test_a_fault_of_form_is_found_and_named(whole, change, message):
    faults = spoil(whole, change)

    assert any(message in fault for fault in faults), faults
    assert all(str(whole.parent) in fault for fault in faults)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"Python 3"', '"my-env"'), ('"cell-4"', '"cell-3"'), ('   "id": "cell-4",\n', "")],
    ids=["foreign kernelspec", "double cell id", "no cell id"],
)
def test_a_chapter_that_was_saved_by_hand_is_found(whole, old, new):
    text = whole.read_text()
    assert old in text
    whole.write_text(text.replace(old, new))

    assert form.problems(whole) == [
        f"{whole}: is not stored in the normalised form; run `make notebooks`"
    ]


def test_a_missing_or_foreign_preset_is_found(whole):
    presets = whole.parent / "presets"
    (presets / "01_small.paper.yaml").unlink()
    (presets / "01_small.smoke.yaml").write_text("preset: smoke\nsteps: 1\n")
    for name in ("01_smal.paper.yaml", "01_small.quick.yaml", "01_small.paper.yml"):
        (presets / name).write_text("")

    faults = [*form.problems(whole), *form.stray_presets(whole.parent)]

    assert len(faults) == 5
    for message in ("no preset 'paper'", "unknown parameter 'steps'", "01_smal.paper.yaml: belongs",
                    "01_small.quick.yaml: delete it", "01_small.paper.yml: belongs"):  # fmt: skip
        assert any(message in fault for fault in faults), message


def test_check_counts_the_faults_and_fails(whole):
    assert run("--notebooks", whole.parent, "check").stdout == "1 chapters, 0 faults\n"
    chapter_maker.write(whole.parent, "02_bare")
    result = run("--notebooks", whole.parent, "check")
    assert result.returncode == 1
    assert "02_bare.ipynb: 1 cells" in result.stdout and "2 chapters, 1 faults" in result.stdout


# ---- running and storing


FIGURE = """\
import sys, time
import matplotlib.pyplot as plt
print("a", flush=True)
print("\\r 50 %", end="", file=sys.stderr, flush=True)
time.sleep(0.3)
print("b")
print("\\r     \\r", end="", file=sys.stderr)
plt.plot([seed, lr])"""


def test_a_second_run_with_the_same_results_changes_nothing(tmp_path):
    folder = tmp_path / "notebooks"
    good = chapter_maker.write_whole(folder, "01_good", FIGURE)
    bad = chapter_maker.write_whole(folder, "02_bad", "1 / 0")
    notebook = nbformat.read(good, as_version=4)
    notebook.metadata.kernelspec = {"name": "my-env", "display_name": "Mine", "language": "python"}
    nbformat.write(notebook, good)
    before = bad.read_bytes()
    arguments = ["--notebooks", folder, "run", "--store", "--target", tmp_path / "out"]

    first = run(*arguments, "--jobs", 2)
    stored = good.read_bytes()
    second = run(*arguments, "01")

    assert first.returncode == 1, first.stderr
    assert "01_good" in first.stdout and "stored" in first.stdout
    assert "FAILED In [4]: ZeroDivisionError: division by zero" in first.stdout
    assert bad.read_bytes() == before
    assert second.returncode == 0 and "unchanged" in second.stdout
    assert good.read_bytes() == stored
    assert form.problems(good) == []
    figure = chapters.read(good).cells[4]
    assert figure.outputs[0].text == "a\nb\n"  # the progress bar has cleared itself
    assert "image/png" in figure.outputs[-1].data and len(figure.outputs) == 3
    assert [cell.id for cell in chapters.read(good).cells] == [f"cell-{i}" for i in range(7)]


def test_a_chapter_that_is_edited_while_it_runs_is_not_stored_and_counts_as_failed(tmp_path):
    edit = "from pathlib import Path\npath = Path('01_small.ipynb')\n"
    edit += "_ = path.write_text(path.read_text() + '\\n')"
    path = chapter_maker.write_whole(tmp_path / "notebooks", "01_small", edit)
    before = path.read_text()

    result = run("--notebooks", path.parent, "run", "--store", "--target", tmp_path / "out")

    assert result.returncode == 1
    assert "NOT STORED: the chapter was edited while it ran" in result.stdout
    assert path.read_text() == before + "\n"


def test_a_killed_process_and_a_broken_output_cost_no_other_chapter(tmp_path):
    kill = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"
    broken = "from IPython.display import display\n"
    broken += "display({'image/png': 'no image', 'text/plain': ''}, raw=True)"
    folder = tmp_path / "notebooks"
    for name, code in (("01_killed", kill), ("02_broken", broken), ("03_good", "print('good')")):
        chapter_maker.write_whole(folder, name, code)

    result = run("--notebooks", folder, "run", "--store", "--target", tmp_path / "out")

    assert result.returncode == 1 and "Traceback" not in result.stderr
    said = {line.split()[1]: line for line in result.stdout.splitlines() if line[:1] == "["}
    assert "FAILED its process was killed" in said["01_killed"]
    assert "NOT STORED: " in said["02_broken"]
    assert said["03_good"].endswith("stored")


def test_the_smoke_preset_reaches_the_chapter_and_is_never_stored(tmp_path):
    path = chapter_maker.write_whole(
        tmp_path, "01_small", "import os; print(preset, n_steps, os.environ['OMP_NUM_THREADS'])"
    )
    before = path.read_bytes()

    refused = run("--notebooks", tmp_path, "run", "--preset", "smoke", "--store")
    result = run("--notebooks", tmp_path, "run", "--preset", "smoke", "--target", tmp_path / "out")

    assert refused.returncode == 2 and "--store" in refused.stderr
    assert result.returncode == 0, result.stderr
    assert path.read_bytes() == before
    assert "smoke 1 1" in (tmp_path / "out" / "smoke" / "01_small.ipynb").read_text()


def test_a_preset_that_is_missing_is_refused_before_anything_runs(tmp_path):
    chapter_maker.write(tmp_path, "01_small", "1 / 0")
    result = run("--notebooks", tmp_path, "run", "--preset", "smoke", "--target", tmp_path / "out")
    assert result.returncode == 2 and "no preset 'smoke'" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_chapter_that_is_no_text_is_refused_before_anything_runs(tmp_path):
    chapter_maker.write(tmp_path, "01_small").write_bytes(b"\xff\xfe")
    result = run("--notebooks", tmp_path, "run", "--target", tmp_path / "out")
    assert result.returncode == 2 and "01_small.ipynb" in result.stderr
    assert "Traceback" not in result.stderr and not (tmp_path / "out").exists()


def test_a_chapter_that_is_gone_when_its_outputs_come_is_reported(tmp_path):
    executed = chapter_maker.write(tmp_path, "01_small")
    said = notebooks.store(executed, tmp_path / "gone.ipynb", "before")
    assert said.startswith(notebooks.NOT_STORED) and "gone.ipynb" in said


# ---- the normalised form


def one_cell(*outputs):
    cell = new_code_cell("x", execution_count=7, outputs=list(outputs))
    return normalise.normalise(new_notebook(cells=[cell])).cells[0]


def png(*chunks):
    parts = [
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(content))
        for name, content in chunks
    ]
    return normalise.PNG_SIGNATURE + b"".join(parts)


def test_the_text_in_a_png_is_dropped_and_the_picture_kept():
    named = png((b"IHDR", b"size"), (b"tEXt", b"Software\0x"), (b"IDAT", b"dots"), (b"IEND", b""))
    bare = png((b"IHDR", b"size"), (b"IDAT", b"dots"), (b"IEND", b""))
    picture = new_output("display_data", data={"image/png": base64.b64encode(named).decode()})

    cell = one_cell(picture)

    assert base64.b64decode(cell.outputs[0].data["image/png"]) == bare
    assert normalise.strip_png(bare) == bare
    with pytest.raises(ValueError, match="no PNG"):
        normalise.strip_png(b"GIF89a")


def test_streams_are_merged_however_they_were_cut():
    def stream(name, text):
        return new_output("stream", name=name, text=text)

    picture = new_output("display_data", data={"text/plain": "<Figure>"})
    one = one_cell(stream("stdout", "ab"), stream("stderr", "x"), picture, stream("stdout", "c"))
    other = one_cell(
        stream("stderr", "x"), stream("stdout", "a"), stream("stdout", "b"), picture,
        stream("stdout", "c"),
    )  # fmt: skip

    assert one.outputs == other.outputs
    assert [o.get("text") for o in one.outputs] == ["ab", "x", None, "c"]


def test_live_widgets_addresses_and_run_metadata_are_dropped():
    widget = new_output("display_data", data={normalise.WIDGET: {"model_id": "3f"}})
    line = new_output("execute_result", data={"text/plain": "[<Line2D at 0x7f3a>]"})
    cell = new_code_cell("x", execution_count=7, outputs=[widget, line])
    cell.metadata = {"tags": ["check"], "papermill": {"duration": 3}, "execution": {"iopub": "t"}}
    notebook = new_notebook(cells=[cell], metadata={"papermill": {}, "widgets": {}})

    result = normalise.normalise(notebook)

    assert set(result.metadata) == {"kernelspec", "language_info"}
    assert result.cells[0].metadata == {"tags": ["check"]}
    assert result.cells[0].outputs[0].data == {"text/plain": "[<Line2D>]"}
    assert result.cells[0].execution_count == result.cells[0].outputs[0].execution_count == 1
    assert normalise.normalise(result) == result
