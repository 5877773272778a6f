"""How long the chapters take: the processor time of each at the presets smoke and quick.

    python -m booktools.times [--preset smoke] [--write data/results/times.json] [NN ...]

A chapter's time is that of all its processes, the start of the kernel and the imports among them,
on one thread. Unlike the time on a clock it hardly depends on what else the machine does. What the
file holds of other chapters and presets stays there.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from booktools import chapters, execute, packages, presets
from booktools.chapters import InputError
from learnopt import atomic, provenance

PRESETS = ("smoke", presets.QUICK)


def main(arguments=None):
    """The command line: exit code 1 if a chapter fails, 2 for bad input."""
    parser = argparse.ArgumentParser(prog="python -m booktools.times")
    parser.add_argument("chapters", nargs="*", metavar="NN", help="e.g. 01 03; all by default")
    parser.add_argument("--preset", choices=PRESETS, help="both by default")
    parser.add_argument("--notebooks", type=Path, default=Path("notebooks"), metavar="FOLDER")
    parser.add_argument("--write", type=Path, metavar="FILE", help="the times, as JSON")
    options = parser.parse_args(arguments)
    failed = False
    try:
        picked = chapters.pick(options.notebooks, options.chapters)
        _held(options.write)
    except (InputError, OSError, ValueError) as error:
        print(f"times: {error}", file=sys.stderr)
        return 2
    for preset in [options.preset] if options.preset else PRESETS:
        for notebook in picked:
            found = measure(notebook, preset)
            failed |= found is None
            said = "FAILED" if found is None else f"{found['processor_seconds']:7.1f} s"
            print(f"{preset} {notebook.stem:32} {said}", flush=True)
            if found and options.write:
                packages.keep(options.write.parent, provenance.installed())
                keep(options.write, preset, notebook.stem, found)
    return 1 if failed else 0


def measure(notebook, preset):
    """Execute a chapter, storing nothing: its times, and where they come from; None if it fails."""
    before, started = _children(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "booktools.notebooks", "--notebooks", notebook.parent,
                   "run", "--preset", preset, "--target", folder, notebook.stem]  # fmt: skip
        environment = os.environ | execute.ONE_THREAD
        run = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
    if run.returncode:
        return None
    seconds = time.monotonic() - started
    origin = provenance.describe(seed=0, device="cpu", seconds=seconds)
    kept = ("device_name", "platform", "date", "commit", "versions")
    times = {"processor_seconds": round(_children() - before, 1), "seconds": round(seconds, 1)}
    return times | {name: origin[name] for name in kept}


def _children():
    """Processor time of all processes that this one has started and seen end."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _held(path):
    """What the file says. Raises ValueError where it is no JSON."""
    try:
        return json.loads(path.read_text()) if path and path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): delete it or take it from git") from None


def keep(path, preset, name, found):
    """Put the times of a chapter at a preset into the file."""
    held = _held(path)
    held.setdefault(preset, {})[name] = found
    ordered = {key: dict(sorted(held[key].items())) for key in PRESETS if key in held}
    atomic.write({path: (json.dumps(ordered, indent=1) + "\n").encode()})


if __name__ == "__main__":
    sys.exit(main())
