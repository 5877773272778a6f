"""The benchmark: what it times must agree, and the page holds the numbers of the file."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from booktools import bench, costs_chart, costs_page, goals, hyper_works, works
from booktools.work import Work

ROOT = Path(__file__).parents[1]
FILE = ROOT / "data" / "results" / "bench.json"
CHECKED = json.loads(FILE.with_name("checks.json").read_text())


def answer(*values):
    return lambda: {"x": torch.tensor(values)}


def test_ways_that_agree_are_timed_by_the_unit_against_the_first(monkeypatch):
    times = iter([1.0, 6.0, 2.0, 8.0, 4.0, 9.0])
    monkeypatch.setattr(bench, "seconds", lambda way: next(times))
    ways = {"ours": answer(1.0, 2.0), "a sample": answer(1.0)}
    work = Work("name", "Title", ways, units={"a sample": 2}, counted="sums")
    entry = bench.measure(work, 3, rate=1e9)
    assert (entry["ours"], entry["seconds"], entry["rounds"]) == ("ours", 2.0, 3)
    assert entry["rows"] == [
        {"peer": "a sample", "same": True, "ratio": 2.0, "low": 1.12, "high": 3.0}
    ]


def test_a_way_that_does_not_agree_is_not_timed():
    work = Work("name", "Title", {"ours": answer(1.0, 2.0), "theirs": answer(1.0, 2.1)})
    with pytest.raises(RuntimeError, match="Title: theirs gives another x, by 4"):
        bench.complete(work)
    with pytest.raises(RuntimeError, match="by nan"):
        bench.complete(work._replace(ways={"ours": answer(1.0), "theirs": answer(float("nan"))}))


def test_a_library_that_is_not_installed_is_named_and_left_out(capsys):
    def make():
        raise ImportError

    work = bench.complete(Work("name", "Title", {"ours": answer(1.0)}, {"other": make}))
    assert list(work.ways) == ["ours"]
    assert "left out: other" in capsys.readouterr().out


def test_operations_of_matrix_products_are_counted():
    a, b = torch.ones(3, 4), torch.ones(4, 5)
    with bench.Products() as products:
        torch.addmm(torch.ones(5), a, b)
        (a @ b).add_(1)
        torch.ones(2, 3, 4) @ torch.ones(2, 4, 5)
        bench.matmul.matmul(torch.ones(128, 512), torch.ones(512, 128))
    assert products.operations == 2 * 3 * 4 * 5 * 4 + 2 * 128 * 512 * 128
    assert products.seconds > 0


@pytest.mark.parametrize("name", ["trials_small", "smd_look_ahead", "oho_step", "oho_sets_4"])
def test_the_works_agree(name):
    torch.manual_seed(0)
    made = (works.WORKS | hyper_works.WORKS)[name]()
    bench.complete(made._replace(peers={}, others={}))


def test_it_needs_none_of_the_packages_that_only_the_book_needs():
    hide = "import sys; sys.modules.update(dict.fromkeys(['nbformat', 'papermill', 'yaml']))"
    run = [sys.executable, "-c", f"{hide}; import booktools.bench"]
    assert subprocess.run(run, capture_output=True).returncode == 0


def test_the_page_is_what_the_file_says():
    kept, every = json.loads(FILE.read_text()), [*works.WORKS, *hyper_works.WORKS]
    assert (ROOT / "book" / "costs.md").read_text() == costs_page.render(kept, CHECKED)
    for name, run in kept.items():
        assert name.startswith(run["provenance"]["device_name"])
        timed = [entry["work"] for entry in run["works"]]
        assert timed == [work for work in every if work in timed]
    runs = [[entry["work"] for entry in run["works"]] for run in kept.values()]
    assert every in runs  # those of other machines may be older than a work
    assert set(goals.WHY) == set(every)


def test_the_chart_has_every_way_and_processor_of_the_file():
    kept = json.loads(FILE.read_text())
    drawn = (ROOT / "book" / "_static" / "costs.svg").read_text()
    for name, run in kept.items():
        assert name in drawn
        for entry in run["works"]:
            same = [row["peer"] for row in entry["rows"] if row["same"]]
            assert not same or entry["title"] in drawn
            assert all(way.split()[0] in drawn for way in same)
    assert costs_chart.draw(kept) == costs_chart.draw(kept)


def test_a_goal_is_a_way_that_is_timed():
    for run in json.loads(FILE.read_text()).values():
        for entry in run["works"]:
            ways = {row["peer"] for row in entry["rows"]} | {goals.SHARE}
            missing = set(goals.GOALS.get(entry["work"], ())) - ways
            assert missing <= {"100 steps, denormals flushed"}  # a run is older than that way


def test_a_goal_that_was_not_reached_is_named():
    page = costs_page.render({"One": run(("torchopt", 2.9), ("higher", 3.0))}, CHECKED)
    assert "| torchopt | at least 3 | 2.9 (1.9 to 3.9) |" in page
    assert "Not reached: the goal for torchopt; for share of the limit." in page


def test_the_profile_names_the_operations_that_take_most():
    a, small = torch.ones(1500, 1500), torch.ones(2)
    found = bench.operations(lambda: (a @ a, small + 1))
    assert next(iter(found)) == "mm" and 0.5 < found["mm"] <= 1


def entry(*peers):
    rows = [{"peer": p, "same": True, "ratio": r, "low": r - 1, "high": r + 1} for p, r in peers]
    spent = {"seconds": 0.5, "in_products": 0.5, "fraction": 0.25, "counted": "windows"}
    names = {"work": "lstm_window", "title": "Title", "ours": "by hand"}
    return names | spent | {"rows": rows, "facts": {}}


def run(*peers):
    told = {"commit": "abc", "device_name": "P", "versions": {"torch": "2"}, "seed": 0}
    told |= {"device": "cpu", "seconds": 1.0, "date": "2026-11-22T00:00:00+00:00"}
    return {"matmul": {"blas": 9e10}, "works": [entry(*peers)], "peers": {}, "provenance": told}


def test_each_kind_of_processor_has_a_column_and_keeps_it(tmp_path, monkeypatch):
    runs = {"One": run(("plain", 3.0), ("jax", 2.0)), "Two": run(("plain", 4.0))}
    page = costs_page.render(runs, CHECKED)
    assert "| time over that of by hand | goal | One | Two |" in page
    assert "| plain |  | 3 (2 to 4) | 4 (3 to 5) |" in page
    assert "| jax |  | 2 (1 to 3) | not timed |" in page
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"Another": "its run"}))
    monkeypatch.setattr(sys, "argv", ["bench", "--rounds", "1", "--write", str(file)])
    monkeypatch.setattr(works, "WORKS", {})
    monkeypatch.setattr(hyper_works, "WORKS", {})
    monkeypatch.setattr(costs_page, "write", lambda: None)
    bench.main()
    kept = json.loads(file.read_text())
    assert kept.pop("Another") == "its run"
    ((name, ours),) = kept.items()
    instructions = torch.backends.cpu.get_cpu_capability()
    assert f"{ours['provenance']['device_name']}, {instructions}" == name


def test_a_broken_file_is_refused_before_anything_is_timed(tmp_path, monkeypatch, capsys):
    file = tmp_path / "bench.json"
    file.write_text("{")
    monkeypatch.setattr(sys, "argv", ["bench", "--write", str(file)])
    with pytest.raises(SystemExit) as stop:
        bench.main()
    assert stop.value.code == 2
    assert "is no JSON" in capsys.readouterr().err


def test_no_number_of_the_page_is_typed_by_hand():
    # 16 tasks of 20 units, one of three passes, "above 1": what the works are, not what they took
    typed = set(re.findall(r"\d[\d.,]*", "".join(goals.WHY.values()) + costs_page.CHAPTERS))
    assert typed <= {"20"}
