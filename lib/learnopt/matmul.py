"""Matrix products that take the faster of two libraries on a CPU."""

import torch
from torch import Tensor

from learnopt import provenance

SMALL = 1 << 21  # multiplications below which the call itself costs more than it saves


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a ``(m, k)`` @ b ``(k, n)``, without gradient.

    In float32 on AMD's processors with AVX-512, oneDNN does these narrow products (m = 80, k = 20
    to 40) about twice as fast as the BLAS that torch links. That one is Intel's, and leaves AVX-512
    to Intel's processors; there, and on AMD's with AVX2 only, it is the faster. oneDNN is reached
    through an operator that is private to torch: where it is missing, on other processors and
    devices and for other types, this is ``a @ b``.
    """
    return onednn(a, b.T) if _worth_it(a, b.shape[1]) else a @ b


def affine(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    """A layer, s(x W^T + b), without gradient: x ``(m, k)``, weight ``(n, k)``, bias ``(n,)``.

    activation: "none", "tanh", "sigmoid" or "relu". By the faster library it is one operation.
    """
    if _worth_it(x, len(weight)):
        return onednn(x, weight, bias, activation)
    z = torch.addmm(bias, x, weight.T)
    return z if activation == "none" else getattr(torch, activation)(z)


def onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = "none"):
    """s(x W^T + b) by oneDNN, float32 on a CPU. Raises AttributeError where torch has no such."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")


def _worth_it(a: Tensor, n: int) -> bool:
    big = a.numel() * n > SMALL
    return _FASTER and big and a.dtype == torch.float32 and a.device.type == "cpu"


def _has_onednn() -> bool:
    one = torch.ones(2, 2)
    try:
        made = onednn(one, one, one[0], "relu")
    except (AttributeError, RuntimeError):
        return False
    return bool((made == 3).all())


def _is_faster(processor: str, instructions: str) -> bool:
    return HAS_ONEDNN and "AMD" in processor and instructions.startswith("AVX512")


HAS_ONEDNN = _has_onednn()
_FASTER = _is_faster(provenance.device_name("cpu"), torch.backends.cpu.get_cpu_capability())
