"""The fast path of OHO: gradient descent with weight decay on multilayer perceptrons.

    learner = MLP(task, "tanh")     # the numbers of oho.Reference(task, decayed(sgd()))

The recursion is that of ``oho``, tensor by tensor of the network. With eta, lambda the rate and the
decay of the tensor's set, its gradient g, and its part H Z of a Hessian-vector product, from
``mlp_products``:

    theta <- theta - eta push                 push = g + lambda theta
    Z     <- (1 - eta lambda) Z - eta H Z     for all tangents; and of the tensor's own set
    A     <- A - push,  B <- B - eta theta    as well, in the tangents of its rate and decay

A test holds this to forward mode through the step. b runs go side by side.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from learnopt.mlp_products import Parts, forward_backward, join, products, split
from learnopt.tasks import Task

Phi = dict[str, Tensor]
NAMES = ("lr", "weight_decay")


class State(NamedTuple):
    """b runs, with a leading axis ``(b,)`` if b > 1: one alone is quicker without."""

    theta: Parts
    tangents: Parts  # rows ``(K, ...)``: d theta / d rates, then d theta / d decays


class MLP:
    """As ``oho.Reference``, with the same methods.

    ``tuned=False`` has no tangents, for runs whose phi is fixed or follows a schedule.
    """

    def __init__(self, task: Task, activation: str, groups=None, shared=False, tuned=True):
        self.layout, self.activation, self.shared, self.tuned = (
            task.layout, activation, shared, tuned,
        )  # fmt: skip
        self.groups = tuple(groups or [0] * len(task.layout.shapes))
        self.n_groups = max(self.groups) + 1
        self.per_name = (1 if shared else self.n_groups) if tuned else 0

    def start(self, theta: Tensor) -> State:
        """b runs at theta ``(b, n)``, tangents 0."""
        theta = theta.clone() if len(theta) > 1 else theta[0].clone()
        zeros = theta.new_zeros(*theta.shape[:-1], 2 * self.per_name, self.layout.size)
        return State(split(self.layout, theta), split(self.layout, zeros))

    def advance(self, phi: Phi, state: State, batch) -> State:
        """One training step, and what it does to the tangents."""
        gradient, tape = forward_backward(self.activation, state.theta, *batch)
        moved = products(tape, state.tangents) if self.tuned else state.tangents
        lr, decay = (phi[name] if _several(state) else phi[name][0] for name in NAMES)
        knobs = list(zip(*(x.unbind(-1) for x in (-lr, decay, 1 - lr * decay)), strict=True))
        theta = []
        for part, push, old, new, group in zip(
            state.theta, gradient, state.tangents, moved, self.groups, strict=True
        ):
            down, decay, shrink = knobs[group]
            push.addcmul_(part, _over(decay, part))
            theta.append(torch.addcmul(part, push, _over(down, part)))
            if self.tuned:
                new.mul_(_over(down, new)).addcmul_(old, _over(shrink, old))
                rows, own = new.unbind(down.dim()), 0 if self.shared else group
                rows[own].sub_(push)
                rows[own + self.per_name].addcmul_(part, _over(down, part))
        return State(theta, moved)

    def slopes(self, state: State, batch) -> Phi:
        """d loss(theta, batch) / d phi: <grad loss, Z>."""
        gradient, _ = forward_backward(self.activation, state.theta, *batch)
        axis = 1 if _several(state) else 0
        shares = [
            z.flatten(axis + 1) @ slope.flatten(axis).unsqueeze(-1)
            for z, slope in zip(state.tangents, gradient, strict=True)
        ]
        shares = torch.stack(shares, -1).view(-1, 2, self.per_name, len(gradient))
        sums = shares.sum(-1)
        if self.shared:
            groups = torch.tensor(self.groups, device=shares.device)
            sums = shares.new_zeros(len(shares), 2, self.n_groups)
            sums.index_add_(2, groups, shares[:, :, 0])
        return dict(zip(NAMES, sums.unbind(1), strict=True))

    def theta(self, state: State) -> Tensor:
        """Parameters ``(b, n)``."""
        return join(state.theta).view(-1, self.layout.size)

    def tangents(self, state: State) -> Tensor:
        """d theta / d phi, ``(b, K, n)``: those of the rates, then those of the decays."""
        made = join(state.tangents)
        return made if _several(state) else made[None]

    def reset(self, state: State) -> State:
        """The same runs with their past forgotten."""
        return state._replace(tangents=[torch.zeros_like(part) for part in state.tangents])


def _several(state: State) -> bool:
    return state.theta[-1].dim() > 1  # the last is a bias


def _over(knob: Tensor, part: Tensor) -> Tensor:
    """A number, or one a run, against all of a tensor."""
    return knob.view(-1, *[1] * (part.dim() - 1)) if knob.dim() else knob
