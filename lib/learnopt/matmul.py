"""Matrix products that take the faster of two libraries on a CPU."""

import torch
from torch import Tensor

SMALL = 1 << 20  # multiplications below which the call itself costs more than it saves


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """a ``(m, k)`` @ b ``(k, n)``, without gradient; one or both may be stacks ``(s, ., .)``.

    In float32 on a CPU, oneDNN does these narrow products (m = 80, k = 20 to 40) about twice as
    fast as the BLAS that torch links on AMD processors. It is reached through an operator that is
    private to torch: where that is missing, or for other types and devices, this is ``a @ b``. What
    a stack shares is multiplied with all of the stack's rows in one product.
    """
    if a.dim() < b.dim():
        rows = matmul(a, b.mT.flatten(0, 1).T).unflatten(1, (len(b), -1))
        return rows.transpose(0, 1).contiguous()
    if a.dim() > b.dim():
        return matmul(a.reshape(-1, a.shape[2]), b).unflatten(0, a.shape[:2])
    if not _worth_it(a, b.shape[-1]):
        return a @ b
    if a.dim() == 3:
        return torch.stack([matmul(*pair) for pair in zip(a, b, strict=True)])
    return torch.ops.mkldnn._linear_pointwise(a, b.T, None, "none", [], "")


def affine(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    """A layer, s(x W^T + b), without gradient: x ``(m, k)``, weight ``(n, k)``, bias ``(n,)``.

    activation: "none", "tanh", "sigmoid" or "relu". By the faster library it is one operation.
    Weights and biases may be stacks, and so may x then.
    """
    if weight.dim() == 2 and _worth_it(x, len(weight)):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
    if weight.dim() == 2:
        z = torch.addmm(bias, x, weight.T)
    else:
        z = matmul(x, weight.mT).add_(bias[:, None])
    return z if activation == "none" else getattr(torch, activation)(z)


def _worth_it(a: Tensor, n: int) -> bool:
    big = a.shape[-2] * a.shape[-1] * n > SMALL
    return _ONEDNN and big and a.dtype == torch.float32 and a.device.type == "cpu"


def _has_onednn() -> bool:
    one = torch.ones(2, 2)
    try:
        made = torch.ops.mkldnn._linear_pointwise(one, one, one[0], "relu", [], "")
    except (AttributeError, RuntimeError):
        return False
    return bool((made == 3).all())


_ONEDNN = _has_onednn()
