"""The ledger as a page of the book: one section per source, one block per claim.

The tables have at most three columns, so that the page reads on a phone. Links go only to what
exists: the site is built with warnings as errors.
"""

import math
import re

from booktools import rules

REPOSITORY = "https://github.com/optimizers-that-learn/optimizers-that-learn/blob/main/data"
TAGS = {
    "printed": "p",
    "digitised": "d",
    "eye": "e",
    "secondary": "s",
    "recalled": "r",
    "measured": "m",
    "estimated": "x",
}
HEAD = """\
<!-- Written by `make ledger` from data/claims.yaml and data/results. Do not edit. -->

# Replication ledger

One entry per published figure or table that this book replicates. A rule decides each of them from
the recorded runs in `data/results`. It consists of criteria, and each holds or not in each record:

reproduced
: every criterion holds in every record.

not reproduced
: no main criterion holds in more than half of the records.

partly
: anything between.

not run
: there are not enough records. The entry says why.

Every number of a paper is marked with the way it was obtained: (p) printed in the paper or in the
output of its code, (d) digitised from a figure, (e) read off a figure by eye, (s) quoted from a
text about the paper, (r) recalled, which is a lead and no published value. Two more marks say what
to expect where little was published: (m) measured before this book with independent code, (x) an
estimate. Our numbers are means over the records, with the lowest and the highest in brackets.

Where a paper and its code differ, see [Discrepancies](discrepancies.md). For programs, the same
ledger is in [data/ledger.json](REPOSITORY/ledger.json).
""".replace("REPOSITORY", REPOSITORY)


def render(root, sources, judged):
    """The text of book/replication.md. judged: list of (Claim, Verdict)."""
    chapters = _chapters(root)
    cited = _read(root / "book" / "references.bib")
    parts = [HEAD, _counts(judged)]
    for key, title in sources.items():
        rows = [(claim, verdict) for claim, verdict in judged if claim.source == key]
        if rows:
            known = re.search(rf"@\w+\{{\s*{re.escape(key)}\s*,", cited)
            source = f"Source: {{cite:t}}`{key}`.\n\n" if known else ""
            parts.append(f"## {title}\n\n{source}{_overview(rows)}")
            parts += [_block(claim, verdict, chapters) for claim, verdict in rows]
    return "\n".join(parts)


def _counts(judged):
    """How many claims came out how."""
    found = [verdict.verdict for _, verdict in judged]
    lines = ["| verdict | claims |", "|---|---:|"]
    lines += [f"| {name} | {found.count(name)} |" for name in rules.VERDICTS]
    return "\n".join([*lines, f"| all | {len(found)} |", ""])


def _overview(rows):
    lines = ["| claim | verdict | seeds |", "|---|---|---:|"]
    for claim, verdict in rows:
        link = f"[{_cell(claim.title)}](#claim-{_slug(claim.id)})"
        lines.append(f"| {link} | {verdict.verdict} | {verdict.n_seeds or ''} |")
    return "\n".join(lines) + "\n"


def _block(claim, verdict, chapters):
    lines = [
        f"(claim-{_slug(claim.id)})=",
        f"### {claim.id}",
        "",
        f"**{claim.title}** ({claim.item})",
        "",
        claim.statement,
        "",
        f"**{verdict.verdict.capitalize()}**: {verdict.reason}.",
        "",
        _where(claim, verdict, chapters),
        "",
        ":::{dropdown} Rule and numbers",
        *_criteria(claim, verdict),
        "",
        *_numbers(claim, verdict),
        ":::",
        "",
    ]
    return "\n".join(lines)


def _where(claim, verdict, chapters):
    """Chapter, preset, seeds and records, in one line."""
    if claim.chapter is None:
        return "No chapter."
    path = f"../notebooks/{claim.chapter}.ipynb"
    name = f"[{claim.chapter}]({path})" if claim.chapter in chapters else f"`{claim.chapter}`"
    links = [
        f"[{file.rpartition('/')[2]}]({REPOSITORY}/results/{file})" for file in verdict.records
    ]
    text = f"Chapter {name}, preset {claim.preset}"
    if links:
        text += f", {verdict.n_seeds} seed{'s' * (verdict.n_seeds != 1)}: {', '.join(links)}"
    return text + "."


def _criteria(claim, verdict):
    """The criteria as a list: how they came out, or what will decide."""
    outcomes = verdict.outcomes or [None] * (len(claim.main) + len(claim.detail))
    lines = []
    for i, (criterion, outcome) in enumerate(zip(claim.main + claim.detail, outcomes, strict=True)):
        part = "main" if i < len(claim.main) else "detail"
        held = f": **{outcome.n_held} of {outcome.n}**" if outcome else ""
        over = ", in the means" if criterion.get("over") == "mean" else ""
        lines.append(f"- {criterion['say']} ({part}{over}){held}")
    return lines


def _numbers(claim, verdict):
    """Published numbers beside ours, then ours that have no published counterpart."""
    lines, shown = [], set()
    for published in claim.published:
        value = f"{published['value']:.6g}"
        if published["high"] is not None:
            value += f" to {published['high']:.6g}"
        ours = verdict.ours.get(published["metric"])
        shown.add(published["metric"])
        lines.append(
            f"| {_cell(published['what'])} | {value} ({TAGS[published['tag']]}) | {_ours(ours)} |"
        )
    for name, ours in verdict.ours.items():
        if name not in shown:
            lines.append(f"| {name.replace('_', ' ')} | | {_ours(ours)} |")
    return ["| number | published | ours |", "|---|---|---|", *lines] if lines else []


def _ours(summary):
    if summary is None:
        return ""
    mean, low, high = (number(summary[key]) for key in ("mean", "lowest", "highest"))
    return mean if low == high else f"{mean} [{low}, {high}]"


def number(value):
    """Four significant digits, without an exponent where that reads better."""
    if not math.isfinite(value):
        return "diverged" if math.isnan(value) else str(value)
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{float(f'{value:.4g}'):,.6f}".rstrip("0").rstrip(".")


def _chapters(root):
    """The names of notebooks that exist and that the table of contents lists."""
    contents = _read(root / "_toc.yml")
    names = {path.stem for path in (root / "notebooks").glob("*.ipynb")}
    return {name for name in names if f"notebooks/{name}" in contents}


def _slug(name):
    return name.replace(".", "-")


def _cell(text):
    return text.replace("|", "\\|")


def _read(path):
    return path.read_text() if path.is_file() else ""
