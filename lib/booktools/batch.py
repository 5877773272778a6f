"""Run chapters over seeds at a preset, in parallel, and go on where a former batch stopped.

    python -m booktools.batch --chapters "03" --preset paper --seeds "0 1 2" --jobs 2

Everything that was asked for is checked before anything runs. Snakemake starts the runs; what is
after a bare `--` is handed to it (a cluster profile). A run that is finished, with the present
code and parameters, is not run again. See plan.py for what a run leaves behind.

Exit code: 0 if every run is finished, 1 if one is not, 2 if something was asked for that cannot be.
"""

import argparse
import importlib.util
import subprocess
import sys
from collections import Counter
from pathlib import Path

from booktools import chapters, lock, plan, presets, progress
from booktools.chapters import InputError

MAX_SEED = 2**32 - 1  # the largest that numpy takes
SET_BY_BATCH = {"seed": "--seeds", "preset": "--preset"}
LOCK_SECONDS = 10  # a killed batch needs less to be gone


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    arguments = parser().parse_args(argv[:cut])
    try:
        runs = planned(arguments)
        if arguments.dry_run:
            return show(runs)
        with only_batch(arguments.runs) as descriptor:
            run_all(runs, arguments, argv[cut + 1 :], descriptor)
        plan.code_hash.cache_clear()  # the library may have been edited meanwhile
        finished = [run for run in runs if plan.state(run).name == "finished"]
        report(runs, arguments.runs)
        if arguments.record:
            from booktools import collect  # imports torch

            for path in collect.collect(finished, arguments.results):
                print(f"recorded {path}")
    except (InputError, OSError) as error:
        print(f"batch: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("batch: stopped; the same command goes on", file=sys.stderr)
        return 130
    return 0 if len(finished) == len(runs) else 1


def parser():
    result = argparse.ArgumentParser(
        prog="python -m booktools.batch",
        description=__doc__.partition("\n")[0],
        epilog="Options after a bare -- are Snakemake's, e.g. -- --executor slurm.",
    )
    result.add_argument("--chapters", default="", help='e.g. "03" or "01 03"; all by default')
    result.add_argument("--preset", default=presets.QUICK, help="quick, smoke, paper, ...")
    result.add_argument("--seeds", default="0", help='e.g. "0 1 2"')
    result.add_argument("--jobs", default=1, type=int, help="runs at the same time")
    result.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="values",
        help="set a parameter, for every chapter chosen; may be repeated",
    )  # fmt: skip
    result.add_argument("--dry-run", action="store_true", help="list the runs, with reasons; end")
    result.add_argument("--record", action="store_true", help="copy finished records to --results")
    result.add_argument("--notebooks", type=Path, default=Path("notebooks"), metavar="FOLDER")
    result.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER")
    result.add_argument("--results", type=Path, metavar="FOLDER", help="default: data/results")
    return result


def planned(arguments):
    """The runs asked for. Raises InputError with one line per thing that is wrong."""
    problems, runs = [], []
    seeds = _attempt(problems, _seeds, arguments.seeds) or []
    if arguments.jobs < 1:
        problems.append(f"--jobs {arguments.jobs}: must be 1 or more")
    if importlib.util.find_spec("snakemake") is None:
        problems.append("Snakemake is not installed: pip install -e '.[batch]'")
    picked = _attempt(problems, chapters.pick, arguments.notebooks, arguments.chapters.split())
    for notebook in picked or []:
        values = _attempt(problems, _values, notebook, arguments.preset, arguments.values)
        for seed in seeds if values is not None else []:
            runs.append(plan.make(arguments.runs, notebook, arguments.preset, seed, values))
    if problems:
        raise InputError("\n".join(problems))
    return runs


def _attempt(problems, function, *arguments):
    try:
        return function(*arguments)
    except InputError as error:
        problems += str(error).splitlines()


def _seeds(text):
    seeds = text.split()
    for seed in seeds:
        if not (seed.isascii() and seed.isdigit() and int(seed[:20]) <= MAX_SEED):
            raise InputError(f"--seeds {seed!r:.40}: must be a whole number, 0 to {MAX_SEED}")
    if not seeds:
        raise InputError("--seeds: is empty; give at least one, e.g. --seeds 0")
    return sorted({int(seed) for seed in seeds})


def _values(notebook, preset, overrides):
    parameters = chapters.parameters(notebook)
    problems = [
        f"{notebook}: the parameters cell must hold '{name}: {kind}'"
        for name, kind in (("seed", "int"), ("preset", "str"))
        if name not in parameters or parameters[name].kind != kind
    ]
    values = _attempt(problems, presets.load, notebook, preset, parameters) or {}
    for name, text in overrides:
        if name in SET_BY_BATCH:
            problems.append(f"-p {name}: is set by {SET_BY_BATCH[name]}")
        else:
            values[name] = _attempt(problems, presets.parse, name, text, parameters)
    if problems:
        raise InputError("\n".join(f"{notebook.stem}: {problem}" for problem in problems))
    return values


def show(runs):
    for run in runs:
        name, reason = plan.state(run)
        print(f"{'keep' if name == 'finished' else 'run ':4} {run}: {name}, {reason}")
    return 0


def only_batch(folder):
    """A context in which no other batch uses this folder of runs."""
    folder.mkdir(parents=True, exist_ok=True)
    return lock.held(folder / "lock", f"{folder}: another batch is running there", LOCK_SECONDS)


def run_all(runs, arguments, engine_options, descriptor):
    """Run what is not finished, or not by the present code with the present parameters."""
    states = [plan.state(run) for run in runs]
    todo = [run for run, state in zip(runs, states, strict=True) if state.name != "finished"]
    for run, state in zip(runs, states, strict=True):
        if state.name == "stale":
            print(f"{run}: {state.reason}; the old run is kept in {plan.set_aside(run.folder)}")
    for run in todo:
        for name in (plan.DONE, plan.FAILED):
            (run.folder / name).unlink(missing_ok=True)
        plan.write_json(run.folder / plan.JOB, run.job())
    print(f"{len(runs)} runs: {len(runs) - len(todo)} finished before, {len(todo)} to run")
    if todo:
        engine(todo, arguments, engine_options, descriptor)


def engine(runs, arguments, options, descriptor):
    """Let Snakemake run the jobs, under a guard that ends them when this process ends."""
    root = arguments.runs.resolve()
    targets = [str((run.folder / plan.DONE).relative_to(root)) for run in runs]
    plan.write_json(root / "engine.json", {"python": sys.executable, "targets": targets})
    snakefile = Path(__file__).with_name("Snakefile")
    # Results are written in one step, so the engine's own marks of unfinished files are not
    # needed, and a batch that was killed leaves no lock of the engine to be lifted by hand.
    command = [sys.executable, "-m", "booktools.guard", sys.executable, "-m", "snakemake",
               "--snakefile", snakefile, "--directory", root, "--configfile", root / "engine.json",
               "--jobs", arguments.jobs, "--keep-going", "--nolock", "--ignore-incomplete",
               "--rerun-triggers", "mtime", "--scheduler", "greedy", *options]  # fmt: skip
    with (
        open(root / "engine.log", "wb") as log,
        subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE, stdout=log, stderr=log,
            start_new_session=True, pass_fds=[descriptor],
        ) as guard,
    ):  # fmt: skip
        progress.watch(runs, arguments.jobs, lambda timeout: _has_ended(guard, timeout))


def _has_ended(process, timeout_seconds):
    try:
        process.wait(timeout_seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def report(runs, root):
    """Print every run that has no valid result, with the reason and where to look."""
    counts = Counter()
    for run in runs:
        name, reason = plan.state(run)
        counts[name] += 1
        if name == "failed":
            print(f"FAILED {run}: {reason}\n  {run.folder / run.notebook.name}")
        elif name == "stale":
            print(f"STALE {run}: {reason}; the same command runs it again")
        elif name == "interrupted":
            print(f"ENDED {run}: its process was ended from outside\n  {run.folder / 'run.log'}")
        elif name == "new":
            print(f"NOT STARTED {run}\n  {root / 'engine.log'}")
    print(f"{counts['finished']} of {len(runs)} runs are finished")


if __name__ == "__main__":
    sys.exit(main())
