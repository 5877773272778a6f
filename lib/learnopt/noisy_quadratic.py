"""The noisy quadratic: exact learning curves, with no run and no random number.

    model = fisher_noise(chebyshev(200, condition=1000), noise=0.01)
    path = follow(model, start(torch.ones(200).double()), greedy(model), n_steps=250)

Wu et al. 2018, section 2. The loss is 1/2 sum_i h_i (theta_i - c_i)^2, its centre c_i of variance
sigma_i^2 drawn anew at each step (``tasks.noisy_quadratic``). Under the heavy ball the second
moments of theta_i and its velocity obey a linear recursion. What is judged is the *excess* loss
1/2 sum h_i E[theta_i^2], which leaves out the constant 1/2 sum h_i sigma_i^2. Leading axes are the
runs of a population; its rates and momenta are ``(..., 1)``.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import minimize
from torch import Tensor

from learnopt import unroll
from learnopt.layout import Layout

MAX_LR, MAX_MOMENTUM = 1.9, 0.999  # at a rate of 2 a direction of curvature 1 diverges


class Model(NamedTuple):
    """What is given, both ``(..., n)``."""

    curvature: Tensor  # h, positive
    noise_var: Tensor  # sigma^2, of the centre


class Moments(NamedTuple):
    """What moves, each ``(..., n)``; v is the velocity."""

    square: Tensor  # E[theta^2]
    cross: Tensor  # E[theta v]
    velocity: Tensor  # E[v^2]


def chebyshev(n: int, condition: float) -> Tensor:
    """Curvatures ``(n,)`` inside [1/condition, 1], flat to steep: Chebyshev nodes, float64."""
    angles = (2 * torch.arange(n, 0, -1, dtype=torch.float64) - 1) * math.pi / (2 * n)
    return (1 + 1 / condition) / 2 + (1 - 1 / condition) / 2 * angles.cos()


def fisher_noise(curvature: Tensor, noise: Tensor | float) -> Model:
    """sigma^2 = noise / h: the variance of the gradient is ``noise`` times the curvature."""
    return Model(curvature, noise / curvature)


def start(mean: Tensor, var: Tensor | float = 0.0) -> Moments:
    """The moments before the first step: theta of this mean and variance ``(..., n)``, at rest."""
    return Moments(mean**2 + var, torch.zeros_like(mean), torch.zeros_like(mean))


def losses_by_direction(model: Model, moments: Moments) -> Tensor:
    """The excess loss of each direction, ``(..., n)``: 1/2 h E[theta^2]."""
    return 0.5 * model.curvature * moments.square


FORMS = {"paper": lambda lr: (lr, 1.0), "torch": lambda lr: (-1.0, -lr)}


def step(model: Model, moments: Moments, lr, momentum=0.0, form: str = "paper") -> Moments:
    """One step of the heavy ball, exact: theorem 1 of the paper, with means and variances in one.

    form "paper": v <- momentum v - lr g, theta <- theta + v; form "torch" is that of
    ``optimizers.momentum``: v <- momentum v + g, theta <- theta - lr v. They differ if lr moves.
    """
    a, b = FORMS[form](lr)  # v <- momentum v - a g, theta <- theta + b v
    pull = a * model.curvature
    cross = momentum * moments.cross - pull * moments.square  # of the new v with the old theta
    pulled = pull**2 * (moments.square + model.noise_var)
    velocity = momentum * (momentum * moments.velocity - 2 * pull * moments.cross) + pulled
    square = moments.square + 2 * b * cross + b**2 * velocity
    return Moments(square, cross + b * velocity, velocity)


def sgd_step(model: Model, square: Tensor, lr) -> Tensor:
    """``step`` without momentum, for E[theta^2] ``(..., n)`` alone: a third of the work."""
    pull = lr * model.curvature
    return (1 - pull) ** 2 * square + pull**2 * model.noise_var


def sgd_square(model: Model, square: Tensor, lr, n_steps: int) -> Tensor:
    """E[theta^2] after n_steps at a constant rate without momentum, in closed form."""
    pull = lr * model.curvature
    shrink = ((1 - pull) ** 2) ** n_steps
    return shrink * square + pull * model.noise_var * (1 - shrink) / (2 - pull)


def stationary_variance(model: Model, lr, momentum=0.0) -> Tensor:
    """Var[theta] ``(..., n)`` after infinitely many steps at a constant rate and momentum."""
    pull, up, down = lr * model.curvature, 1 + momentum, 1 - momentum
    return pull * model.noise_var * up / (down * (2 * up - pull))


# ---- policies: policy(t, moments) -> (lr, momentum) of step t = 0, 1, ... ----


class Path(NamedTuple):
    """What was followed; a population's leading axes come after that of the steps."""

    lrs: Tensor  # (n_steps, ...)
    momenta: Tensor  # (n_steps, ...)
    by_direction: Tensor  # (n_steps + 1, ..., n): excess loss before each step, and at the end

    @property
    def losses(self) -> Tensor:
        """The excess loss, ``(n_steps + 1, ...)``."""
        return self.by_direction.sum(-1)


def follow(model: Model, moments: Moments, policy: Callable, n_steps: int) -> Path:
    """Take n_steps under a policy, in the paper's form of the heavy ball."""
    like, seen = moments.square[..., :1], []

    def advance(policy, now, t):
        # not through float32, where a Python float loses half of its digits
        lr, momentum = (torch.as_tensor(x, dtype=like.dtype) for x in policy(t, now))
        lr, momentum = lr.expand_as(like), momentum.expand_as(like)
        seen.append((lr[..., 0], momentum[..., 0], losses_by_direction(model, now)))
        return step(model, now, lr, momentum)

    end, _ = unroll.run(advance, policy, moments, range(n_steps))
    lrs, momenta, before = (torch.stack(values) for values in zip(*seen, strict=True))
    return Path(lrs, momenta, torch.cat([before, losses_by_direction(model, end)[None]]))


def decaying(lr, momentum=0.0, factor=1.0, n_steps: int = 2) -> Callable:
    """The rate lr * factor^(t / (n_steps - 1)): lr at step 0, lr * factor at the last step."""
    return lambda t, moments: (lr * factor ** (t / (n_steps - 1)), momentum)


def schedule(phi: dict[str, Tensor]) -> Callable:
    """A rate for every step, exp(phi["log_lr"][t]), and phi["momentum"][t] if there is one."""
    momenta = phi.get("momentum")
    return lambda t, moments: (phi["log_lr"][t].exp(), 0.0 if momenta is None else momenta[t])


def greedy(model: Model, with_momentum: bool = False) -> Callable:
    """The rate (and momentum) for which the loss after this one step is least: theorem 2."""

    def total(power, moment):
        return (model.curvature**power * moment).sum(-1, keepdim=True)

    def policy(t, moments):
        slope, bend = total(2, moments.square), total(3, moments.square + model.noise_var)
        lr = slope / bend
        if not with_momentum:
            return lr, 0.0
        push, couple = total(1, moments.cross), total(2, moments.cross)
        brake = total(1, moments.velocity)
        determinant = bend * brake - couple**2
        # 0 where there is no velocity, as before the first step: then only the rate counts
        lr = torch.where(determinant > 0, (slope * brake - push * couple) / determinant, lr)
        return lr, torch.where(brake > 0, (lr * couple - push) / brake, 0.0)

    return policy


def receding(model: Model, horizon: int, n_steps: int, max_lr: float = MAX_LR) -> Callable:
    """At every step, the constant rate that is best for the next ``horizon`` steps; no momentum.

    As ``greedy`` for horizon 1; plans end with the run. For one run. max_lr: below 2 / curvature.
    """

    def policy(t, moments):
        low, high, n_ahead = max_lr * 1e-5, max_lr, min(horizon, n_steps - t)
        for _ in range(3):
            lrs = torch.logspace(math.log10(low), math.log10(high), 60, dtype=moments.square.dtype)
            after = sgd_square(model, moments.square, lrs[:, None], n_ahead)
            best = int((model.curvature * after).sum(-1).argmin())
            low, high = lrs[max(best - 1, 0)].item(), lrs[min(best + 1, 59)].item()
        return lrs[best], 0.0

    return policy


def tune(model: Model, moments: Moments, n_steps: int, lrs, momenta=(0.0,), factors=(1.0,)):
    """The (lr, momentum, factor) of a grid for which ``decaying`` ends lowest (n_steps > 1)."""
    lrs, found = torch.as_tensor(lrs, dtype=moments.square.dtype), []
    begin = Moments(*(moment.expand(len(lrs), -1) for moment in moments))
    for momentum, factor in itertools.product(momenta, factors):
        policy = decaying(lrs[:, None], momentum, factor, n_steps)
        losses = follow(model, begin, policy, n_steps).losses[-1].nan_to_num(nan=torch.inf)
        found.append((losses.min().item(), (lrs[losses.argmin()].item(), momentum, factor)))
    return min(found)[1]


# ---- the schedule that is best for the end of the run ----


class Carry(NamedTuple):
    moments: Moments
    meta_loss: Tensor  # ()


def schedule_step(model: Model) -> Callable:
    """step(phi, carry, feed) -> carry: phi is a schedule, ``feed.train`` the number of the step.

    The meta-loss is log(excess loss), summed over a population.
    """

    def advance(phi, carry, feed):
        lr, momentum = schedule(phi)(feed.train, carry.moments)
        if "momentum" in phi:
            moments = step(model, carry.moments, lr, momentum)
        else:
            moments = carry.moments._replace(square=sgd_step(model, carry.moments.square, lr))
        if not feed.weight:
            return Carry(moments, carry.meta_loss)
        loss = losses_by_direction(model, moments).sum(-1)
        return Carry(moments, carry.meta_loss + feed.weight * loss.log().sum())

    return advance


def optimise(
    model: Model, moments: Moments, n_steps: int, lr=0.1, momentum=None,
    max_lr: float = MAX_LR, max_evaluations: int = 300,
) -> dict[str, Tensor]:  # fmt: skip
    """The phi of the ``schedule`` that ends lowest, searched from this lr (and momentum).

    Both are numbers or ``(n_steps, ..., 1)``. Reverse mode and L-BFGS-B (Byrd et al. 1995), which
    keeps rates up to ``max_lr`` and momenta in [0, 0.999]: the best ones often lie on these bounds.
    """
    each = moments.square.new_ones(n_steps, *moments.square.shape[:-1], 1)
    phi = {"log_lr": (lr * each).log()}
    bounds = [(-15, math.log(max_lr))] * each.numel()
    if momentum is not None:
        phi["momentum"] = momentum * each
        bounds += [(0, MAX_MOMENTUM)] * each.numel()
    layout, begin = Layout.of(phi), Carry(moments, moments.square.new_zeros(()))
    feeds = [unroll.Feed(t, weight=float(t == n_steps - 1)) for t in range(n_steps)]

    def value_and_slope(flat):
        # the same as `hypergrad.reverse`, which keeps what a second derivative needs: half the time
        at = torch.tensor(flat, requires_grad=True)
        end, _ = unroll.run(schedule_step(model), layout.views(at), begin, feeds)
        (slope,) = torch.autograd.grad(end.meta_loss, at)
        return end.meta_loss.item(), slope.numpy()

    best = minimize(
        value_and_slope, layout.flatten(phi).numpy(), jac=True, method="L-BFGS-B", bounds=bounds,
        options={"maxfun": max_evaluations, "maxcor": 20, "ftol": 1e-10, "gtol": 1e-7})  # fmt: skip
    return layout.views(torch.tensor(best.x))
