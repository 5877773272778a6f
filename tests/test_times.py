"""The times of the chapters: what is measured, and what a file keeps of others."""

import json

import chapter_maker

from booktools import times

BUSY = """\
import time
end = time.process_time() + 1.5
while time.process_time() < end:
    pass"""


def test_the_time_of_a_chapter_is_that_of_the_processor_in_its_kernel(tmp_path, capsys):
    chapter_maker.write(tmp_path / "notebooks", "01_busy", BUSY)
    chapter_maker.write(tmp_path / "notebooks", "02_fails", "1 / 0")
    path = tmp_path / "times.json"
    old = {"smoke": {"01_busy": {"processor_seconds": 1}}, "quick": {"09_old": {}}}
    path.write_text(json.dumps(old))
    options = ["--preset", "quick", "--notebooks", str(tmp_path / "notebooks")]

    assert times.main([*options, "--write", str(path)]) == 1

    kept = json.loads(path.read_text())
    assert kept["smoke"] == old["smoke"]
    assert list(kept["quick"]) == ["01_busy", "09_old"]
    found = kept["quick"]["01_busy"]
    assert found["processor_seconds"] > 1.5 and found["seconds"] > 1.5
    assert {"commit", "date", "device_name", "versions"} <= found.keys()
    assert "02_fails" in capsys.readouterr().out.splitlines()[-1]


def test_bad_input_is_refused_before_anything_is_measured(tmp_path, capsys):
    chapter_maker.write(tmp_path / "notebooks", "01_small", "pass")
    (tmp_path / "times.json").write_text("{")
    folder = ["--notebooks", str(tmp_path / "notebooks")]

    assert times.main([*folder, "99"]) == 2
    assert times.main([*folder, "--write", str(tmp_path / "times.json")]) == 2

    said = capsys.readouterr()
    assert "'99' is no chapter" in said.err and "times.json is no JSON" in said.err
    assert said.out == ""
