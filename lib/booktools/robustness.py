"""Tries to break the book's tools: kills, damaged files, tricks in names, full disks.

    python -m booktools.robustness --write data/results/robustness.json

Prints what was tried and what came of it, and writes it where it is told to. The first thing that
goes wrong ends it with a traceback: nothing was lost, half loaded or executed otherwise. The
methods are in kills.py, long_runs.py, mutations.py and storage.py.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from booktools import bad_data, bad_files, kills, long_runs, mutations, packages, storage
from learnopt import atomic, provenance


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m booktools.robustness")
    parser.add_argument("--kills", type=int, default=20, help="of batches; half as many long runs")
    parser.add_argument("--mutations", type=int, default=300, help="of each kind of file")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the counts, as JSON")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as beside:
        mutated = beside.submit(bad_input, options.mutations)  # kills are mostly waiting
        counts = faults(options.kills)
        counts = mutated.result() | counts
    seconds = time.monotonic() - started
    print(table(counts), f"{seconds:.0f} s", sep="\n")
    if options.write:
        origin = provenance.describe(seed=0, device="cpu", seconds=seconds)
        text = json.dumps({"counts": counts, "provenance": origin}, indent=1) + "\n"
        packages.keep(options.write.parent, provenance.installed())
        atomic.write({options.write: text.encode()})


def bad_input(n):
    """{what: {outcome: how often}} of n mutations of each kind of file, and 2 n names."""
    counts = {}
    with mutations.tiny_data_set():
        for kind in [*bad_files.kinds(), *bad_data.kinds()]:
            counts[f"mutated {kind.name}"] = dict(mutations.files(kind, n))
            print(table(counts).splitlines()[-1], flush=True)
    return counts | {"names": dict(mutations.names(2 * n))}


def faults(n_kills):
    """The same for disks that are full, folders that cannot be written, and kills."""
    counts = {}
    with tempfile.TemporaryDirectory() as name, mutations.tiny_data_set():
        folders = [Path(name, what) for what in ("full", "small", "read-only", "long", "batches")]
        for folder in folders:
            folder.mkdir()
        full, small, read_only, long, batches = folders
        counts["full disk"] = dict(storage.full_disk(full))
        counts["full tmpfs"] = dict(storage.small_disk(small))
        counts["read-only folder"] = dict(storage.read_only(read_only))
        counts["long runs"] = dict(long_runs.kill(long, (n_kills + 1) // 2))
        print(table(counts), flush=True)
        counts["batches"] = dict(kills.batches(batches, n_kills))
    return counts


def table(counts):
    """One line for each thing that was tried."""
    lines = []
    for what, outcomes in counts.items():
        parts = [f"{number} {outcome}" for outcome, number in sorted(outcomes.items())]
        lines.append(f"{what:26} {', '.join(parts)}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
