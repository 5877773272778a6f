"""The claims that the book replicates: `data/claims.yaml`, read and checked.

    sources, claims = claims.load(Path("data/claims.yaml"))

Every row is checked before anything is evaluated. A `ClaimError` names the file, the row and the
field, and says what is allowed. The comment at the head of claims.yaml explains the fields.
"""

import csv
import re
import sys
from reprlib import repr as short
from typing import NamedTuple

from booktools import strict_yaml

MAX = sys.float_info.max
MAX_FILE_BYTES = 1_000_000
TAGS = ("printed", "digitised", "eye", "secondary", "recalled", "measured", "estimated")
PRESETS = ("smoke", "quick", "narrow", "paper", "full")
SIGNS = ("below_zero", "above_zero", "around_zero")


class ClaimError(ValueError):
    """A row of claims.yaml that cannot be evaluated."""


class Claim(NamedTuple):
    id: str
    source: str  # key of the bibliography
    item: str  # which figure or table
    title: str
    statement: str
    published: list  # of {what, metric, value, high, tag}; metric and high may be None
    chapter: str | None  # name of the notebook; None if no chapter is planned
    preset: str
    records: str  # pattern of record names
    min_seeds: int
    main: list  # criteria, see rules.py
    detail: list
    not_run_reason: str


def load(path):
    """Read claims.yaml and the tables beside it: ({key: title of the source}, [Claim, ...])."""
    try:
        raw = strict_yaml.load(path, MAX_FILE_BYTES)
    except ValueError as error:
        raise ClaimError(str(error)) from None
    top = _fields(f"{path}: ", raw, {"sources": _mapping, "claims": _rows})
    claims, seen = [], set()
    for number, row in enumerate(top["claims"]):
        name = row["id"] if isinstance(row, dict) and isinstance(row.get("id"), str) else number
        where = f"{path}: row {name!r}, "
        claims.append(_claim(where, row, top["sources"], path.parent / "published"))
        if claims[-1].id in seen:
            raise ClaimError(f"{where}field 'id': there are two rows of this name; rename one")
        seen.add(claims[-1].id)
    return top["sources"], claims


def _claim(where, row, sources, folder):
    checks = {
        "id": _matching(r"[a-z][a-z0-9.-]*", "lower-case letters, digits, '-' and '.'"),
        "source": _one_of(tuple(sources)),
        "item": _text,
        "title": _text,
        "statement": _text,
        "chapter": _matching(r"\d\d_[a-z0-9_]+", "NN_name, or null", optional=True),
        "preset": _one_of(PRESETS),
        "records": _matching(r"[A-Za-z0-9_.*?-]+", "a pattern like paper-seed*"),
        "min_seeds": _whole,
        "rule": lambda where, value: _fields(
            where, value, {"main": _criteria, "detail": _criteria}, optional=("detail",)
        ),
        "not_run_reason": _text,
        "published": _published,
        "published_table": _matching(r"[a-z_]+\.csv", "a file of data/published"),
    }
    row = _fields(where, row, checks, optional=("published", "published_table"))
    table = row.pop("published_table", None)
    row["published"] = row.get("published", []) + (_table(where, folder, table, row["id"]))
    rule = row.pop("rule")
    return Claim(**row, main=rule["main"], detail=rule.get("detail", []))


def _table(where, folder, name, claim):
    """The numbers of one claim in a table of data/published."""
    if name is None:
        return []
    try:
        with open(folder / name, newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.get("claim") == claim]
    except (OSError, ValueError, csv.Error) as error:
        raise ClaimError(f"{where}field 'published_table': {error}; correct {name}") from None
    if not rows:
        missing = f"{name} has no line for this row; add one"
        raise ClaimError(f"{where}field 'published_table': {missing}")
    try:
        numbers = [
            {
                "what": row["what"],
                "metric": row["metric"] or None,
                "value": float(row["value"]),
                "high": float(row["high"]) if row["high"] else None,
                "tag": row["tag"],
            }
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        columns = "claim,what,metric,value,high,tag"
        raise ClaimError(f"{where}{name}: needs the columns {columns}: {error}") from None
    return _published(f"{where}{name}, ", numbers)


def _published(where, value):
    checks = {
        "what": _text,
        "value": _number,
        "tag": _one_of(TAGS),
        "metric": _maybe(_metric),
        "high": _maybe(_number),
    }
    entries = [
        _fields(f"{where}entry {i}, ", entry, checks, ("metric", "high"))
        for i, entry in enumerate(_list(where, value))
    ]
    return [{"metric": None, "high": None} | entry for entry in entries]


def _criteria(where, value):
    criteria = _list(where, value)
    if not criteria:
        raise ClaimError(f"{where}needs at least one criterion")
    for i, criterion in enumerate(criteria):
        inside = f"{where}criterion {i}, "
        found = criterion.get("check") if isinstance(criterion, dict) else criterion
        if not isinstance(criterion, dict) or not isinstance(found, str) or found not in CHECKS:
            allowed = ", ".join(CHECKS)
            raise ClaimError(f"{inside}field 'check' is {short(found)}; allowed: {allowed}")
        required, optional = CHECKS[criterion["check"]]
        shared = {"say": _text, "check": _text, "over": _one_of(("each", "mean"))}
        names = ("over", *optional)
        _fields(inside, criterion, shared | required | optional, optional=names)
        if criterion["check"] in ("in_range", "ratio") and not criterion.keys() & {"low", "high"}:
            raise ClaimError(f"{inside}needs 'low' or 'high' or both")
        if criterion["check"] == "difference" and criterion.get("over") == "mean":
            raise ClaimError(f"{inside}field 'over': intervals of single runs have no mean")
    return criteria


def _fields(where, value, checks, optional=()):
    """Check a mapping field by field; refuse unknown and missing names."""
    if not isinstance(value, dict):
        raise ClaimError(f"{where}must be a mapping of fields, is {short(value)}")
    for name in value:
        if name not in checks:
            allowed = ", ".join(checks)
            raise ClaimError(f"{where}field {short(name)} is not known; allowed: {allowed}")
    for name in checks:
        if name not in value and name not in optional:
            raise ClaimError(f"{where}field {name!r} is missing; add it")
    return {name: checks[name](f"{where}field {name!r}: ", value[name]) for name in value}


def _text(where, value):
    if not isinstance(value, str) or not value.strip():
        raise ClaimError(f"{where}must be a text, is {short(value)}")
    return value.strip()


def _number(where, value):
    if isinstance(value, str):
        raise ClaimError(f"{where}{value!r} is a text to YAML; write a number like 1.0e-3")
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX:
        raise ClaimError(f"{where}must be a number, and finite, is {short(value)}")
    return value


def _whole(where, value):
    if type(value) is not int or value < 1:
        raise ClaimError(f"{where}must be a whole number of at least 1, is {short(value)}")
    return value


def _metric(where, value):
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ClaimError(f"{where}must be the name of a metric, is {short(value)}")
    return value


def _metric_or_number(where, value):
    return _metric(where, value) if isinstance(value, str) else _number(where, value)


def _metrics(where, value):
    if len(_list(where, value)) < 2:
        raise ClaimError(f"{where}needs at least two metrics")
    return [_metric(where, metric) for metric in value]


def _list(where, value):
    if not isinstance(value, list):
        raise ClaimError(f"{where}must be a list, is {short(value)}")
    return value


def _rows(where, value):
    return _list(where, value)


def _mapping(where, value):
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ClaimError(f"{where}must map each source to its title")
    return value


def _maybe(check):
    return lambda where, value: None if value is None else check(where, value)


def _one_of(allowed):
    def check(where, value):
        if not isinstance(value, str) or value not in allowed:
            raise ClaimError(f"{where}{short(value)} is not one of {', '.join(allowed)}")
        return value

    return check


def _matching(pattern, allowed, optional=False):
    def check(where, value):
        if not (optional and value is None):
            if not isinstance(value, str) or not re.fullmatch(pattern, value):
                raise ClaimError(f"{where}{short(value)} is not allowed; write {allowed}")
        return value

    return check


BOUNDS = {"low": _number, "high": _number}
# What each check needs, and what it may have beside it.
CHECKS = {
    "less_than": ({"left": _metric, "right": _metric_or_number}, {"factor": _number}),
    "in_range": ({"metric": _metric}, BOUNDS),
    "ratio": ({"of": _metric, "to": _metric}, BOUNDS),
    "order": ({"metrics": _metrics}, {"slack": _number}),
    "difference": ({"metric": _metric, "is": _one_of(SIGNS)}, {}),
}
