"""The fast path of OHO: gradient descent with weight decay on multilayer perceptrons.

    learner = MLP(task, "tanh")     # the numbers of oho.Reference(task, decayed(sgd()))

The training gradient and all Hessian-vector products come from one pass (``mlp_products``), for b
runs at once. A run's parameters and tangents are rows of one block per tensor of the network. The
recursion is written out as in the paper; a test holds it to forward mode through the step.
"""

import torch
from torch import Tensor

from learnopt.mlp_products import Parts, gradient_and_products, join, split
from learnopt.tasks import Task

Phi = dict[str, Tensor]
NAMES = ("lr", "weight_decay")


class MLP:
    """As ``oho.Reference``, with the same methods. The state is a block per tensor of the layout.

    ``tuned=False`` has no tangents, for runs whose phi is fixed or follows a schedule.
    """

    def __init__(self, task: Task, activation: str, groups=None, shared=False, tuned=True):
        self.layout, self.activation, self.shared, self.tuned = (
            task.layout, activation, shared, tuned,
        )  # fmt: skip
        self.groups = tuple(groups or [0] * len(task.layout.shapes))
        self.n_groups = max(self.groups) + 1
        self.per_name = (1 if shared else self.n_groups) if tuned else 0

    def start(self, theta: Tensor) -> Parts:
        """b runs at theta ``(b, n)``, tangents 0."""
        zeros = theta.new_zeros(len(theta), 2 * self.per_name, theta.shape[1])
        return split(self.layout, torch.cat([theta[:, None], zeros], dim=1))

    def advance(self, phi: Phi, parts: Parts, batch) -> Parts:
        """One training step, and what it does to the tangents."""
        moved, _ = gradient_and_products(self.activation, parts, *batch)
        for part, new, group in zip(parts, moved, self.groups, strict=True):
            shape = (-1, *[1] * (part.dim() - 1))
            lr, decay = (phi[name][:, group].view(shape) for name in NAMES)
            push = new.addcmul_(decay, part)[:, 0].clone()  # g + lambda theta; below it, H Z + ...
            new.mul_(-lr).add_(part)
            if self.tuned:
                row = 1 + (0 if self.shared else group)
                new[:, row] -= push
                new[:, row + self.per_name].addcmul_(lr[:, 0], part[:, 0], value=-1)
        return moved

    def slopes(self, parts: Parts, batch) -> Phi:
        """d loss(theta, batch) / d phi: <grad loss, Z>."""
        now = [part[:, :1].contiguous() for part in parts]
        gradients, _ = gradient_and_products(self.activation, now, *batch)
        sums = parts[0].new_zeros(len(parts[0]), 2, self.n_groups)
        for part, gradient, group in zip(parts, gradients, self.groups, strict=True):
            shares = (gradient * part[:, 1:]).flatten(2).sum(2).unflatten(1, (2, self.per_name))
            if self.shared:
                sums[:, :, group] += shares[..., 0]
            else:
                sums += shares
        return dict(zip(NAMES, sums.unbind(1), strict=True))

    def theta(self, parts: Parts) -> Tensor:
        """Parameters ``(b, n)``."""
        return join([part[:, :1] for part in parts])[:, 0]

    def tangents(self, parts: Parts) -> Tensor:
        """d theta / d phi, ``(b, K, n)``: those of the rates, then those of the decays."""
        return join(parts)[:, 1:]

    def reset(self, parts: Parts) -> Parts:
        """The same runs with their past forgotten."""
        return [torch.cat([part[:, :1], torch.zeros_like(part[:, 1:])], dim=1) for part in parts]
