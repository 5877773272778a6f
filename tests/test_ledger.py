"""The ledger: every verdict, and a clear error for whatever is malformed."""

import json
import math
from pathlib import Path

import pytest
import yaml

from booktools import claims, ledger, ledger_page, rules
from booktools.claims import ClaimError
from learnopt import records
from learnopt.records import RecordError

ROOT = Path(__file__).parents[1]
CHAPTER = "03_lstm_learns_to_optimize"
HEADER = "claim,what,metric,value,high,tag\n"


def row(**changes):
    fields = {
        "id": "thesis-4.1",
        "source": "kostagiolas2019",
        "item": "Figure 4.1",
        "title": "The LSTM wins",
        "statement": "The LSTM is the best of five | on quadratics.",
        "published": [{"what": "LSTM", "metric": "lstm", "value": 72.6, "tag": "digitised"}],
        "chapter": CHAPTER,
        "preset": "paper",
        "records": "paper-seed*",
        "min_seeds": 2,
        "rule": {
            "main": [
                {"say": "lower", "check": "less_than", "left": "lstm", "right": "adam"},
                {"say": "surely", "check": "difference", "metric": "gap", "is": "below_zero"},
            ],
            "detail": [{"say": "near 72", "check": "in_range", "metric": "lstm", "high": 80}],
        },
        "not_run_reason": "nobody has run it",
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}


def criterion(**fields):
    return {"rule": {"main": [{"say": "it holds"} | fields]}}


def write_claims(root, *rows):
    (root / "data" / "published").mkdir(parents=True, exist_ok=True)
    (root / "book").mkdir(exist_ok=True)
    content = {"sources": {"kostagiolas2019": "The thesis"}, "claims": list(rows)}
    (root / "data" / "claims.yaml").write_text(yaml.safe_dump(content))
    return root


def save(root, seed=0, lstm=70.0, adam=110.0, gap=(-41.0, -40.0, -39.0), **changes):
    metrics = dict(lstm=lstm, adam=adam, gap_low=gap[0], gap=gap[1], gap_high=gap[2])
    fields = {
        "parameters": {}, "metrics": metrics, "curves": {}, "seed": seed, "device": "cpu",
        "seconds": 1.0, "preset": "paper", "root": root / "data" / "results",
    }  # fmt: skip
    return records.save(CHAPTER, f"paper-seed{seed}", **(fields | changes))


def verdict(root):
    _, judged = ledger.evaluate(root)
    return judged[0][1]


def test_the_books_own_claims_are_well_formed_and_every_figure_has_its_row():
    sources, rows = claims.load(ROOT / "data" / "claims.yaml")
    names = {claim.id for claim in rows}
    thesis = {f"thesis-4.{k}" for k in (1, 3, 4, 5, 6, 8, 10, 13, 14)}
    wu = {f"wu-{k}" for k in (
        "fig-1", "fig-2a", "fig-2b", "fig-3", "horizon-sweep", "fig-5", "fig-5-trajectories",
        "fig-6", "fig-7-mnist", "fig-7-cifar", "fig-8", "sec7-estimators",
    )}  # fmt: skip
    im = {f"im-{k}" for k in (
        "fig-1-mnist", "fig-1-cifar", "fig-2", "fig-3a", "fig-3b", "fig-4-mnist", "fig-4-cifar",
        "fig-6a-mnist", "fig-6a-cifar", "fig-6b", "fig-7-rate", "fig-7-decay", "fig-8-mnist",
        "fig-8-cifar", "fig-9", "fig-10", "nonstationary",
    )}  # fmt: skip
    assert thesis | wu | im <= names
    assert any(name.startswith("andrychowicz-") for name in names)
    assert {claim.source for claim in rows} == set(sources)


def test_every_published_number_belongs_to_a_claim():
    _, rows = claims.load(ROOT / "data" / "claims.yaml")
    tables = list((ROOT / "data" / "published").glob("*.csv"))
    n_lines = sum(len(path.read_text().splitlines()) - 1 for path in tables)
    inline = sum(len(c.get("published", [])) for c in yaml.safe_load(
        (ROOT / "data" / "claims.yaml").read_text())["claims"])  # fmt: skip
    assert sum(len(claim.published) for claim in rows) == n_lines + inline


def test_the_sources_are_in_the_bibliography():
    bibliography = (ROOT / "book" / "references.bib").read_text()
    sources, _ = claims.load(ROOT / "data" / "claims.yaml")
    assert [key for key in sources if f"{{{key}," not in bibliography] == []


def test_the_generated_files_are_up_to_date():
    assert ledger.main(["--check", "--root", str(ROOT)]) == 0


def test_all_criteria_in_all_records_are_reproduced(tmp_path):
    write_claims(tmp_path, row())
    save(tmp_path, 0)
    save(tmp_path, 1, lstm=74.0)
    found = verdict(tmp_path)
    assert (found.verdict, found.n_seeds) == ("reproduced", 2)
    assert found.ours["lstm"] == {"mean": 72.0, "lowest": 70.0, "highest": 74.0}
    assert found.records == [f"{CHAPTER}/paper-seed0.json", f"{CHAPTER}/paper-seed1.json"]


def test_a_detail_that_fails_is_partly(tmp_path):
    write_claims(tmp_path, row())
    save(tmp_path, 0, lstm=90.0)
    save(tmp_path, 1, lstm=90.0)
    found = verdict(tmp_path)
    assert found.verdict == "partly"
    assert "near 72: in 0 of 2 records" in found.reason


def test_a_main_criterion_that_fails_in_one_record_is_partly(tmp_path):
    write_claims(tmp_path, row())
    for seed in range(3):
        save(tmp_path, seed, gap=(-2.0, -1.0, 0.5) if seed == 0 else (-3.0, -2.0, -1.0))
    assert verdict(tmp_path).verdict == "partly"
    assert "surely: in 2 of 3 records" in verdict(tmp_path).reason


def test_no_main_criterion_in_most_records_is_not_reproduced(tmp_path):
    write_claims(tmp_path, row())
    save(tmp_path, 0, lstm=70.0, adam=60.0, gap=(9.0, 10.0, 11.0))
    save(tmp_path, 1)  # one of two is not more than half
    found = verdict(tmp_path)
    assert found.verdict == "not reproduced"
    assert found.reason.startswith("1 of 3 criteria hold in every record.")


def test_a_rule_of_one_criterion_is_not_said_to_have_all_of_them():
    held = rules.Outcome("lower", True, 2, 2)
    assert rules._reason([held]) == "its one criterion holds"
    assert rules._reason([held, held]) == "all 2 criteria hold"


def test_without_records_or_seeds_it_is_not_run_and_says_why(tmp_path):
    write_claims(tmp_path, row())
    assert verdict(tmp_path)[:2] == ("not run", "nobody has run it")
    save(tmp_path, 0)
    assert verdict(tmp_path)[:2] == ("not run", "1 of 2 seeds recorded")
    save(tmp_path, 0, parameters={"n_seeds": 2})  # one record may stand for several seeds
    assert verdict(tmp_path).verdict == "reproduced"


def test_records_that_did_not_measure_the_claim_are_not_run(tmp_path):
    write_claims(tmp_path, row())
    save(tmp_path, 0)
    save(tmp_path, 1, metrics={"something_else": 1.0})
    assert verdict(tmp_path)[:2] == ("not run", "1 of 2 records hold none of its metrics")


def test_a_diverged_run_fulfils_no_criterion_and_does_not_stop_the_ledger(tmp_path):
    write_claims(tmp_path, row())
    nan = math.nan
    save(tmp_path, 0, lstm=nan, gap=(nan, nan, nan))
    save(tmp_path, 1, lstm=nan, gap=(nan, nan, nan))
    assert verdict(tmp_path).verdict == "not reproduced"
    assert ledger.main(["--root", str(tmp_path)]) == 0
    text = (tmp_path / "data" / "ledger.json").read_text()
    written = json.loads(text, parse_constant=pytest.fail)
    assert written[0]["ours"]["lstm"]["mean"] == "nan"
    assert "diverged" in (tmp_path / "book" / "replication.md").read_text()


def test_infinity_is_a_number_that_loses(tmp_path):
    write_claims(tmp_path, row())
    save(tmp_path, 0, adam=math.inf)
    save(tmp_path, 1, adam=math.inf)
    assert verdict(tmp_path).verdict == "reproduced"
    save(tmp_path, 1, adam=-math.inf)
    assert math.isnan(verdict(tmp_path).ours["adam"]["mean"])


@pytest.mark.parametrize(
    ("rule", "values", "expected"),
    [
        (dict(check="less_than", left="a", right="b"), {"a": 1, "b": 2}, True),
        (dict(check="less_than", left="a", right="b"), {"a": 2, "b": 2}, False),
        (dict(check="less_than", left="a", right="b", factor=0.4), {"a": 1, "b": 2}, False),
        (dict(check="less_than", left="a", right=3), {"a": 2}, True),
        (dict(check="in_range", metric="a", low=1, high=2), {"a": 2}, True),
        (dict(check="in_range", metric="a", low=1, high=2), {"a": 2.1}, False),
        (dict(check="in_range", metric="a", low=1), {"a": math.nan}, False),
        (dict(check="in_range", metric="a", low=1), {"a": 1}, True),
        (dict(check="in_range", metric="a", low=1), {"a": math.inf}, True),
        (dict(check="in_range", metric="a", high=1), {"a": -1}, True),
        (dict(check="ratio", of="a", to="b", low=3), {"a": 9, "b": 3}, True),
        (dict(check="ratio", of="a", to="b", high=2), {"a": 9, "b": 3}, False),
        (dict(check="ratio", of="a", to="b", low=3), {"a": 9, "b": 0}, False),
        (dict(check="ratio", of="a", to="b", low=3), {"a": -9, "b": -3}, True),
        (dict(check="ratio", of="a", to="b", high=2), {"a": -9, "b": 3}, True),
        (dict(check="order", metrics=["a", "b", "c"]), {"a": 1, "b": 2, "c": 3}, True),
        (dict(check="order", metrics=["a", "b", "c"]), {"a": 1, "b": 3, "c": 2}, False),
        (dict(check="order", metrics=["a", "b"], slack=0.5), {"a": 1.3, "b": 1}, True),
        (dict(check="order", metrics=["a", "b"]), {"a": 1, "b": math.nan}, False),
        (dict(check="order", metrics=["a", "b"]), {"a": 1, "b": 1}, False),
        (dict(check="difference", metric="a", **{"is": "below_zero"}),
         {"a_low": -2, "a_high": -1}, True),
        (dict(check="difference", metric="a", **{"is": "below_zero"}),
         {"a_low": -2, "a_high": 1}, False),
        (dict(check="difference", metric="a", **{"is": "above_zero"}),
         {"a_low": 1, "a_high": 2}, True),
        (dict(check="difference", metric="a", **{"is": "around_zero"}),
         {"a_low": -1, "a_high": 2}, True),
        (dict(check="difference", metric="a", **{"is": "around_zero"}),
         {"a_low": math.nan, "a_high": 2}, False),
        (dict(check="difference", metric="a", **{"is": "below_zero"}),
         {"a_low": -1, "a_high": 0}, False),
        (dict(check="difference", metric="a", **{"is": "above_zero"}),
         {"a_low": 0, "a_high": 1}, False),
        (dict(check="difference", metric="a", **{"is": "above_zero"}),
         {"a_low": -1, "a_high": 2}, False),
        (dict(check="difference", metric="a", **{"is": "around_zero"}),
         {"a_low": 0, "a_high": 0}, True),
        (dict(check="difference", metric="a", **{"is": "around_zero"}),
         {"a_low": 1, "a_high": 2}, False),
        (dict(check="difference", metric="a", **{"is": "below_zero"}),
         {"a_low": math.nan, "a_high": -1}, False),
    ],
)  # fmt: skip
def test_each_check_decides_as_its_name_says(rule, values, expected):
    assert rules.holds(rule, values) is expected


def test_seeds_that_two_records_share_count_once(tmp_path):
    write_claims(tmp_path, row(min_seeds=4))
    save(tmp_path, 0, parameters={"n_seeds": 2})
    save(tmp_path, 1, parameters={"n_seeds": 2})  # the seeds 0 and 1, then 1 and 2
    assert verdict(tmp_path)[:2] == ("not run", "3 of 4 seeds recorded")
    save(tmp_path, 3, parameters={"n_seeds": 0})  # no number of seeds: its own one
    assert verdict(tmp_path).n_seeds == 4


def test_one_diverged_record_is_the_lowest_and_the_highest_whatever_the_order(tmp_path):
    for first, second in ((math.nan, 70.0), (70.0, math.nan)):
        write_claims(tmp_path, row())
        save(tmp_path, 0, lstm=first)
        save(tmp_path, 1, lstm=second)
        assert all(math.isnan(x) for x in verdict(tmp_path).ours["lstm"].values())


def test_the_mean_over_records_decides_where_the_rule_says_so(tmp_path):
    over_mean = criterion(check="less_than", left="lstm", right="adam", over="mean")
    write_claims(tmp_path, row(**over_mean))
    save(tmp_path, 0, lstm=120.0, adam=110.0)
    save(tmp_path, 1, lstm=80.0, adam=110.0)
    assert verdict(tmp_path).verdict == "reproduced"
    over_mean["rule"]["main"][0]["over"] = "each"
    write_claims(tmp_path, row(**over_mean))
    assert verdict(tmp_path).verdict == "not reproduced"


def test_an_unknown_metric_is_an_error_that_names_the_nearest(tmp_path):
    write_claims(tmp_path, row(**criterion(check="order", metrics=["lstm", "adm"])))
    save(tmp_path, 0)
    with pytest.raises(ClaimError, match="'thesis-4.1'.*paper-seed0.*'adm'.*near it: adam"):
        verdict(tmp_path)


def test_a_record_of_another_preset_never_decides(tmp_path):
    write_claims(tmp_path, row())
    save(tmp_path, 0, preset="quick")
    with pytest.raises(ClaimError, match="preset 'quick', not 'paper'"):
        verdict(tmp_path)


def test_a_corrupt_record_stops_the_ledger_and_is_named(tmp_path, capsys):
    write_claims(tmp_path, row())
    path = save(tmp_path, 0)
    path.write_text(path.read_text()[:-20])
    with pytest.raises(RecordError, match="paper-seed0.json"):
        verdict(tmp_path)
    assert ledger.main(["--root", str(tmp_path)]) == 2
    assert "paper-seed0.json" in capsys.readouterr().err
    assert not (tmp_path / "data" / "ledger.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"title": None}, "'thesis-4.1', field 'title' is missing"),
        ({"colour": "red"}, "field 'colour' is not known; allowed: id, source"),
        ({"id": "Thesis 4.1"}, "field 'id'.*lower-case"),
        ({"source": "nobody2020"}, "field 'source'.*kostagiolas2019"),
        ({"chapter": "../03"}, "field 'chapter'.*NN_name"),
        (
            {"preset": "tiny"},
            "field 'preset': 'tiny' is not one of smoke, quick, narrow, paper, full",
        ),
        ({"records": "../paper"}, "field 'records'"),
        ({"min_seeds": 0}, "field 'min_seeds'.*at least 1"),
        ({"min_seeds": True}, "field 'min_seeds'"),
        ({"statement": " "}, "field 'statement'"),
        ({"rule": "lstm < adam"}, "field 'rule': must be a mapping"),
        ({"rule": {"detail": []}}, "field 'rule': field 'main' is missing"),
        ({"rule": {"main": []}}, "field 'main': needs at least one criterion"),
        ({"published": [{"what": "x", "value": "7e-3", "tag": "printed"}]}, "a number like 1.0e-3"),
        ({"published": [{"what": "x", "value": 7, "tag": "guessed"}]}, "'tag'.*not one of printed"),
        ({"published_table": "none.csv"}, "field 'published_table'"),
        ({"published_table": "../claims.csv"}, "field 'published_table'"),
        (criterion(check="eval", code="1"), "'check' is 'eval'; allowed: less_than, in_range"),
        (criterion(check="less_than", left="a"), "field 'right' is missing"),
        (criterion(check="less_than", left="a()", right="b"), "field 'left'.*name of a metric"),
        (criterion(check="in_range", metric="a"), "needs 'low' or 'high'"),
        (criterion(check="in_range", metric="a", low=math.nan), "field 'low': must be a number"),
        (criterion(check="in_range", metric="a", high=1, left="b"), "field 'left' is not known"),
        (criterion(check="order", metrics=["a"]), "at least two metrics"),
        (criterion(check="difference", metric="a", **{"is": "small"}), "field 'is'.*below_zero"),
        (criterion(check="less_than", left="a", right="b", over="median"), "field 'over'"),
        (criterion(check="ratio", of="a", to="b"), "needs 'low' or 'high'"),
        (criterion(check="in_range", metric="a", low=True), "field 'low': must be a number"),
        (
            criterion(check="difference", metric="a", over="mean", **{"is": "below_zero"}),
            "field 'over': intervals",
        ),
    ],
)
def test_a_malformed_row_names_the_row_the_field_and_what_is_allowed(tmp_path, changes, message):
    write_claims(tmp_path, row() | changes if None not in changes.values() else row(**changes))
    with pytest.raises(ClaimError, match=message) as caught:
        ledger.evaluate(tmp_path)
    assert "claims.yaml" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "claims: 3", "{", "\x00", "!!python/object:os.x {}"])
def test_a_file_that_holds_no_claims_is_refused(tmp_path, text):
    write_claims(tmp_path, row())
    (tmp_path / "data" / "claims.yaml").write_text(text)
    with pytest.raises(ClaimError, match="claims.yaml"):
        ledger.evaluate(tmp_path)


def test_two_rows_of_one_name_are_refused(tmp_path):
    write_claims(tmp_path, row(), row())
    with pytest.raises(ClaimError, match="two rows of this name"):
        ledger.evaluate(tmp_path)


def test_a_table_of_published_numbers_is_joined_by_id(tmp_path):
    write_claims(tmp_path, row(published=None, published_table="thesis.csv"))
    table = tmp_path / "data" / "published" / "thesis.csv"
    table.write_text(HEADER + "thesis-4.1,LSTM,lstm,65,80,estimated\nother,x,,1,,printed\n")
    _, rows = claims.load(tmp_path / "data" / "claims.yaml")
    assert rows[0].published == [
        {"what": "LSTM", "metric": "lstm", "value": 65.0, "high": 80.0, "tag": "estimated"}
    ]
    for bad in ("thesis-4.1,LSTM,lstm,x,,printed\n", "thesis-4.1,LSTM\n", "other,x,,1,,printed\n"):
        table.write_text(HEADER + bad)
        with pytest.raises(ClaimError, match="thesis.csv"):
            ledger.evaluate(tmp_path)


def test_an_out_of_date_ledger_is_found_and_not_written(tmp_path, capsys):
    write_claims(tmp_path, row())
    assert ledger.main(["--check", "--root", str(tmp_path)]) == 1
    assert "book/replication.md is out of date; run make ledger" in capsys.readouterr().err
    assert not (tmp_path / "book" / "replication.md").exists()
    assert ledger.main(["--root", str(tmp_path)]) == 0
    assert ledger.main(["--check", "--root", str(tmp_path)]) == 0
    save(tmp_path, 0)
    assert ledger.main(["--check", "--root", str(tmp_path)]) == 1


def test_the_terminal_shows_every_claim_and_the_count(tmp_path, capsys):
    write_claims(tmp_path, row(), row(id="thesis-4.3", records="none*"))
    save(tmp_path, 0)
    save(tmp_path, 1)
    ledger.main(["--root", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "thesis-4.1" in printed and "all 3 criteria hold" in printed
    assert "2 claims: 1 reproduced, 0 partly, 0 not reproduced, 1 not run" in printed


def test_the_json_holds_what_programs_need(tmp_path):
    write_claims(tmp_path, row())
    save(tmp_path, 0)
    save(tmp_path, 1)
    ledger.main(["--root", str(tmp_path)])
    (written,) = json.loads((tmp_path / "data" / "ledger.json").read_text())
    assert set(written) == {
        "id", "source", "statement", "published", "ours", "n_seeds", "verdict", "reason", "records",
    }  # fmt: skip
    assert written["ours"]["lstm"]["mean"] == 70.0
    assert written["published"][0]["tag"] == "digitised"


def test_the_page_links_only_to_chapters_that_the_site_has(tmp_path):
    write_claims(tmp_path, row())
    link = f"../notebooks/{CHAPTER}.ipynb"
    for toc, expected in (("", False), (f"- file: notebooks/{CHAPTER}", True)):
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        (tmp_path / "notebooks" / f"{CHAPTER}.ipynb").write_text("{}")
        (tmp_path / "_toc.yml").write_text(toc)
        ledger.main(["--root", str(tmp_path)])
        page = (tmp_path / "book" / "replication.md").read_text()
        assert (link in page) is expected
    assert "{cite" not in page  # the bibliography here is empty


def test_every_link_of_the_page_has_its_target():
    page = (ROOT / "book" / "replication.md").read_text()
    targets = {line[1:-2] for line in page.splitlines() if line.endswith(")=")}
    links = {part.split(")")[0] for part in page.split("](#")[1:]}
    assert links and links == targets


@pytest.mark.parametrize(
    ("value", "text"),
    [(72.6, "72.6"), (0.01906, "0.01906"), (2e-14, "2e-14"), (134794, "134,800"), (0, "0"),
     (15000, "15,000"), (math.nan, "diverged"), (math.inf, "inf"), (-7.271, "-7.271"),
     (1e-6, "1e-06"), (100.0, "100"), (3, "3")],
)  # fmt: skip
def test_numbers_are_shown_with_four_digits(value, text):
    assert ledger_page.number(value) == text
