"""A matrix product that takes the faster of two libraries on a CPU."""

import torch
from torch import Tensor

SMALL = 1 << 21  # multiplications below which the call itself costs more than it saves


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a ``(m, k)`` @ b ``(k, n)``, without gradient.

    In float32 on a CPU, oneDNN does these narrow products (m = 80, k = 20 to 40) about twice as
    fast as the BLAS that torch links on AMD processors. It is reached through an operator that is
    private to torch: where that is missing, or for other types and devices, this is ``a @ b``.
    """
    worth_it = a.numel() * b.shape[1] > SMALL
    if _ONEDNN and worth_it and a.dtype == torch.float32 and a.device.type == "cpu":
        return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return a @ b


def _has_onednn() -> bool:
    one = torch.ones(2, 2)
    try:
        return bool((torch.ops.mkldnn._linear_pointwise(one, one, None, "none", [], "") == 2).all())
    except (AttributeError, RuntimeError):
        return False


_ONEDNN = _has_onednn()
