"""More seeds of chapter 06's ablations: the chapter's own cells, and a record like its own."""

import json
from pathlib import Path

import pytest

from booktools import ablations
from booktools.chapters import InputError
from learnopt import records

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / f"{ablations.CHAPTER}.ipynb"


def test_a_record_has_the_names_of_the_one_that_the_chapter_leaves(tmp_path):
    made = records.load(
        ablations.record(NOTEBOOK, 3, tmp_path, n_ablation=2, ablations="base second")
    )
    assert made.name == "paper-ablations-seed3" and made.chapter == ablations.CHAPTER
    chapters_own = records.find(ablations.CHAPTER, "paper-ablations-seed0")[0]
    assert set(made.metrics) < set(chapters_own.metrics)
    assert set(made.curves) < set(chapters_own.curves)
    assert set(made.parameters) == set(chapters_own.parameters)
    assert made.curves["mean_base"].shape == chapters_own.curves["mean_base"].shape
    assert made.metrics["sum100_base"] != made.metrics["sum100_second"]


def test_rows_are_the_seed_s_own_and_the_same_again():
    def sums(seed):
        _, losses = ablations.run(NOTEBOOK, seed, n_ablation=1, ablations="base")["base"]
        return losses.sum().item()

    assert sums(3) == sums(3) != sums(4)


def test_a_notebook_that_has_lost_a_cell_is_refused(tmp_path):
    path = tmp_path / NOTEBOOK.name
    notebook = json.loads(NOTEBOOK.read_text())
    notebook["cells"] = [cell for cell in notebook["cells"] if cell["id"] != "ablate"]
    path.write_text(json.dumps(notebook))
    with pytest.raises(InputError, match="ablate"):
        ablations.run(path, 0)


def test_elsewhere_than_in_the_project_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert ablations.main(["--seeds", "3"]) == 2
    assert f"{ablations.CHAPTER}.ipynb" in capsys.readouterr().err
