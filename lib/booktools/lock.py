"""One process at a time, also across machines that share a folder, if its file system has flock."""

import contextlib
import fcntl
import time

from booktools.chapters import InputError


@contextlib.contextmanager
def held(path, busy="", wait_seconds=float("inf")):
    """Hold the lock file `path`; yield its descriptor. The end of the process ends it too.

    Raises InputError with the text `busy` if another process still holds it after `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    with open(path, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise InputError(busy) from None
                time.sleep(0.1)
        yield file.fileno()
