"""Arrays from an `.npz` archive that may be damaged or hostile: nothing is ever unpickled.

found = npz.read("mnist.npz", max_bytes=10**9)     # {name: array}
"""

import io
import zipfile

import numpy as np


def read(source, max_bytes):
    """The arrays by name, of a path or of the bytes of an archive. Raises ValueError.

    The message says which array cannot be read. max_bytes: unpacked, of all of them together, so
    that a small file cannot fill the memory.
    """
    try:
        # Opened here, since np.load leaves the file open where the archive is damaged
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            return _arrays(file, max_bytes)
    except Exception as error:  # the readers of zip and npy raise a dozen types on foreign bytes
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"not a readable npz file, perhaps cut short ({reason})") from None


def _arrays(file, max_bytes):
    with zipfile.ZipFile(file) as archive:
        n_bytes = sum(member.file_size for member in archive.infolist())
    if n_bytes > max_bytes:
        raise ValueError(f"unpacks to {n_bytes} bytes, more than {max_bytes}")
    found = {}
    with np.load(file, allow_pickle=False) as archive:
        for name in archive.files:
            try:
                found[name] = archive[name]
            except Exception as error:
                raise ValueError(f"the array {name!r} cannot be read ({error})") from None
            if not isinstance(found[name], np.ndarray):  # a member that is no .npy comes as bytes
                raise ValueError(f"{name!r} is no array")
    return found
