"""Records: whole or absent, strict JSON, and every failure named."""

import json
import math
import os
import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch

from learnopt import provenance, records
from learnopt.records import RecordError

CHAPTER = "03_lstm_learns_to_optimize"


def save(root, name="paper-seed0", **changes):
    fields = {
        "parameters": {"lr": 0.003, "grid": [0.1, 0.3], "meta": None},
        "metrics": {"sum100_lstm": 72.5, "n_functions": 4000},
        "curves": {"loss": [10.0, 5.0, 2.5]},
        "seed": 0,
        "device": "cpu",
        "seconds": 1.5,
        "preset": "paper",
    }
    return records.save(CHAPTER, name, root=root, **(fields | changes))


def rewrite(path, change):
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def test_a_record_comes_back_as_it_was_saved(tmp_path):
    record = records.load(save(tmp_path))
    assert record.parameters == {"lr": 0.003, "grid": [0.1, 0.3], "meta": None}
    assert record.metrics == {"sum100_lstm": 72.5, "n_functions": 4000}
    assert (record.chapter, record.name, record.preset) == (CHAPTER, "paper-seed0", "paper")
    np.testing.assert_array_equal(record.curves["loss"], np.float32([10, 5, 2.5]))


def test_divergence_is_a_legal_result_in_strict_json(tmp_path):
    metrics = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": np.float64("nan")}
    path = save(tmp_path, metrics=metrics, curves={"loss": [1.0, math.nan, math.inf, 1e300]})
    json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"{text} in the JSON"))
    record = records.load(path)
    assert math.isnan(record.metrics["a"]) and math.isnan(record.metrics["d"])
    assert (record.metrics["b"], record.metrics["c"]) == (math.inf, -math.inf)
    np.testing.assert_array_equal(
        record.curves["loss"], np.float32([1.0, math.nan, math.inf, math.inf])
    )


def test_tensors_and_numpy_numbers_are_metrics_and_curves(tmp_path):
    record = records.load(
        save(
            tmp_path,
            metrics={"a": torch.tensor(1.5), "b": np.int64(3), "c": np.ones((1, 1)), "d": True},
            curves={
                "tensor": torch.arange(6.0, requires_grad=True).reshape(2, 3),
                "half": torch.ones(2, dtype=torch.bfloat16),
                "whole": np.arange(4),
                "none": [],
            },
        )
    )
    assert record.metrics == {"a": 1.5, "b": 3, "c": 1.0, "d": 1}
    assert {name: curve.shape for name, curve in record.curves.items()} == {
        "tensor": (2, 3), "half": (2,), "whole": (4,), "none": (0,),
    }  # fmt: skip


def test_provenance_says_who_ran_what_where_and_when(tmp_path):
    found = records.load(save(tmp_path)).provenance
    assert (found["seed"], found["device"], found["seconds"]) == (0, "cpu", 1.5)
    assert set(found["versions"]) == {"python", "torch", "numpy", "learnopt", "lock"}
    assert found["n_threads"] == torch.get_num_threads()
    assert found["device_name"] and found["platform"]
    assert "T" in found["date"] and found["date"].endswith("+00:00")
    assert found["versions"]["torch"] in provenance.line(found)


def test_the_date_is_now_in_utc(tmp_path):
    date = datetime.fromisoformat(records.load(save(tmp_path)).provenance["date"])
    assert abs((datetime.now(UTC) - date).total_seconds()) < 60


def test_the_line_for_a_reader_tells_the_origin_in_words():
    told = {
        "commit": "0123456789abcdef", "device_name": "a processor", "seed": 3, "seconds": 61.7,
        "versions": {"torch": "2.9.0"}, "date": "2026-01-02T03:04:05+00:00",
    }  # fmt: skip
    rest = "a processor, torch 2.9.0, seed 3, 62 s, 2026-01-02"
    for commit, words in (
        ("0123456789abcdef", "0123456"),
        ("0123456789abcdef+dirty", "0123456 with local changes"),
        (None, "unknown"),
    ):
        assert provenance.line(told | {"commit": commit}) == f"commit {words}, {rest}"


def test_the_processor_is_the_first_that_the_system_lists(monkeypatch):
    listed = "processor\t: 0\nmodel name\t: Fast: 9\nprocessor\t: 1\nmodel name\t: Slow 1\n"
    monkeypatch.setattr(provenance.Path, "read_text", lambda self: listed)
    assert provenance.device_name("cpu") == "Fast: 9"
    monkeypatch.setattr(provenance.Path, "read_text", lambda self: "processor\t: 0\n")
    monkeypatch.setattr(provenance.platform, "processor", lambda: "")
    monkeypatch.setattr(provenance.platform, "machine", lambda: "riscv64")
    assert provenance.device_name("cpu") == "riscv64"


def test_every_stored_result_has_its_list_of_packages():
    root = Path(__file__).resolve().parents[1] / "data" / "results"
    texts = {path: path.read_text() for path in root.rglob("*.json")}
    named = {path: set(re.findall(r'"lock": "(\w+)"', text)) for path, text in texts.items()}
    assert len(set().union(*named.values())) > 0
    for path, locks in named.items():
        for lock in locks:
            packages = root / "versions" / f"{lock}.txt"
            assert packages.is_file(), f"{path} names {packages}, which is missing"
            assert provenance.lock(packages.read_text()) == lock


def test_the_commit_is_unknown_outside_a_checkout_unless_told(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "checkout", lambda: None)
    monkeypatch.delenv("LEARNOPT_COMMIT", raising=False)
    assert provenance.commit() is None
    monkeypatch.setenv("LEARNOPT_COMMIT", "abc1234")
    assert provenance.commit() == "abc1234"
    monkeypatch.setenv("LEARNOPT_COMMIT", "")
    assert provenance.commit() is None


def test_changed_code_makes_the_commit_dirty_and_new_results_do_not(tmp_path, monkeypatch):
    def git(*arguments):
        settings = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        return provenance._git(tmp_path, *settings, *arguments)

    for folder in ("lib", "notebooks", "data"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("old")
    (tmp_path / "pyproject.toml").write_text("")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "first")
    monkeypatch.setattr(provenance, "checkout", lambda: tmp_path)

    (tmp_path / "data" / "result").write_text("new")
    assert provenance.commit() == git("rev-parse", "HEAD")
    monkeypatch.setenv("LEARNOPT_COMMIT", "abc1234")
    assert provenance.commit() == git("rev-parse", "HEAD")
    for file in ("lib/file", "lib/not_added", "notebooks/file", "pyproject.toml"):
        (tmp_path / file).write_text("new")
        assert provenance.commit() == git("rev-parse", "HEAD") + "+dirty"
        git("add", ".")
        git("commit", "-q", "-m", file)


def test_the_results_folder_is_the_one_of_the_environment_then_of_the_checkout(monkeypatch):
    monkeypatch.delenv("LEARNOPT_RESULTS", raising=False)
    assert records.results_root().parts[-2:] == ("data", "results")
    monkeypatch.setenv("LEARNOPT_RESULTS", "elsewhere")
    assert str(records.results_root()) == "elsewhere"
    monkeypatch.delenv("LEARNOPT_RESULTS")
    monkeypatch.setattr(provenance, "checkout", lambda: None)
    monkeypatch.setattr(records, "__file__", "nowhere/learnopt/records.py")
    with pytest.raises(RecordError, match="LEARNOPT_RESULTS"):
        records.results_root()


def test_an_installed_book_has_its_records_beside_its_code(monkeypatch, tmp_path):
    monkeypatch.delenv("LEARNOPT_RESULTS", raising=False)
    monkeypatch.setattr(provenance, "checkout", lambda: None)
    monkeypatch.setattr(records, "__file__", str(tmp_path / "records.py"))
    (tmp_path / "results").mkdir()
    assert records.results_root() == tmp_path / "results"


def test_whole_numbers_stay_whole_and_exact(tmp_path):
    found = records.load(save(tmp_path, metrics={"a": 2**53 + 1, "b": np.int64(3)})).metrics
    assert found == {"a": 2**53 + 1, "b": 3} and type(found["b"]) is int


def test_records_are_found_in_the_order_of_their_numbers(tmp_path):
    for name in ("paper-seed10", "paper-seed2", "quick-seed0"):
        save(tmp_path, name)
    found = records.find(CHAPTER, "paper-*", root=tmp_path)
    assert [record.name for record in found] == ["paper-seed2", "paper-seed10"]
    assert records.find("99_no_such_chapter", root=tmp_path) == []


def test_hidden_files_are_no_records(tmp_path):
    path = save(tmp_path)
    (path.parent / ".copy.json").write_text(path.read_text())
    assert records.paths(CHAPTER, root=tmp_path) == [path]


def test_saving_again_replaces_the_record_and_leaves_nothing_behind(tmp_path):
    save(tmp_path)
    path = save(tmp_path, metrics={"sum100_lstm": 1.0}, curves={"other": [1.0]})
    assert records.load(path).metrics == {"sum100_lstm": 1.0}
    assert sorted(os.listdir(path.parent)) == ["paper-seed0.json", "paper-seed0.npz"]


def test_the_same_curves_give_the_same_bytes(tmp_path):
    first = save(tmp_path, "first").with_suffix(".npz").read_bytes()
    assert save(tmp_path, "second").with_suffix(".npz").read_bytes() == first


@pytest.mark.parametrize("kill_at", [1, 2])
def test_a_run_killed_between_write_and_replace_leaves_no_half_record(
    tmp_path, monkeypatch, kill_at
):
    moves = []

    def killed(source, target):
        moves.append(target)
        if len(moves) == kill_at:
            raise KeyboardInterrupt
        os.rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("learnopt.atomic.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path)
    assert records.find(CHAPTER, root=tmp_path) == []
    assert records.load(save(tmp_path)).metrics["sum100_lstm"] == 72.5


def test_a_full_disk_is_an_error_and_keeps_the_old_record(tmp_path, monkeypatch):
    path = save(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("learnopt.atomic.os.fsync", full)
        with pytest.raises(RecordError, match="No space left on device.*free disk space"):
            save(tmp_path, metrics={"sum100_lstm": 0.0})
    assert records.load(path).metrics["sum100_lstm"] == 72.5
    assert len(os.listdir(path.parent)) == 2


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "a\n", "x" * 101, "a\0", 3, None])
def test_a_name_that_could_leave_the_folder_is_refused(tmp_path, name):
    with pytest.raises(RecordError, match="is not allowed"):
        save(tmp_path, name)
    with pytest.raises(RecordError, match="is not allowed"):
        records.find(name, root=tmp_path)


@pytest.mark.parametrize("pattern", ["../*", "*/x", "", None])
def test_a_pattern_that_could_leave_the_folder_is_refused(tmp_path, pattern):
    with pytest.raises(RecordError, match="pattern"):
        records.find(CHAPTER, pattern, root=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": {"a": "72"}}, "metric 'a'"),
        ({"metrics": {"a": [1.0, 2.0]}}, "metric 'a'"),
        ({"metrics": {"a": torch.ones(2)}}, "metric 'a'"),
        ({"metrics": {"a/b": 1.0}}, "'a/b'"),
        ({"metrics": {"a": 1j}}, "metric 'a'"),
        ({"parameters": {"lr": math.nan}}, "parameters"),
        ({"parameters": {"lr": torch.ones(1)}}, "parameters"),
        ({"curves": {"../a": [1.0]}}, "'../a'"),
        ({"curves": {"a": ["x"]}}, "curve 'a'"),
        ({"curves": {"a": [[1.0], [1.0, 2.0]]}}, "curve 'a'"),
        ({"curves": {"a": torch.ones(2) * 1j}}, "curve 'a'"),
        ({"curves": {"a": np.array([object()])}}, "curve 'a'"),
        ({"curves": {"a": np.random.default_rng(0).normal(size=400_000)}}, "npz.*store fewer"),
        ({"curves": {"a": np.zeros(9_000_000)}}, "store fewer"),
        ({"parameters": {"text": "x" * 1_100_000}}, "json"),
        ({"preset": 3}, "'preset'"),
    ],
)
def test_what_is_no_record_is_refused_before_anything_is_written(tmp_path, changes, message):
    with pytest.raises(RecordError, match=message):
        save(tmp_path, **changes)
    assert not list(tmp_path.rglob("*.*"))


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (lambda raw: raw.pop("metrics"), "'metrics' is missing"),
        (lambda raw: raw["provenance"].pop("seconds"), "'provenance.seconds' is missing"),
        (lambda raw: raw.update(extra=1), "'extra' is not known"),
        (lambda raw: raw.update(metrics=[]), "'metrics' must be dict"),
        (lambda raw: raw.update(provenance=None), "'provenance' is not known"),
        (lambda raw: raw.update(format=2), "'format'"),
        (lambda raw: raw.update(name="paper-seed1"), "'name'"),
        (lambda raw: raw.update(chapter="04_other"), "'chapter'"),
        (lambda raw: raw["provenance"].update(content=[]), "'provenance.content' must be dict"),
        (lambda raw: raw["provenance"]["versions"].pop("torch"), "must name torch's"),
        (lambda raw: raw["metrics"].update({"a b": 1.0}), "'a b'"),
        (lambda raw: raw.update(preset="\ud800"), "not the JSON of a record"),
        (lambda raw: raw["metrics"].update(a="seventy"), "'metrics.a'"),
        (lambda raw: raw["metrics"].update(a=True), "'metrics.a'"),
        (lambda raw: raw["metrics"].update(a=[]), "'metrics.a'"),
        (lambda raw: raw["metrics"].update(a=10**400), "'metrics.a'"),
        (lambda raw: raw["provenance"].update(seed=0.5), "'provenance.seed' must be int"),
        (lambda raw: raw["curves"].update(sha256="0" * 64), "'curves.sha256'"),
        (lambda raw: raw["curves"].update(names=["other"]), "not the float32 arrays"),
    ],
)
def test_a_changed_field_is_named(tmp_path, change, field):
    path = save(tmp_path)
    rewrite(path, change)
    with pytest.raises(RecordError, match=field) as caught:
        records.load(path)
    assert "paper-seed0" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"a": NaN}', "\xff", "[" * 99_999])
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    path = save(tmp_path)
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(RecordError, match="paper-seed0.json.*(restore|delete)"):
        records.load(path)


def test_a_number_too_large_for_a_float_is_refused_and_not_read_as_infinity(tmp_path):
    path = save(tmp_path)
    path.write_text(path.read_text().replace("72.5", "1e999"))
    with pytest.raises(RecordError, match="1e999 is not JSON"):
        records.load(path)


def test_a_record_too_large_to_be_one_is_not_read(tmp_path):
    path = save(tmp_path)
    path.write_text(path.read_text() + " " * 1_000_000)
    with pytest.raises(RecordError, match="larger than 1000000 bytes"):
        records.load(path)


def test_a_truncated_or_missing_curve_file_is_refused(tmp_path):
    path = save(tmp_path)
    npz = path.with_suffix(".npz")
    npz.write_bytes(npz.read_bytes()[:-5])
    with pytest.raises(RecordError, match="sha256.*restore it with git"):
        records.load(path)
    npz.unlink()
    with pytest.raises(RecordError, match="npz: cannot be read"):
        records.load(path)
    with pytest.raises(RecordError, match="cannot be read"):
        records.load(tmp_path / "no_such.json")


def test_pickled_curves_are_refused_and_not_run(tmp_path):
    path = save(tmp_path)
    npz = path.with_suffix(".npz")
    np.savez(npz, loss=np.array([Trap(tmp_path / "ran")], dtype=object))
    sha = records.hashlib.sha256(npz.read_bytes()).hexdigest()
    rewrite(path, lambda raw: raw["curves"].update(sha256=sha))
    with pytest.raises(RecordError, match="not a file of curves"):
        records.load(path)
    assert not (tmp_path / "ran").exists()


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)
