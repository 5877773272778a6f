"""What a batch shows while it runs: runs finished, running and failed, and the time to go."""

import re
import statistics
import sys
import time
from typing import NamedTuple

from booktools import chapters, plan

COST = r"(?:about )?(?:\d+ to )?(\d+) ?(s|min|h)"  # of a range, the longer time
UNITS = {"s": 1, "min": 60, "h": 3600}
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


def expected_seconds(run):
    """How long a run takes: the median of its chapter at its preset, or what the chapter states.

    None if neither is known.
    """
    results = run.folder.parent.glob(f"seed*/{plan.DONE}")
    found = [(plan.read_json(path) or {}).get("seconds") for path in results]
    seconds = [value for value in found if isinstance(value, (int, float))]
    return statistics.median(seconds) if seconds else stated_seconds(run)


def stated_seconds(run):
    """The seconds in a line like 'quick: 60 s on one CPU core; paper: about 20 to 80 minutes'."""
    opening = next(iter(chapters.read(run.notebook).cells), None)
    text = (opening.source if opening else "").replace("half an hour", "30 min")
    found = re.search(rf"\b{re.escape(run.preset)}: {COST}", text.replace("an hour", "1 h"))
    return float(found[1]) * UNITS[found[2]] if found else None


def remaining_seconds(runs, counts, n_jobs):
    """Expected time until the last run ends, and how many of the runs are not counted in it."""
    to_go = [i for i in range(len(runs)) if i not in counts.finished | counts.failed]
    expected = {runs[i].folder.parent: expected_seconds(runs[i]) for i in to_go}
    known = [i for i in to_go if expected[runs[i].folder.parent] is not None]
    seconds = [expected[runs[i].folder.parent] - counts.running.get(i, 0.0) for i in known]
    parts = [max(part, 0.0) for part in seconds]
    return max([sum(parts) / n_jobs, *parts]), len(to_go) - len(known)


def time_to_go(runs, counts, n_jobs):
    """E.g. 'about 4 min to go'; 'more than' where some runs have no estimate.

    Where only runs are left that have used up theirs: by how much, the latest of them.
    """
    seconds, n_unknown = remaining_seconds(runs, counts, n_jobs)
    if n_unknown and not seconds:
        return "no estimate yet"
    if counts.running and not seconds:
        late = max(age - expected_seconds(runs[i]) for i, age in counts.running.items())
        return f"{duration(late)} longer than expected"
    return f"{'more than' if n_unknown else 'about'} {duration(seconds)} to go"


def line(runs, counts, n_jobs):
    """E.g. '3/9 finished, 2 running, 1 failed, about 4 min to go'."""
    return (
        f"{len(counts.finished)}/{len(runs)} finished, {len(counts.running)} running, "
        f"{len(counts.failed)} failed, {time_to_go(runs, counts, n_jobs)}"
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
