"""The fast path for multilayer perceptrons: a gradient, and later Hessian-vector products.

    parts = split(layout, theta)                       # theta (b, n): b networks, or (n,): one
    gradient, tape = forward_backward("tanh", parts, x, labels)
    found = products(tape, split(layout, vectors))     # vectors (b, K, n), or (K, n)
    join(gradient), join(found)                        # the shapes of theta and of vectors

Forward-over-reverse (Pearlmutter 1994) by hand. Nothing is computed twice: the tape keeps what a
product needs of the gradient's pass. With l the layer, h_l its input, a row an image,
z = h W^T + b, h_{l+1} = s(z), and a dot for the derivative along v:

    z.  = h W.^T + h. W^T + b.                    h.  = s'(z) z.
    u   = d W,          d_l = s'(z) u             u.  = d. W + d W.,    d. = s'(z) u. + s''(z) z. u
    grad W = d^T h                                (H v)_W = d.^T h + d^T h.

What it exploits: bias and activation ride along with the matrix product (``matmul.affine``); s' and
s'' are known from h alone, so each of them is one operation of torch's own backward passes; what
the K vectors share is one matrix product of all. The b networks see the same batch, so the first
layer, the widest, is one product of all their weights with x, and its gradient another. The
reference is ``torch.func``, for any task; a test holds this to it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from learnopt import matmul
from learnopt.layout import Layout

aten = torch.ops.aten
Parts = list[Tensor]  # weight (..., fan_out, fan_in) and bias (..., fan_out) by layer

SLOPES = {  # (u, h) -> s'(z) u, with h = s(z)
    "tanh": aten.tanh_backward,
    "sigmoid": aten.sigmoid_backward,
    "relu": lambda u, h: aten.threshold_backward(u, h, 0),
}
BENDS = {  # h -> s''(z) / s'(z); ReLU has none
    "tanh": lambda h: -2 * h,
    "sigmoid": lambda h: 1 - 2 * h,
}


class Tape(NamedTuple):
    """What the products need; lists by layer, shapes behind the axis of the networks."""

    activation: str
    weights: Parts  # (fan_out, fan_in)
    inputs: list[Tensor]  # h (batch, fan_in); the first is x, which all networks share
    cotangents: list[Tensor]  # d (batch, fan_out), from the last layer to the first
    pulled: list[Tensor]  # u = d W (batch, fan_in), likewise, for all but the first layer
    log_p: Tensor  # (batch, n_classes), of the softmax
    at: Tensor  # (batch, 1), the labels

    def loss(self) -> Tensor:
        """The mean cross-entropies ``(b,)``, or ``()`` of one network."""
        return -self.log_p.gather(-1, self.at).mean((-2, -1))


def split(layout: Layout, flat: Tensor) -> Parts:
    """Flat vectors ``(..., n)`` as one block of memory per tensor of the network."""
    return [view.contiguous() for view in layout.views(flat).values()]


def join(parts: Parts) -> Tensor:
    """The inverse of ``split``."""
    leading = parts[-1].dim() - 1  # the last is a bias
    return torch.cat([part.flatten(leading) for part in parts], dim=-1)


def forward_backward(activation: str, parts: Parts, x: Tensor, labels: Tensor):
    """Gradients of the mean cross-entropy, like parts, and the tape.

    x ``(batch, ...)`` and labels ``(batch,)`` are shared by the networks. Raises ValueError for an
    activation that is not in SLOPES.
    """
    if activation not in SLOPES:
        raise ValueError(f"activation {activation!r} has no fast path: {', '.join(SLOPES)}")
    weights, biases = parts[0::2], parts[1::2]
    inputs = [x.flatten(1)]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        inputs.append(_layer(inputs[-1], weight, bias, activation))
    log_p = _layer(inputs[-1], weights[-1], biases[-1]).log_softmax(-1)
    at = labels[:, None].expand(*log_p.shape[:-1], 1)
    d = log_p.exp().scatter_(-1, at, -1.0, reduce="add").div_(len(x))
    gradient, tape = [], Tape(activation, weights, inputs, [d], [], log_p, at)
    for weight, h in zip(weights[:0:-1], inputs[:0:-1], strict=True):
        gradient += [d.sum(-2), _product(d.mT, h)]
        u = _product(d, weight)
        d = SLOPES[activation](u, h)
        tape.pulled.append(u)
        tape.cotangents.append(d)
    gradient += [d.sum(-2), _product(d.mT, inputs[0])]
    return gradient[::-1], tape


def products(tape: Tape, vectors: Parts) -> Parts:
    """H v: how the gradient moves as the network moves along each of its K vectors.

    vectors and products: weight ``(..., K, fan_out, fan_in)`` and bias ``(..., K, fan_out)``.
    """
    moved, z = _forward(tape, vectors)
    p, batch = tape.log_p.exp().unsqueeze(-2).expand_as(z), z.shape[-3]
    d = aten._softmax_backward_data(z, p, -1, p.dtype).div_(batch)
    found = []
    for layer in reversed(range(len(moved))):
        h, h_moved, old = tape.inputs[layer], moved[layer], tape.cotangents[~layer]
        by_weight = _product(d.flatten(-2).mT, h).view_as(vectors[2 * layer])
        found += [d.sum(-3), by_weight]
        if layer:
            both = _product(old.mT, h_moved.flatten(-2))
            by_weight += both.unflatten(-1, h_moved.shape[-2:]).transpose(-3, -2)
            u = _product(d.flatten(-3, -2), tape.weights[layer]).view_as(h_moved)
            for row, weight in zip(u.unbind(-2), vectors[2 * layer].unbind(-3), strict=True):
                row += _product(old, weight)
            d = SLOPES[tape.activation](u, h.unsqueeze(-2).expand_as(u))
            if tape.activation in BENDS:
                bend = BENDS[tape.activation](h).mul_(tape.pulled[-layer])
                d.addcmul_(h_moved, bend.unsqueeze(-2))
    return found[::-1]


def _forward(tape: Tape, vectors: Parts) -> tuple[list[Tensor | None], Tensor]:
    """The layers' inputs and the logits along the vectors, each ``(..., batch, K, width)``."""
    moved = [None]  # x moves with nothing
    for layer, weight in enumerate(tape.weights):
        own, bias = vectors[2 * layer : 2 * layer + 2]
        z = _layer(tape.inputs[layer], own.flatten(-3, -2), bias.flatten(-2))
        z = z.unflatten(-1, bias.shape[-2:])
        if layer:
            z += _product(moved[layer].flatten(-3, -2), weight.mT).view_as(z)
        if layer < len(tape.weights) - 1:
            h = tape.inputs[layer + 1].unsqueeze(-2).expand_as(z)
            moved.append(SLOPES[tape.activation](z, h))
    return moved, z


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b, either or both a stack ``(b, ., .)``. What the stack shares is one product."""
    if a.dim() < b.dim():
        rows = matmul.matmul(a, b.mT.flatten(0, 1).T).unflatten(1, (len(b), -1))
        return rows.transpose(0, 1).contiguous()
    if a.dim() > b.dim():
        return matmul.matmul(a.flatten(0, 1), b).unflatten(0, a.shape[:2])
    return matmul.matmul(a, b) if a.dim() == 2 else a @ b


def _layer(x: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
    """s(x W^T + b), as ``matmul.affine``; weight and bias may be stacks, and x then too."""
    if weight.dim() == 2:
        return matmul.affine(x, weight, bias, activation)
    z = _product(x, weight.mT).add_(bias[:, None])
    return z if activation == "none" else getattr(torch, activation)(z)
