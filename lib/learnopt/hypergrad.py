"""Hypergradients: how the meta-loss after T steps moves with phi.

All functions take ``step(phi, carry, feed) -> carry`` and know nothing else: no task, no
optimizer. They return d meta_loss / d phi, shaped like phi, and the carry after the last step.
``meta_loss`` is a leaf of the carry. T = len(feeds); P = the number of scalars in phi.

| function             | work                       | memory         | exact            |
|----------------------|----------------------------|----------------|------------------|
| `reverse`            | a few runs, whatever P     | grows with T   | yes              |
| `forward`            | about 2 P runs             | grows with P   | yes              |
| `central_difference` | 2 P runs                   | one run        | no: O(eps^2)     |
| `es` and its kin     | 2 n_pairs runs             | the population | on average       |

The last row differentiates nothing. Evolution strategies perturb phi, and work window by window:
``feeds`` is then one window of a longer run, and what counts is how much ``meta_loss`` grows in
it. A step that *sets* meta_loss to the present loss makes that sum up to the final loss.

| function    | starts each window from  | a new perturbation | of the whole run's gradient |
|-------------|--------------------------|--------------------|-----------------------------|
| `es`        | one unperturbed carry    | every window       | biased: windows forget      |
| `pes`       | the particles' own carry | every window       | unbiased                    |
| `es_single` | the particles' own carry | every run          | unbiased                    |

All three estimate the gradient of the meta-loss smoothed by Gaussians of deviation sigma.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


# ---- evolution strategies: a population of perturbed runs ----


class Particles(NamedTuple):
    """Runs that go on from window to window: the first half, then the mirror image of each."""

    carry: Any  # every leaf (2 n_pairs, ...)
    shift: Tensor | None = None  # (2 n_pairs, P): what phi was moved by so far; None at the start


def particles(carry, n_pairs: int) -> Particles:
    """2 n_pairs copies of a carry, at the start of a run."""
    n = 2 * n_pairs
    return Particles(tree_map(lambda leaf: leaf.expand(n, *leaf.shape), carry))


def mirrored(phi: Phi, n_pairs: int, sigma: float, generator: torch.Generator) -> Tensor:
    """Perturbations ``(2 n_pairs, P)`` from N(0, sigma^2), then the same with the other sign."""
    like = next(iter(phi.values()))
    size = (n_pairs, Layout.of(phi).size)
    draw = torch.randn(size, generator=generator, dtype=like.dtype, device=like.device)
    return torch.cat([sigma * draw, -sigma * draw])


def probe(step: Callable, phi: Phi, carries, feeds: Sequence, shift: Tensor):
    """Run each particle through the window under phi + its shift ``(n, P)``, all in one batch.

    Returns the carries at the end and by how much each meta_loss has grown, ``(n,)``.
    """
    layout = Layout.of(phi)
    moved = layout.views(layout.flatten(phi) + shift)
    ends = vmap(lambda phi, carry: unroll.run(step, phi, carry, feeds)[0])(moved, carries)
    return ends, ends.meta_loss - carries.meta_loss


def es(step: Callable, phi: Phi, carry, feeds: Sequence, n_pairs: int, sigma: float, generator):
    """Truncated evolution strategies (Salimans et al. 2017; for training runs Metz et al. 2019).

    All particles start from ``carry``, which the unperturbed phi then takes through the window.
    Over a whole run in one window it is unbiased; over shorter ones it is as greedy as `reverse`.
    """
    shift = mirrored(phi, n_pairs, sigma, generator)
    _, grown = probe(step, phi, particles(carry, n_pairs).carry, feeds, shift)
    return _slope(phi, shift, grown, sigma), unroll.run(step, phi, carry, feeds)[0]


def pes(step: Callable, phi: Phi, crowd: Particles, feeds: Sequence, sigma: float, generator):
    """Persistent evolution strategies (Vicol et al. 2021), from and to ``particles(...)``.

    A particle's growth is credited to the sum of its perturbations so far: what happens in this
    window is also the work of the earlier ones. That sum, and with it the noise, may grow from
    window to window.
    """
    fresh = mirrored(phi, _n_pairs(crowd), sigma, generator)
    summed = fresh if crowd.shift is None else crowd.shift + fresh
    ends, grown = probe(step, phi, crowd.carry, feeds, fresh)
    return _slope(phi, summed, grown, sigma), Particles(ends, summed)


def es_single(step: Callable, phi: Phi, crowd: Particles, feeds: Sequence, sigma: float, generator):
    """ES-Single (Vicol et al. 2023): `pes` with one perturbation for the whole run.

    It is drawn in the first window. Summed over a run at one phi, the estimate is that of `es` on
    the whole run, whatever the number of windows.
    """
    shift = crowd.shift
    if shift is None:
        shift = mirrored(phi, _n_pairs(crowd), sigma, generator)
    ends, grown = probe(step, phi, crowd.carry, feeds, shift)
    return _slope(phi, shift, grown, sigma), Particles(ends, shift)


def _n_pairs(crowd: Particles) -> int:
    return len(crowd.carry.meta_loss) // 2


def _slope(phi: Phi, shift: Tensor, grown: Tensor, sigma: float) -> Phi:
    # the mean of growth times perturbation over sigma^2; in a pair all even terms cancel
    return Layout.of(phi).views(grown @ shift / (len(grown) * sigma**2))
