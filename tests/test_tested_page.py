"""The page of what was tried: its numbers are those of the files, its tests exist."""

import re
from pathlib import Path

import pytest

from booktools import tested_page

ROOT = Path(__file__).parents[1]


def test_the_page_is_what_the_files_say():
    assert (ROOT / "book" / "tested.md").read_text() == tested_page.render(*tested_page.read(ROOT))


@pytest.mark.parametrize("test", tested_page.PROMISES.values())
def test_every_test_that_is_named_exists(test):
    file, name = test.split("::")
    source = (ROOT / "tests" / file).read_text()
    assert re.search(rf"^def {name}\(", source, re.MULTILINE)


def test_a_chapter_without_a_time_is_said_to_be_not_measured():
    row = {"processor_seconds": 61.0, "device_name": "a processor", "versions": {"torch": "2"},
           "commit": None, "date": "2026-01-02T"}  # fmt: skip
    said = tested_page._times({"smoke": {"01_a": row}}, ["01_a", "02_b"])
    assert "| [01_a](../notebooks/01_a.ipynb) | 61 | not measured |" in said
    assert "Smoke, all but 1 chapters: 1 minutes. Measured on a processor, torch 2" in said


def test_the_recorded_run_was_a_full_one():
    tried, _, _ = tested_page.read(ROOT)
    counts = tried["counts"]
    assert counts["batches"]["kills"] >= 20
    mutated = [sum(n.values()) for what, n in counts.items() if what.startswith("mutated")]
    assert len(mutated) == 8 and min(mutated) >= 300
