"""The fast path for one multilayer perceptron: its gradient, and later Hessian-vector products.

    parts = list(layout.views(theta).values())        # weight, bias, weight, ...
    gradient, loss, tape = forward_backward("tanh", parts, x, labels)
    products(tape, vectors)                           # H v for K vectors: parts with an axis K

Forward-over-reverse (Pearlmutter 1994) by hand, as in ``mlp_products``, which does many networks
at once. Here nothing is computed twice: the tape keeps what a product needs of the gradient's pass.
With l the layer, h_l its input, a row an image, z = h W^T + b, h_{l+1} = s(z), and a dot for the
derivative along v:

    z.  = h W.^T + h. W^T + b.                    h.  = s'(z) z.
    u   = d W,          d_l = s'(z) u             u.  = d. W + d W.,    d. = s'(z) u. + s''(z) z. u
    grad W = d^T h                                (H v)_W = d.^T h + d^T h.

What it exploits: bias and activation ride along with the matrix product (``matmul.affine``); s' and
s'' are known from h alone, so each of them is one operation of torch's own backward passes; what
the K vectors share is one matrix product of all.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from learnopt.matmul import affine, matmul

aten = torch.ops.aten
Parts = list[Tensor]

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
    """What the products need; lists by layer."""

    activation: str
    weights: Parts  # (fan_out, fan_in)
    inputs: Parts  # h (batch, fan_in)
    cotangents: Parts  # d (batch, fan_out)
    bends: list[Tensor | None]  # u s''/s' at the layer's input (batch, fan_in)
    p: Tensor  # (batch, n_classes), of the softmax


def forward_backward(activation: str, parts: Parts, x: Tensor, labels: Tensor):
    """Gradient (like parts) and value ``()`` of the mean cross-entropy, and the tape.

    parts: weight ``(fan_out, fan_in)`` and bias ``(fan_out,)`` by layer; x ``(batch, ...)``, labels
    ``(batch,)``. Raises ValueError for an activation that is not in SLOPES.
    """
    if activation not in SLOPES:
        raise ValueError(f"activation {activation!r} has no fast path: {', '.join(SLOPES)}")
    weights, biases = parts[0::2], parts[1::2]
    inputs = [x.flatten(1)]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        inputs.append(affine(inputs[-1], weight, bias, activation))
    log_p = affine(inputs[-1], weights[-1], biases[-1]).log_softmax(1)
    p, ones = log_p.exp(), log_p.new_full((1, 1), -1.0).expand(len(x), 1)
    d = p.scatter_add(1, labels[:, None], ones).div_(len(x))
    gradient, cotangents, bends = [], [], []
    for layer in reversed(range(len(weights))):
        gradient += [d.sum(0), matmul(d.T, inputs[layer])]
        cotangents.append(d)
        if layer:
            u, h = matmul(d, weights[layer]), inputs[layer]
            d = SLOPES[activation](u, h)
            bends.append(BENDS[activation](h).mul_(u) if activation in BENDS else None)
    tape = Tape(activation, weights, inputs, cotangents[::-1], [None, *bends[::-1]], p)
    return gradient[::-1], F.nll_loss(log_p, labels), tape


def products(tape: Tape, vectors: Parts) -> Parts:
    """H v: how the gradient moves as the network moves along each of K vectors.

    vectors and products: weight ``(K, fan_out, fan_in)`` and bias ``(K, fan_out)`` by layer.
    """
    moved, z = _forward(tape, vectors)
    p, k, batch = tape.p[:, None].expand_as(z), z.shape[1], len(z)
    d = aten._softmax_backward_data(z, p, 2, p.dtype).div_(batch)
    found = []
    for layer in reversed(range(len(tape.weights))):
        h, h_moved, old = tape.inputs[layer], moved[layer], tape.cotangents[layer]
        by_weight = matmul(d.flatten(1).T, h).view(k, -1, h.shape[1])
        if layer:
            both = matmul(old.T, h_moved.flatten(1)).view(-1, k, h.shape[1])
            by_weight += both.transpose(0, 1)
        found += [d.sum(0), by_weight]
        if layer:
            u = matmul(d.flatten(0, 1), tape.weights[layer]).view(batch, k, -1)
            for i, weight in enumerate(vectors[2 * layer]):
                u[:, i] += matmul(old, weight)
            d = SLOPES[tape.activation](u, h[:, None].expand_as(u))
            if tape.bends[layer] is not None:
                d.addcmul_(h_moved, tape.bends[layer][:, None])
    return found[::-1]


def _forward(tape: Tape, vectors: Parts) -> tuple[list[Tensor | None], Tensor]:
    """The layers' inputs and the logits along the vectors, each ``(batch, K, width)``."""
    moved = [None]  # x moves with nothing
    for layer, weight in enumerate(tape.weights):
        h, own = tape.inputs[layer], vectors[2 * layer]
        z = matmul(h, own.flatten(0, 1).T).view(len(h), *own.shape[:2])
        z += vectors[2 * layer + 1]
        if layer:
            z.flatten(0, 1).add_(matmul(moved[layer].flatten(0, 1), weight.T))
        if layer < len(tape.weights) - 1:
            moved.append(SLOPES[tape.activation](z, tape.inputs[layer + 1][:, None].expand_as(z)))
    return moved, z
