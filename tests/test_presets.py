"""Presets: what the parameters cell allows, and how each bad value is refused."""

import chapter_maker
import pytest

from booktools import chapters, presets
from booktools.chapters import InputError, Parameter

PARAMETERS = {
    "seed": Parameter("int", 0),
    "preset": Parameter("str", "quick"),
    "lr": Parameter("float", 0.1),
    "n_steps": Parameter("int", 3),
    "verbose": Parameter("bool", False),
    "lrs": Parameter("list[float]", [0.1]),
}


@pytest.fixture
def notebook(tmp_path):
    cell = chapter_maker.PARAMETERS + "\nverbose: bool = False\nlrs: list[float] = [0.1, 1]"
    return chapter_maker.write(tmp_path, "01_small", "pass", parameters=cell)


def load(notebook, text):
    chapter_maker.write_preset(notebook.parent, "01_small", "paper", text)
    return presets.load(notebook, "paper", chapters.parameters(notebook))


def test_the_parameters_cell_is_read_with_kinds_and_defaults(notebook):
    found = chapters.parameters(notebook)

    assert list(found) == ["seed", "n_seeds", "device", "preset", "lr", "n_steps", "verbose", "lrs"]
    assert found["lr"] == Parameter("float", 0.1)
    assert found["lrs"] == Parameter("list[float]", [0.1, 1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("n = 3", "line 1: must read like"),
        ("n: int", "line 1: must read like"),
        ("n: int = 2 * 3", "n must be a literal"),
        ("n: int = 2.0", r"n must be int, not 2.0 \(float\)"),
        ("n: int = True", r"n must be int, not True \(bool\)"),
        ("n: dict = {}", "n is annotated dict; allowed: int, float, bool, str, list"),
        ("n: float = 1e999", "n must be finite"),
        ("n: int = 1\nn: int = 2", "line 2: n is set twice"),
        ("n: int =", "line 1: invalid syntax"),
    ],
)
def test_a_bad_parameters_cell_is_refused(tmp_path, line, message):
    path = chapter_maker.write(tmp_path, "01_small", parameters=line)
    with pytest.raises(InputError, match=f"01_small.ipynb: parameters cell, ?.*{message}"):
        chapters.parameters(path)


def test_two_parameters_cells_are_refused(tmp_path):
    path = chapter_maker.write(tmp_path, "01_small", "x: int = 1")
    notebook = chapters.read(path)
    notebook.cells[1].metadata["tags"] = ["parameters"]
    with pytest.raises(InputError, match="2 cells are tagged 'parameters'"):
        chapters.parameters(path, notebook)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 3}', "\x00\x01"])
def test_a_file_that_is_no_notebook_is_refused(tmp_path, content):
    path = tmp_path / "01_small.ipynb"
    path.write_text(content)
    with pytest.raises(InputError, match="01_small.ipynb: is no notebook"):
        chapters.read(path)


def test_a_good_preset_is_read(notebook):
    text = "preset: paper\nlr: 1.0e-3\nn_steps: 100\nlrs: [1, 2.5]\nverbose: true\n"

    values = load(notebook, text)

    assert values == {
        "preset": "paper", "lr": 0.001, "n_steps": 100, "lrs": [1, 2.5], "verbose": True
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("lr: 1e-3", "lr must be float, not '1e-3' .*write 1.0e-3"),
        ("lrs: [1e-3]", "lrs must be float, not '1e-3' .*write 1.0e-3"),
        ("n_steps: '1e3'", "n_steps must be int, not '1e3' .*write digits"),
        ("n_steps: !!int ''", "is no YAML"),
        ("verbose: !!bool maybe", "is no YAML"),
        ("lr: .nan", "lr must be finite"),
        ("lr: -.inf", "lr must be finite"),
        ("lr: 1" + 400 * "0", "lr must be finite"),
        ("lr: null", "lr must be float, not None"),
        ("n_steps: 10.0", "n_steps must be int, not 10.0"),
        ("n_steps: true", "n_steps must be int, not True"),
        ("n_steps: [3]", "n_steps must be int"),
        ("verbose: 1", "verbose must be bool, not 1"),
        ("device: 2020-01-01", "device must be str, not datetime.date"),
        ("lrr: 0.1", "unknown parameter 'lrr'; allowed: seed, n_seeds, device, preset, lr,"),
        ("3: 4", "unknown parameter 3"),
        ("[1, 2]: 4", "is no YAML"),
        ("lr: 0.1\nlr: 0.2", "'lr' is set twice"),
        ("preset: papre", "is set twice"),
        ("lr: !!python/object/apply:os.getcwd []", "is no YAML"),
        ("lr: [", "is no YAML"),
        ("lr: 2001-99-99", "is no YAML"),
        ("lr: " + 500 * "[" + 500 * "]", "is no YAML|lr must be float"),
        ("# " + 100_000 * "x", "larger than 100000 bytes"),
    ],
)
def test_a_bad_preset_is_refused_with_file_and_field(notebook, line, message):
    with pytest.raises(InputError, match=f"01_small.paper.yaml: .*({message})"):
        load(notebook, f"preset: paper\n{line}\n")


@pytest.mark.parametrize("text", ["", "- 1\n", "paper\n", "preset: smoke\n", "lr: 0.1\n"])
def test_a_preset_file_must_be_a_mapping_that_says_its_own_name(notebook, text):
    with pytest.raises(InputError, match="must be a mapping|must hold the line 'preset: paper'"):
        load(notebook, text)


def test_every_fault_of_a_preset_is_named_at_once(notebook):
    with pytest.raises(InputError) as caught:
        load(notebook, "lr: x\nn_steps: y\nother: 1\n")
    assert len(str(caught.value).splitlines()) == 4


def test_an_unknown_preset_is_refused_with_those_that_exist(notebook):
    chapter_maker.write_preset(notebook.parent, "01_small", "smoke", "preset: smoke\n")
    with pytest.raises(InputError, match="no preset 'papre'; it has: quick, smoke"):
        presets.load(notebook, "papre", chapters.parameters(notebook))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "1e-3", 0.001),
        ("lr", "2", 2.0),
        ("n_steps", "7", 7),
        ("verbose", "True", True),
        ("preset", "007", "007"),
        ("lrs", "[1, 0.5]", [1, 0.5]),
    ],
)
def test_a_value_on_the_command_line_takes_the_kind_of_its_parameter(name, text, value):
    parsed = presets.parse(name, text, PARAMETERS)
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("n_steps", "1.5"), ("n_steps", "x"), ("lr", "nan"), ("lr", "inf"), ("verbose", "1"),
     ("lrs", "[x]"), ("lrs", "3"), ("lrs", "["), ("lrr", "1"), ("lrs", "!!int ''"),
     ("lrs", "!!timestamp no"), ("lrs", 2000 * "[")],
)  # fmt: skip
def test_an_ill_typed_value_on_the_command_line_is_refused(name, text):
    with pytest.raises(InputError, match=f"-p: .*{name}"):
        presets.parse(name, text, PARAMETERS)


@pytest.mark.parametrize("name", ["9", "01_smal", "../01_small", "", "01_small.ipynb", "*"])
def test_a_chapter_that_does_not_exist_is_refused(notebook, name):
    with pytest.raises(InputError, match="is no chapter of .*: 01_small"):
        chapters.pick(notebook.parent, [name])


def test_chapters_are_picked_by_number_or_name_in_reading_order(notebook):
    second = chapter_maker.write(notebook.parent, "02_next")

    assert chapters.pick(notebook.parent, ["02_next", "1", "01"]) == [notebook, second]
    assert chapters.pick(notebook.parent, []) == [notebook, second]


def test_a_number_that_two_chapters_share_is_refused(notebook):
    chapter_maker.write(notebook.parent, "01_other")
    with pytest.raises(InputError, match="several chapters of .*: 01_other, 01_small"):
        chapters.pick(notebook.parent, ["01"])
