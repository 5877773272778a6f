"""Judges what a loader makes of damaged files, and what it does meanwhile.

    outcome = judge.attempt(kind, {"presets/01.paper.yaml": content}, fields=["lr"])

Each input must be loaded whole or give the loader's own kind of error, which names the file, the
damaged field where there is one, and a remedy. No loader may execute code, write a file, or take
long. Anything else is an AssertionError.
"""

import contextlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path

from booktools.bad_data import RAN

MAX_SECONDS = 5  # of processor time, for one input
REMEDIES = re.compile(
    r"\b(must|needs?|one of|none of|allowed|add|delete|restore|run|write|update|rename|correct|free"
    r"|go back|it has|there are|like|is no chapter of)\b",
    re.I,
)
# Where the place of a damage is not a field
WHOLE = (": line ", "not JSON", "a JSON object", "not a file of curves", "surrogates")


class Watch:
    """Notes what is done, while it is switched on, that no loader should do."""

    FORBIDDEN = ("os.", "subprocess.", "socket.", "pickle.", "shutil.", "ctypes.")
    HARMLESS = ("os.listdir", "os.scandir", "os.putenv", "os.unsetenv")

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self._note)  # for good: Python cannot take one away

    def _note(self, event, arguments):
        if not self.on:
            return
        writes = event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes or (event.startswith(self.FORBIDDEN) and event not in self.HARMLESS):
            self.seen.append((event, *map(repr, arguments)))

    @contextlib.contextmanager
    def switched_on(self):
        """A context in which anything forbidden ends in an AssertionError."""
        self.seen.clear()
        RAN.clear()
        self.on = True
        try:
            yield
        finally:
            self.on = False
        assert not self.seen and not RAN, f"a loader has done {self.seen} {RAN}"


WATCH = Watch()


def attempt(kind, contents, fields=()):
    """Load these files once: "loaded", or the name of the error. Raises AssertionError."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, contents)
        started = time.process_time()  # of the processor: the machine may be busy
        try:
            with WATCH.switched_on():
                loaded = kind.load(folder)
        except kind.error as error:
            complain(str(error), name, fields, kind.also)
            return type(error).__name__
        finally:
            assert time.process_time() - started < MAX_SECONDS, "takes too long"
        kind.use(loaded)
        return "loaded"


def write(folder, contents):
    """Write {path inside the folder: bytes}."""
    for file, content in contents.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(content)


def complain(message, name, fields=(), also=()):
    """Assert that the message of an error says all that it should."""
    assert name in message, f"the file is not named: {message:.500}"
    words = re.sub(re.escape(name) + r"[^\s:;,]*", "", message)  # "run.pt" is no advice
    assert REMEDIES.search(words), f"no remedy: {message:.500}"
    assert len(message) < 3000, f"too long: {message:.500}"
    message.encode()  # can be printed
    fields = [*fields, *(repr(key)[1:-1] for key in fields), *(k.split("\0")[0] for k in fields)]
    named = not fields or any(key in message for key in (*fields, *also, *WHOLE))
    assert named, f"none of the fields {fields} is named: {message:.500}"
