"""Files that other readers see whole or not at all.

Content goes to a hidden temporary file beside its target, is flushed to disk, and is moved over the
target in one step of the file system. A run that is killed, or a disk that fills up, leaves the old
file as it was and at worst some `.*.tmp` beside it, which nothing reads. Of several files, a kill
during the moves leaves the last one absent, old and new alike.
"""

import os
import secrets
from pathlib import Path


def write(files):
    """Write files, `path -> bytes`; missing folders are made.

    Raises OSError; where it comes before the moves, as on a full disk, nothing is changed.

    All are on disk before the first is moved. Where there are several, the last one is the one
    that readers look for: it is absent while the others change, so no reader sees old beside new.
    """
    paths = [Path(path) for path in files]
    # Random names, so that two writers never share one; plain open, so that the umask applies.
    staged = [path.parent / f".{path.name}.{secrets.token_hex(4)}.tmp" for path in paths]
    try:
        for temporary, content in zip(staged, files.values(), strict=True):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(temporary, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:  # a full disk comes without a name
                raise type(error)(error.errno, error.strerror, str(temporary)) from None
        if len(paths) > 1:
            paths[-1].unlink(missing_ok=True)
        for temporary, path in zip(staged, paths, strict=True):
            os.replace(temporary, path)
    finally:
        for temporary in staged:
            temporary.unlink(missing_ok=True)
