"""Where a result comes from: which code, which versions, which machine, when."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import learnopt

# Results may change while a batch runs; the code that makes them must not.
CODE = ("lib", "notebooks", "pyproject.toml")


def checkout():
    """The folder of the source checkout that this library runs from, or None if there is none."""
    folder = Path(__file__).resolve().parents[2]
    return folder if (folder / "pyproject.toml").is_file() and (folder / "data").is_dir() else None


def commit():
    """The commit of the code, with '+dirty' if the code differs from it; None if not known.

    On a machine that holds the files without git (a container, a cluster node), set
    LEARNOPT_COMMIT to say which commit they are.
    """
    folder = checkout()
    try:
        head = _git(folder, "rev-parse", "HEAD") if folder else None
        dirty = head and _git(folder, "status", "--porcelain", "--", *CODE)
    except (OSError, subprocess.SubprocessError):
        head = dirty = None
    if not head:
        return os.environ.get("LEARNOPT_COMMIT") or None
    return f"{head}+dirty" if dirty else head


def device_name(device):
    """The name of the processor behind a torch device, e.g. 'NVIDIA H100 80GB HBM3'."""
    import torch  # here, since who only asks for the commit or the packages need not wait for it

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(iter(names), platform.processor() or platform.machine())


def installed():
    """The packages of this Python, one line 'name==version' each, sorted: a lock file for pip."""
    found = {(d.metadata["Name"] or "").lower(): d.version for d in metadata.distributions()}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items()) if name)


def lock(text):
    """12 hexadecimal digits that stand for a lock file, and name it in data/results/versions."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def describe(*, seed, device, seconds):
    """Everything that a record says about its origin, as JSON values.

    seconds: wall-clock time of the run; date: UTC; n_threads: of torch's CPU operations;
    versions.lock: of all packages, the name of a file in data/results/versions; content: only in
    batch runs, the hashes of the code and of the parameters (booktools/content.py).
    """
    import numpy as np
    import torch

    content = os.environ.get("LEARNOPT_CONTENT")
    return {
        "seed": int(seed),
        "device": str(device),
        "device_name": device_name(device),
        "n_threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "seconds": round(float(seconds), 3),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": {
            "python": ".".join(str(part) for part in sys.version_info[:3]),
            "torch": str(torch.__version__),
            "numpy": np.__version__,
            "learnopt": learnopt.__version__,
            "lock": lock(installed()),
        },
    } | ({"content": json.loads(content)} if content else {})


def line(provenance):
    """One line for a reader: commit, device, versions, time, date."""
    code = (provenance["commit"] or "unknown commit")[:7]
    if (provenance["commit"] or "").endswith("+dirty"):
        code += " with local changes"
    return (
        f"commit {code}, {provenance['device_name']}, torch {provenance['versions']['torch']}, "
        f"seed {provenance['seed']}, {provenance['seconds']:.0f} s, {provenance['date'][:10]}"
    )


def _git(folder, *arguments):
    run = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    return run.stdout.strip()
