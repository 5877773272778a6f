"""Checkpoints: an interrupted run goes on bit for bit where it was.

    checkpoints.save(path, {"phi": phi, "epoch": 3, "draws": generator.get_state()}, parameters)
    state = checkpoints.load(path, parameters, keys=("phi", "epoch", "draws"))

The file is one line of text with the SHA-256 of the rest, then what torch.save wrote. It is moved
into place whole, so a kill leaves the previous checkpoint. Loading never runs code: the checksum
is verified first and torch unpickles weights only. A checkpoint of a run with other parameters is
refused. Tensors are loaded onto the CPU, which is where generators want their state (uint8).
"""

import hashlib
import io
import pickle
from pathlib import Path

import torch

from learnopt import atomic

MAGIC = b"learnopt checkpoint 1 "
FRESH = "delete it to start the run afresh, or restore it from a copy"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or cannot be trusted."""


def save(path, state, parameters):
    """Write `state` atomically. Raises CheckpointError.

    state: dict of tensors, numbers, strings, None, and dicts, lists or tuples of these (a
    NamedTuple as its `_asdict()`). parameters: what the run was told, the same kind of values.
    """
    buffer = io.BytesIO()
    content = {"state": state, "parameters": parameters}
    try:
        torch.save(content, buffer)
        _unpickle(buffer.getvalue())
    except (pickle.PickleError, AttributeError, TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: the state must be made of tensors, numbers, strings, dicts, lists: {error}"
        ) from None
    packed = buffer.getvalue()
    try:
        head = MAGIC + hashlib.sha256(packed).hexdigest().encode()
        atomic.write({path: head + b"\n" + packed})
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror or error}); free disk space or choose a "
            "folder that can be written"
        ) from None


def load(path, parameters, keys):
    """Read the state back, with exactly the given keys. Raises CheckpointError.

    Returns None where there is no file: the run starts at its beginning.
    """
    path = Path(path)
    try:
        head, _, packed = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {FRESH}") from None
    if head != MAGIC + hashlib.sha256(packed).hexdigest().encode():
        raise CheckpointError(f"{path}: truncated, damaged or not a checkpoint; {FRESH}")
    try:
        content = _unpickle(packed)
        state, written_by = content["state"], content["parameters"]
        missing, foreign = set(keys) - set(state), set(state) - set(keys)
    except Exception as error:  # a valid checksum over foreign content
        raise CheckpointError(f"{path}: not a state of tensors ({error}); {FRESH}") from None
    if missing or foreign:
        names = f"missing {sorted(missing)}, not known {sorted(foreign)}"
        raise CheckpointError(f"{path}: the state has other keys: {names}; {FRESH}")
    _same_parameters(path, written_by, parameters)
    return state


def _same_parameters(path, written_by, parameters):
    differing = [
        f"{key} is {parameters.get(key)!r}, was {written_by.get(key)!r}"
        for key in sorted(written_by.keys() | parameters.keys())
        if (key in written_by, written_by.get(key)) != (key in parameters, parameters.get(key))
    ]
    if differing:
        raise CheckpointError(
            f"{path}: written by a run with other parameters ({'; '.join(differing)}); "
            "go back to those, or delete it to start the run afresh"
        )


def _unpickle(packed):
    return torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
