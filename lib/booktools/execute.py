"""Executes one notebook with papermill, in the Python that runs this file.

    python -m booktools.execute FOLDER [NOTEBOOKS [no]]

runs the job that a batch has described in FOLDER/job.json (plan.py says what else is there).
NOTEBOOKS is where the chapters are, if they are elsewhere than on the machine that described it.
With `no` it does not wait for a job that runs in FOLDER, but ends.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from traitlets.config import Config

from booktools import lock, needs, plan
from booktools.chapters import InputError
from learnopt import atomic, provenance

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
START_SECONDS = 600  # until a kernel must answer; on a busy machine a minute is too short
MAX_SOCKET_PATH = 100  # bytes; the system allows 104 to 108


class ThisInterpreter(AsyncKernelManager):
    """A kernel in the running Python, whatever kernelspec the notebook or the machine has."""

    @property
    def kernel_spec(self):
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="Python 3", language="python")


@contextlib.contextmanager
def private_sockets():
    """Settings by which a kernel talks through socket files of its own, where the path allows.

    Kernels that start at the same time can be given the same TCP port. jupyter_client's own name
    for socket files is no better: it is the same for all kernels that start in one folder, and
    they then receive each other's messages.
    """
    with tempfile.TemporaryDirectory(prefix="kernel-", ignore_cleanup_errors=True) as folder:
        socket = os.path.join(folder, "ipc")
        is_short = len(os.fsencode(socket)) < MAX_SOCKET_PATH
        yield Config({"KernelManager": {"transport": "ipc", "ip": socket}} if is_short else {})


def execute(source, target, values, extra_environment=()):
    """Execute notebook `source` with parameter `values` into `target`; return the seconds it took.

    Runs in the folder of `source`, on one thread. `target` is written after every cell, so it
    holds the outputs, and the error, of a run that fails. Changes the environment of this process.
    Raises papermill's and nbclient's errors.
    """
    import papermill  # slow to import, and a job that finds nothing to do needs none of it

    target.parent.mkdir(parents=True, exist_ok=True)
    os.environ.pop("MPLBACKEND", None)  # a shell's "agg" would leave the figures out
    for name in ("LEARNOPT_RUN_DIR", "LEARNOPT_TRAINED", "LEARNOPT_CONTENT"):
        os.environ.pop(name, None)
    os.environ |= ONE_THREAD | {"PYDEVD_DISABLE_FILE_VALIDATION": "1"} | dict(extra_environment)
    start = time.perf_counter()
    with private_sockets() as config:
        papermill.execute_notebook(
            str(source.resolve()),
            str(target.resolve()),
            parameters=values,
            kernel_name="python3",
            language="python",
            kernel_manager_class=ThisInterpreter,
            config=config,
            progress_bar=False,
            start_timeout=START_SECONDS,
            cwd=str(source.resolve().parent),
        )
    return time.perf_counter() - start


def describe(error):
    """One line that says what stopped a notebook."""
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        return f"In [{error.exec_count}]: {error.ename}: {error.evalue}".splitlines()[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]


def run_job(folder, notebooks=None, wait_seconds=float("inf")):
    """Run the job in `folder` unless it is finished; return whether it is.

    Raises InputError if another job still runs there after `wait_seconds`.
    """
    with lock.held(folder / plan.LOCK, f"{folder}: another job runs there", wait_seconds):
        job = plan.read_json(folder / plan.JOB)
        notebook = Path(job["notebook"])
        notebook = Path(notebooks, notebook.name) if notebooks else notebook
        need = job.get("need")
        need = need and needs.Need(**need | {"folder": (folder / need["folder"]).resolve()})
        fingerprint = plan.fingerprint(notebook, job["parameters"], need)
        if plan.done(folder, fingerprint):
            return True  # by a job that outlived its batch, or of another one that shares the runs
        with open(folder / plan.LOG, "wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        try:
            check_device(job["parameters"].get("device", "cpu"))
            job |= {"notebook": str(notebook.resolve())}  # where this machine has it
            environment, told = begin(folder, job, fingerprint)
            environment |= needs.bring(need, plan.DONE, folder) if need else {}
            target = folder / notebook.name
            seconds = execute(notebook, target, job["values"], environment)
        except Exception as error:  # a kernel can fail in any way; the batch goes on
            plan.write_json(folder / plan.FAILED, {"error": describe(error)})
            print(error, file=sys.stderr)
            return False
        result = job | {"fingerprint": fingerprint, "seconds": round(seconds, 3)} | told
        plan.write_json(folder / plan.DONE, result)
        return True


def check_device(name):
    """Raise InputError if torch cannot use the device here: a chapter would find out at its end."""
    if name == "cpu":
        return
    import torch  # slow to import

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises all three
        reason = str(error).partition("\n")[0]
        message = f"device must be one that torch can use here, not {name!r}: {reason}"
        raise InputError(message) from None


def begin(folder, job, fingerprint):
    """Mark the run as started: what its notebook is told through the environment, and the past.

    The past: how many attempts with this one, and the seconds of the earlier ones.
    """
    mark = plan.begin(folder, job, fingerprint)
    told = {name: mark[name] for name in ("attempts", "earlier_seconds")}
    content = {
        "hashes": fingerprint,
        "overrides": job.get("overrides", {}),
        "seed": job["seed"],
        "mixed": mark["mixed"],
    } | told
    atomic.write({folder / plan.VERSIONS: provenance.installed().encode()})
    return {"LEARNOPT_RUN_DIR": str(folder), "LEARNOPT_CONTENT": json.dumps(content)}, told


def main(folder, notebooks=None, wait="yes"):
    """The exit code: 0 finished, 1 failed, 75 taken by another job."""
    try:
        wait_seconds = 0 if wait == "no" else float("inf")
        return 0 if run_job(Path(folder).resolve(), notebooks, wait_seconds) else 1
    except InputError as error:
        print(error, file=sys.stderr)
        return os.EX_TEMPFAIL


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
