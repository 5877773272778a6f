"""What a computation costs: bytes that are alive at one time, and seconds.

n_bytes = peak_bytes(lambda: hypergrad.reverse(step, phi, carry, feeds))
seconds = cpu_seconds(lambda: hypergrad.reverse(step, phi, carry, feeds), n_repeats=5)
"""

import statistics
import time
import weakref
from collections.abc import Callable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Watch(TorchDispatchMode):
    """Sees every operation of torch, and follows each storage until nobody holds it."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.follow((args, kwargs), is_new=False)
        result = function(*args, **(kwargs or {}))
        self.follow(result, is_new=True)
        self.peak = max(self.peak, self.now)
        return result

    def follow(self, values, is_new: bool):
        for tensor in tree_leaves(values):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata  # its address, until it is freed
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes() if is_new else 0
                    self.now += self.sizes[key]
                    weakref.finalize(storage, self.forget, key)

    def forget(self, key):
        self.now -= self.sizes.pop(key)


def peak_bytes(work: Callable) -> int:
    """The most bytes of tensors alive at one time while ``work()`` runs, its result included.

    Tensors made before do not count, nor does scratch space inside one operation. Several times
    slower than ``work()`` itself.
    """
    with _Watch() as watch:
        work()
    return watch.peak


def cpu_seconds(work: Callable, n_repeats: int = 5) -> float:
    """Processor time of ``work()``, the median of some repeats after one that is not counted.

    The time of all threads of this process; waiting, for other processes or a GPU, is not in it.
    """
    times = []
    for _ in range(n_repeats + 1):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times[1:])
