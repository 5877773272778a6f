"""Time the library's hot paths side by side: `make bench`, or `python -m booktools.bench`.

Every work of ``booktools.works`` and ``booktools.hyper_works`` is done in several ways in turn,
A B A B ..., on one thread; each turn once untimed, so that no way starts with its memory pushed out
by the one before, and once timed. A ratio is the CPU time of a way over that of the library's own
fast path in the same round (CPU time, so that a busy machine distorts it less): median, lowest,
highest.
A way must give the same numbers before it is timed. The machine's own limit is measured in the same
run: large matrix products, in operations a second, by the faster of two libraries; and of each fast
path the part of its time that goes into matrix products, how far it is from doing those at the
machine's rate and nothing else, and which operations take most of its time, by torch's profiler.

The libraries of the extra `bench` take part where they are installed. ``--write FILE`` keeps it
all as JSON, beside the runs of other kinds of processors, and writes the book's page about it.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

# XLA reads this once, before jax is imported: one thread, as for the others
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from booktools import costs_page, hyper_works, packages, works
from booktools.work import Work
from learnopt import atomic, matmul, provenance

PEERS = ("torchopt", "higher", "jax")
N_OPERATIONS = 5  # that the profile of a way names


class Products(TorchDispatchMode):
    """Operations and CPU seconds of the matrix products in what runs under it."""

    INNER = {"mm": 0, "addmm": 1, "bmm": 0, "baddbmm_": 1, "_linear_pointwise": 0, "mv": 0}

    def __init__(self):
        super().__init__()
        self.operations, self.seconds = 0, 0.0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        began = time.process_time()
        result = function(*args, **(kwargs or {}))
        spent = time.process_time() - began
        at = self.INNER.get(function.overloadpacket.__name__)
        if at is not None:
            self.operations += 2 * result.numel() * args[at].shape[-1]
            self.seconds += spent
        return result


def seconds(way: Callable) -> float:
    """CPU time of one call."""
    began = time.process_time()
    way()
    return time.process_time() - began


def operations(way: Callable) -> dict[str, float]:
    """The operations that take most of a call's CPU time, and their parts of it."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        way()
    spent = {e.key.removeprefix("aten::"): e.self_cpu_time_total for e in profiler.key_averages()}
    largest = sorted(spent, key=spent.get, reverse=True)[:N_OPERATIONS]
    return {name: digits(spent[name] / sum(spent.values())) for name in largest}


def matmul_rates() -> dict[str, float]:
    """Operations a second in a product of 1024 x 1024 matrices, by torch's BLAS and by oneDNN."""
    a = torch.randn(1024, 1024)
    ways = {"blas": lambda: a @ a}
    if matmul.HAS_ONEDNN:
        ways["onednn"] = lambda: matmul.onednn(a, a)
    return {name: 2 * 1024**3 / min(seconds(way) for _ in range(9)) for name, way in ways.items()}


def complete(work: Work) -> Work:
    """The work with the peers that are installed among its ways, all of them called once."""
    ways, left_out = dict(work.ways), []
    for name, make in work.peers.items():
        try:
            ways[name] = make()
        except ImportError:
            left_out.append(name)
    if left_out:
        print(f"  left out: {', '.join(left_out)} (pip install -e '.[bench]'; a C++ compiler)")
    wanted, *found = [way() for way in ways.values()]
    for name, numbers in zip(list(ways)[1:], found, strict=True):
        for key, ours in wanted.items():
            error = ((numbers[key] - ours[: len(numbers[key])]).norm() / ours.norm()).item()
            if not error < work.tolerance:
                raise RuntimeError(f"{work.title}: {name} gives another {key}, by {error:.1e}")
    for way in work.others.values():
        way()
    return work._replace(ways=ways, peers={})


def measure(work: Work, rounds: int, rate: float) -> dict:
    """One entry of the JSON file."""
    print(f"\n{work.title}")
    work = complete(work)
    rounds = min(work.rounds or rounds, rounds)
    ways = work.ways | work.others
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            way()
            spent[name].append(seconds(way) / work.units.get(name, 1))
    first, *rest = ways
    rows = []
    for name in rest:
        ratios = [t / ours for t, ours in zip(spent[name], spent[first], strict=True)]
        row = {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}
        rows.append({"peer": name, "same": name in work.ways} | {k: digits(row[k]) for k in row})
    with Products() as products:
        ways[first]()
    ours = statistics.median(spent[first])
    whole = ours * work.units.get(first, 1)
    entry = {"work": work.name, "title": work.title, "ours": first, "seconds": digits(ours)}
    entry |= {"in_products": digits(min(1.0, products.seconds / whole))}
    entry |= {"fraction": digits(products.operations / rate / whole), "rounds": rounds}
    entry |= {"operations": operations(ways[first])}
    return entry | {"counted": work.counted, "rows": rows, "facts": work.facts}


def digits(x: float) -> float:
    """Three significant digits: more would be noise."""
    return float(f"{x:.3g}")


def versions() -> dict[str, str]:
    """The peers that are installed."""
    found = {}
    for name in PEERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main() -> None:
    every = works.WORKS | hyper_works.WORKS
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each work")
    parser.add_argument("--only", nargs="+", choices=every, help="some of the works")
    parser.add_argument("--write", type=Path, metavar="FILE", help="keep it as JSON; book/costs.md")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be 1 or more")
    if arguments.write and arguments.only:
        parser.error("--write keeps all works or none: leave out --only")
    try:
        runs = json.loads(arguments.write.read_text()) if arguments.write else {}
    except FileNotFoundError:
        runs = {}
    except ValueError as error:
        parser.error(f"{arguments.write} is no JSON ({error}): delete it or take it from git")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the peers, which are older than torch
    began, rates = time.perf_counter(), matmul_rates()
    print(f"torch {torch.__version__}, one thread, {arguments.rounds} rounds; CPU time over ours")
    print("matrix products:", *(f"{k} {v / 1e9:.0f} GFLOP/s" for k, v in rates.items()))
    entries = []
    for name in arguments.only or every:
        entries.append(measure(every[name](), arguments.rounds, max(rates.values())))
        print(costs_page.lines(entries[-1]), flush=True)
    if arguments.write:
        taken = time.perf_counter() - began
        origin = provenance.describe(seed=0, device="cpu", seconds=taken)
        kept = {"matmul": {k: digits(v) for k, v in rates.items()}, "works": entries}
        kept |= {"peers": versions(), "provenance": origin}
        packages.keep(arguments.write.parent, provenance.installed())
        runs[f"{origin['device_name']}, {torch.backends.cpu.get_cpu_capability()}"] = kept
        text = json.dumps(runs, indent=1, allow_nan=False) + "\n"
        atomic.write({arguments.write: text.encode()})
        costs_page.write()


if __name__ == "__main__":
    main()
