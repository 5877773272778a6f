"""The kinds of file that the book loads: a valid example of each, its loader, its kind of error.

A Kind's `tree` is the content as nested dicts and lists; `pack` turns a tree, damaged or not, into
files with valid checksums, so that what lies behind a checksum is tested too. `use` does with what
was loaded as the book does, and fails if it was loaded half.
"""

import csv
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import nbformat
import yaml

from booktools import bad_data, chapters, claims, ledger, ledger_page, plan, presets, rules
from booktools.bad_data import Kind
from learnopt import datasets, lstm_optimizer, records

SETTINGS = {"lr": 0.1, "n_steps": 5}


# ---- presets and the parameters cell

CELL = """\
seed: int = 0
preset: str = "quick"
lr: float = 0.1  # thesis: 1.0
sizes: list[int] = [2, 3]
live: bool = False"""
NOTEBOOK = Path("notebooks", "01_small.ipynb")


def _notebook():
    cell = nbformat.v4.new_code_cell(CELL, metadata={"tags": ["parameters"]}, id="settings")
    return nbformat.v4.new_notebook(cells=[cell])


def _pack_preset(tree):
    text = yaml.safe_dump(tree, allow_unicode=True).encode("utf-8", "surrogatepass")
    return {"notebooks/presets/01_small.paper.yaml": text} | _pack_notebook(_notebook())


def _pack_notebook(tree):
    return {str(NOTEBOOK): json.dumps(tree).encode()}


def _load_preset(folder):
    parameters = chapters.parameters(folder / NOTEBOOK)
    return parameters, presets.load(folder / NOTEBOOK, "paper", parameters)


def _use_preset(loaded):
    parameters, values = loaded
    assert values["preset"] == "paper" and not presets.problems("", values, parameters)
    json.dumps(values, allow_nan=False).encode()


def _use_parameters(found):
    assert all(chapters.misfit(p.kind, p.default) is None for p in found.values())
    json.dumps({name: p.default for name, p in found.items()}, allow_nan=False).encode()


# ---- claims

CLAIMS = """
sources: {thesis2019: "The thesis, with Ünicode"}
claims:
  - id: a-claim
    source: thesis2019
    item: figure 1
    title: A learned optimizer is better
    statement: It is.
    published_table: numbers.csv
    published: [{what: sum, metric: loss_lstm, value: 0.25, high: 0.5, tag: printed}]
    chapter: 01_small
    preset: paper
    records: paper-seed*
    min_seeds: 1
    rule:
      main:
        - {say: lower, check: less_than, left: loss_lstm, right: loss_adam, factor: 0.9, over: mean}
        - {say: within, check: in_range, metric: loss_lstm, low: 0.1, high: 2}
      detail:
        - {say: near, check: ratio, of: loss_lstm, to: loss_adam, low: 0.5, high: 1.5}
        - {say: ordered, check: order, metrics: [loss_lstm, loss_adam], slack: 0.1}
        - {say: sure, check: difference, metric: gain, is: below_zero}
    not_run_reason: not yet
"""
TABLE = [["claim", "what", "metric", "value", "high", "tag"],
         ["a-claim", "loss", "loss_adam", "0.5", "", "digitised"]]  # fmt: skip


def _pack_claims(tree):
    text = yaml.safe_dump(tree.get("claims"), allow_unicode=True)
    table = io.StringIO()
    rows = tree.get("csv")
    rows = rows if isinstance(rows, list) else [[rows]]
    csv.writer(table).writerows(row if isinstance(row, list) else [row] for row in rows)
    return {
        "data/claims.yaml": text.encode("utf-8", "surrogatepass"),
        "data/published/numbers.csv": table.getvalue().encode("utf-8", "surrogatepass"),
    }


def _load_claims(folder):
    return folder, *claims.load(folder / "data" / "claims.yaml")


def _use_claims(loaded):
    """Judge the claims, on no record and on one with any metric, and write both ledger files."""
    folder, sources, rows = loaded
    for preset in (None, "paper"):
        judged = [(claim, rules.judge(claim, _measured(claim, preset))) for claim in rows]
        entries = [ledger.entry(claim, verdict) for claim, verdict in judged]
        json.dumps(entries, allow_nan=False)
        ledger_page.render(folder, sources, judged).encode()


def _measured(claim, preset):
    if preset is None or claim.chapter is None:
        return []
    metrics = dict.fromkeys(rules.metrics_of(claim), 0.75)
    origin = bad_data.record()["json"]["provenance"]
    return [records.Record(claim.chapter, "x", claim.preset, {}, metrics, {}, origin)]


# ---- the folder of a run

RUN_FILES = {plan.JOB: {}, plan.STARTED: {}, plan.DONE: {}, plan.FAILED: {"error": "1 / 0"}}


def _pack_run(tree):
    files = tree if isinstance(tree, dict) else {}
    texts = {f"run/{n}": json.dumps(v).encode() for n, v in files.items() if n in RUN_FILES}
    return texts | _pack_notebook(_notebook())


def _run_tree():
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, NOTEBOOK)
        path.parent.mkdir()
        path.write_bytes(_pack_notebook(_notebook())[str(NOTEBOOK)])
        told = {"seed": 0, "seconds": 1.5, "fingerprint": plan.fingerprint(path, SETTINGS)}
    return {name: told | content for name, content in RUN_FILES.items()}


def _load_run(folder):
    run = plan.Run(folder / NOTEBOOK, "paper", 0, folder / "run", {}, SETTINGS)
    return plan.state(run)


def _use_run(state):
    assert state.name in ("finished", "new", "stale", "failed", "interrupted")
    state.reason.encode()


def kinds():
    """Every kind, with its example."""
    return [
        Kind("preset", chapters.InputError,
             {"preset": "paper", "lr": 1.0, "sizes": [4], "live": True},
             _pack_preset, _load_preset, _use_preset),
        Kind("parameters cell", chapters.InputError, _notebook(),
             _pack_notebook, lambda folder: chapters.parameters(folder / NOTEBOOK),
             _use_parameters, ("notebook", "parameters")),
        Kind("claims", claims.ClaimError, {"claims": yaml.safe_load(CLAIMS), "csv": TABLE},
             _pack_claims, _load_claims, _use_claims, ("numbers.csv",),),
        Kind("run folder", chapters.InputError, _run_tree(), _pack_run, _load_run, _use_run),
    ]  # fmt: skip


# ---- names of which paths are made


class Named(NamedTuple):
    error: type
    use: Callable  # (folder, name) -> the path that was made of it


def named():
    """Wherever the book makes a path of a name."""
    return [
        Named(records.RecordError, lambda folder, name: records._path(folder, name, "run")),
        Named(records.RecordError, lambda folder, name: records._path(folder, "01_small", name)),
        Named(
            records.RecordError,
            lambda folder, name: _none(records.paths("01", name, folder), folder),
        ),
        Named(chapters.InputError, _preset_named),
        Named(chapters.InputError, _chapter_named),
        Named(datasets.DatasetError, lambda folder, name: datasets.load(name, folder)),
        Named(lstm_optimizer.OptimizerError, lambda folder, name: lstm_optimizer.load(name)),
    ]


def _none(found, folder):
    assert not found
    return folder / "none"


def _preset_named(folder, name):
    presets.load(folder / NOTEBOOK, name, {})
    return folder / "none"


def _chapter_named(folder, name):
    return chapters.pick(folder, [name])[0]
