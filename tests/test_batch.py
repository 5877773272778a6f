"""Batch runs: parallel, in spite of failures, never twice, and on from where they were killed.

The chapters are tiny. They meet each other, and the test, through files in the folder $MEETING.
Each test that starts kernels runs on a copy of lib/, so that nobody edits the library under it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import chapter_maker
import nbformat
import psutil
import pytest

from booktools import batch, collect, execute, lock, plan, progress, rounds
from booktools.chapters import InputError
from learnopt import records

LIB = Path(__file__).parents[1] / "lib"
PATIENCE_SECONDS = 600  # the machine may be busy

MEET = """\
import os, time
from pathlib import Path
run, meeting = Path(os.environ["LEARNOPT_RUN_DIR"]), Path(os.environ["MEETING"])
with open(run / "starts", "a") as file:
    print("start", file=file)
def wait_for(name):
    deadline = time.monotonic() + 600
    while not (meeting / name).exists():
        assert time.monotonic() < deadline, f"{name} did not come"
        time.sleep(0.02)"""


@pytest.fixture
def book(tmp_path, monkeypatch):
    """A folder with notebooks/, its own copy of the library, and a meeting place for chapters."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(LIB, "lib", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    (tmp_path / "meeting").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "lib"))
    monkeypatch.setenv("MEETING", str(tmp_path / "meeting"))
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # of the shell; a run gets one
    return tmp_path


def command(*arguments):
    return [sys.executable, "-m", "booktools.batch", *map(str, arguments)]


def run(*arguments):
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=900)


def seed_folder(book, name, seed, preset="quick"):
    return book / "runs" / preset / name / f"seed{seed}"


def starts(folder):
    return len((folder / "starts").read_text().splitlines())


def errors(path):
    cells = nbformat.read(path, as_version=4).cells
    return [o.ename for cell in cells for o in cell.get("outputs", []) if o.output_type == "error"]


# ---- with kernels


def test_runs_go_in_parallel_and_failures_are_kept_while_the_rest_goes_on(book):
    # Seeds 0 and 1 each wait for the other, so they finish only if they run at the same time.
    meet = MEET + '\nif seed < 2:\n    (meeting / f"{seed}").touch(); wait_for(f"{1 - seed}")'
    stop = 'assert seed != 2, "seed 2 is bad"\nif seed == 3:\n    os._exit(1)'
    told = "print(lr, os.environ['OMP_NUM_THREADS'], preset)"
    chapter_maker.write(book / "notebooks", "01_meet", meet, stop, told)
    arguments = ["--seeds", "0 1 2 3", "--jobs", 2, "-p", "lr", "1e-3"]

    first = run(*arguments)
    second = run("--seeds", "0 1", "-p", "lr", "1e-3")

    assert first.returncode == 1
    assert "4 runs: 0 finished before, 4 to run" in first.stdout
    assert "FAILED 01_meet quick seed 2: In [4]: AssertionError: seed 2 is bad" in first.stdout
    assert "FAILED 01_meet quick seed 3: DeadKernelError" in first.stdout
    assert "2 of 4 runs are finished" in first.stdout
    assert "2/4 finished, 0 running, 2 failed" in first.stderr
    for seed in (0, 1):
        folder = seed_folder(book, "01_meet", seed)
        done = json.loads((folder / "done.json").read_text())
        assert done["seconds"] > 0 and done["parameters"]["seed"] == seed
        executed = nbformat.read(folder / "01_meet.ipynb", as_version=4)
        assert executed.cells[-1].outputs[0].text == "0.001 1 quick\n"
        assert starts(folder) == 1  # also after the second command
    assert errors(seed_folder(book, "01_meet", 2) / "01_meet.ipynb") == ["AssertionError"]
    assert not (seed_folder(book, "01_meet", 2) / "done.json").exists()
    assert second.returncode == 0 and "2 finished before, 0 to run" in second.stdout


# The first run goes through; the second waits half way, to be killed; then the third.
STEPS = """\
checkpoint = run / "checkpoint"
first = int(checkpoint.read_text()) if checkpoint.exists() else 0
number = len(list(meeting.glob("ended *")))
for step in range(first, 4):
    if first == 0 and step == 2 and number > 0:
        (meeting / f"pids {number}").write_text(f"{os.getpid()} {os.getppid()}")
        wait_for("never")
    with open(run / "steps", "a") as file:
        print(step, file=file)
    (run / "new").write_text(f"{step + 1}"); os.replace(run / "new", checkpoint)
(meeting / f"ended {seed}").touch()"""


def kill_batch(process):
    process.kill()


def kill_all(process):
    """As when the machine goes down: every process at the same moment."""
    family = psutil.Process(process.pid).children(recursive=True)
    for member in (psutil.Process(process.pid), *family):
        member.kill()


def is_alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition, what):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def killed(book, arguments, number, kill):
    """Start a batch, kill it when its run of that number is half way, see that nothing lives on."""
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    mark = book / "meeting" / f"pids {number}"
    try:
        wait_until(lambda: mark.exists() and mark.read_text(), f"run {number} never got half way")
    except AssertionError:
        process.kill()  # and with it all that it has started: see booktools.guard
        raise
    pids = {int(pid) for pid in mark.read_text().split()}
    family = {p.pid for p in psutil.Process(process.pid).children(recursive=True)}
    assert pids < family and len(family) >= 4  # guard, engine, job, kernel
    kill(process)
    assert process.wait() == -signal.SIGKILL
    wait_until(lambda: not any(map(is_alive, family)), "a process outlived the batch")


def test_a_killed_batch_goes_on_and_nothing_is_lost_or_repeated(book):
    chapter_maker.write(book / "notebooks", "01_steps", MEET, STEPS)
    arguments = ["--seeds", "0 1 2", "--jobs", 1]
    folders = [seed_folder(book, "01_steps", seed) for seed in range(3)]

    killed(book, arguments, 1, kill_batch)
    assert sum((folder / "done.json").exists() for folder in folders) == 1
    killed(book, arguments, 2, kill_all)
    assert sum((folder / "done.json").exists() for folder in folders) == 2
    result = run(*arguments)

    assert result.returncode == 0, result.stdout
    assert "2 finished before, 1 to run" in result.stdout
    assert sorted(map(starts, folders)) == [1, 2, 2]
    for folder in folders:
        assert (folder / "steps").read_text().split() == ["0", "1", "2", "3"]
        assert errors(folder / "01_steps.ipynb") == []
        done = json.loads((folder / "done.json").read_text())
        assert done["attempts"] == starts(folder)
        assert (done["earlier_seconds"] > 0) == (starts(folder) > 1)


# ---- refused before anything runs


BAD_INPUT = [
    (["--chapters", "07"], "'07' is no chapter of notebooks: 01_small, 02_other"),
    (["--chapters", "../01_small"], "'../01_small' is no chapter"),
    (["--preset", "papre"], "01_small.ipynb: has no preset 'papre'; it has: quick, paper, smoke"),
    (["--preset", "paper"], "01_small.paper.yaml: unknown parameter 'lrr'; allowed: seed, n_seeds"),
    (["--preset", "smoke"], "01_small.smoke.yaml: lr must be float, not '1e-3' (str); YAML"),
    (["-p", "lrr", "1"], "-p: unknown parameter 'lrr'; allowed: seed, n_seeds, device, preset, lr"),
    (["-p", "n_steps", "1.5"], "-p: n_steps must be int, not '1.5' (str)"),
    (["-p", "lr", "nan"], "-p: lr must be finite, not nan"),
    (["-p", "seed", "3"], "-p seed: is set by --seeds"),
    (["-p", "preset", "paper"], "-p preset: is set by --preset"),
    (["--seeds", "0 -1"], "--seeds '-1': must be a whole number, 0 to 4294967295"),
    (["--seeds", "0 1.0"], "--seeds '1.0': must be a whole number"),
    (["--seeds", "9" * 5000], "must be a whole number"),
    (["--seeds", "0" * 20 + "9" * 13], "must be a whole number"),
    (["--seeds", " "], "--seeds: is empty"),
    (["--jobs", "0"], "--jobs 0: must be 1 or more"),
    (["--notebooks", "nowhere"], "nowhere: holds no chapter NN_name.ipynb"),
    (["--chapters", "02"], "02_other.ipynb: the parameters cell must hold 'seed: int'"),
    (["--jobs", "two"], "argument --jobs: invalid int value: 'two'"),
    (["--job-count", "2"], "unrecognized arguments: --job-count 2"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD_INPUT, ids=[" ".join(a)[:30] for a, _ in BAD_INPUT]
)
def test_bad_input_is_refused_before_anything_runs(
    tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    chapter_maker.write(tmp_path / "notebooks", "01_small", "1 / 0")
    chapter_maker.write(tmp_path / "notebooks", "02_other", parameters="n: int = 1")
    chapter_maker.write_preset(tmp_path / "notebooks", "01_small", "paper", "preset: paper\nlrr: 1")
    chapter_maker.write_preset(
        tmp_path / "notebooks", "01_small", "smoke", "preset: smoke\nlr: 1e-3"
    )
    if "--chapters" not in arguments:
        arguments = ["--chapters", "01", *arguments]

    try:
        code = batch.main(arguments)
    except SystemExit as stop:  # argparse's way
        code = stop.code

    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_everything_that_is_wrong_is_said_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    chapter_maker.write(tmp_path / "notebooks", "01_small")
    assert batch.main(["--seeds", "x", "--jobs", "-1", "-p", "lr", "?", "-p", "a", "b"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 4


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "", 3.5])
def test_a_device_that_is_not_here_is_refused_before_the_chapter_starts(name):
    execute.check_device("cpu")
    with pytest.raises(InputError, match="device must be one that torch can use here, not"):
        execute.check_device(name)


def test_the_seconds_of_earlier_attempts_are_added_up(tmp_path):
    for n, hours in enumerate([3, 2, 1]):  # how far back an attempt began; it worked for 600 s
        mark = plan.begin(tmp_path, {}, {"library": "x"})
        assert (mark["attempts"], mark["earlier_seconds"]) == (n + 1, pytest.approx(600 * n))
        begun = time.time() - 3600 * hours
        os.utime(tmp_path / plan.STARTED, (begun, begun))
        (tmp_path / "checkpoint").touch()
        os.utime(tmp_path / "checkpoint", (begun + 600, begun + 600))
    plan.write_json(tmp_path / plan.STARTED, {"fingerprint": 1, "earlier_seconds": 10**400})
    assert plan.earlier_seconds(tmp_path) == 0


def test_a_second_batch_in_the_same_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "LOCK_SECONDS", 0.2)
    with batch.only_batch(tmp_path / "runs"):
        with pytest.raises(InputError, match="runs: another batch is running there"):
            with batch.only_batch(tmp_path / "runs"):
                pass
    with batch.only_batch(tmp_path / "runs"):  # and free again afterwards
        pass


# ---- what is run again, with an engine that only takes notes


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """The seeds that the engine was given, batch by batch; each run is marked as finished."""
    given = []

    def finish(ready, runs, arguments, options, descriptor):
        given.append([run.seed for run in ready])
        for run in ready:
            fingerprint = plan.fingerprint(run.notebook, run.parameters, run.need)
            plan.begin(run.folder, plan.read_json(run.folder / plan.JOB), fingerprint)
            done = run.job() | {"fingerprint": fingerprint, "seconds": 7.0}
            plan.write_json(run.folder / plan.DONE, done)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rounds, "engine", finish)
    chapter_maker.write(tmp_path / "notebooks", "01_small", "x = 1", "y = 2")
    return given


def test_only_what_is_not_finished_is_run(engine):
    assert batch.main(["--seeds", "0 1"]) == 0
    assert batch.main(["--seeds", "0 1 2"]) == 0
    assert batch.main(["--seeds", "0 1 2"]) == 0
    assert engine == [[0, 1], [2]]


def test_other_parameters_make_a_result_stale_and_keep_the_old_one(engine, capsys):
    batch.main([])
    folder = Path("runs/quick/01_small/seed0")
    (folder / "checkpoint").write_text("of lr 0.1")
    capsys.readouterr()

    batch.main(["--dry-run", "-p", "lr", "0.5"])
    foreseen = capsys.readouterr().out
    batch.main(["-p", "lr", "0.5"])

    assert foreseen.splitlines() == [
        "run  01_small quick seed 0: stale, parameters changed: lr 0.1 -> 0.5",
        "1 runs: 1 to run, about 7 s to go",
    ]
    assert engine == [[0], [0]]
    assert not (folder / "checkpoint").exists()
    assert (folder.with_name("seed0.old1") / "checkpoint").read_text() == "of lr 0.1"


def test_a_dry_run_lists_the_runs_with_reasons_and_writes_nothing(engine, capsys):
    batch.main(["--seeds", "0 1"])
    Path("runs/quick/01_small/seed1/done.json").unlink()
    before = sorted(Path("runs").rglob("*"))
    capsys.readouterr()

    assert batch.main(["--seeds", "0 1 2", "--dry-run"]) == 0

    assert capsys.readouterr().out.splitlines() == [
        "keep 01_small quick seed 0: finished, 7 s",
        "run  01_small quick seed 1: interrupted, goes on where it was stopped",
        "run  01_small quick seed 2: new, never run",
        "3 runs: 2 to run, about 14 s to go",
    ]
    assert sorted(Path("runs").rglob("*")) == before


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"fingerprint": 3}', '{"seconds": 1}'])
def test_a_damaged_mark_is_no_mark(engine, damage):
    batch.main([])
    Path("runs/quick/01_small/seed0/done.json").write_text(damage)
    assert batch.main([]) == 0
    assert engine == [[0], [0]]


def test_code_makes_a_result_stale_and_prose_does_not(tmp_path, engine):
    path = tmp_path / "notebooks" / "01_small.ipynb"

    def edited(change):
        notebook = nbformat.read(path, as_version=4)
        change(notebook.cells)
        nbformat.write(notebook, path)
        return plan.fingerprint(path, {"lr": 0.1})

    before = edited(lambda cells: None)
    prose = [
        edited(lambda cells: cells.append(nbformat.v4.new_markdown_cell("A better sentence."))),
        edited(lambda cells: cells[1].update(source="x  =  1  # why")),
        edited(lambda cells: cells[1].update(execution_count=3)),
        edited(lambda cells: cells[0].update(source="lr: float = 0.2")),  # its values are hashed
    ]
    assert prose == [before] * 4
    assert edited(lambda cells: cells[1].update(source="x = 2"))["notebook"] != before["notebook"]
    assert plan.fingerprint(path, {"lr": 0.2})["parameters"] != before["parameters"]


@pytest.fixture
def half_done(engine):
    """A run that was stopped half way, with a checkpoint, before its parameters changed."""
    batch.main([])
    folder = Path("runs/quick/01_small/seed0")
    (folder / "done.json").unlink()
    (folder / "seed0.checkpoint").write_text("of lr 0.1")
    engine.clear()
    return folder


def test_checkpoints_of_other_parameters_are_held_until_someone_decides(engine, half_done, capsys):
    assert batch.main(["-p", "lr", "0.5"]) == 1
    said = capsys.readouterr().out
    assert "HELD 01_small quick seed 0: parameters changed: lr 0.1 -> 0.5; it has 1 check" in said
    assert "--stale restart keeps the old folder and starts anew" in said
    assert engine == [] and (half_done / "seed0.checkpoint").exists()

    assert batch.main(["-p", "lr", "0.5", "--stale", "restart"]) == 0
    assert engine == [[0]] and not (half_done / "seed0.checkpoint").exists()
    assert (half_done.with_name("seed0.old1") / "seed0.checkpoint").exists()


def test_a_held_run_can_go_on_and_its_record_will_say_so(engine, half_done):
    assert batch.main(["-p", "lr", "0.5", "--stale", "go-on"]) == 0
    assert engine == [[0]] and (half_done / "seed0.checkpoint").exists()
    assert plan.read_json(half_done / plan.STARTED)["mixed"] is True


def test_a_run_that_went_on_and_failed_is_held_again(engine, half_done, capsys):
    batch.main(["-p", "lr", "0.5", "--stale", "go-on"])
    (half_done / plan.DONE).unlink()
    plan.write_json(half_done / plan.FAILED, {"error": "CheckpointError: of another run"})
    engine.clear()
    assert batch.main(["-p", "lr", "0.5"]) == 1
    assert "HELD 01_small quick seed 0: failed before: Check" in capsys.readouterr().out
    assert engine == []
    assert batch.main(["-p", "lr", "0.5", "--stale", "restart"]) == 0
    assert engine == [[0]] and not (half_done / "seed0.checkpoint").exists()


@pytest.mark.parametrize("damage", [None, "", '{"fingerpr'])
def test_files_of_unknown_code_are_held_until_someone_decides(engine, half_done, capsys, damage):
    mark = half_done / plan.STARTED
    mark.unlink() if damage is None else mark.write_text(damage)
    assert batch.main([]) == 1
    assert "HELD 01_small quick seed 0: started.json is missing or d" in capsys.readouterr().out
    assert engine == [] and (half_done / "seed0.checkpoint").exists()

    batch.main(["--dry-run"])
    assert capsys.readouterr().out.splitlines()[-1] == "1 runs: 0 to run"
    batch.main(["--dry-run", "--stale", "go-on"])
    assert "1 runs: 1 to run" in capsys.readouterr().out
    assert batch.main(["--stale", "go-on"]) == 0
    assert plan.read_json(mark)["mixed"] is True


def test_what_a_run_was_refused_for_is_said(engine, capsys):
    folder = Path("runs/quick/01_small/seed0")
    plan.write_json(folder / plan.FAILED, {"error": "device must be cpu"})
    assert batch.main(["--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "run  01_small quick seed 0: failed, failed before: device must be cpu" in said


def test_a_run_that_was_stopped_goes_on_when_only_prose_has_changed(engine, half_done):
    path = Path("notebooks/01_small.ipynb")
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = "x = 1  # a better comment"
    nbformat.write(notebook, path)
    assert batch.main([]) == 0
    assert engine == [[0]] and (half_done / "seed0.checkpoint").exists()
    assert not half_done.with_name("seed0.old1").exists()


def test_a_run_does_not_go_on_with_checkpoints_of_other_code(tmp_path):
    plan.begin(tmp_path, {}, {"library": "old"})
    with pytest.raises(InputError, match="the code changed since the batch was planned"):
        plan.begin(tmp_path, {}, {"library": "new"})
    plan.begin(tmp_path, {}, {"library": "old"})


def test_a_stale_run_that_is_still_going_on_somewhere_is_left_alone(engine, capsys):
    batch.main([])
    folder = Path("runs/quick/01_small/seed0")
    with lock.held(folder / plan.LOCK):
        assert batch.main(["-p", "lr", "0.5"]) == 2
    assert "a job of an earlier batch still runs there" in capsys.readouterr().err
    assert (folder / "done.json").exists() and engine == [[0]]


# ---- progress


def test_the_time_to_go_follows_from_earlier_runs_of_the_chapter(tmp_path):
    notebook = chapter_maker.write(tmp_path, "01_small")
    runs = [plan.make(tmp_path / "runs", notebook, "quick", seed, {}) for seed in range(5)]
    counts = progress.Counts(finished=frozenset({0}), failed=frozenset({1}), running={2: 15.0})

    assert progress.line(runs, counts, 2).endswith("1 running, 1 failed, no estimate yet")
    for seed, seconds in ((0, 10.0), (1, 40.0), (2, 20.0)):
        plan.write_json(runs[seed].folder / plan.DONE, {"seconds": seconds})

    # The median is 20 s: run 2 needs 5 s more, runs 3 and 4 need 20 s each, on two jobs.
    assert progress.remaining_seconds(runs, counts, 2) == (pytest.approx(22.5), 0)
    assert progress.line(runs, counts, 2).startswith(
        "1/5 finished, 1 running, 1 failed, about 22 s"
    )


def test_a_run_that_takes_longer_than_expected_is_said_to(tmp_path):
    notebook = chapter_maker.write(tmp_path, "01_small")
    runs = [plan.make(tmp_path / "runs", notebook, "quick", seed, {}) for seed in range(2)]
    plan.write_json(runs[0].folder / plan.DONE, {"seconds": 20.0})
    counts = progress.Counts(finished=frozenset({0}), failed=frozenset(), running={1: 50.0})
    assert progress.line(runs, counts, 1).endswith("failed, 30 s longer than expected")


def test_seconds_that_are_no_number_are_not_counted(tmp_path):
    notebook = chapter_maker.write(tmp_path, "01_small")
    runs = [plan.make(tmp_path / "runs", notebook, "quick", seed, {}) for seed in range(3)]
    for run, seconds in zip(runs, (20.0, "x", None), strict=True):
        plan.write_json(run.folder / plan.DONE, {"seconds": seconds})
    assert progress.expected_seconds(runs[0]) == 20.0


# ---- records


def finished_run(root, name, seed, **record):
    notebook = root / "notebooks" / f"{name}.ipynb"
    run = plan.Run(notebook, "paper", seed, root / "runs" / f"{name}-{seed}", {}, {})
    path = records.save(
        record.get("chapter", name), record.get("record", f"paper-seed{seed}"),
        parameters={"seed": seed}, metrics={"loss": 0.5}, curves={"loss": [1.0, 0.5]},
        seed=seed, device="cpu", seconds=1.0, preset="paper", root=run.folder / "records",
    )  # fmt: skip
    return run, path


def test_records_of_finished_runs_are_copied_whole(tmp_path):
    runs = [finished_run(tmp_path, "01_small", seed)[0] for seed in (0, 1)]

    paths = collect.collect(runs, tmp_path / "results")

    assert [path.name for path in paths] == ["paper-seed0.json", "paper-seed1.json"]
    assert records.load(paths[1]).parameters == {"seed": 1}
    assert len(list((tmp_path / "results" / "01_small").iterdir())) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.with_suffix(".npz").write_bytes(b"cut"), "does not fit the .npz"),
        (lambda path: path.write_text(path.read_text()[:100]), "not the JSON of a record"),
        (lambda path: path.rename(path.with_name("other.json")), "other"),
    ],
)
def test_a_damaged_record_is_refused_and_nothing_is_copied(tmp_path, spoil, message):
    good, _ = finished_run(tmp_path, "01_small", 0)
    bad, path = finished_run(tmp_path, "01_small", 1)
    spoil(path)
    with pytest.raises(InputError, match=message):
        collect.collect([good, bad], tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_two_runs_must_not_write_the_same_record(tmp_path):
    runs = [finished_run(tmp_path, "01_small", seed, record="paper")[0] for seed in (0, 1)]
    with pytest.raises(InputError, match="paper.json has the same name; put the seed into it"):
        collect.collect(runs, tmp_path / "results")


def test_a_chapter_must_not_write_the_records_of_another(tmp_path):
    run, _ = finished_run(tmp_path, "01_small", 0, chapter="02_other")
    with pytest.raises(InputError, match="is a record of 02_other, not of 01_small paper seed 0"):
        collect.collect([run], tmp_path / "results")
