"""A plugin of pytest: a chapter that nbval has executed is not executed again by `make book`.

    python -m pytest -p booktools.share_executions --nbval-lax notebooks/*.ipynb

Run from the root of the book. A chapter goes into the book's execution cache, with the outputs that
nbval received, once each of its cells has passed; any other is left for the book to execute.
"""

import contextlib
import copy
from collections import defaultdict
from pathlib import Path

import pytest

from booktools import execute, execution_cache

MISSED = "unhandled iopub msg"  # printed by nbval for a message that it drops: an output is lost

_passed = defaultdict(dict)  # of each notebook's collector: its cells, and the seconds they took


def pytest_configure(config):
    """Let nbval start its kernels as ``execute`` does: with sockets of their own, and patiently."""
    from nbval import kernel

    config.option.nbval_kernel_startup_timeout = execute.START_SECONDS
    folders, manager = contextlib.ExitStack(), kernel.KernelManager
    config.add_cleanup(folders.close)

    def private(**given):
        return manager(config=folders.enter_context(execute.private_sockets()), **given)

    kernel.KernelManager = private


def pytest_sessionstart(session):
    """Empty a cache that other code has filled; done once, not by each worker of xdist."""
    if not hasattr(session.config, "workerinput"):
        execution_cache.refresh(Path.cwd())
        _ = _cache().db  # created here, so that the workers do not race to create it


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" and hasattr(item, "test_outputs"):
        if report.outcome == "passed" and MISSED not in report.capstdout:
            _passed[item.parent][item] = call.duration
            if len(_passed[item.parent]) == len(_code_cells(item.parent.nb)):
                keep(Path(item.parent.path), item.parent.nb, _passed.pop(item.parent))
    return report


def keep(path, notebook, passed):
    """Store the notebook with the outputs of its cells, in order, as jupyter-cache would."""
    from jupyter_cache.base import CacheBundleIn

    executed = copy.deepcopy(notebook)
    cells = _code_cells(executed)
    for number, (cell, item) in enumerate(zip(cells, passed, strict=True), start=1):
        cell.outputs, cell.execution_count = item.test_outputs, number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number  # nbval's kernels count nothing
    bundle = CacheBundleIn(executed, str(path), data={"execution_seconds": sum(passed.values())})
    _cache().cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def _cache():
    from jupyter_cache import get_cache

    return get_cache(str(Path.cwd() / execution_cache.CACHE))


def _code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]
