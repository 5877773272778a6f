"""The original code's recursion, for comparison: four differences, each of which can be undone.

    hyper = Original(task)                                      # as published
    exact = Original(task, factor=1, late=False, stale=False, products=exact_product)
    point = hyper.step(point, batch, judge, meta_rates)

Read from github.com/jiwoongim/OHO at commit 1c0bdd1. Against the derivation (see ``oho``):

- ``factor`` 2: the tangents take the penalty as lambda |theta|^2, training as lambda/2 |theta|^2;
- ``late``: the Hessian and theta in the tangents are those after the step, g is that before it;
- ``stale``: lambda's tangent uses the rate that this very meta-step has just changed;
- ``products``: a central difference in float32 whose step does not shrink with the vector.

A fifth is not here: for several sets it has one pair of tangents (``shared`` in ``oho``).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp

from learnopt.tasks import Task

SMALLEST = 1e-3  # the difference's step is never smaller, however long the vector is
ROOT_EPS = 3.45e-4  # sqrt of float32's machine epsilon


class Point(NamedTuple):
    """Where one run is: parameters, tangents, and the two hyperparameters."""

    theta: Tensor  # (n,)
    by_lr: Tensor  # (n,) A
    by_decay: Tensor  # (n,) B
    lr: Tensor  # ()
    decay: Tensor  # ()

    @classmethod
    def start(cls, theta: Tensor, lr: float, decay: float = 0.0) -> "Point":
        """Before the first step."""
        zero = torch.zeros_like(theta)
        return cls(theta, zero, zero, theta.new_tensor(lr), theta.new_tensor(decay))


def exact_product(slope: Callable, theta: Tensor, vector: Tensor, n_first: int) -> Tensor:
    """H v, with slope the gradient as a function of theta."""
    return jvp(slope, (theta,), (vector,))[1]


def difference_product(slope: Callable, theta: Tensor, vector: Tensor, n_first: int) -> Tensor:
    """H v by the original's central difference, its step r from the first tensor alone.

    r = max(1e-3, sqrt(eps) (1 + max |theta_1|) / max |v_1|) over the n_first coordinates. For long
    vectors r v is a long way: with |v| of 1e5 the "product" is noise.
    """
    longest = vector[:n_first].abs().max()
    longest = torch.where(longest > 0, longest, 1.0)
    r = (ROOT_EPS * (1 + theta[:n_first].abs().max()) / longest).clamp(min=SMALLEST)
    return (slope(theta + r * vector) - slope(theta - r * vector)) / (2 * r)


class Original(NamedTuple):
    """The recursion with the original's four habits, or without some of them."""

    task: Task
    factor: int = 2
    late: bool = True
    stale: bool = True
    products: Callable = difference_product

    def step(self, point: Point, batch, judge, meta_rates=(0.0, 0.0), cap=2e-4) -> Point:
        """One training step and one meta-step at the rates (alpha, alpha')."""
        theta, a, b, lr, decay = point
        slope = grad(lambda theta: self.task.loss(theta, batch))
        pull = slope(theta)
        new = theta - lr * (pull + decay * theta)
        at = new if self.late else theta
        first = self.task.layout.segment.eq(0).sum()
        curved = [self.products(slope, at, tangent, first) for tangent in (a, b)]
        c = self.factor
        judged = grad(lambda theta: self.task.loss(theta, judge))(new)
        a = a - lr * (curved[0] + c * decay * a) - pull - c * decay * at
        new_lr = (lr - meta_rates[0] * (judged @ a)).clamp(min=0)
        then = new_lr if self.stale else lr
        b = b - then * (curved[1] + c * decay * b) - c * then * at
        new_decay = (decay - meta_rates[1] * (judged @ b)).clamp(0, cap)
        return Point(new, a, b, new_lr, new_decay)
