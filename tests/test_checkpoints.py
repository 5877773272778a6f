"""Checkpoints: interrupted = uninterrupted, and nothing damaged or foreign is loaded."""

import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch

from learnopt import checkpoints
from learnopt.checkpoints import CheckpointError

PARAMETERS = {"n_steps": 6, "lr": 0.1}
KEYS = ("weights", "momentum", "step", "draws")


def descend(n_steps, path=None):
    """A noisy descent with momentum that takes up where its checkpoint left it."""
    draws = torch.Generator().manual_seed(3)
    weights, momentum, start = torch.ones(4), torch.zeros(4), 0
    if path and (state := checkpoints.load(path, PARAMETERS, KEYS)):
        weights, momentum, start = state["weights"], state["momentum"], state["step"]
        draws.set_state(state["draws"])
    for _ in range(start, n_steps):
        momentum = 0.9 * momentum - 0.1 * (weights + torch.randn(4, generator=draws))
        weights = weights + momentum
    if path:
        state = (weights, momentum, n_steps, draws.get_state())
        checkpoints.save(path, dict(zip(KEYS, state, strict=True)), PARAMETERS)
    return weights


def test_an_interrupted_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    whole = descend(6)
    assert not torch.equal(whole, descend(3))
    descend(3, tmp_path / "run.pt")
    assert torch.equal(descend(6, tmp_path / "run.pt"), whole)


def test_without_a_file_the_run_starts_at_its_beginning(tmp_path):
    assert checkpoints.load(tmp_path / "none.pt", PARAMETERS, KEYS) is None


def test_nested_states_and_empty_values_come_back(tmp_path):
    state = {"phi": {"lr": torch.tensor(0.1), "empty": torch.zeros(0)}, "log": [1, 2.5, None, "a"]}
    checkpoints.save(tmp_path / "run.pt", state, {})
    back = checkpoints.load(tmp_path / "run.pt", {}, ("phi", "log"))
    assert back["log"] == state["log"] and torch.equal(back["phi"]["lr"], state["phi"]["lr"])


def test_a_kill_between_write_and_replace_keeps_the_previous_checkpoint(tmp_path):
    path = tmp_path / "run.pt"
    checkpoints.save(path, {"step": 1}, {})
    program = (
        "import os, signal; from learnopt import atomic, checkpoints;"
        "atomic.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL);"
        f"checkpoints.save({str(path)!r}, {{'step': 2}}, {{}})"
    )
    killed = subprocess.run([sys.executable, "-c", program])
    assert killed.returncode == -signal.SIGKILL
    assert len(os.listdir(tmp_path)) == 2  # the temporary file is there and is not read
    assert checkpoints.load(path, {}, ("step",)) == {"step": 1}


def test_a_full_disk_is_an_error_and_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "run.pt"
    checkpoints.save(path, {"step": 1}, {})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("learnopt.atomic.os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        checkpoints.save(path, {"step": 2}, {})
    assert checkpoints.load(path, {}, ("step",)) == {"step": 1}
    assert os.listdir(tmp_path) == ["run.pt"]


@pytest.mark.parametrize("n_bytes", [0, 10, 60, 100, -1])
def test_a_truncated_file_is_refused(tmp_path, n_bytes):
    path = tmp_path / "run.pt"
    checkpoints.save(path, {"step": torch.ones(100)}, {})
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(CheckpointError, match="run.pt: truncated.*delete it.*or restore"):
        checkpoints.load(path, {}, ("step",))


def test_one_flipped_bit_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    checkpoints.save(path, {"step": torch.ones(100)}, {})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load(path, {}, ("step",))


def test_other_keys_are_named(tmp_path):
    checkpoints.save(tmp_path / "run.pt", {"step": 1, "old": 2}, {})
    with pytest.raises(CheckpointError, match=r"missing \['phi'\], not known \['old'\]"):
        checkpoints.load(tmp_path / "run.pt", {}, ("step", "phi"))


def test_a_checkpoint_of_a_run_with_other_parameters_is_refused(tmp_path):
    checkpoints.save(tmp_path / "run.pt", {"step": 1}, {"lr": 0.1})
    with pytest.raises(CheckpointError, match="lr is 0.3, was 0.1"):
        checkpoints.load(tmp_path / "run.pt", {"lr": 0.3}, ("step",))
    with pytest.raises(CheckpointError, match="seed is 0, was None"):
        checkpoints.load(tmp_path / "run.pt", {"lr": 0.1, "seed": 0}, ("step",))


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ({"lr": 0.1, "old": 3}, {"lr": 0.1}),
        ({"clip": None}, {}),
        ({}, {"clip": None}),
        ({"lr": torch.ones(2)}, {"lr": torch.ones(2)}),
        ({"lr": float("nan")}, {"lr": float("nan")}),
    ],
    ids=["one more", "None is not absent", "nor absent None", "tensors", "nan"],
)
def test_parameters_that_cannot_be_called_equal_are_other_parameters(tmp_path, written, told):
    checkpoints.save(tmp_path / "run.pt", {"step": 1}, written)
    with pytest.raises(CheckpointError, match="written by a run with other parameters"):
        checkpoints.load(tmp_path / "run.pt", told, ("step",))


FRESH = {"phi": {"w": torch.zeros(2)}, "done": 0, "best": None}


def test_a_state_of_the_kind_of_a_fresh_one_comes_back_with_its_own_values(tmp_path):
    state = {"phi": {"w": torch.ones(2)}, "done": 3, "best": torch.ones(5)}  # None: not yet known
    checkpoints.save(tmp_path / "run.pt", state, {})
    back = checkpoints.load(tmp_path / "run.pt", {}, FRESH)
    assert back["phi"]["w"].tolist() == [1, 1] and back["done"] == 3 and len(back["best"]) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"phi": {"w": torch.zeros(3)}}, r"state.phi.w is .*\(3,\)\), must be .*\(2,\)\)"),
        ({"phi": {"w": torch.zeros(2).double()}}, "state.phi.w is .*float64.*, must be .*float32"),
        ({"phi": {"v": torch.zeros(2)}}, r"state.phi has the keys \['v'\], must have \['w'\]"),
        ({"phi": {"v": 1, "w": torch.zeros(2)}}, r"state.phi has the keys \['v', 'w'\]"),
        ({"phi": torch.zeros(2)}, "state.phi is of type Tensor, must be dict"),
        ({"done": 3.0}, "state.done is of type float, must be int"),
    ],
)
def test_a_state_of_another_kind_than_a_fresh_one_is_refused(tmp_path, change, message):
    checkpoints.save(tmp_path / "run.pt", FRESH | change, {})
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(tmp_path / "run.pt", {}, FRESH)


@pytest.mark.parametrize(
    "content", [[1], {"state": [1], "parameters": {}}, {"state": {}, "parameters": None}]
)
def test_a_checkpoint_that_holds_no_dicts_is_refused(tmp_path, content):
    path = tmp_path / "run.pt"
    torch.save(content, path)
    packed = path.read_bytes()
    sha = checkpoints.hashlib.sha256(packed).hexdigest().encode()
    path.write_bytes(checkpoints.MAGIC + sha + b"\n" + packed)
    with pytest.raises(CheckpointError, match="must be a dict"):
        checkpoints.load(path, {}, ())


def test_a_folder_in_the_place_of_a_checkpoint_is_no_fresh_start(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoints.load(tmp_path, {}, ())


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("framed", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, framed):
    path, trap = tmp_path / "run.pt", Trap(tmp_path / "ran")
    torch.save({"state": {"step": trap}, "parameters": {}}, path)
    if framed:  # a forger can write a valid checksum
        packed = path.read_bytes()
        sha = checkpoints.hashlib.sha256(packed).hexdigest().encode()
        path.write_bytes(checkpoints.MAGIC + sha + b"\n" + packed)
    with pytest.raises(CheckpointError, match="delete it"):
        checkpoints.load(path, {}, ("step",))
    path.write_bytes(pickle.dumps(trap))
    with pytest.raises(CheckpointError, match="delete it"):
        checkpoints.load(path, {}, ("step",))
    assert not (tmp_path / "ran").exists()


def test_a_state_that_could_not_be_loaded_is_not_saved(tmp_path):
    for value in (Trap(tmp_path / "ran"), lambda: None, pytest.raises):
        with pytest.raises(CheckpointError, match="must be made of tensors"):
            checkpoints.save(tmp_path / "run.pt", {"step": value}, {})
    assert not os.listdir(tmp_path)
