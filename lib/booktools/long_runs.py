"""Kills a long run of the library at random moments, takes it up again, and compares.

    counts = long_runs.kill(folder, n_kills=5)     # Counter

It raises an AssertionError if an interrupted run ends otherwise than an uninterrupted one.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

from booktools.kills import PATIENCE_SECONDS
from learnopt import meta_train, tasks, unroll


def run(folder):
    """Meta-train on small quadratics with checkpoints; write a digest of all results."""
    task = tasks.quadratic(3)
    settings = meta_train.Settings(n_steps=20, n_unroll=5, n_trajectories=40, evaluate_every=1)
    validation = unroll.draw_runs(task, 4, 20, 0, "validation")
    (folder / "started").touch()
    trained = meta_train.train(task, settings, validation, folder / "run.pt")
    tensors = [*trained.phi.values(), *trained.last_phi.values(), trained.history]
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors)).hexdigest()
    (folder / "digest").write_text(digest)


def kill(folder, n_kills, random_seed=0):
    """Kill long runs until there were n_kills kills: interrupted = uninterrupted, bit for bit."""
    moments, counts = random.Random(random_seed), Counter()
    (folder / "long0").mkdir()
    run(folder / "long0")
    digests, n_rounds = {(folder / "long0" / "digest").read_text()}, 1
    while counts["kills"] < n_kills or n_rounds < 2:
        here = folder / f"long{n_rounds}"
        here.mkdir(exist_ok=True)
        (here / "started").unlink(missing_ok=True)
        process = _start(here)
        if counts["kills"] < n_kills:
            try:
                process.wait(moments.uniform(0, 1))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                counts["kills"] += 1
                counts["kills after a checkpoint"] += (here / "run.pt").exists()
        if process.wait(PATIENCE_SECONDS) == 0:
            digests.add((here / "digest").read_text())
            n_rounds += 1
    assert len(digests) == 1, "an interrupted run differs from an uninterrupted one"
    return counts | Counter({"runs compared": n_rounds})


def _start(folder):
    program = "import pathlib; from booktools import long_runs; long_runs.run(pathlib.Path())"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=folder, start_new_session=True)
    while not (folder / "started").exists():
        assert process.poll() is None, "a long run did not start"
        time.sleep(0.01)
    return process
