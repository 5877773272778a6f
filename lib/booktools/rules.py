"""From a claim and its records to a verdict. Rules are data: nothing is ever executed.

A criterion holds or not in each record (or once, in the means, with `over: mean`). The verdict:
reproduced if all hold everywhere; not reproduced if no main criterion holds in more than half of
the records; partly otherwise. Comparisons with nan are false, so a diverged run fulfils nothing.
"""

import difflib
import math
from typing import NamedTuple

from booktools.claims import ClaimError

REPRODUCED, PARTLY, NOT_REPRODUCED, NOT_RUN = VERDICTS = (
    "reproduced", "partly", "not reproduced", "not run",
)  # fmt: skip


class Outcome(NamedTuple):
    """How one criterion came out: it holds in `n_held` of `n` records."""

    say: str
    main: bool
    n_held: int
    n: int

    @property
    def mostly(self):
        return 2 * self.n_held > self.n

    @property
    def always(self):
        return self.n_held == self.n


class Verdict(NamedTuple):
    verdict: str  # one of VERDICTS
    reason: str
    ours: dict  # metric -> {"mean", "lowest", "highest"} over the records
    n_seeds: int
    records: list  # paths below the results folder
    outcomes: list  # of Outcome; empty if not run


def metrics_of(claim):
    """The metrics that the claim's rule needs, in order of appearance."""
    names = []
    for criterion in claim.main + claim.detail:
        if criterion["check"] == "difference":
            names += [f"{criterion['metric']}{end}" for end in ("", "_low", "_high")]
        else:
            operands = [criterion.get(key) for key in ("left", "right", "metric", "of", "to")]
            names += [name for name in operands if isinstance(name, str)]
            names += criterion.get("metrics", [])
    return list(dict.fromkeys(names))


def judge(claim, records):
    """The Verdict on a claim, from its records (as learnopt.records loads them)."""
    n_seeds = len(set().union(*(_seeds(record) for record in records)))
    files = [f"{record.chapter}/{record.name}.json" for record in records]
    for record in records:
        if record.preset != claim.preset:
            raise ClaimError(
                f"row {claim.id!r}: {claim.records!r} matches {record.chapter}/{record.name}, a "
                f"record of preset {record.preset!r}, not {claim.preset!r}; rename the record"
            )
    values = [_values(claim, record) for record in records]
    known = [found for found in values if found is not None]
    if len(known) < len(records) or n_seeds < claim.min_seeds:
        reason = _why_not_run(claim, records, known, n_seeds)
        return Verdict(NOT_RUN, reason, {}, n_seeds, files, [])
    outcomes = [_outcome(criterion, True, known) for criterion in claim.main]
    outcomes += [_outcome(criterion, False, known) for criterion in claim.detail]
    return Verdict(
        _verdict(outcomes), _reason(outcomes), _summary(claim, records), n_seeds, files, outcomes
    )


def _seeds(record):
    """A run with n_seeds = 3 and seed = 5 stands for the seeds 5, 6 and 7."""
    seed, n_seeds = record.provenance["seed"], record.parameters.get("n_seeds", 1)
    return set(range(seed, seed + (n_seeds if type(n_seeds) is int and 0 < n_seeds < 1000 else 1)))


def _values(claim, record):
    """The metrics that the rule needs; None if the record holds none of them."""
    needed = metrics_of(claim)
    missing = [name for name in needed if name not in record.metrics]
    if len(missing) == len(needed):
        return None
    if missing:
        near = difflib.get_close_matches(missing[0], record.metrics, n=3)
        hint = f"near it: {', '.join(near)}" if near else "run the chapter again or mend the rule"
        raise ClaimError(
            f"row {claim.id!r}: record {record.chapter}/{record.name} has no metric "
            f"{missing[0]!r}; {hint}"
        )
    return {name: float(record.metrics[name]) for name in needed}


def _why_not_run(claim, records, known, n_seeds):
    if not records:
        return claim.not_run_reason
    if len(known) < len(records):
        return f"{len(records) - len(known)} of {len(records)} records hold none of its metrics"
    return f"{n_seeds} of {claim.min_seeds} seeds recorded"


def _outcome(criterion, main, values):
    if criterion.get("over") == "mean":
        values = [{name: _mean([found[name] for found in values]) for name in values[0]}]
    n_held = sum(holds(criterion, found) for found in values)
    return Outcome(criterion["say"], main, n_held, len(values))


def holds(criterion, values):
    """Whether one criterion holds, given metric -> float."""

    def value(operand):
        return values[operand] if isinstance(operand, str) else operand

    def within(number):
        return criterion.get("low", -math.inf) <= number <= criterion.get("high", math.inf)

    match criterion["check"]:
        case "less_than":
            return value(criterion["left"]) < criterion.get("factor", 1) * value(criterion["right"])
        case "in_range":
            return within(value(criterion["metric"]))
        case "ratio":
            of, to = value(criterion["of"]), value(criterion["to"])
            return within(of / to) if to else False
        case "order":
            ranked = [value(name) for name in criterion["metrics"]]
            pairs = zip(ranked, ranked[1:], strict=False)
            return all(low < high + criterion.get("slack", 0) for low, high in pairs)
        case "difference":
            low, high = (values[f"{criterion['metric']}_{end}"] for end in ("low", "high"))
            return {
                "below_zero": low <= high < 0,
                "above_zero": 0 < low <= high,
                "around_zero": low <= 0 <= high,
            }[criterion["is"]]


def _verdict(outcomes):
    if all(outcome.always for outcome in outcomes):
        return REPRODUCED
    return PARTLY if any(outcome.mostly for outcome in outcomes if outcome.main) else NOT_REPRODUCED


def _reason(outcomes):
    """What did not hold everywhere, main criteria first; or that everything did."""
    short = [outcome for outcome in outcomes if not outcome.always]
    if not short:
        return f"all {len(outcomes)} criteria hold" if outcomes[1:] else "its one criterion holds"
    parts = [f"{outcome.say}: {_count(outcome)}" for outcome in short]
    everywhere = "hold in every record" if any(outcome.n > 1 for outcome in outcomes) else "hold"
    held = len(outcomes) - len(short)
    return f"{held} of {len(outcomes)} criteria {everywhere}. " + "; ".join(parts)


def _count(outcome):
    if outcome.n == 1:
        return "yes" if outcome.n_held else "no"
    return f"in {outcome.n_held} of {outcome.n} records"


def _summary(claim, records):
    """The recorded values of every metric that the rule or a published number names."""
    wanted = metrics_of(claim) + [entry["metric"] for entry in claim.published if entry["metric"]]
    found = {}
    for name in dict.fromkeys(wanted):
        values = [float(record.metrics[name]) for record in records if name in record.metrics]
        if values:
            found[name] = {"mean": _mean(values), "lowest": _lowest(values)}
            found[name]["highest"] = -_lowest([-value for value in values])
    return found


def _lowest(values):
    return math.nan if any(map(math.isnan, values)) else min(values)


def _mean(values):
    try:
        return math.fsum(values) / len(values)
    except (ValueError, OverflowError):  # inf - inf, or a sum above 1.8e308
        return sum(values) / len(values)
