"""Hand-designed optimizers as pure functions.

    opt = momentum()
    state = opt.init(theta)                             # theta (n,); state: a dict of (n,) tensors
    delta, state = opt.update(phi, grad, state, theta)  # grad (n,); the next point is theta + delta

``phi`` holds the hyperparameters as unconstrained tensors, so that they can be differentiated and
moved freely: ``log_lr`` is log(learning rate), ``logit_momentum`` is log(mu / (1 - mu)). Each is a
scalar, or ``(n,)`` for a rate per coordinate (``log_lr[layout.segment]`` for one per tensor).
Every rule also takes the rate itself, as ``lr``; ``rate_and_momentum`` lists the other
parametrisations. A learned optimizer has the same two
functions; its phi is the weights of a network.

The updates follow torch.optim to the last operation, and the tests hold them to it step by step.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Optimizer(NamedTuple):
    """An update rule: two pure functions. The state is a dict of floating tensors."""

    init: Callable  # (theta) -> state
    update: Callable  # (phi, grad, state, theta) -> (delta, state)


def hyperparameters(lr: float, momentum: float | None = None, dtype=None) -> dict[str, Tensor]:
    """The phi of a constant learning rate (and momentum mu), e.g. ``hyperparameters(0.1, 0.9)``.

    Raises ValueError outside lr > 0 and 0 < mu < 1, where log and logit are not finite.
    """
    if not lr > 0 or (momentum is not None and not 0 < momentum < 1):
        raise ValueError(f"need lr > 0 and 0 < momentum < 1, got {lr} and {momentum}")
    phi = {"log_lr": torch.tensor(math.log(lr), dtype=dtype)}
    if momentum is not None:
        phi["logit_momentum"] = torch.tensor(math.log(momentum / (1 - momentum)), dtype=dtype)
    return phi


def rate(phi: dict[str, Tensor]) -> Tensor:
    """The learning rate: ``lr``, or exp(``log_lr``)."""
    return phi["lr"] if "lr" in phi else phi["log_lr"].exp()


def sgd() -> Optimizer:
    """Gradient descent: delta = -lr * grad."""

    def init(theta):
        return {}

    def update(phi, grad, state, theta):
        return -rate(phi) * grad, state

    return Optimizer(init, update)


def rate_and_momentum(phi: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(lr, mu) of any of the parametrisations of Wu et al. 2018's code, or of the logit.

    The momentum: ``logit_momentum``, ``log_momentum``, or ``log_damping`` = log(1 - mu). The rate:
    as in ``rate``, or ``log_effective_lr`` = log(lr / (1 - mu)), what a long run of equal gradients
    feels.
    """
    if "log_damping" in phi:
        damping = phi["log_damping"].exp()
        mu = 1 - damping
    else:
        by_log = "log_momentum" in phi
        mu = phi["log_momentum"].exp() if by_log else phi["logit_momentum"].sigmoid()
        damping = 1 - mu
    if "log_effective_lr" in phi:
        return phi["log_effective_lr"].exp() * damping, mu
    return rate(phi), mu


def momentum() -> Optimizer:
    """Heavy ball (Polyak 1964), in torch's form: v <- mu v + grad; delta = -lr v.

    The rate multiplies the whole velocity, so a change of lr acts on old gradients too. The other
    common form, v <- mu v - lr grad, differs from this one when lr moves.
    """

    def init(theta):
        return {"velocity": torch.zeros_like(theta)}

    def update(phi, grad, state, theta):
        lr, mu = rate_and_momentum(phi)
        velocity = mu * state["velocity"] + grad
        return -lr * velocity, {"velocity": velocity}

    return Optimizer(init, update)


def nesterov() -> Optimizer:
    """Nesterov momentum, in torch's form: v <- mu v + grad; delta = -lr (grad + mu v)."""

    def update(phi, grad, state, theta):
        lr, mu = rate_and_momentum(phi)
        velocity = mu * state["velocity"] + grad
        return -lr * (grad + mu * velocity), {"velocity": velocity}

    return Optimizer(momentum().init, update)


def rmsprop(decay: float = 0.99, eps: float = 1e-8) -> Optimizer:
    """RMSprop (Tieleman & Hinton 2012), not centred.

    s <- decay s + (1 - decay) grad^2; delta = -lr grad / (sqrt(s) + eps).
    """

    def init(theta):
        return {"square": torch.zeros_like(theta)}

    def update(phi, grad, state, theta):
        square = decay * state["square"] + (1 - decay) * grad**2
        return -rate(phi) * grad / (_safe_sqrt(square) + eps), {"square": square}

    return Optimizer(init, update)


def adam(beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Adam (Kingma & Ba 2015, algorithm 1).

    ``one_minus_b1`` and ``one_minus_b2`` in the state are 1 - beta^t: the bias corrections as
    running products, so that the update needs no step counter and no integer leaf.
    """

    def init(theta):
        zeros = torch.zeros_like(theta)
        zero = theta.new_zeros(())
        return {"mean": zeros, "square": zeros, "one_minus_b1": zero, "one_minus_b2": zero}

    def update(phi, grad, state, theta):
        mean = beta1 * state["mean"] + (1 - beta1) * grad
        square = beta2 * state["square"] + (1 - beta2) * grad**2
        # 1 - beta^(t+1) = 1 - beta + beta (1 - beta^t)
        correction1 = 1 - beta1 + beta1 * state["one_minus_b1"]
        correction2 = 1 - beta2 + beta2 * state["one_minus_b2"]
        root = _safe_sqrt(square) / correction2.sqrt() + eps
        delta = -rate(phi) / correction1 * mean / root
        moments = {"mean": mean, "square": square}
        return delta, moments | {"one_minus_b1": correction1, "one_minus_b2": correction2}

    return Optimizer(init, update)


def _safe_sqrt(x: Tensor) -> Tensor:
    # sqrt has an infinite slope at 0: a coordinate whose gradient was always 0 would turn every
    # hypergradient into NaN. Its update is 0 whatever the root is, so give it the slope 0.
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0).sqrt(), 0.0)


def decayed(opt: Optimizer) -> Optimizer:
    """The same rule on grad + weight_decay * theta: an L2 penalty of weight_decay / 2 |theta|^2.

    ``phi["weight_decay"]`` is the value, not its log, as in torch.optim.
    """

    def update(phi, grad, state, theta):
        return opt.update(phi, grad + phi["weight_decay"] * theta, state, theta)

    return Optimizer(opt.init, update)


# ---- schedules: factor(phi, t) multiplies the learning rate at step t = 0, 1, ... ----


def scheduled(opt: Optimizer, factor: Callable) -> Optimizer:
    """The same rule with the learning rate ``exp(log_lr) * factor(phi, t)`` at step t = 0, 1, ...

    The step count rides in the state as a floating scalar, so the schedule's own knobs in phi
    get hypergradients like any other. phi must hold ``log_lr`` (or ``log_effective_lr``): a phi
    with ``lr``, as that of ``oho_module.OHO``, does not work.
    """

    def init(theta):
        return {"step": theta.new_zeros(()), "inner": opt.init(theta)}

    def update(phi, grad, state, theta):
        name = "log_effective_lr" if "log_effective_lr" in phi else "log_lr"
        now = {**phi, name: phi[name] + factor(phi, state["step"]).log()}
        delta, inner = opt.update(now, grad, state["inner"], theta)
        return delta, {"step": state["step"] + 1, "inner": inner}

    return Optimizer(init, update)


def inverse_time(time_constant: float) -> Callable:
    """(1 + t/K)^-beta, beta = exp(phi["log_decay"]), K in steps (Wu et al. 2018, section 4)."""
    return lambda phi, t: (1 + t / time_constant) ** -phi["log_decay"].exp()


def exponential(rate: float) -> Callable:
    """rate^t, with rate the factor per step."""
    return lambda phi, t: rate**t


def cosine(n_steps: int, floor: float = 1e-6) -> Callable:
    """Half a cosine from 1 at t = 0 to ``floor`` at t = n_steps (Loshchilov & Hutter 2017)."""
    return lambda phi, t: floor + (1 - floor) * (1 + torch.cos(math.pi * t / n_steps)) / 2


def step_decay(every: int, factor: float) -> Callable:
    """Multiply by ``factor`` after every ``every`` steps."""
    return lambda phi, t: factor ** torch.floor(t / every)
