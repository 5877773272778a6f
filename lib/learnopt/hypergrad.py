"""Hypergradients: how the meta-loss after T steps moves with phi.

All three functions take ``step(phi, carry, feed) -> carry`` and know nothing else: no task, no
optimizer. They return d meta_loss / d phi, shaped like phi, and the carry after the last step.
``meta_loss`` is a leaf of the carry. T = len(feeds); P = the number of scalars in phi.

| function             | work                       | memory         | exact            |
|----------------------|----------------------------|----------------|------------------|
| `reverse`            | a few runs, whatever P     | grows with T   | yes              |
| `forward`            | about 2 P runs             | grows with P   | yes              |
| `central_difference` | 2 P runs                   | one run        | no: O(eps^2)     |
"""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils._pytree import tree_map

from learnopt import unroll
from learnopt.layout import Layout

Phi = dict[str, Tensor]

with warnings.catch_warnings():
    # the first jvp of a process loads a part of torch 2.12+ that warns of torch's own torch.jit use
    warnings.simplefilter("ignore", FutureWarning)
    jvp(torch.sin, (torch.zeros(()),), (torch.ones(()),))


def reverse(step: Callable, phi: Phi, carry, feeds: Sequence):
    """Backpropagation through the T steps.

    Williams & Zipser 1989 call it backpropagation through time; Maclaurin et al. 2015 apply it to
    hyperparameters.
    """

    def meta_loss(phi):
        end, _ = unroll.run(step, phi, carry, feeds)
        return end.meta_loss, end

    return grad(meta_loss, has_aux=True)(phi)


def forward(step: Callable, phi: Phi, carry, feeds: Sequence, tangents=None):
    """Push Z = d carry / d phi along with the steps: Z <- (d step / d carry) Z + d step / d phi.

    This is real-time recurrent learning (Williams & Zipser 1989). Each leaf of the tangents is the
    carry's leaf with a leading axis P. Returns also the tangents: handed back in, the recursion
    goes on, which is online hyperparameter optimization (Im et al. 2021).
    """
    layout = Layout.of(phi)
    like = next(iter(phi.values()))
    basis = layout.views(torch.eye(layout.size, dtype=like.dtype, device=like.device))
    if tangents is None:
        tangents = tree_map(lambda leaf: leaf.new_zeros(layout.size, *leaf.shape), carry)

    def push(phi, dual, feed):
        carry, tangents = dual

        def one(dphi, dcarry):
            end, dend = jvp(lambda p, c: step(p, c, feed), (phi, carry), (dphi, dcarry))
            # torch makes a float64 tangent of a 0-dim float32 tensor times a Python float
            return end, tree_map(lambda leaf, tangent: tangent.to(leaf.dtype), end, dend)

        ends, tangents = vmap(one)(basis, tangents)
        return tree_map(lambda leaf: leaf[0], ends), tangents  # one end, seen P times

    (carry, tangents), _ = unroll.run(push, phi, (carry, tangents), feeds)
    return layout.views(tangents.meta_loss), carry, tangents


def central_difference(step: Callable, phi: Phi, carry, feeds: Sequence, eps: float = 1e-5):
    """(meta_loss(phi + eps e_k) - meta_loss(phi - eps e_k)) / (2 eps), one scalar k at a time.

    The independent check of the other two. In float64 the default eps balances the truncation
    error, of order eps^2, against rounding, of order 1e-16 / eps.
    """
    layout = Layout.of(phi)
    flat = layout.flatten(phi)

    def meta_loss(flat):
        return unroll.run(step, layout.views(flat), carry, feeds)[0].meta_loss

    slopes = []
    for k in range(layout.size):
        shift = torch.zeros_like(flat)
        shift[k] = eps
        slopes.append((meta_loss(flat + shift) - meta_loss(flat - shift)) / (2 * eps))
    end, _ = unroll.run(step, phi, carry, feeds)
    return layout.views(torch.stack(slopes)), end
