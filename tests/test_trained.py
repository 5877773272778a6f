"""Trained optimizers: what comes with the library loads, and what is damaged is refused."""

import numpy as np
import pytest
import torch

from learnopt import datasets, lstm_optimizer, tasks, unroll
from learnopt.seeding import generator


@pytest.fixture
def file(tmp_path):
    phi = lstm_optimizer.init_phi("log", generator(0))
    lstm_optimizer.save(tmp_path / "mine.npz", phi, "log", 0.1, "a test")
    return tmp_path / "mine.npz"


def rewrite(path, **changes):
    with np.load(path, allow_pickle=False) as found:
        content = {**found, **changes}
    np.savez(path, **{k: v for k, v in content.items() if v is not None})


def test_what_is_saved_is_what_is_loaded(file):
    trained = lstm_optimizer.load(str(file))
    phi = lstm_optimizer.init_phi("log", generator(0))
    assert all(torch.equal(trained.phi[name], phi[name]) for name in phi)
    assert (trained.inputs, trained.out_scale, trained.about) == ("log", 0.1, "a test")


@pytest.mark.parametrize("name", lstm_optimizer.names())
def test_each_trained_optimizer_of_the_library_lowers_a_loss(name):
    trained = lstm_optimizer.load(name)
    task = tasks.quadratic() if trained.inputs == "raw" else small_network()
    losses = unroll.losses(task, trained.opt, trained.phi, unroll.draw_runs(task, 5, 60, 0))
    assert losses[:, -1].mean() < 0.7 * losses[:, 0].mean()


def small_network():
    data = datasets.load("digits", n_valid=0)
    x, y = data.x_train, data.y_train
    return tasks.mlp([64, 20, 10], batches=lambda g, n: datasets.minibatches(x, y, 128, n, g))


def test_the_library_has_trained_optimizers():
    assert {"digits-seed0", "mnist"} <= set(lstm_optimizer.names())


def test_an_unknown_name_says_which_there_are():
    with pytest.raises(ValueError, match="no trained optimizer 'minst'; there are .*'mnist'"):
        lstm_optimizer.load("minst")


@pytest.mark.parametrize(
    "changes",
    [
        {"out.bias": None},
        {"more": np.zeros(1)},
        {"out.bias": np.zeros(2, np.float32)},
        {"out.bias": np.full(1, np.nan, np.float32)},
        {"out.bias": np.zeros(1)},
        {"inputs": np.array("logs")},
        {"out.bias": np.array([object()])},
    ],
    ids=["missing", "extra", "shape", "nan", "dtype", "inputs", "pickle"],
)
def test_a_damaged_file_is_refused(file, changes):
    rewrite(file, **changes)
    with pytest.raises(ValueError, match="mine.npz: not a trained LSTM optimizer"):
        lstm_optimizer.load(str(file))


def test_a_truncated_file_is_refused(file):
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="not a trained LSTM optimizer"):
        lstm_optimizer.load(file)
