"""Batches across machines: profiles, workers that share only a folder, order, and equal records."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import chapter_maker
import nbformat
import pytest
import torch
import yaml

from booktools import batch, lock, needs, plan, rounds
from booktools.chapters import InputError
from learnopt import lstm_optimizer, records

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"LEARNOPT_RESULTS": str(ROOT / "data" / "results")}
PATIENCE_SECONDS = 600  # the machine may be busy
PROFILES = ROOT / "lib" / "booktools" / "profiles"
CHAPTERS = ["10_smd_online", "11_ways_out"]  # seconds at smoke


def copy_checkout(target, notebooks):
    """A checkout with the library and these chapters, at a place of its own."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "lib", target / "lib", ignore=ignored)
    for name in notebooks:
        for file in (ROOT / "notebooks").rglob(f"{name}*"):
            copy = target / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    return target


def _own_library(checkout):
    return {"PYTHONPATH": str(checkout / "lib")} if (checkout / "lib").is_dir() else {}


def start(checkout, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "booktools.batch", *map(str, arguments)],
        cwd=checkout, env=os.environ | ENVIRONMENT | _own_library(checkout),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    try:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()  # and with it all that it has started: see booktools.guard
        raise AssertionError(process.communicate()) from None
    return process.returncode, out, err


# ---- workers that share only a folder


def test_two_workers_that_share_only_a_folder_do_every_run_once(tmp_path):
    checkouts = [copy_checkout(tmp_path / name, CHAPTERS) for name in ("here", "there")]
    runs = tmp_path / "shared"
    arguments = ["--preset", "smoke", "--seeds", "0", "--shared", "--runs", runs]

    ended = [finish(worker) for worker in [start(place, *arguments) for place in checkouts]]

    assert [code for code, _, _ in ended] == [0, 0], ended
    assert all("2 of 2 runs are finished" in out for _, out, _ in ended)
    folders = [runs / "smoke" / chapter / "seed0" for chapter in CHAPTERS]
    marks = [json.loads((folder / plan.STARTED).read_text()) for folder in folders]
    assert [mark["attempts"] for mark in marks] == [1, 1]
    places = {Path(mark["notebook"]).parents[1] for mark in marks}
    assert places == set(checkouts), "one of the workers found nothing to do"
    for folder in folders:
        names = [path.stem for path in (folder / "records").rglob("*.json")]
        assert names, folder
        for path in (folder / "records").rglob("*.json"):
            assert records.load(path).provenance["content"]["mixed"] is False


def test_a_batch_alone_and_batches_that_share_refuse_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "LOCK_SECONDS", 0.2)
    with batch.only_batch(tmp_path, shared=True), batch.only_batch(tmp_path, shared=True):
        with pytest.raises(InputError, match="another batch is running"):
            with batch.only_batch(tmp_path):
                pass


@pytest.fixture
def engine(tmp_path, monkeypatch):
    """The chapters and seeds given to an engine that marks each run as finished, or as failed."""
    given = []

    def finish(ready, runs, arguments, options, descriptor):
        given.append([f"{run.notebook.stem[:2]}/{run.seed}" for run in ready])
        for run in ready:
            fingerprint = plan.fingerprint(run.notebook, run.parameters, run.need)
            plan.begin(run.folder, run.job(), fingerprint)
            if (tmp_path / "fail").exists():
                plan.write_json(run.folder / plan.FAILED, {"error": "as it should"})
                continue
            (run.folder / "trained.npz").write_bytes(
                b"other" * (tmp_path / "another").exists() + b"same"
            )
            done = run.job() | {"fingerprint": fingerprint, "seconds": 7.0}
            plan.write_json(run.folder / plan.DONE, done)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(rounds, "engine", finish)
    monkeypatch.setattr(rounds, "ROUND_SECONDS", 0.01)
    return given


def test_a_worker_leaves_alone_what_another_one_has_in_hand(tmp_path, engine, monkeypatch):
    chapter_maker.write(tmp_path / "notebooks", "01_small", "x = 1")
    other = tmp_path / "runs" / "quick" / "01_small" / "seed1"
    other.mkdir(parents=True)
    with lock.held(other / plan.LOCK):
        times = iter(range(100))

        def wait(seconds):
            if next(times) == 2:
                raise KeyboardInterrupt

        monkeypatch.setattr(rounds.time, "sleep", wait)
        assert batch.main(["--seeds", "0 1 2", "--shared"]) == 130
    assert engine == [["01/0", "01/2"]]


def test_a_run_that_fails_is_tried_once_by_each_command(tmp_path, engine, capsys):
    chapter_maker.write(tmp_path / "notebooks", "01_small", "x = 1")
    (tmp_path / "fail").touch()
    assert batch.main(["--shared"]) == 1
    assert batch.main(["--shared"]) == 1
    assert engine == [["01/0"], ["01/0"]]
    capsys.readouterr()
    batch.main(["--dry-run"])
    said = capsys.readouterr().out
    assert "run  01_small quick seed 0: failed, failed before: as it should" in said


# ---- order


@pytest.fixture
def pair(tmp_path):
    """Chapter 02 takes what chapter 01 trains."""
    chapter_maker.write(tmp_path / "notebooks", "01_first", "x = 1")
    chapter_maker.write(tmp_path / "notebooks", "02_second", "y = 1")
    row = '{from: 01_first, file: trained.npz, as: "at-{lr}-seed{seed}.npz"}'
    (tmp_path / "notebooks" / needs.FILE).write_text(f"quick:\n  02_second: {row}\n")


def test_what_is_needed_is_said_and_a_new_one_ages_what_took_it(tmp_path, engine, pair, capsys):
    batch.main(["--dry-run", "--seeds", "0"])
    said = capsys.readouterr().out
    assert "02_second quick seed 0: waiting, for 01_first quick seed 0, which makes at-0.1" in said
    assert batch.main(["--seeds", "0"]) == 0
    assert engine == [["01/0", "02/0"]]
    first = tmp_path / "runs" / "quick" / "01_first" / "seed0"
    (first / "trained.npz").write_bytes(b"another")
    capsys.readouterr()
    batch.main(["--dry-run", "--seeds", "0"])
    said = capsys.readouterr().out
    assert "02_second quick seed 0: stale, input changed: at-0.1-seed0.npz" in said
    (first / plan.DONE).unlink()  # and now it is not even finished
    batch.main(["--dry-run", "--seeds", "0"])
    assert "02_second quick seed 0: waiting, for 01_first" in capsys.readouterr().out


def test_a_run_whose_input_comes_out_the_same_is_not_run_again(tmp_path, engine, pair):
    assert batch.main(["--seeds", "0"]) == 0
    (tmp_path / "runs" / "quick" / "01_first" / "seed0" / plan.DONE).unlink()
    assert batch.main(["--seeds", "0"]) == 0
    assert engine == [["01/0", "02/0"], ["01/0"]]


def test_a_run_whose_input_comes_out_otherwise_is_run_by_the_same_command(tmp_path, engine, pair):
    assert batch.main(["--seeds", "0"]) == 0
    (tmp_path / "runs" / "quick" / "01_first" / "seed0" / plan.DONE).unlink()
    (tmp_path / "another").touch()
    assert batch.main(["--seeds", "0"]) == 0
    assert engine == [["01/0", "02/0"], ["01/0"], ["02/0"]]


def test_alone_a_run_waits_for_nothing(tmp_path, engine, pair):
    assert batch.main(["--chapters", "02", "--seeds", "0"]) == 0
    assert engine == [["02/0"]]


MAKE = """\
import os
from pathlib import Path
assert seed == 0, "only seed 0 learns"
Path(os.environ["LEARNOPT_RUN_DIR"], "trained.npz").write_text("by the first")"""
TAKE = """\
import os
from pathlib import Path
print(Path(os.environ["LEARNOPT_TRAINED"], f"at-{lr}-seed{seed}.npz").read_text())"""


def test_a_run_starts_after_the_one_that_it_needs_and_with_its_file(tmp_path, pair):
    chapter_maker.write(tmp_path / "notebooks", "01_first", MAKE)
    chapter_maker.write(tmp_path / "notebooks", "02_second", TAKE)
    code, out, err = finish(start(tmp_path, "--seeds", "0 1", "--jobs", 2))
    assert code == 1
    assert "FAILED 01_first quick seed 1: In [3]: AssertionError: only seed 0 learns" in out
    assert "NOT STARTED 02_second quick seed 1: for 01_first quick seed 1, which" in out
    assert "2 of 4 runs are finished" in out, out + err
    taken = nbformat.read(tmp_path / "runs/quick/02_second/seed0/02_second.ipynb", as_version=4)
    assert taken.cells[-1].outputs[0].text == "by the first\n"


def test_a_finished_run_without_the_file_that_is_needed_is_named(tmp_path):
    need = needs.Need(tmp_path / "01_first" / "seed0", "trained.npz", "mnist-seed0.npz")
    need.folder.mkdir(parents=True)
    assert needs.bring(need, plan.DONE, tmp_path / "run")  # not finished: what the library has
    (need.folder / plan.DONE).touch()
    with pytest.raises(InputError) as caught:
        needs.bring(need, plan.DONE, tmp_path / "run")
    assert str(need.folder / "trained.npz") in str(caught.value)


def test_the_library_loads_what_a_run_has_just_trained(tmp_path, monkeypatch):
    phi = lstm_optimizer.init_phi("log", torch.Generator().manual_seed(3))
    lstm_optimizer.save(tmp_path / "mnist-seed0.npz", phi, "log", 0.1, "this test")
    lstm_optimizer.save(tmp_path / "mnist-seed9.npz", phi, "log", 0.1, "this test")
    monkeypatch.setenv("LEARNOPT_TRAINED", str(tmp_path))
    assert {"mnist-seed0", "mnist-seed9", "digits-seed0"} <= set(lstm_optimizer.names())
    assert lstm_optimizer.load("mnist-seed0").about == "this test"
    assert lstm_optimizer.load("mnist-seed9").about == "this test"
    assert lstm_optimizer.load("digits-seed0").about != "this test"


def test_the_engine_is_told_what_comes_first_and_what_takes_a_gpu(tmp_path, engine, pair):
    arguments = batch.parser().parse_args(["--seeds", "0 1", "-p", "device", "cuda"])
    runs = batch.planned(arguments)
    told = rounds.configuration(runs, tmp_path / "runs", ".marks", arguments)
    assert told["after"] == {
        f"quick/02_second/seed{seed}": [f".marks/quick/01_first/seed{seed}"] for seed in (0, 1)
    }
    assert len(told["gpu"]) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quick: 3", "quick, its value: must be a mapping of from, file and as"),
        ("quick: {02_second: {from: 01_first}}", "02_second: must be a mapping of from, file and"),
        ("quick: {02_second: {from: 03_x, file: a, as: b}}", "from must be an earlier chapter"),
        ("quick: {02_second: {from: 01_first, file: ../a, as: b}}", "names, without a folder"),
        ("quick: {02_second: {from: 01_first, file: a, as: '{x}'}}", "02_second, as: KeyError"),
    ],
)
def test_a_faulty_table_of_needs_is_refused(tmp_path, engine, pair, capsys, text, message):
    (tmp_path / "notebooks" / needs.FILE).write_text(text)
    assert batch.main(["--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_the_needs_of_the_book_name_its_chapters_and_presets():
    for preset, rows in needs.read(ROOT / "notebooks").items():
        for chapter, row in rows.items():
            for name in (chapter, row["from"]):
                assert (ROOT / "notebooks" / "presets" / f"{name}.{preset}.yaml").is_file()


def test_without_seeds_a_batch_runs_those_that_the_claims_need(monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = batch.planned(batch.parser().parse_args(["--preset", "paper", "--chapters", "04 08"]))
    assert [(run.notebook.stem, run.seed) for run in runs] == [
        ("04_mnist", 0), ("04_mnist", 1), ("04_mnist", 2), ("08_noisy_quadratic", 0),
    ]  # fmt: skip


# ---- profiles


def test_the_slurm_profile_asks_for_gpus_where_a_run_uses_one(tmp_path, monkeypatch):
    pytest.importorskip("snakemake_executor_plugin_slurm")
    for name in ("01_first", "02_second"):
        chapter_maker.write(tmp_path / "notebooks", name, "x = 1")
    for device in ("cuda", "cpu"):
        options = ["-p", "device", device, "--runs", f"runs-{device}", "--jobs", 4]
        worker = start(tmp_path, *options, "--", "--profile", PROFILES / "slurm", "-n")
        _, out, _ = finish(worker)
        said = (tmp_path / f"runs-{device}" / "engine.log").read_text()
        assert "0 of 2 runs are finished" in out
        resources = re.findall(r"wildcards: .*\n +resources: (.*)", said)
        assert sum("runtime=720" in line for line in resources) == 2, said
        assert sum("gpu=1" in line for line in resources) == (2 if device == "cuda" else 0), said


def test_the_shared_profile_runs_and_the_order_holds_in_the_engine(tmp_path, pair):
    worker = start(tmp_path, "--jobs", 2, "--shared", "--", "--profile", PROFILES / "shared", "-n")
    _, out, _ = finish(worker)
    log = next((tmp_path / "runs").glob("engine.*.log")).read_text()
    assert "2 to run" in out
    assert re.search(r"input: quick/02_second/seed0/job.json, \.engine.*/quick/01_first/seed0", log)


def test_the_command_of_the_kubernetes_job_is_one_that_the_batch_takes():
    job = yaml.safe_load((PROFILES / "kubernetes.yaml").read_text())
    container = job["spec"]["template"]["spec"]["containers"][0]
    cut = container["args"].index("--")
    arguments = batch.parser().parse_args(container["args"][:cut])
    assert arguments.shared and str(arguments.runs).startswith("/shared/")
    option, profile = container["args"][cut + 1 :]
    assert option == "--profile" and (ROOT / profile / "config.yaml").is_file()
    [volume] = job["spec"]["template"]["spec"]["volumes"]
    assert container["volumeMounts"] == [{"name": volume["name"], "mountPath": "/shared"}]


# ---- equal records

TRAIN = """\
import os
from pathlib import Path
from learnopt import baselines, meta_train, records, tasks, unroll
task = tasks.quadratic(4)
settings = meta_train.Settings("log", 0.1, lr=0.01, seed=seed, n_trajectories=3)
validation = unroll.draw_runs(task, 2, 10, seed=seed, stream="validation")
run = meta_train.train(task, settings._replace(evaluate_every=1), validation)
records.save("01_train", f"quick-seed{seed}", parameters={"lr": lr}, seed=seed, device=device,
    metrics={"last": run.history[-1, 1].item()},
    curves={name.replace(".", "_"): leaf for name, leaf in run.phi.items()}, seconds=run.seconds,
    preset=preset, root=Path(os.environ["LEARNOPT_RUN_DIR"], "records"))"""


def told(path):
    """What a record says, but for where it comes from, and the bytes of its curves."""
    record = json.loads(path.read_text())
    provenance = record.pop("provenance")
    return record, path.with_suffix(".npz").read_bytes(), provenance["content"]["hashes"]


def test_the_same_seed_gives_the_same_record_twice_and_under_one_and_two_jobs(tmp_path):
    copy_checkout(tmp_path, [])
    chapter_maker.write(tmp_path / "notebooks", "01_train", TRAIN)
    found = []
    for jobs in (1, 2):
        options = ["--runs", f"runs{jobs}", "--results", f"results{jobs}", "--record"]
        code, out, err = finish(start(tmp_path, "--seeds", "0 1", "--jobs", jobs, *options))
        assert code == 0, out + err
        folder = tmp_path / f"results{jobs}" / "01_train"
        found.append([told(folder / f"quick-seed{seed}.json") for seed in (0, 1)])
        [packages] = (tmp_path / f"results{jobs}" / "versions").iterdir()
        record = records.load(folder / "quick-seed0.json")
        assert record.provenance["versions"]["lock"] == packages.stem
        assert re.search(r"^torch==", packages.read_text(), re.MULTILINE)
    assert found[0] == found[1]
    assert found[0][0][:2] != found[0][1][:2], "the seed changes nothing"
