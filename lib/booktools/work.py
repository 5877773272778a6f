"""A work that the benchmark times, in several ways."""

from collections.abc import Callable
from typing import NamedTuple


class Work(NamedTuple):
    """One work in several ways. A way is called without arguments and returns named tensors."""

    name: str
    title: str
    ways: dict[str, Callable]  # the library's fast path first
    peers: dict[str, Callable] = {}  # () -> way, or ImportError
    others: dict[str, Callable] = {}  # ways to do something else, for comparison
    units: dict[str, int] = {}  # how often a call of a way does the work, if not once
    tolerance: float = 1e-3  # relative, in float32
    counted: str = "windows"  # what the work is, many of it
    facts: dict[str, float] = {}  # what else is to be known
    rounds: int = 0  # fewer than asked for, where one takes long
