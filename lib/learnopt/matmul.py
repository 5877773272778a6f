"""Matrix products that take the faster of two libraries on a CPU."""

import torch
from torch import Tensor

SMALL = 1 << 21  # multiplications below which the call itself costs more than it saves


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a ``(m, k)`` @ b ``(k, n)``, without gradient.

    In float32 on a CPU, oneDNN does these narrow products (m = 80, k = 20 to 40) about twice as
    fast as the BLAS that torch links on AMD processors. It is reached through an operator that is
    private to torch: where that is missing, or for other types and devices, this is ``a @ b``.
    """
    if _worth_it(a, b.shape[1]):
        return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")
    return a @ b


def affine(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    """A layer, s(x W^T + b), without gradient: x ``(m, k)``, weight ``(n, k)``, bias ``(n,)``.

    activation: "none", "tanh", "sigmoid" or "relu". By the faster library it is one operation.
    """
    if _worth_it(x, len(weight)):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
    z = torch.addmm(bias, x, weight.T)
    return z if activation == "none" else getattr(torch, activation)(z)


def _worth_it(a: Tensor, n: int) -> bool:
    big = a.numel() * n > SMALL
    return _ONEDNN and big and a.dtype == torch.float32 and a.device.type == "cpu"


def _has_onednn() -> bool:
    one = torch.ones(2, 2)
    try:
        made = torch.ops.mkldnn._linear_pointwise(one, one, one[0], "relu", [], "")
    except (AttributeError, RuntimeError):
        return False
    return bool((made == 3).all())


_ONEDNN = _has_onednn()
