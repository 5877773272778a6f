"""A small count of what `make robustness` does in full: kills, damaged files, names, full disks."""

import json
import os
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from booktools import bad_data, bad_files, judge, kills, long_runs, mutations, robustness, storage
from learnopt import download

KINDS = [*bad_files.kinds(), *bad_data.kinds()]


@pytest.fixture(autouse=True)
def tiny():
    with mutations.tiny_data_set():
        yield


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_damaged_file_is_loaded_whole_or_refused_with_file_field_and_remedy(kind):
    counts = mutations.files(kind, 25)
    assert set(counts) <= {"loaded", kind.error.__name__}
    assert counts.total() >= 20


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_file_that_would_execute_code_is_not_executed(kind):
    """Payloads at every place of the example that can hold one."""
    for path in mutations.places(kind.tree):
        options = mutations.values_like(mutations.at(kind.tree, path))
        for number in mutations.payloads(options):
            tree, _ = mutations.changed(kind.tree, path, "set", number)
            try:
                contents = kind.pack(tree)
            except Exception:  # JSON and safe YAML cannot hold it at all
                continue
            judge.attempt(kind, contents)


def test_no_name_leads_out_of_its_folder():
    assert mutations.names(100).total() == 100


def test_a_full_disk_and_a_read_only_folder_lose_nothing(tmp_path):
    full, small, read_only = folders = [tmp_path / name for name in ("full", "small", "read-only")]
    for folder in folders:
        folder.mkdir()
    assert storage.full_disk(full).total() == 18
    assert storage.small_disk(small).total() == 6
    assert storage.read_only(read_only).total() == 6


def test_a_long_run_that_is_killed_goes_on_bit_for_bit(tmp_path):
    assert long_runs.kill(tmp_path, 1)["kills"] == 1


def test_a_batch_that_is_killed_loses_and_repeats_nothing(tmp_path):
    counts = kills.batches(tmp_path, 1, n_chapters=1, n_seeds=1)
    assert counts["kills"] == 1 and counts["records compared"] >= 1


def test_a_folder_that_vanishes_while_it_is_searched_is_passed_over(tmp_path, monkeypatch):
    for name in ("gone", "here"):
        (tmp_path / name / "run").mkdir(parents=True)
        (tmp_path / name / "run" / "starts").touch()
    scan = os.scandir

    def vanishing(folder):
        if "gone" in str(folder):
            raise FileNotFoundError(folder)
        return scan(folder)

    monkeypatch.setattr(os, "scandir", vanishing)
    assert kills._found(tmp_path, "*/*/starts") == [tmp_path / "here" / "run" / "starts"]


def test_kills_that_find_a_fault_leave_no_process_behind(tmp_path, monkeypatch):
    before = psutil.Process().children(recursive=True)
    monkeypatch.setattr(kills, "_read_for", lambda batch, *_: pytest.fail(f"of {batch.pid}"))
    with pytest.raises(pytest.fail.Exception) as failure:
        kills.batches(tmp_path, 1, n_chapters=1, n_seeds=1)
    assert not psutil.pid_exists(int(str(failure.value).split()[-1]))
    assert set(psutil.Process().children(recursive=True)) <= set(before)


# ---- the judge itself: each of these must be noticed


def damaged(kind, **changes):
    return judge.attempt(kind._replace(**changes), kind.pack(kind.tree))


def refuse(message):
    def load(folder):
        raise KINDS[0].error(message.format(folder))

    return load


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        ("something is wrong; restore it", "the file is not named"),
        ("{}/x: something is wrong", "no remedy"),
        ("{}/run.pt: something is wrong", "no remedy"),
        ("{}/x: restore it" + "x" * 5000, "too long"),
    ],
)
def test_an_unhelpful_message_is_noticed(message, complaint):
    with pytest.raises(AssertionError, match=complaint):
        damaged(KINDS[0], load=refuse(message))


def test_a_foreign_error_is_noticed():
    with pytest.raises(KeyError):
        damaged(KINDS[0], load=lambda folder: {}["x"])


def test_a_loader_that_writes_or_runs_something_is_noticed(tmp_path):
    with pytest.raises(AssertionError, match="a loader has done"):
        damaged(KINDS[0], load=lambda folder: (tmp_path / "x").write_text("x"))
    with pytest.raises(AssertionError, match="a loader has done"):
        damaged(KINDS[0], load=lambda folder: bad_data.RAN.append("it"))


def test_a_record_that_is_lost_or_repeated_is_noticed(tmp_path):
    done = tmp_path / "quick" / "01_small" / "seed0" / "done.json"
    done.parent.mkdir(parents=True)
    done.write_text("{}")
    done.with_name("starts").write_text("start\n")
    before = kills._finished(tmp_path)
    kills._assert_kept(before)
    done.with_name("starts").write_text("start\nstart\n")
    with pytest.raises(AssertionError, match="repeated"):
        kills._assert_kept(before)
    done.unlink()
    with pytest.raises(AssertionError, match="lost"):
        kills._assert_kept(before)


def test_the_counts_are_printed_and_written(tmp_path, monkeypatch, capsys):
    counts = {"mutated record": {"RecordError": 3, "loaded": 1}}
    monkeypatch.setattr(robustness, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1))
    monkeypatch.setattr(robustness, "bad_input", lambda n: counts)
    monkeypatch.setattr(robustness, "faults", lambda n: {"batches": {"kills": n}})
    robustness.main(["--kills", "7", "--write", str(tmp_path / "r.json")])
    written = json.loads((tmp_path / "r.json").read_text())
    assert written["counts"] == counts | {"batches": {"kills": 7}}
    assert {"commit", "seconds", "versions"} <= written["provenance"].keys()
    assert "mutated record             3 RecordError, 1 loaded" in capsys.readouterr().out


def test_labels_beyond_the_classes_are_refused():
    arrays = bad_data.images()
    arrays["y_test"] = arrays["y_test"] + 7
    assert download.problem("tiny", arrays) == "y_test holds 9, the labels are 0 to 2"
