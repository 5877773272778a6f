"""What a batch shows while it runs: runs finished, running and failed, and the time to go."""

import statistics
import sys
import time
from typing import NamedTuple

from booktools import plan

QUIET_SECONDS = 60  # where no terminal is watching, at least one line in this time


class Counts(NamedTuple):
    finished: frozenset  # of runs
    failed: frozenset
    running: dict  # run -> seconds since it started


def count(runs):
    """Read what has become of the runs of this batch from the files that they leave."""
    finished = frozenset(i for i, run in enumerate(runs) if (run.folder / plan.DONE).exists())
    failed = frozenset(i for i, run in enumerate(runs) if (run.folder / plan.FAILED).exists())
    ended = finished | failed
    seconds = {i: plan.running_seconds(r.folder) for i, r in enumerate(runs) if i not in ended}
    running = {i: age for i, age in seconds.items() if age is not None}
    return Counts(finished, failed, running)


def expected_seconds(folder):
    """How long the runs of a chapter at a preset took: their median; None if none has finished."""
    results = folder.glob(f"seed*/{plan.DONE}")
    seconds = [r["seconds"] for path in results if (r := plan.read_json(path)) and "seconds" in r]
    return statistics.median(seconds) if seconds else None


def remaining_seconds(runs, counts, n_jobs):
    """Expected time until the last run ends; None if a chapter among them has never finished."""
    to_go = [i for i in range(len(runs)) if i not in counts.finished | counts.failed]
    folders = {runs[i].folder.parent for i in to_go}
    expected = {folder: expected_seconds(folder) for folder in folders}
    if None in expected.values():
        return None
    seconds = [expected[runs[i].folder.parent] - counts.running.get(i, 0.0) for i in to_go]
    return sum(max(part, 0.0) for part in seconds) / n_jobs


def line(runs, counts, n_jobs):
    """E.g. '3/9 finished, 2 running, 1 failed, about 4 min to go'."""
    remaining = remaining_seconds(runs, counts, n_jobs)
    time_to_go = "no estimate yet" if remaining is None else f"about {duration(remaining)} to go"
    return (
        f"{len(counts.finished)}/{len(runs)} finished, {len(counts.running)} running, "
        f"{len(counts.failed)} failed, {time_to_go}"
    )


def duration(seconds):
    """Seconds in the unit that a person would use."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def watch(runs, n_jobs, has_ended, stream=None):
    """Print the line whenever it changes, until `has_ended(timeout_seconds)` says so."""
    stream = stream or sys.stderr
    is_terminal = stream.isatty()
    shown, shown_at = None, 0.0
    while True:
        ended = has_ended(0.5)
        counts = count(runs)
        now = (counts.finished, counts.failed, set(counts.running))
        if is_terminal or now != shown or time.monotonic() - shown_at > QUIET_SECONDS:
            text = line(runs, counts, n_jobs)
            stream.write(f"\r\033[K{text}" if is_terminal else f"{text}\n")
            stream.flush()
            shown, shown_at = now, time.monotonic()
        if ended:
            if is_terminal:
                print(file=stream)
            return counts
