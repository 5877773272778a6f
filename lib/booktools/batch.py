"""Run chapters over seeds at a preset, in parallel, and go on where a former batch stopped.

    python -m booktools.batch --chapters "03" --preset paper --seeds "0 1 2" --jobs 2

Without chapters it runs all of them, without seeds those that the claims of the book need.
Everything that was asked for is checked before anything runs. Snakemake starts the runs; what is
after a bare `--` is handed to it (a cluster profile). A run that is finished, with the present
code and parameters, is not run again. See plan.py for what a run leaves behind.

Exit code: 0 if every run is finished, 1 if one is not, 2 if something was asked for that cannot be
or a file cannot be written, 130 after Ctrl-C.
"""

import argparse
import importlib.util
import sys
from collections import Counter
from pathlib import Path

from booktools import chapters, claims, lock, needs, plan, presets, progress, rounds
from booktools.chapters import InputError

MAX_SEED = 2**32 - 1  # the largest that numpy takes
SET_BY_BATCH = {"seed": "--seeds", "preset": "--preset"}
HELD = "--stale restart keeps the old folder and starts anew, --stale go-on keeps its checkpoints"
LOCK_SECONDS = 10  # a killed batch needs less to be gone


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    cut = argv.index("--") if "--" in argv else len(argv)
    arguments = parser().parse_args(argv[:cut])
    try:
        runs = planned(arguments)
        if arguments.dry_run:
            return show(runs, arguments.jobs, arguments.stale)
        with only_batch(arguments.runs, arguments.shared) as descriptor:
            rounds.run_all(runs, arguments, argv[cut + 1 :], descriptor)
        finished = [run for run in runs if plan.state(run).name == "finished"]
        report(runs, arguments.runs)
        if arguments.record:
            record(finished, arguments.results)
    except InputError as error:
        print(f"batch: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        remedy = "free disk space, or choose a folder that can be written; the same command goes on"
        print(f"batch: {error}; {remedy}", file=sys.stderr)
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
    result.add_argument("--seeds", help='e.g. "0 1 2"; by default those that the claims need')
    result.add_argument("--jobs", default=1, type=int, help="runs at the same time")
    result.add_argument(
        "-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="values",
        help="set a parameter, for every chapter chosen; may be repeated",
    )  # fmt: skip
    result.add_argument("--dry-run", action="store_true", help="list the runs, with reasons; end")
    result.add_argument("--record", action="store_true", help="copy finished records to --results")
    result.add_argument(
        "--stale", choices=rounds.CHOICES, default=rounds.HOLD,
        help="what to do with checkpoints of an unfinished run of other code or parameters",
    )  # fmt: skip
    result.add_argument(
        "--shared", action="store_true", help="divide the runs with other batches in --runs"
    )
    result.add_argument("--notebooks", type=Path, default=Path("notebooks"), metavar="FOLDER")
    result.add_argument("--runs", type=Path, default=Path("runs"), metavar="FOLDER")
    result.add_argument("--results", type=Path, metavar="FOLDER", help="default: data/results")
    return result


def planned(arguments):
    """The runs asked for. Raises InputError with one line per thing that is wrong."""
    problems, runs = [], []
    by_claim = {} if arguments.seeds else _attempt(problems, needed_seeds, arguments.preset)
    seeds = arguments.seeds is not None and _attempt(problems, _seeds, arguments.seeds)
    table = _attempt(problems, needs.read, arguments.notebooks) or {}
    if arguments.jobs < 1:
        problems.append(f"--jobs {arguments.jobs}: must be 1 or more")
    if importlib.util.find_spec("snakemake") is None:
        problems.append("Snakemake is not installed: pip install -e '.[batch]'")
    picked = _attempt(problems, chapters.pick, arguments.notebooks, arguments.chapters.split())
    for notebook in picked or []:
        given = _attempt(problems, _values, notebook, arguments.preset, arguments.values)
        of_chapter = seeds or range((by_claim or {}).get(notebook.stem, 1))
        for seed in of_chapter if given and not problems else []:
            run = plan.make(arguments.runs, notebook, arguments.preset, seed, *given)
            runs.append(run._replace(need=_attempt(problems, needs.of, table, run)))
    if problems:
        raise InputError("\n".join(problems))
    return runs


def record(finished, results):
    """Copy the records of finished runs, and bring the ledger of this checkout up to date."""
    from booktools import collect, ledger  # import torch

    for path in collect.collect(finished, results):
        print(f"recorded {path}")
    if results is None and ledger.main([]):
        raise InputError("the records are copied, but the ledger could not be written")


def _attempt(problems, function, *arguments):
    try:
        return function(*arguments)
    except InputError as error:
        problems += str(error).splitlines()


def _seeds(text):
    seeds = text.split()
    for seed in seeds:
        if not (seed.isascii() and seed.isdigit() and len(seed) <= 20 and int(seed) <= MAX_SEED):
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
    given = {}
    for name, text in overrides:
        if name in SET_BY_BATCH:
            problems.append(f"-p {name}: is set by {SET_BY_BATCH[name]}")
        else:
            given[name] = _attempt(problems, presets.parse, name, text, parameters)
    if problems:
        raise InputError("\n".join(f"{notebook.stem}: {problem}" for problem in problems))
    return values | given, given


def needed_seeds(preset):
    """{chapter: n}: the claims on records of this preset ask for the seeds 0 to n - 1."""
    path = Path("data") / "claims.yaml"
    try:
        rows = claims.load(path)[1] if path.is_file() else []
    except claims.ClaimError as error:
        raise InputError(str(error)) from None
    found = Counter()
    for row in rows:
        if row.preset == preset:
            found[row.chapter] = max(found[row.chapter], row.min_seeds)
    return found


def show(runs, n_jobs, stale=rounds.HOLD):
    """List the runs, and say which would run, why, and how long that takes."""
    found, todo = rounds.states(runs), []
    for run, (name, reason) in zip(runs, found, strict=True):
        holds = name == "held" and stale == rounds.HOLD
        what = "keep" if name == "finished" else "HOLD" if holds else "run"
        todo += [run] if what == "run" else []
        print(f"{what:4} {run}: {name}, {reason}")
    counts = progress.Counts(frozenset(), frozenset(), {})
    time_to_go = f", {progress.time_to_go(todo, counts, n_jobs)}" if todo else ""
    print(f"{len(runs)} runs: {len(todo)} to run{time_to_go}")
    return 0


def only_batch(folder, shared=False):
    """A context in which no batch uses this folder of runs but, if shared, others that share it."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: another batch is running there"
    return lock.held(folder / "lock", busy, LOCK_SECONDS, shared)


def report(runs, root):
    """Print every run that has no valid result, with the reason and where to look."""
    counts = Counter()
    for run, (name, reason) in zip(runs, rounds.states(runs), strict=True):
        counts[name] += 1
        if name == "failed":
            reason = reason.removeprefix("failed before: ")
            print(f"FAILED {run}: {reason}\n  {run.folder / run.notebook.name}")
        elif name == "stale":
            print(f"STALE {run}: {reason}; the same command runs it again")
        elif name == "held":
            print(f"HELD {run}: {reason}\n  {HELD}")
        elif name == "interrupted":
            reason = "its process ended without a result (killed, or a full disk)"
            print(f"ENDED {run}: {reason}\n  {run.folder / 'run.log'}")
        elif name in ("new", rounds.WAITING):
            print(f"NOT STARTED {run}: {reason}\n  {root / 'engine.log'}")
    print(f"{counts['finished']} of {len(runs)} runs are finished")


if __name__ == "__main__":
    sys.exit(main())
