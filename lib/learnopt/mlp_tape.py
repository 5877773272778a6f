"""The fast path for one multilayer perceptron: its gradient, and later Hessian-vector products.

    gradient, loss, tape = forward_backward(layout, "tanh", theta, x, labels)
    product(tape, v)                         # H v at the same theta and batch; v (n,) like theta

Forward-over-reverse (Pearlmutter 1994) by hand, as in ``mlp_products``, which does many networks
at once. Here nothing is computed twice: the tape keeps what a product needs of the gradient's pass.
With l the layer, h_l its input, a row an image, z = h W^T + b, h_{l+1} = s(z), and a dot for the
derivative along v:

    z.  = h W.^T + h. W^T + b.                    h.  = s'(z) z.
    u   = d W,          d_l = s'(z) u             u.  = d. W + d W.,    d. = s'(z) u. + s''(z) z. u
    grad W = d^T h                                (H v)_W = d.^T h + d^T h.

What it exploits: bias and activation ride along with the matrix product (``matmul.affine``); s' and
s'' are known from h alone, so each of them is one operation of torch's own backward passes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from learnopt.layout import Layout
from learnopt.matmul import affine, matmul

aten = torch.ops.aten

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

    layout: Layout
    activation: str
    weights: list[Tensor]  # (fan_out, fan_in)
    inputs: list[Tensor]  # h (batch, fan_in)
    cotangents: list[Tensor]  # d (batch, fan_out)
    bends: list[Tensor | None]  # u s''/s' at the layer's input (batch, fan_in)
    p: Tensor  # (batch, n_classes), of the softmax


def forward_backward(layout: Layout, activation: str, theta: Tensor, x: Tensor, labels: Tensor):
    """Gradient ``(n,)`` and value ``()`` of the mean cross-entropy, and the tape.

    theta ``(n,)``, x ``(batch, ...)``, labels ``(batch,)``. Raises ValueError for an activation
    that is not in SLOPES.
    """
    if activation not in SLOPES:
        raise ValueError(f"activation {activation!r} has no fast path: {', '.join(SLOPES)}")
    parts = list(layout.views(theta).values())
    weights, biases = parts[0::2], parts[1::2]
    inputs = [x.flatten(1)]
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        inputs.append(affine(inputs[-1], weight, bias, activation))
    log_p = affine(inputs[-1], weights[-1], biases[-1]).log_softmax(1)
    p, ones = log_p.exp(), log_p.new_full((1, 1), -1.0).expand(len(x), 1)
    d = p.scatter_add(1, labels[:, None], ones).div_(len(x))
    gradients, cotangents, bends = [], [], []
    for layer in reversed(range(len(weights))):
        gradients += [d.sum(0), matmul(d.T, inputs[layer]).flatten()]
        cotangents.append(d)
        if layer:
            u, h = matmul(d, weights[layer]), inputs[layer]
            d = SLOPES[activation](u, h)
            bends.append(BENDS[activation](h).mul_(u) if activation in BENDS else None)
    tape = Tape(layout, activation, weights, inputs, cotangents[::-1], [None, *bends[::-1]], p)
    return torch.cat(gradients[::-1]), F.nll_loss(log_p, labels), tape


def product(tape: Tape, vector: Tensor) -> Tensor:
    """H v for v ``(n,)``: how the gradient ``(n,)`` moves as theta moves along v."""
    _, activation, weights, inputs, cotangents, bends, p = tape
    parts = list(tape.layout.views(vector).values())
    slope, n_layers, moved = SLOPES[activation], len(weights), [inputs[0]]  # x moves with nothing
    for layer in range(n_layers):
        z = affine(inputs[layer], parts[2 * layer], parts[2 * layer + 1])
        if layer:
            z += matmul(moved[layer], weights[layer].T)
        moved.append(slope(z, inputs[layer + 1]) if layer < n_layers - 1 else z)
    d = aten._softmax_backward_data(moved.pop(), p, 1, p.dtype).div_(len(p))
    products = []
    for layer in reversed(range(n_layers)):
        h, h_moved, old = inputs[layer], moved[layer], cotangents[layer]
        by_weight = matmul(d.T, h)
        if layer:
            by_weight += matmul(old.T, h_moved)
        products += [d.sum(0), by_weight.flatten()]
        if layer:
            u = matmul(d, weights[layer])
            u += matmul(old, parts[2 * layer])
            d = slope(u, h)
            if bends[layer] is not None:
                d.addcmul_(h_moved, bends[layer])
    return torch.cat(products[::-1])
