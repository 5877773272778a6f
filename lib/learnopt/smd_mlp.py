"""The fast path of SMD's look-ahead: momentum on multilayer perceptrons, backwards by hand.

    found, losses = slopes(task, "relu", phi, carry, feeds)   # the numbers of smd.slopes
    carry = train(task, "relu", phi, carry, feed)             # those of vmap(unroll.make_step)
    Plan(mode=partial(slopes, task, "relu"), train=partial(train, task, "relu"))

A step of the look-ahead is v <- mu_t v + g(theta), theta <- theta - eta_t v. Let a and w be the
derivatives of the last loss with respect to theta and v after a step, w so far only through later
steps. Going back through it:

    w <- w - eta_t a            d loss / d eta_t = -<a, v after>
    a <- a + H w                d loss / d mu_t  =  <w, v before>           w <- mu_t w

One gradient on the way out and one Hessian-vector product on the way back, both from
``mlp_products``, whatever the number of knobs. How eta_t and mu_t depend on phi is left to
autograd, for all steps at once, so any parametrisation and any schedule will do. A test holds this
to reverse mode.

``train`` is the step of training between look-aheads, for all members as one product.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from learnopt.layout import Layout
from learnopt.mlp_products import forward_backward, join, products, split
from learnopt.optimizers import rate_and_momentum
from learnopt.tasks import Task

Phi = dict[str, Tensor]


def slopes(
    task: Task, activation: str, phi: Phi, carry, feeds: Sequence,
    factor: Callable | None = None, fixed: Phi | None = None,
) -> tuple[Phi, Tensor]:  # fmt: skip
    """d loss at the end / d phi for each of m members, each ``(m,)``, and the losses ``(m,)``.

    ``factor`` is the schedule of ``optimizers.scheduled``; ``fixed`` are entries of phi that no
    derivative is taken for. The carry is that of ``momentum()``, or of it scheduled.
    """
    logs = {name: x.detach().requires_grad_() for name, x in phi.items()}
    inner = carry.state["inner"] if factor else carry.state
    steps = carry.state["step"] if factor else None
    with torch.enable_grad():
        knobs = _knobs(logs | (fixed or {}), len(feeds), factor, steps)
    found = [
        _member(task.layout, activation, *member, feeds)
        for member in zip(carry.theta, inner["velocity"], knobs.detach().unbind(2), strict=True)
    ]
    cotangents = torch.stack([cotangent for cotangent, _ in found], dim=2)
    by_name = torch.autograd.grad(knobs, logs.values(), cotangents, materialize_grads=True)
    return dict(zip(phi, by_name, strict=True)), torch.stack([loss for _, loss in found])


def train(
    task: Task, activation: str, phi: Phi, carry, feed, factor: Callable | None = None
):  # fmt: skip
    """The carry of m members one step further on ``feed.train``, which they share.

    As ``vmap(unroll.make_step(task, momentum()))``, or of it scheduled; ``feed.score`` is not
    looked at. phi: each ``(m,)`` or ``()``, at least one of them ``(m,)``.
    """
    inner = carry.state["inner"] if factor else carry.state
    steps = carry.state["step"] if factor else None
    rate, mu = _knobs(phi, 1, factor, steps)[0, :, :, None]
    gradient, _ = forward_backward(activation, split(task.layout, carry.theta), *feed.train)
    velocity = join(gradient).addcmul_(inner["velocity"], mu)
    theta = torch.addcmul(carry.theta, velocity, rate, value=-1)
    state = {"velocity": velocity}
    if factor:
        state = {"step": steps + 1, "inner": state}
    return carry._replace(theta=theta, state=state)


def _knobs(phi: Phi, n_steps: int, factor, steps: Tensor | None) -> Tensor:
    """Rates and momenta of all steps, ``(n_steps, 2, m)``; steps ``(m,)`` have gone before."""
    rows = []
    for t in range(n_steps):
        rate, mu = rate_and_momentum(phi)
        rate = rate if factor is None else rate * factor(phi, steps + t)
        rows.append(torch.stack(torch.broadcast_tensors(rate, mu)))
    return torch.stack(rows)


def _member(layout: Layout, activation: str, theta: Tensor, velocity: Tensor, knobs, feeds):
    """The cotangents of the knobs ``(n_steps, 2)``, and the last loss ``()``."""
    rows, past = knobs.tolist(), []
    for feed, (rate, mu) in zip(feeds, rows, strict=True):
        gradient, tape = forward_backward(activation, split(layout, theta), *feed.train)
        after = join(gradient).add_(velocity, alpha=mu)
        past.append((tape, velocity, after))
        theta, velocity = torch.add(theta, after, alpha=-rate), after
    gradient, last = forward_backward(activation, split(layout, theta), *feeds[-1].score)
    a = join(gradient)
    w, found = torch.zeros_like(a), []
    for (tape, before, after), (rate, mu) in zip(reversed(past), reversed(rows), strict=True):
        w = w.sub_(a, alpha=rate)
        found.append(torch.stack([-(a @ after), w @ before]))
        if len(found) < len(rows):  # nothing lies before the first step
            a = a.add_(join(products(tape, split(layout, w[None])))[0])
            w = w.mul_(mu)
    return torch.stack(found[::-1]), last.loss()
