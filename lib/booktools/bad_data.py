"""Examples of the library's files: records, data sets, checkpoints, trained optimizers.

See bad_files.py, which has those of the book's tools.
"""

import hashlib
import io
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from learnopt import checkpoints, datasets, download, lstm_optimizer, provenance, records

RAN = []  # grows if a file makes a loader execute code


class Payload:
    """Unpickling it executes code."""

    def __reduce__(self):
        return exec, ("import booktools.bad_data as b; b.RAN.append('unpickled')",)


class Kind(NamedTuple):
    name: str
    error: type
    tree: object
    pack: Callable  # tree -> {path inside a folder: bytes}
    load: Callable  # folder -> what was loaded
    use: Callable  # what was loaded -> None
    also: tuple = ()  # words that name a damaged field as well as its own name does


# ---- records

RECORD = Path("01_small", "paper-seed0.json")
SEAL = "filled in by pack"


def record():
    raw = {
        "format": 1, "chapter": "01_small", "name": "paper-seed0", "preset": "paper",
        "parameters": {"lr": 0.1, "sizes": [2, 3]},
        "metrics": {"loss": 0.5, "n_diverged": 3, "worst": "inf"},
        "curves": {"sha256": SEAL, "names": ["loss", "lr"]},
        "provenance": provenance.describe(seed=0, device="cpu", seconds=1.5),
    }  # fmt: skip
    curves = {"loss": np.linspace(1, 0, 6, dtype="f4").reshape(2, 3), "lr": np.ones(3, "f4")}
    return {"json": raw, "npz": curves}


def _pack_record(tree):
    curves = _npz(tree.get("npz"))
    raw = tree.get("json")
    if isinstance(raw, dict) and isinstance(raw.get("curves"), dict):
        if raw["curves"].get("sha256") == SEAL:
            seal = {"sha256": hashlib.sha256(curves).hexdigest()}
            raw = raw | {"curves": raw["curves"] | seal}
    text = json.dumps(raw, indent=1).encode()
    return {str(RECORD): text, str(RECORD.with_suffix(".npz")): curves}


def _use_record(record):
    told = {key: getattr(record, key) for key in ("parameters", "metrics", "curves", "preset")}
    origin = {key: record.provenance[key] for key in ("seed", "device", "seconds")} | {
        "device": "cpu"
    }
    with tempfile.TemporaryDirectory() as folder:
        path = records.save(record.chapter, record.name, **told, **origin, root=folder)
        again = records.load(path)
    assert again.parameters == record.parameters
    assert str(again.metrics) == str(record.metrics)  # nan is not equal to itself
    provenance.line(record.provenance).encode()


# ---- data sets

TINY = download.Source(download._labelled((4, 4), 12, 6), 3, 3, 6)


def images():
    x = np.arange(12 * 16, dtype="u1").reshape(12, 4, 4)
    y = (np.arange(12) % 3).astype("u1")
    return {"x_train": x, "y_train": y, "x_test": x[:6], "y_test": y[:6]}


def _pack_images(tree):
    if isinstance(tree, dict):
        try:
            total = np.array(download.content_sha256("tiny", tree))
            tree = {download.STORED_SUM: total} | tree
        except (KeyError, AttributeError, ValueError, TypeError):
            pass  # damaged so that it has no checksum
    return {"tiny.npz": _npz(tree)}


def _use_images(data):
    for images, labels in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        assert images.dtype == torch.float32 and images.shape == (len(labels), 4, 4)
        assert 0 <= images.min() and images.max() <= 1
        assert 0 <= labels.min() and labels.max() < data.n_classes


# ---- checkpoints and trained optimizers

STATE = {
    "phi": torch.arange(6.0), "adam": {"m": torch.zeros(6), "v": torch.zeros(6)},
    "draws": torch.arange(8, dtype=torch.uint8), "done": 3, "best": 0.5, "history": [],
}  # fmt: skip
SETTINGS = {"lr": 0.1, "n_steps": 5, "rule": "thesis"}


def _pack_checkpoint(tree):
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    packed = buffer.getvalue()
    head = checkpoints.MAGIC + hashlib.sha256(packed).hexdigest().encode()
    return {"run.pt": head + b"\n" + packed}


def _use_checkpoint(state):
    assert state.keys() == STATE.keys() and state["adam"].keys() == STATE["adam"].keys()
    for mine, theirs in ((state, STATE), (state["adam"], STATE["adam"])):
        assert all(type(mine[key]) is type(theirs[key]) for key in theirs)
    assert (state["phi"] + state["adam"]["m"]).dtype == torch.float32
    assert state["draws"].shape == (8,) and range(state["done"], 5) is not None


def _trained():
    phi = lstm_optimizer.init_phi("log", torch.Generator().manual_seed(0))
    about = {"inputs": np.array("log"), "out_scale": np.array(0.1), "about": np.array("a test")}
    return {name: leaf.numpy() for name, leaf in phi.items()} | about


def _use_trained(found):
    assert math.isfinite(found.out_scale) and found.out_scale > 0
    theta = torch.ones(3)
    delta, _ = found.opt.update(found.phi, theta, found.opt.init(theta), theta)
    assert delta.shape == (3,) and delta.dtype == torch.float32
    found.about.encode()


def _npz(tree):
    """The arrays as an .npz; anything that is no dict of arrays, as numpy likes to pickle it."""
    content = io.BytesIO()
    named = tree if isinstance(tree, dict) else {"array": tree}
    np.savez(content, **{str(key): _array(value) for key, value in named.items()})
    return content.getvalue()


def _array(value):
    try:
        return np.asarray(value)
    except ValueError:  # lists of different lengths
        return np.array(value, dtype=object)


def kinds():
    """Each with its example."""
    return [
        Kind("record", records.RecordError, record(),
             _pack_record, lambda folder: records.load(folder / RECORD), _use_record,
             ("not the float32 arrays",)),
        Kind("data set", datasets.DatasetError, images(),
             _pack_images, lambda folder: datasets.load("tiny", folder), _use_images),
        Kind("checkpoint", checkpoints.CheckpointError, {"state": STATE, "parameters": SETTINGS},
             _pack_checkpoint, lambda folder: checkpoints.load(folder / "run.pt", SETTINGS, STATE),
             _use_checkpoint),
        Kind("trained optimizer", lstm_optimizer.OptimizerError, _trained(),
             lambda tree: {"small.npz": _npz(tree)},
             lambda folder: lstm_optimizer.load(str(folder / "small.npz")), _use_trained,
             ("cell1.weight_ih",)),
    ]  # fmt: skip
