"""The replication ledger: rules of data/claims.yaml, evaluated on data/results.

    python -m booktools.ledger            write book/replication.md and data/ledger.json
    python -m booktools.ledger --check    write nothing; fail if the two files are out of date

Both print one line per claim, and then which records are stale (ages.py); a verdict stays as it is.
Exit status: 0 done, 1 out of date, 2 a claim or a record is faulty (the message says which).
The files hold no date, so they change only when a claim, a record or a chapter does.
"""

import argparse
import json
import math
import sys
from pathlib import Path

from booktools import ages, claims, ledger_page, rules
from learnopt import atomic, provenance, records


def evaluate(root):
    """The sources and, per claim, (Claim, Verdict), for the checkout in folder `root`."""
    sources, rows = claims.load(root / "data" / "claims.yaml")
    results = root / "data" / "results"
    judged = []
    for claim in rows:
        found = records.find(claim.chapter, claim.records, root=results) if claim.chapter else []
        judged.append((claim, rules.judge(claim, found)))
    return sources, judged


def files(root):
    """What the ledger writes: {path: text}, and the judged rows."""
    sources, judged = evaluate(root)
    entries = [entry(claim, verdict) for claim, verdict in judged]
    return {
        root / "book" / "replication.md": ledger_page.render(root, sources, judged),
        root / "data" / "ledger.json": json.dumps(entries, indent=1, allow_nan=False) + "\n",
    }, judged


def entry(claim, verdict):
    """One object of ledger.json. Numbers that are not finite are strings, as in records."""
    return {
        "id": claim.id,
        "source": claim.source,
        "statement": claim.statement,
        "published": claim.published,
        "ours": {
            name: {key: _finite(value) for key, value in summary.items()}
            for name, summary in verdict.ours.items()
        },
        "n_seeds": verdict.n_seeds,
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "records": verdict.records,
    }


def table(judged):
    """The ledger for a terminal, one line per claim and the count of verdicts."""
    lines = [f"{'claim':24} {'verdict':15} {'seeds':>5}  reason"]
    for claim, verdict in judged:
        reason = verdict.reason if len(verdict.reason) <= 70 else verdict.reason[:67] + "..."
        lines.append(f"{claim.id:24} {verdict.verdict:15} {verdict.n_seeds:5}  {reason}")
    found = [verdict.verdict for _, verdict in judged]
    counts = ", ".join(f"{found.count(name)} {name}" for name in rules.VERDICTS)
    return "\n".join([*lines, f"{len(judged)} claims: {counts}"])


def main(arguments=None):
    parser = argparse.ArgumentParser(
        prog="python -m booktools.ledger", description="Decide every claim from the records."
    )
    parser.add_argument("--check", action="store_true", help="write nothing, fail if out of date")
    parser.add_argument("--root", type=Path, help="the checkout (default: this one)")
    options = parser.parse_args(arguments)
    root = options.root or provenance.checkout()
    if root is None:
        print("ledger: this is no checkout of the book; pass --root FOLDER", file=sys.stderr)
        return 2
    try:
        (texts, judged), aged = files(root), ages.report(root)
    except (claims.ClaimError, records.RecordError, OSError) as error:
        print(f"ledger: {error}", file=sys.stderr)
        return 2
    print(table(judged))
    print(aged)
    if options.check:
        return _check(root, texts)
    try:
        atomic.write({path: text.encode() for path, text in texts.items()})
    except OSError as error:
        print(f"ledger: {error}; free disk space, or make the folder writable", file=sys.stderr)
        return 2
    return 0


def _check(root, texts):
    stale = [path for path, text in texts.items() if _read(path) != text]
    for path in stale:
        print(f"ledger: {path.relative_to(root)} is out of date; run make ledger", file=sys.stderr)
    return 1 if stale else 0


def _read(path):
    return path.read_text() if path.is_file() else None


def _finite(value):
    return value if math.isfinite(value) else str(value)


if __name__ == "__main__":
    sys.exit(main())
