"""Curves as bytes: a dict of float32 arrays in a compressed `.npz`, packed and checked.

The same curves give the same bytes (the archive holds no time stamp). Both functions raise
ValueError with a message that names what is wrong.
"""

import io
import re
import reprlib

import numpy as np
import torch

from learnopt import npz

MAX_BYTES = 32_000_000  # unpacked, so that a small file cannot fill the memory
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")


def pack(curves):
    """The bytes of the `.npz`. curves: name -> numbers of any shape (list, array or tensor).

    `file` and `allow_pickle` are no names for a curve: numpy keeps them to itself.

    Values above 3.4e38, which float32 cannot hold, become inf.
    """
    for name in curves:
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise ValueError(f"curve name {name!r}: letters, digits and _ only")
    arrays = {name: _float32(name, values) for name, values in curves.items()}
    if sum(array.nbytes for array in arrays.values()) > MAX_BYTES:
        raise ValueError(f"the curves need more than {MAX_BYTES} bytes; store fewer points")
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def unpack(packed, names):
    """The arrays of an `.npz` that must hold exactly the sorted `names`; nothing is unpickled."""
    try:
        curves = npz.read(packed, 2 * MAX_BYTES)
    except ValueError as error:
        raise ValueError(f"not a file of curves ({error})") from None
    if sorted(curves) != names:
        raise ValueError(f"holds {sorted(curves)}, not the float32 arrays {reprlib.repr(names)}")
    for name, curve in curves.items():
        if curve.dtype != np.float32:
            raise ValueError(f"the curve {name!r} must be float32, not {curve.dtype}")
    return curves


def _float32(name, values):
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = values.numpy() if values.is_complex() else values.to(torch.float32).numpy()
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"curve {name!r} is no array: {error}") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(f"curve {name!r} has the type {array.dtype}; real numbers only")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)
