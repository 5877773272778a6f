"""Files that other readers see whole or not at all.

A file is staged under a hidden temporary name beside its target, flushed to disk, and moved
over the target in one step of the file system. A run that is killed, or a disk that fills up,
leaves the old file as it was and at worst one `.*.tmp` beside it, which nothing reads.
"""

import os
import secrets
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(path):
    """Yield a temporary path; what is written there replaces `path` when the block ends well.

    If the block raises, the temporary file is removed and `path` is left as it was. Staging two
    files in one `with` statement writes both before either is moved; they are moved in reverse
    order. Missing folders are made. Raises OSError (disk full, read-only folder).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Random, so that two processes never share it; plain open, so that the umask decides who reads.
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
