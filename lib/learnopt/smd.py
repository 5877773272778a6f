"""Stochastic meta-descent: tune hyperparameters by the gradient of the loss a few steps ahead.

    rule = Rule(adam())
    meta = rule.start(phi)                           # phi: logs of what is tuned, each (m,)
    meta = look_ahead(step, rule, meta, carry, feeds)

Wu et al. 2018, sections 4 and 5. A *look-ahead* takes T steps from ``carry`` and moves phi down the
hypergradient of the loss that they end on; the steps themselves are thrown away. Offline, the next
look-ahead starts from the same carry. Online, training goes on from it in between. Every function
works on a population of m runs at once: all leaves have a leading axis, and the data are shared.

Sharing a batch between the steps and the loss makes the look-ahead deterministic (`feeds_ahead`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from learnopt import hypergrad, unroll
from learnopt.layout import Layout
from learnopt.optimizers import Optimizer, hyperparameters

Phi = dict[str, Tensor]

LIMITS = {  # of the values, not of their logs: those of the original code
    "log_effective_lr": (1e-4, 10.0),
    "log_damping": (1e-4, 1.0),
    "log_decay": (1e-4, 1e3),
}
FIRST_STEP_EPS = 1e-8 / math.sqrt(1e-3)  # what TensorFlow's Adam adds to |g| in its first step


class Meta(NamedTuple):
    """What moves from look-ahead to look-ahead."""

    phi: Phi  # each (m,): logs
    state: Any  # the meta-optimizer's, over (m, P)


class Rule(NamedTuple):
    """How a hypergradient moves phi: any Optimizer, in log space.

    ``persistent=False`` reads the original code to the letter: its checkpoint, restored after each
    look-ahead, holds the meta-optimizer's state too. Each step is then a first step: of Adam
    lr * sign(hypergradient), of momentum plain gradient descent.
    """

    opt: Optimizer
    lr: float = 0.01
    persistent: bool = False
    clip: float = 10.0  # of d loss / d value, before the chain rule to the log; 0: none

    def start(self, phi: Phi) -> Meta:
        """Before the first look-ahead, at phi."""
        return Meta(phi, self.opt.init(_flat(phi)))

    def update(self, meta: Meta, slope: Phi) -> Meta:
        """One meta-step. A knob whose slope is not finite, as its run diverged, stays put."""
        layout, flat, grad = _layout(meta.phi), _flat(meta.phi), _flat(slope)
        sound = grad.isfinite()
        if self.clip:
            bound = self.clip * flat.exp()
            grad = grad.clamp(-bound, bound)
        knobs = hyperparameters(self.lr, momentum=0.9, dtype=flat.dtype)
        state = meta.state if self.persistent else self.opt.init(flat)
        delta, state = self.opt.update(knobs, torch.where(sound, grad, 0.0), state, flat)
        moved = layout.views(torch.where(sound, flat + delta, flat))
        return Meta(bounded(moved), state)


def bounded(phi: Phi) -> Phi:
    """phi with each value inside its LIMITS; what has none is left alone."""
    return {
        name: x.clamp(*map(math.log, LIMITS[name])) if name in LIMITS else x
        for name, x in phi.items()
    }


def fixing(step: Callable, fixed: Phi) -> Callable:
    """The same step with some entries of phi held: no hypergradient is taken for those."""
    return lambda phi, carry, feed: step({**phi, **fixed}, carry, feed)


def feeds_ahead(batches: Sequence, score, deterministic: bool = False) -> list[unroll.Feed]:
    """The feeds of one look-ahead, T = len(batches), judged on ``score`` after its last step.

    ``deterministic=True`` takes the first batch for every step and for the score.
    """
    if deterministic:
        batches, score = [batches[0]] * len(batches), batches[0]
    feeds = [unroll.Feed(batch) for batch in batches[:-1]]
    return [*feeds, unroll.Feed(batches[-1], score, 1.0)]


MODES = {"forward": hypergrad.forward, "reverse": hypergrad.reverse}


def slopes(step: Callable, phi: Phi, carry, feeds: Sequence, mode: str | Callable = "forward"):
    """d loss at the end / d phi for each member, each ``(m,)``, and the losses ``(m,)``.

    mode: of MODES, or a fast path, ``(phi, carry, feeds) -> (slopes, losses)``, as ``smd_mlp``.
    Raises KeyError for another name.
    """
    if callable(mode):
        return mode(phi, carry, feeds)
    method = MODES[mode]

    def one(phi, carry):
        slope, end, *_ = method(step, phi, carry, feeds)
        return slope, end.meta_loss

    # what was scored before does not count
    return vmap(one)(phi, carry._replace(meta_loss=torch.zeros_like(carry.meta_loss)))


def look_ahead(step, rule: Rule, meta: Meta, carry, feeds: Sequence, mode="forward") -> Meta:
    """One meta-step from ``carry``, which is left as it is."""
    slope, _ = slopes(step, meta.phi, carry, feeds, mode)
    return rule.update(meta, slope)


def offline(step, rule: Rule, phi: Phi, carry, draw: Callable, n_meta_steps: int, mode="forward"):
    """SMD offline: every look-ahead starts at ``carry``, on the feeds ``draw(k)``.

    Returns the path of phi, each ``(n_meta_steps + 1, m)``, and the losses before each meta-step,
    ``(n_meta_steps, m)``.
    """
    meta, path, losses = rule.start(phi), [phi], []
    for k in range(n_meta_steps):
        slope, loss = slopes(step, meta.phi, carry, draw(k), mode)
        meta = rule.update(meta, slope)
        path.append(meta.phi)
        losses.append(loss)
    return {name: torch.stack([at[name] for at in path]) for name in phi}, torch.stack(losses)


class Plan(NamedTuple):
    """SMD online: when to look ahead, and how the rate falls after the middle of the run."""

    n_steps: int = 50_000
    steps_per_update: int = 100
    n_meta_steps: int = 10  # at every update, all on the same feeds
    last_rate: float = 1e-4  # the effective rate at the end
    mode: str | Callable = "forward"  # see ``slopes``; the same numbers, reverse is faster on a CPU
    train: Callable | None = None  # a population's step, as ``smd_mlp.train``; None: vmap of step

    @property
    def middle(self) -> int:
        """The first step of the second half, in which nothing is tuned."""
        return self.n_steps // 2

    def updates_at(self, t: int) -> bool:
        """Whether phi is tuned before step t."""
        return t < self.middle and t % self.steps_per_update == 0

    def rate_log(self, t: int, log_rate: Tensor) -> Tensor:
        """The log effective rate of step t; from the middle on it falls in a straight line."""
        share = max(0.0, (t - self.middle) / (self.n_steps - self.middle))
        return log_rate + share * (math.log(self.last_rate) - log_rate)


def online(
    step, rule: Rule, plan: Plan, meta: Meta, carry, batches, draw, tuned, begin=0, end=None
):
    """Steps ``begin`` to ``end`` of SMD online. Returns (meta, carry): call again to go on.

    step takes (phi, carry, feed) of one run. ``batches[t]`` is the batch of step t; ``draw(k)``
    makes the feeds of the k-th update. ``tuned`` ``(m,)`` is 0 for members that keep their phi: a
    hand-tuned baseline runs in the same batch, with the same decay.
    """
    train, keep = plan.train or vmap(step, in_dims=(0, 0, None)), tuned == 0
    for t in range(begin, plan.n_steps if end is None else end):
        if plan.updates_at(t):
            feeds, before = draw(t // plan.steps_per_update), meta.phi
            for _ in range(plan.n_meta_steps):
                meta = look_ahead(step, rule, meta, carry, feeds, plan.mode)
            held = {name: torch.where(keep, before[name], x) for name, x in meta.phi.items()}
            meta = meta._replace(phi=held)
        log_rate = plan.rate_log(t, meta.phi["log_effective_lr"])
        carry = train({**meta.phi, "log_effective_lr": log_rate}, carry, unroll.Feed(batches[t]))
    return meta, carry


def _layout(phi: Phi) -> Layout:
    return Layout({name: () for name in phi})


def _flat(phi: Phi) -> Tensor:
    return _layout(phi).flatten(phi)  # (m, P)
