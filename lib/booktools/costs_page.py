"""The benchmark as a page of the book, "What it costs", and as lines for a terminal.

    python -m booktools.costs_page      write book/costs.md from bench.json and checks.json

`make bench` does it too. The files, of data/results, have a run for each kind of processor, by its
name (in bench.json also by the vector instructions that torch uses there). Every number of the page
is from them; the texts of goals.py say what bounds a work and hold none.
"""

import json

from booktools import checks, costs_chart
from booktools.goals import GOALS, SHARE, WHY
from learnopt import atomic, provenance

HEAD = """\
<!-- Written by booktools.costs_page from bench.json and checks.json. Do not edit. -->

# What it costs

Most of what this book does is plain PyTorch, and runs as fast as that does. Three computations are
repeated so often that the library has a fast path for them, written by hand and held by a test to
the plain one: the LSTM's windows, the step of online hyperparameter optimization, and the
look-ahead of stochastic meta-descent. `make bench` times each of them against the plain one and
against other libraries; and it times many runs in one batched pass against as many runs one after
another.

How it is measured. All ways of a work run in turn, A B A B ..., in one process and on one thread,
each turn once untimed and once timed, so that no way starts with the memory of another. A ratio is
the processor time of a way over that of the library's fast path in the same round: above 1 the fast
path is faster. Given are the median over the rounds, the lowest and the highest. A way must give
the same numbers first, in single precision. Rows in *italics* do something else and are there for
comparison. The goals were set before the fast paths were written, by prototypes on another machine;
those that were not reached are named. Absolute times belong to the machine: measure yours with
`make bench`, which puts its run beside those of other kinds of processors.

The processor's own limit is measured in the same run, as the rate of large matrix products on one
thread, by the BLAS that PyTorch links and by oneDNN, which it ships as well. The better of the two
is the limit: the share that a computation reaches is the time that its matrix products would take
at that rate, over the time that it took in all.
"""
ALT = (
    "A dot for each way of each work and each processor, with a line from its lowest to its "
    "highest ratio, on a logarithmic scale; right of 1 the library's fast path is faster. The "
    "numbers are in the tables below."
)
CHART = f"""\
```{{figure}} _static/costs.svg
:alt: {ALT}
:width: 100%

Time of each way over that of the library's fast path: median, lowest and highest of the rounds.
```
"""
CHAPTERS = """\
## The chapters

[What was tried](tested.md) has the processor time of every chapter, [Status](status.md) how long
each took when this site was built. Recorded runs at the paper's scale say themselves how long they
took, in the `seconds` of their [records](batch.md).

## The book and its tests
"""


def render(bench: dict, checked: dict) -> str:
    """The text of book/costs.md. bench, checked: name of a processor -> its run."""
    parts = [HEAD, _machines(bench), CHART]
    works = {}  # name of a work -> name of a processor -> entry: a run may be older than a work
    for name, run in bench.items():
        for entry in run["works"]:
            works.setdefault(entry["work"], {})[name] = entry
    parts += map(_section, works.values())
    return "\n".join([*parts, CHAPTERS, checks.section(checked)])


def lines(entry: dict) -> str:
    """One work, for a terminal."""
    rows = [f"  {entry['ours']:<56}     1  ({_speed(entry)})"]
    for row in entry["rows"]:
        mark = " " if row["same"] else "*"
        spread = f"({row['low']:g} to {row['high']:g})"
        rows.append(f" {mark}{row['peer']:<56} {row['ratio']:5.3g}  {spread}")
    return "\n".join([*rows, f"  {_bound(entry)}"])


def write(root=None) -> None:
    """Write book/costs.md of a checkout, and its chart."""
    book = (root or provenance.checkout()) / "book"
    results = book.parent / "data" / "results"
    bench, checked = (
        json.loads((results / f"{name}.json").read_text()) for name in ("bench", "checks")
    )
    page, chart = render(bench, checked).encode(), costs_chart.draw(bench)
    atomic.write({book / "costs.md": page, book / "_static" / "costs.svg": chart})


def _machines(bench: dict) -> str:
    rows = ["| matrix products of 1,024 x 1,024, GFLOP/s | BLAS | oneDNN |", "|---|---:|---:|"]
    runs = []
    for name, run in bench.items():
        rates = [run["matmul"].get(library) for library in ("blas", "onednn")]
        cells = [f"{rate / 1e9:.0f}" if rate else "none" for rate in rates]
        rows.append(f"| {name} | {' | '.join(cells)} |")
        versions = ", ".join(f"{peer} {version}" for peer, version in run["peers"].items())
        told = provenance.line(run["provenance"])
        runs.append(f"- {name}: {told}; {versions or 'no other library'}.")
    return "\n".join([*rows, "", "The runs, one for each kind of processor:", "", *runs, ""])


def _section(entries: dict) -> str:
    """One work. entries: name of a processor -> its entry of the file."""
    first, *_ = entries.values()
    goals = GOALS.get(first["work"], {})
    rows = [f"| time over that of {first['ours']} | goal | {' | '.join(entries)} |"]
    rows.append("|---" * (2 + len(entries)) + "|")
    for title, same in dict.fromkeys(
        (r["peer"], r["same"]) for e in entries.values() for r in e["rows"]
    ):
        cells = [_ratio(entry, title) for entry in entries.values()]
        goal = _goal(goals, title)
        rows.append(f"| {title if same else f'*{title}*'} | {goal} | {' | '.join(cells)} |")
    shares = " | ".join(f"{entry['fraction']:.2g}" for entry in entries.values())
    rows.append(f"| *{SHARE}* | {_goal(goals, SHARE)} | {shares} |")
    spent = [
        f"- {name}: {_speed(entry)}. {_bound(entry)}{_operations(entry)}{_missed(entry, goals)}"
        for name, entry in entries.items()
    ]
    return "\n".join([f"## {first['title']}", "", *rows, "", *spent, "", WHY[first["work"]], ""])


def _goal(goals: dict, title: str) -> str:
    return "{} {:g}".format(*goals[title]) if title in goals else ""


def _missed(entry: dict, goals: dict) -> str:
    ratios = {row["peer"]: row["ratio"] for row in entry["rows"]} | {SHARE: entry["fraction"]}
    missed = [
        way
        for way, (which, goal) in goals.items()
        if way in ratios and (ratios[way] < goal if which == "at least" else ratios[way] > goal)
    ]
    return f" Not reached: the goal for {'; for '.join(missed)}." if missed else ""


def _operations(entry: dict) -> str:
    """Of a run that was profiled: the operations that take most of its time."""
    found = entry.get("operations", {})
    shares = ", ".join(f"`{name}` {100 * share:.0f} %" for name, share in found.items())
    return f" By torch's profiler: {shares}." if found else ""


def _ratio(entry: dict, peer: str) -> str:
    for row in entry["rows"]:
        if row["peer"] == peer:
            return f"{row['ratio']:.3g} ({row['low']:.3g} to {row['high']:.3g})"
    return "not timed"


def _bound(entry: dict) -> str:
    facts = "".join(f" {name}: {value:g}." for name, value in entry["facts"].items())
    rate = entry["fraction"] / entry["in_products"]
    return (
        f"Of its time {100 * entry['in_products']:.0f} % is in matrix products, which run at "
        f"{100 * rate:.0f} % of the limit's rate: in all it reaches "
        f"{100 * entry['fraction']:.0f} % of the limit.{facts}"
    )


def _speed(entry: dict) -> str:
    rate = float(f"{1 / entry['seconds']:.2g}")
    number = f"{rate:,.0f}" if rate >= 10 else f"{rate:g}"
    return f"{number} {entry['counted']} a second"


if __name__ == "__main__":
    write()
