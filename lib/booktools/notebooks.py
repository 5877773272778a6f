"""Execute chapters and store their outputs, or check their form and their presets.

    python -m booktools.notebooks run [--preset quick] [--store] [--jobs N] [NN ...]
    python -m booktools.notebooks check

Run from the root of the book. Exit code: 0, 1 if a chapter fails, is at fault or was edited
while it ran (its outputs are then not stored), 2 for bad input.
"""

import argparse
import multiprocessing
import struct
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from booktools import chapters, form, normalise, presets
from booktools.chapters import InputError
from learnopt import atomic

NOT_STORED = "NOT STORED:"


def main(argv=None):
    arguments = parser().parse_args(argv)
    try:
        if arguments.command == "check":
            return check(arguments.notebooks)
        return run(arguments)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2


def parser():
    result = argparse.ArgumentParser(
        prog="python -m booktools.notebooks", description=__doc__.partition("\n")[0]
    )
    result.add_argument("--notebooks", type=Path, default=Path("notebooks"), metavar="FOLDER")
    commands = result.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="check the form of every chapter and its presets")
    run = commands.add_parser("run", help="execute chapters into _build/runs/<preset>/")
    run.add_argument("chapters", nargs="*", metavar="NN", help="e.g. 01 03; all by default")
    run.add_argument("--preset", default=presets.QUICK, help="quick, smoke, paper, ...")
    run.add_argument("--store", action="store_true", help="keep the outputs in the chapters")
    run.add_argument("--jobs", type=int, default=1, help="chapters at the same time")
    run.add_argument("--target", type=Path, default=Path("_build/runs"), metavar="FOLDER")
    return result


def check(folder):
    """Print every fault of every chapter; return 1 if there is one."""
    paths = chapters.find(folder)
    faults = [fault for path in paths for fault in form.problems(path)]
    faults += form.stray_presets(folder)
    for fault in faults:
        print(fault)
    print(f"{len(paths)} chapters, {len(faults)} faults")
    return 1 if faults else 0


def run(arguments):
    """Execute the chapters; print the seconds of each; return 1 if one fails or is not stored."""
    if arguments.store and arguments.preset != presets.QUICK:
        raise InputError(f"--store keeps the outputs of {presets.QUICK} only")
    if arguments.jobs < 1:
        raise InputError(f"--jobs {arguments.jobs}: must be 1 or more")
    picked = chapters.pick(arguments.notebooks, arguments.chapters)
    todo = [  # reads them, and says what is wrong with one that is damaged
        (path, arguments.target / arguments.preset / path.name, _values(path, arguments.preset))
        for path in picked
    ]
    before = {path: path.read_text("utf-8") for path in picked}
    n_failed = 0
    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {pool.submit(_apart, *job): job for job in todo}
        print(f"executing {len(todo)} chapters at {arguments.preset}", flush=True)
        for number, future in enumerate(as_completed(futures), start=1):
            source, target, _ = futures[future]
            seconds, error = future.result()
            outcome = error or (store(target, source, before[source]) if arguments.store else "")
            n_failed += error is not None or outcome.startswith(NOT_STORED)
            print(f"[{number}/{len(todo)}] {source.stem}  {seconds:.1f} s  {outcome}", flush=True)
            if error:
                print(f"  see {target}", flush=True)
    return 1 if n_failed else 0


def _values(path, preset):
    return presets.load(path, preset, chapters.parameters(path))


def _apart(*job):
    """``_execute`` in a process of its own, which may be killed."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            return pool.submit(_execute, *job).result()
        except BrokenProcessPool:
            return 0.0, "FAILED its process was killed (is there memory enough?)"


def _execute(source, target, values):
    """The seconds that a chapter took, and the error in a line or None."""
    import time

    from booktools import execute  # imports papermill

    start = time.perf_counter()
    try:
        return execute.execute(source, target, values), None
    except Exception as error:  # a kernel can fail in any way; the other chapters go on
        return time.perf_counter() - start, f"FAILED {execute.describe(error)}"


def store(executed, chapter, before):
    """Write the outputs into the chapter, whose text was `before`; say what came of it."""
    try:
        if chapter.read_text("utf-8") != before:
            return f"{NOT_STORED} the chapter was edited while it ran"
        text = normalise.text(normalise.normalise(chapters.read(executed)))
        if text == before:
            return "unchanged"
        atomic.write({chapter: text.encode()})
    except (OSError, ValueError, struct.error) as error:  # a full disk, an output that is no image
        return f"{NOT_STORED} {error}"
    return "stored"


if __name__ == "__main__":
    sys.exit(main())
