"""The fast path for multilayer perceptrons: gradient and Hessian-vector products in one pass.

    parts = split(layout, torch.stack([theta, v1, v2], dim=1))   # rows of (b, n): b networks
    products, loss = gradient_and_products("tanh", parts, x, labels)
    join(products)[:, 0], join(products)[:, 1]                   # grad L and H v1, each (b, n)

Forward-over-reverse (Pearlmutter 1994), by hand. Everything linear in the weights is done for theta
and for the vectors v as one stack of rows. What it exploits: the b networks see the same batch, so
the first layer, the widest, is one matrix product of all b (1 + K) weight matrices with x, and its
gradient another. The reference is ``torch.func``, for any task; a test holds this to it.

With l the layer, h_l its input, z = W h + b, h_{l+1} = s(z), and a dot for the derivative along v:

    z.  = W. h + W h. + b.         h.  = s'(z) z.
    d_l = s'(z) u, u = W^T d       d.  = s'(z) u. + s''(z) z. u,   u. = W.^T d + W^T d.
    grad W = d h^T                 (H v)_W = d. h^T + d h.^T
"""

import torch
from torch import Tensor

from learnopt.layout import Layout
from learnopt.matmul import matmul

Parts = list[Tensor]  # weight (b, 1 + K, fan_out, fan_in), bias (b, 1 + K, fan_out), by layer


def split(layout: Layout, rows: Tensor) -> Parts:
    """Rows ``(b, 1 + K, n)`` of flat vectors, theta first, as one block of memory per tensor."""
    return [view.contiguous() for view in layout.views(rows).values()]


def join(parts: Parts) -> Tensor:
    """The inverse of ``split``."""
    return torch.cat([part.flatten(2) for part in parts], dim=-1)


def gradient_and_products(activation: str, parts: Parts, x: Tensor, labels: Tensor):
    """The gradient and K Hessian-vector products of the mean cross-entropy of b networks.

    x ``(batch, n_in)`` and labels ``(batch,)`` are shared. Returns parts like ``parts``, gradient
    first, then H v for each further row, and the losses ``(b,)``. K may be 0.
    """
    x, weights, biases = x.flatten(1), parts[0::2], parts[1::2]
    n_layers = len(weights)
    h, inputs, slopes = x, [], []
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        z = _affine(weight, h) + bias[..., None]
        inputs.append(h)
        if layer < n_layers - 1:
            h, first, second = _activate(activation, z)
            slopes.append((first, second, z[:, 1:]))
    loss, d = _cross_entropy(z, labels)
    products: Parts = []
    for layer in reversed(range(n_layers)):
        products = [_outer(d, inputs[layer]), d.sum(-1), *products]
        if layer:
            d = _through(*slopes[layer - 1], _transposed(weights[layer], d))
    return products, loss


def _affine(weight: Tensor, h: Tensor) -> Tensor:
    """W h, and W. h + W h. for each vector: ``(b, 1 + K, fan_out, batch)``."""
    if h.dim() == 2:  # x, which moves with nothing
        flat = matmul(weight.flatten(0, 2), h.T)
        return flat.view(*weight.shape[:-1], -1)
    z = weight.flatten(1, 2) @ h[:, 0]
    z = z.view(*weight.shape[:-1], -1)
    for k in range(1, weight.shape[1]):
        z[:, k].baddbmm_(weight[:, 0], h[:, k])
    return z


def _transposed(weight: Tensor, d: Tensor) -> Tensor:
    """W^T d, and W.^T d + W^T d. for each vector: ``(b, 1 + K, fan_in, batch)``."""
    u = weight.mT @ d[:, :1]
    for k in range(1, weight.shape[1]):
        u[:, k].baddbmm_(weight[:, 0].mT, d[:, k])
    return u


def _outer(d: Tensor, h: Tensor) -> Tensor:
    """d h^T, and d. h^T + d h.^T for each vector: ``(b, 1 + K, fan_out, fan_in)``."""
    if h.dim() == 2:
        return matmul(d.flatten(0, 2), h).view(*d.shape[:-1], -1)
    products = (d.flatten(1, 2) @ h[:, 0].mT).view(*d.shape[:-1], -1)
    for k in range(1, d.shape[1]):
        products[:, k].baddbmm_(d[:, 0], h[:, k].mT)
    return products


def _activate(activation: str, z: Tensor):
    """The next layer's input with its derivatives along v, s'(z) and s''(z)."""
    value = z[:, 0]
    if activation == "tanh":
        out = 2 * torch.sigmoid(2 * value) - 1  # sigmoid is vectorised, tanh is not
        first = 1 - out**2
        second = -2 * out * first
    elif activation == "sigmoid":
        out = torch.sigmoid(value)
        first = out * (1 - out)
        second = (1 - 2 * out) * first
    elif activation == "relu":
        out, first = torch.relu(value), (value > 0).to(value.dtype)
        second = torch.zeros_like(first)
    else:
        raise ValueError(f"activation {activation!r} has no fast path: tanh, sigmoid or relu")
    h = torch.cat([out[:, None], first[:, None] * z[:, 1:]], dim=1)
    return h, first, second


def _through(first: Tensor, second: Tensor, z_dot: Tensor, u: Tensor) -> Tensor:
    """From dL/dh to dL/dz, with the derivatives along v."""
    d = first[:, None] * u
    d[:, 1:].addcmul_(z_dot, (second * u[:, 0])[:, None])
    return d


def _cross_entropy(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean losses ``(b,)`` of logits ``(b, 1 + K, n_classes, batch)``; dL/dz with derivatives."""
    batch = labels.shape[0]
    log_p = z[:, 0].log_softmax(1)
    p = log_p.exp()
    at = labels.expand(len(z), 1, batch)
    loss = -log_p.gather(1, at).mean((1, 2))
    d = torch.empty_like(z)
    d[:, 0] = p.scatter_add(1, at, p.new_full((), -1.0).expand_as(at))
    moved = p[:, None] * z[:, 1:]
    d[:, 1:] = moved - p[:, None] * moved.sum(2, keepdim=True)
    return loss, d / batch
