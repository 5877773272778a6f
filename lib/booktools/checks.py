"""How long the whole check takes and where its time goes, from the reports that `.ci/run` leaves.

    .ci/run && python -m booktools.checks [--write data/results/checks.json]

The file has one run for each kind of processor, by its name. book/costs.md shows it.
"""

import argparse
import json
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

from booktools import packages
from learnopt import atomic, provenance

STEPS = ("test", "book", "browser")
ROWS = {
    "`make test`: packages, style, form": lambda run: run["steps"]["test"] - run["clock"]["test"],
    "`make test`: pytest, two workers": lambda run: run["clock"]["test"],
    "both workers: cells of the chapters": lambda run: run["parts"]["chapters"],
    "both workers: tests": lambda run: run["parts"]["tests"],
    "`make book`, after `make test`": lambda run: run["steps"]["book"],
    "`make browser`: the site in Chromium, two workers": lambda run: run["steps"]["browser"],
}
TEXT = """\
A chapter is executed once: nbval runs its cells in `make test`, and what they show goes into the
cache of `make book`, which renders and executes only what is not there. Without that it would
execute all chapters again, one after another. `python -m booktools.checks` reads these times, by
the clock, from the reports of `.ci/run`, on a clean checkout.
"""


def main(arguments=None):
    """The command line: exit code 2 where a report is missing or cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m booktools.checks")
    parser.add_argument("--reports", type=Path, default=Path("_build/reports"), metavar="FOLDER")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep the times, as JSON")
    options = parser.parse_args(arguments)
    try:
        found = read(options.reports)
        name = found["provenance"]["device_name"]
        held = json.loads(options.write.read_text()) if _is_file(options.write) else {}
        if options.write:
            packages.keep(options.write.parent, provenance.installed())
            whole = dict(sorted((held | {name: found}).items()))
            atomic.write({options.write: (json.dumps(whole, indent=1) + "\n").encode()})
    except (OSError, ValueError, ET.ParseError) as error:
        print(f"checks: {error}; run .ci/run to its end first", file=sys.stderr)
        return 2
    print(section({name: found}))
    return 0


def _is_file(path):
    return path is not None and path.is_file()


def read(reports: Path) -> dict:
    """The seconds of each step and part. Raises OSError or ValueError where a step left none."""
    lines = (reports / "seconds.txt").read_text().splitlines()
    steps = {step: int(seconds) for step, seconds in map(str.split, lines)}
    if lacking := [step for step in STEPS if step not in steps]:
        raise ValueError(f"{reports / 'seconds.txt'} does not have {', '.join(lacking)}")
    suites = {step: ET.parse(reports / f"{step}.xml").getroot() for step in ("test", "browser")}
    parts = Counter()
    for case in suites["test"].iter("testcase"):
        where, seconds = case.get("classname", ""), float(case.get("time", 0))
        parts["chapters" if where.startswith("notebooks.") else "tests"] += seconds
    clock = {
        step: sum(float(suite.get("time")) for suite in root.iter("testsuite"))
        for step, root in suites.items()
    }
    return {
        "steps": steps,
        "clock": {step: round(seconds) for step, seconds in clock.items()},
        "parts": {part: round(seconds) for part, seconds in parts.items()},
        "provenance": provenance.describe(seed=0, device="cpu", seconds=sum(steps.values())),
    }


def section(checks: dict) -> str:
    """The part of the page. checks: name of a processor -> what `read` found there."""
    rows = [f"| seconds | {' | '.join(checks)} |", "|---" + "|---:" * len(checks) + "|"]
    for title, value in ROWS.items():
        rows.append(f"| {title} | {' | '.join(f'{value(run):,}' for run in checks.values())} |")
    runs = [f"- {provenance.line(run['provenance'])}." for run in checks.values()]
    return "\n".join([*rows, "", *runs, "", TEXT])


if __name__ == "__main__":
    sys.exit(main())
