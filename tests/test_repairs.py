"""The repair of chapter 06 with one thing changed: each change is one, and the rest is the same."""

from pathlib import Path

import pytest
import torch

from booktools import repairs
from learnopt import records

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / f"{repairs.CHAPTER}.ipynb"
FEW = {"trained": "digits", "repair_on": "digits", "pool": 1, "problems": "digits-sigmoid"}
FEW |= {"n_test": 1, "n_steps": 60, "stages": "20x3"}
TRAINED = ("imitation", "no-scales", "no-clip")  # the others change the stages


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    names = {name: repairs.record(NOTEBOOK, name, 0, root, **FEW) for name in TRAINED}
    return {name: records.load(path) for name, path in names.items()}


def test_a_record_says_what_was_changed_and_judges_the_problems_asked_for(made):
    for name, record in made.items():
        assert record.name == f"paper-{name}-seed0" and record.parameters["change"] == name
        assert set(record.metrics) == {
            f"{quantity}_digits_sigmoid" for quantity in ("sum1000", "final", "accuracy")
        }
        assert record.curves["mean_digits_sigmoid"].shape == (60,)
    changed = {name: (r.parameters["bound"], r.parameters["clip"]) for name, r in made.items()}
    plain = (1.0, 0.001)
    assert changed == {"imitation": plain, "no-scales": (0.0, 0.001), "no-clip": (1.0, 1e9)}


def test_every_change_changes_what_is_trained(made, monkeypatch, tmp_path):
    monkeypatch.setitem(repairs.CHANGES, "nothing", {})
    record = records.load(repairs.record(NOTEBOOK, "nothing", 0, tmp_path, **FEW))
    sums = {name: r.metrics["sum1000_digits_sigmoid"] for name, r in made.items()}
    assert len({*sums.values(), record.metrics["sum1000_digits_sigmoid"]}) == len(TRAINED) + 1


def test_a_repair_goes_on_from_its_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("LEARNOPT_RUN_DIR", str(tmp_path))
    first = repairs.trained(NOTEBOOK, "imitation", 0, FEW)["history"][0]
    assert (tmp_path / "imitation-seed0").is_dir()
    again = repairs.trained(NOTEBOOK, "imitation", 0, FEW)["history"][0]
    assert torch.equal(first.history, again.history) and again.seconds == first.seconds


def test_a_seed_without_an_optimizer_to_repair_is_refused(monkeypatch, capsys):
    monkeypatch.chdir(NOTEBOOK.parents[1])
    assert repairs.main(["--seeds", "9", "--only", "short"]) == 2
    assert "mnist-seed9" in capsys.readouterr().err
