"""One process at a time, also across machines that share a folder, if its file system has flock."""

import contextlib
import fcntl
import time

from booktools.chapters import InputError


@contextlib.contextmanager
def held(path, busy="", wait_seconds=float("inf"), shared=False):
    """Hold the lock file `path`; yield its descriptor. The end of the process ends it too.

    shared: together with others who hold it so. Raises InputError with the text `busy` if another
    process still holds it after `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with open(path, "a+") as file:
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise InputError(busy) from None
                time.sleep(0.1)
        yield file.fileno()
