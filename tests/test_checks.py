"""Where the time of the whole check goes: read from its reports, and kept for each processor."""

import json

import pytest

from booktools import checks

CASES = """<testsuites><testsuite time="20.4">
<testcase classname="notebooks.01_a.ipynb" name="Cell 0" time="12.5"/>
<testcase classname="notebooks.02_b.ipynb" name="Cell 0" time="17.5"/>
<testcase classname="tests.test_a" name="test_it" time="8.0"/>
</testsuite></testsuites>"""
SITE = '<testsuites><testsuite time="9.0"></testsuite></testsuites>'


@pytest.fixture
def reports(tmp_path):
    (tmp_path / "seconds.txt").write_text("test 31\nbook 5\nbrowser 10\n")
    (tmp_path / "test.xml").write_text(CASES)
    (tmp_path / "browser.xml").write_text(SITE)
    return tmp_path


def test_the_times_are_those_of_the_reports(reports, capsys):
    file = reports / "kept" / "checks.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"Another": "its run"}))
    assert checks.main(["--reports", str(reports), "--write", str(file)]) == 0
    kept = json.loads(file.read_text())
    assert kept.pop("Another") == "its run"
    ((name, found),) = kept.items()
    assert found["steps"] == {"test": 31, "book": 5, "browser": 10}
    assert found["parts"] == {"chapters": 30, "tests": 8}
    assert found["clock"] == {"test": 20, "browser": 9}
    assert found["provenance"]["device_name"] == name and found["provenance"]["seconds"] == 46
    said = capsys.readouterr().out
    assert "| `make test`: packages, style, form | 11 |" in said
    assert "| both workers: cells of the chapters | 30 |" in said


@pytest.mark.parametrize(
    ("file", "text"),
    [("seconds.txt", "test 31\n"), ("seconds.txt", "test\n"), ("test.xml", "<testsuites>"),
     ("browser.xml", None)],
)  # fmt: skip
def test_a_check_that_did_not_end_is_no_result(reports, capsys, file, text):
    (reports / file).unlink() if text is None else (reports / file).write_text(text)
    kept = reports / "checks.json"
    assert checks.main(["--reports", str(reports), "--write", str(kept)]) == 2
    assert "run .ci/run to its end first" in capsys.readouterr().err and not kept.exists()
