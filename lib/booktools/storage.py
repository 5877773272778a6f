"""Disks that are full and folders that cannot be written: what the writers do, and what is kept.

    counts = storage.full_disk(folder)       # Counter of the errors' names
    counts = storage.small_disk(folder)
    counts = storage.read_only(folder)

Every writer must raise its own kind of error, which names the file and a remedy, and leave every
file as it was. A disk is full in two ways: by a limit on the size of files, which fails at a chosen
byte, and as a real one, a small tmpfs with no byte free. That one takes the right to mount.
"""

import contextlib
import io
import os
import resource
import subprocess
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from booktools import bad_data, bad_files, batch, judge, ledger
from learnopt import checkpoints, datasets, lstm_optimizer, records

LIMITS = (0, 1, 100)  # bytes; every file written here is longer
DISK_BYTES = 2**20
NOT_TRIED = "not tried, no right to mount"
FIRST = 1.0
NOBODY = 65534  # a user without rights


class Writer(NamedTuple):
    name: str
    error: type
    write: Callable  # (folder, seconds) -> None; the content depends on the seconds


class Stopped(Exception):
    """A command that ended with status 2; its message is what it printed."""


def _record(folder, seconds):
    records.save(
        "01_small", "paper-seed0", parameters={}, metrics={"loss": seconds}, preset="paper",
        curves=bad_data.record()["npz"], seed=0, device="cpu", seconds=seconds, root=folder,
    )  # fmt: skip


def _trained(folder, seconds):
    found = lstm_optimizer.load("mnist-seed0")
    lstm_optimizer.save(folder / "x.npz", found.phi, found.inputs, seconds, found.about)


def _ledger(folder, seconds):
    if seconds == FIRST:
        kind = next(kind for kind in bad_files.kinds() if kind.name == "claims")
        judge.write(folder, kind.pack(kind.tree))
        (folder / "book").mkdir()
    _command(ledger.main, ["--root", str(folder)])


def _batch(folder, seconds):
    if seconds == FIRST:
        kind = next(kind for kind in bad_files.kinds() if kind.name == "preset")
        judge.write(folder, kind.pack(kind.tree))
        return
    places = {"notebooks": folder / "notebooks", "runs": folder / "runs"}
    options = [str(part) for name, place in places.items() for part in (f"--{name}", place)]
    _command(batch.main, ["--seeds", "0", *options])


def _command(main, arguments):
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(arguments)
    if status == 2:
        raise Stopped(said.getvalue())


WRITERS = [
    Writer("record", records.RecordError, _record),
    Writer("checkpoint", checkpoints.CheckpointError,
           lambda folder, seconds: checkpoints.save(folder / "x.pt", {"s": seconds}, {})),
    Writer("data set", datasets.DatasetError,
           lambda folder, seconds: datasets.write("tiny", folder / "x.npz", bad_data.images())),
    Writer("trained optimizer", lstm_optimizer.OptimizerError, _trained),
    Writer("ledger", Stopped, _ledger),
    Writer("batch", Stopped, _batch),
]  # fmt: skip


def full_disk(folder):
    """Every writer under every limit."""
    counts = Counter()
    for writer in WRITERS:
        for limit in LIMITS:
            counts[_attempt(writer, folder / f"{writer.name} {limit}", _full(limit))] += 1
    return counts


def small_disk(folder):
    """Every writer on a small disk without a free byte; NOT_TRIED where nothing can be mounted."""
    options = ["-t", "tmpfs", "-o", f"size={DISK_BYTES}", "none", str(folder)]
    try:
        subprocess.run(["mount", *options], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return Counter({NOT_TRIED: len(WRITERS)})
    try:
        return Counter(_attempt(w, folder / f"{w.name} small", _filled(folder)) for w in WRITERS)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def read_only(folder):
    """Every writer in a folder that it may not write to."""
    folder.chmod(0o755)
    return Counter(
        _attempt(writer, folder / f"{writer.name} read-only", _without_rights(folder))
        for writer in WRITERS
    )


def _attempt(writer, folder, fault):
    folder.mkdir()
    writer.write(folder, FIRST)
    before = _content(folder)
    try:
        with fault:
            writer.write(folder, 2 * FIRST)
    except writer.error as error:
        judge.complain(str(error), str(folder))
    else:
        raise AssertionError(f"{writer.name}: has not failed")
    assert _content(folder) == before, f"{writer.name}: files have changed"
    writer.write(folder, 2 * FIRST if writer.name != "batch" else FIRST)  # and now it can
    return writer.error.__name__


def _content(folder):
    """All files; an empty one with no content, such as a lock, does not count."""
    found = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: content for path, content in found.items() if content}


@contextlib.contextmanager
def _full(limit):
    """No file can grow beyond `limit` bytes; Python turns the signal into an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def _filled(disk):
    """The disk holds a file that leaves no room for another byte."""
    filler = disk / "filler"
    try:
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        yield
    finally:
        filler.unlink()


@contextlib.contextmanager
def _without_rights(root):
    """Folders below `root` cannot be written; root itself (the user) becomes nobody meanwhile."""
    folders = [path for path in root.rglob("*") if path.is_dir()]
    user = os.geteuid()
    for folder in folders:
        folder.chmod(0o555)
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)
        for folder in folders:
            folder.chmod(0o755)
