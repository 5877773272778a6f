"""Executes one notebook with papermill, in the Python that runs this file.

    python -m booktools.execute FOLDER

runs the job that a batch has described in FOLDER/job.json (plan.py says what else is there).
"""

import contextlib
import os
import sys
import tempfile
import time
from pathlib import Path

import papermill
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from booktools import lock, plan

ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
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
    target.parent.mkdir(parents=True, exist_ok=True)
    os.environ.pop("MPLBACKEND", None)  # a shell's "agg" would leave the figures out
    os.environ.pop("LEARNOPT_RUN_DIR", None)
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
            cwd=str(source.resolve().parent),
        )
    return time.perf_counter() - start


def describe(error):
    """One line that says what stopped a notebook."""
    if isinstance(error, PapermillExecutionError):
        return f"In [{error.exec_count}]: {error.ename}: {error.evalue}".splitlines()[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]


def run_job(folder):
    """Run the job in `folder` unless it is finished; return whether it is."""
    job = plan.read_json(folder / plan.JOB)
    with lock.held(folder / plan.LOCK):
        notebook = Path(job["notebook"])
        fingerprint = plan.fingerprint(notebook, job["parameters"])
        if plan.done(folder, fingerprint):
            return True  # by a job that outlived its batch, while this one waited for the lock
        try:
            plan.begin(folder, job, fingerprint)
            seconds = execute(
                notebook,
                folder / notebook.name,
                job["values"],
                {"LEARNOPT_RUN_DIR": str(folder)},
            )
        except Exception as error:  # a kernel can fail in any way; the batch goes on
            plan.write_json(folder / plan.FAILED, {"error": describe(error)})
            print(error, file=sys.stderr)
            return False
        result = job | {"fingerprint": fingerprint, "seconds": round(seconds, 3)}
        plan.write_json(folder / plan.DONE, result)
        return True


if __name__ == "__main__":
    sys.exit(0 if run_job(Path(sys.argv[1]).resolve()) else 1)
