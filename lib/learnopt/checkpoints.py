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
from reprlib import repr as short

import torch

from learnopt import atomic

MAGIC = b"learnopt checkpoint 1 "
FRESH = "delete it to start the run afresh, or restore it from a copy"


class CheckpointError(ValueError):
    """A checkpoint that cannot be written, or cannot be trusted."""


def save(path, state, parameters):
    """Write `state` atomically. Raises CheckpointError.

    state: dict of tensors, numbers, strings, None, and dicts, lists or tuples of these (a
    NamedTuple as its `_asdict()`). parameters: what the run was told, the same kind of values but
    for tensors and NaN, which never count as equal.
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

    keys: names, or the state of a fresh run: then each tensor must have that one's shape and type,
    and each number its type. Returns None where there is no file: the run starts afresh.
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
    except Exception:  # a valid checksum over foreign content; torch's advice is to execute it
        raise CheckpointError(
            f"{path}: state or parameters hold other things than tensors and plain values; {FRESH}"
        ) from None
    for field in ("state", "parameters"):
        if not isinstance(content, dict) or type(content.get(field)) is not dict:
            raise CheckpointError(f"{path}: {field!r} must be a dict; {FRESH}")
    state, written_by = content["state"], content["parameters"]
    missing, foreign = set(keys) - set(state), set(state) - set(keys)
    if missing or foreign:
        names = f"missing {sorted(missing)}, not known {sorted(foreign, key=str)}"
        raise CheckpointError(f"{path}: the state has other keys: {names}; {FRESH}")
    _same_parameters(path, written_by, parameters)
    if isinstance(keys, dict) and (wrong := _misfit("state", keys, state)):
        raise CheckpointError(f"{path}: {wrong}; {FRESH}")
    return state


def _differ(left, right):
    try:
        return bool(left != right)
    except (RuntimeError, ValueError):  # tensors
        return True


def _misfit(name, fresh, found):
    """What in a state is of another type or shape than in the state of a fresh run, or None."""
    if fresh is None:
        return None
    if isinstance(fresh, torch.Tensor) and isinstance(found, torch.Tensor):
        kinds = [(leaf.dtype, tuple(leaf.shape)) for leaf in (fresh, found)]
        return None if kinds[0] == kinds[1] else f"{name} is {kinds[1]}, must be {kinds[0]}"
    if type(fresh) is not type(found):
        return f"{name} is of type {type(found).__name__}, must be {type(fresh).__name__}"
    if not isinstance(fresh, dict):
        return None
    if fresh.keys() != found.keys():
        return f"{name} has the keys {sorted(map(str, found))}, must have {sorted(fresh)}"
    parts = (_misfit(f"{name}.{key}", fresh[key], found[key]) for key in fresh)
    return next(filter(None, parts), None)


def _same_parameters(path, written_by, parameters):
    differing = [
        f"{key} is {short(parameters.get(key))}, was {short(written_by.get(key))}"
        for key in sorted(written_by.keys() | parameters.keys(), key=str)
        if (key in written_by) != (key in parameters)
        or _differ(written_by.get(key), parameters.get(key))
    ]
    if differing:
        raise CheckpointError(
            f"{path}: written by a run with other parameters ({'; '.join(differing)}); "
            "go back to those, or delete it to start the run afresh"
        )


def _unpickle(packed):
    return torch.load(io.BytesIO(packed), map_location="cpu", weights_only=True)
