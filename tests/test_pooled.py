"""The pilots of chapter 10: the arms differ where they should, and only there."""

import math

import pytest
import torch

from booktools import pooled
from learnopt import datasets, records
from learnopt.seeding import generator


@pytest.fixture
def few(monkeypatch):
    """Random images and 40 steps, an update every 10."""
    monkeypatch.setattr(pooled, "N_STEPS", 40)
    monkeypatch.setattr(pooled, "EVERY", 10)
    made = generator(0, "pooled")
    return torch.rand(300, 196, generator=made), torch.randint(10, (300,), generator=made)


def test_the_run_by_hand_is_the_same_in_every_arm(few):
    losses, rates = zip(*(pooled.run(*few, 0, *how) for how in pooled.ARMS.values()), strict=True)
    for other, rate in zip(losses, rates, strict=True):
        assert other[0] == losses[0][0]
        torch.testing.assert_close(rate[0], torch.tensor(1.0))
    assert len({tuple(rate.tolist()) for rate in rates}) == len(pooled.ARMS)


def test_without_adams_averages_each_meta_step_is_a_hundredth_in_the_log(few):
    _, rates = pooled.run(*few, 0, *pooled.ARMS["deterministic"])
    moved = (rates[1:].log() - (torch.tensor(pooled.LRS[1:]) / 0.1).log()) / 0.01
    torch.testing.assert_close(moved, moved.round(), rtol=0, atol=0.01)
    assert moved.abs().max() <= 20  # two updates before the middle, ten meta-steps each


def test_a_record_has_all_arms_and_says_what_it_was(few, tmp_path):
    found = records.load(pooled.record(*few, "max", 3, tmp_path))
    assert found.name == "paper-pooled-max-seed3"
    assert len(found.metrics) == 2 * len(pooled.ARMS) * len(pooled.NAMES)
    assert all(math.isfinite(value) for value in found.metrics.values())
    assert (found.parameters["pooled"], found.parameters["pooling"]) == (2, "max")


def test_each_pooling_is_what_its_name_says(monkeypatch):
    made = torch.rand(3, 28, 28, generator=generator(1, "pooled"))
    whole = datasets.Dataset("mnist", made, torch.arange(3), *[None] * 6)._replace(n_classes=10)
    monkeypatch.setattr(datasets, "load", lambda *args, **kwargs: whole)
    blocks = made.unflatten(2, (14, 2)).unflatten(1, (14, 2))  # image, row, in it, column, in it
    for pooling, block in (("mean", blocks.mean((2, 4))), ("max", blocks.amax((2, 4)))):
        torch.testing.assert_close(pooled.images(pooling)[0], block.flatten(1))


def test_without_data_it_says_so(monkeypatch, capsys):
    def missing(*args, **kwargs):
        raise datasets.DatasetError("mnist: no network")

    monkeypatch.setattr(datasets, "load", missing)
    assert pooled.main([]) == 2
    assert "no network" in capsys.readouterr().err
