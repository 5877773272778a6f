"""A docstring written as plain text renders to the same words."""

import pytest
from docutils.core import publish_doctree

from booktools.plain_docstrings import to_rst


def rendered(text):
    """Read as reStructuredText, with every warning an error."""
    source = "\n".join(to_rst(text.splitlines()))
    return publish_doctree(source, settings_overrides={"report_level": 1, "halt_level": 1})


@pytest.mark.parametrize(
    "text",
    [
        "The norm |g| * |h|, over b_ runs of *args.",
        "A set {x : x_1, x_ }, a back\\slash, and 2 ** 3.",
        "log(|g| + 1e-8) in ``code`` and `code`",
    ],
)
def test_marks_of_markup_in_prose_are_plain_characters(text):
    assert rendered(text).astext().split() == text.replace("`", "").split()


def test_names_in_backticks_become_code():
    tree = rendered("Call `step(phi, carry)` or ``run``.")
    assert [node.astext() for node in tree.findall() if node.tagname == "literal"] == [
        "step(phi, carry)",
        "run",
    ]


@pytest.mark.parametrize("block", ["    x <- x + |d|\n    y", "| a | b |\n|---|---|\n| 1 | 2 |"])
def test_indented_and_ruled_blocks_stay_as_they_stand(block):
    tree = rendered(f"Before:\n\n{block}\n\nAfter.")
    (literal,) = [node for node in tree.findall() if node.tagname == "literal_block"]
    assert literal.astext() == "\n".join(line.removeprefix("    ") for line in block.splitlines())


def test_a_block_right_under_its_paragraph_is_still_a_block():
    tree = rendered("Such as:\n    a = 1\nand on.")
    assert [node.tagname for node in tree.children] == ["paragraph", "literal_block", "paragraph"]


def test_a_list_stays_a_list():
    tree = rendered("- one thing\n- another\n  over two lines")
    assert tree.children[0].tagname == "bullet_list"
    assert len(tree.children[0].children) == 2
