"""The scans beside chapter 12: the arms differ where they should, and only there."""

import pytest
import torch

from booktools import oho_scans
from learnopt import datasets, records

FEW = oho_scans.Scale("digits", hidden=(8,), n_epochs=2, n_steps=12)


@pytest.fixture(scope="module")
def digits():
    data = datasets.load("digits")  # its validation set is smaller than the largest batch
    return data._replace(x_valid=data.x_train, y_valid=data.y_train)


def test_all_arms_of_a_scan_start_from_the_same_network_and_then_part(digits):
    for experiment in oho_scans.EXPERIMENTS:
        found = {
            arm: oho_scans.run(digits, 0, *how, FEW)
            for arm, how in oho_scans.arms(experiment).items()
        }
        starts = {losses[0, 0].item() for losses, _ in found.values()}
        assert len(starts) == 1
        ends = {tuple(rates[:, -1].tolist()) for _, rates in found.values()}
        # 24 steps: forgetting after 100 or 1,000 is never forgetting
        same = {"batch": 0}
        assert len(ends) == len(found) - same.get(experiment, 2)


def test_a_reset_at_every_step_is_hypergradient_descent(digits):
    rule, _, n_judge = oho_scans.arms("reset")["reset1"]
    scale = FEW._replace(n_epochs=1, n_steps=1)
    forgetful = oho_scans.run(digits, 0, rule, (0.1,), n_judge, scale)
    never = oho_scans.arms("reset")["never"][0]
    assert torch.equal(forgetful[1], oho_scans.run(digits, 0, never, (0.1,), n_judge, scale)[1])


def test_a_fixed_rate_stays(digits):
    _, rates = oho_scans.run(digits, 0, *oho_scans.arms("batch")["fixed"], FEW)
    torch.testing.assert_close(rates, torch.tensor(oho_scans.FIXED)[:, None].expand(2, 3))


@pytest.mark.parametrize("experiment", oho_scans.EXPERIMENTS)
def test_a_record_has_all_arms_and_what_broke_is_said(digits, experiment, tmp_path, monkeypatch):
    monkeypatch.setattr(oho_scans, "META_RATE", 1e4)
    found = records.load(oho_scans.record(digits, experiment, 3, tmp_path, FEW))
    assert found.name == f"paper-scan-{experiment}-seed3"
    assert {name.split("_", 1)[1] for name in found.curves} == set(oho_scans.arms(experiment))
    broke = {"reset": "never_lr01", "batch": "batch10_lr01"}.get(experiment, "plain_lr05")
    assert found.metrics[f"broke_{broke}"]
    stays = {"reset": None, "batch": "fixed_lr001"}.get(experiment, "log_lr0001")
    assert not (stays and found.metrics[f"broke_{stays}"])
    assert (found.parameters["n_epochs"], found.parameters["hidden"]) == (2, [8])


def test_without_data_it_says_so(monkeypatch, capsys):
    def missing(*args, **kwargs):
        raise datasets.DatasetError("mnist: no network")

    monkeypatch.setattr(datasets, "load", missing)
    assert oho_scans.main([]) == 2
    assert "no network" in capsys.readouterr().err
