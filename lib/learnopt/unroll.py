"""The one inner loop: everything is a step with a knob.

    step(phi, carry, feed) -> carry

``phi`` is the knob (hyperparameters, or a learned optimizer's weights), a dict of tensors.
``carry`` is all that moves: the parameters theta ``(n,)``, the optimizer's state and the meta-loss
so far, a scalar. ``feed`` is what one step is given from outside: data. A step is pure. A
population is the same step under ``torch.func.vmap``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from learnopt.optimizers import Optimizer
from learnopt.seeding import generator
from learnopt.tasks import Task


class Carry(NamedTuple):
    """What one step hands to the next. Every leaf is a floating tensor."""

    theta: Tensor  # (n,)
    state: Any  # the optimizer's
    meta_loss: Tensor  # (), sum of the scores so far


class Feed(NamedTuple):
    """One step's data: a batch to descend on, and a batch, if any, that judges the new point."""

    train: Any
    score: Any = None
    weight: float = 0.0  # of the score in the meta-loss; 0: not judged, costs nothing


PER_RUN = Feed(train=0, score=None, weight=None)  # vmap's in_dims: a batch each, judged by none


def start(task: Task, opt: Optimizer, theta: Tensor) -> Carry:
    """The carry before the first step, at theta ``(n,)``."""
    return Carry(theta, opt.init(theta), theta.new_zeros(()))


def make_step(task: Task, opt: Optimizer, second_order: bool = True) -> Callable:
    """Bind a task and an optimizer into ``step(phi, carry, feed) -> carry``.

    theta moves by the update for the gradient on ``feed.train``; then ``feed.weight`` times the
    loss of the new theta on ``feed.score`` joins the meta-loss. With ``second_order=False`` the
    gradient counts as a constant (Andrychowicz et al. 2016, figure 2: the dashed edges dropped).
    """

    def step(phi, carry, feed):
        # the gradient taken at a constant is a constant; forward mode then does not push through it
        at = carry.theta if second_order else carry.theta.detach()
        gradient = grad(task.loss)(at, feed.train)
        delta, state = opt.update(phi, gradient, carry.state, carry.theta)
        theta = carry.theta + delta
        meta_loss = carry.meta_loss
        if feed.weight:
            meta_loss = meta_loss + feed.weight * task.loss(theta, feed.score)
        return Carry(theta, state, meta_loss)

    return step


def run(step: Callable, phi, carry, feeds: Iterable, record: Callable | None = None):
    """Take all the steps. Returns the last carry and ``[record(carry, feed)]`` before each step."""
    recorded = []
    for feed in feeds:
        if record is not None:
            recorded.append(record(carry, feed))
        carry = step(phi, carry, feed)
    return carry, recorded


class Runs(NamedTuple):
    """``n_runs`` independent runs of one task: starting points, and data step by step.

    Two optimizers given the same Runs see the same functions, starts and batches: their
    differences are paired.
    """

    theta: Tensor  # (n_runs, n)
    batches: list[Sequence]  # [n_runs][n_steps] of one task's batches

    @property
    def n_steps(self) -> int:
        """How many batches each run has."""
        return len(self.batches[0])

    def feeds(self) -> Iterator[Feed]:
        """One Feed a step, its batch stacked over the runs, made when it is asked for."""
        previous, stacked = None, None
        for t in range(self.n_steps):
            now = [batches[t] for batches in self.batches]
            # a deterministic task hands out one and the same batch for all steps: stack it once
            if previous is None or any(a is not b for a, b in zip(now, previous, strict=True)):
                stacked = tree_map(lambda *leaves: torch.stack(leaves), *now)
            previous = now
            yield Feed(train=stacked)


def draw_runs(task: Task, n_runs: int, n_steps: int, seed: int, stream: str = "test") -> Runs:
    """Runs whose k-th depends on (seed, stream, k) alone: 100 runs are the first of 1,000.

    (And on n_steps, for a task that draws all its noise at once, as ``tasks.noisy_quadratic``.)
    Raises ValueError for a classifier that was built without data.
    """
    if task.batches is None:
        raise ValueError(f"{task.name} has no data: pass batches=... where the task is made")
    thetas, batches = [], []
    for k in range(n_runs):
        thetas.append(task.init(generator(seed, stream, "init", k)))
        batches.append(task.batches(generator(seed, stream, "batches", k), n_steps))
    return Runs(torch.stack(thetas), batches)


def trajectories(task: Task, opt: Optimizer, phi, runs: Runs) -> tuple[Tensor, Tensor]:
    """All runs side by side under one phi: losses ``(n_runs, n_steps)`` and last theta.

    The losses are those before each update. A run that diverges gives inf or NaN from there on;
    nothing is raised. With a leading axis on every leaf of phi use ``grid_losses``.
    """
    step = vmap(make_step(task, opt), in_dims=(None, 0, PER_RUN))
    carry = vmap(partial(start, task, opt))(runs.theta)
    end, recorded = run(step, phi, carry, runs.feeds(), _record_loss(vmap(task.loss)))
    return torch.stack(recorded, dim=-1), end.theta


def losses(task: Task, opt: Optimizer, phi, runs: Runs) -> Tensor:
    """The losses of ``trajectories``."""
    return trajectories(task, opt, phi, runs)[0]


def grid_losses(task: Task, opt: Optimizer, phis, runs: Runs) -> Tensor:
    """``losses`` for a stack of phis: ``(n_phis, n_runs, n_steps)``, in one batched pass.

    Raises ValueError where the leaves of ``phis`` are stacks of different lengths, and IndexError
    where one is no stack.
    """
    (n_phis,) = {leaf.shape[0] for leaf in phis.values()}
    step = vmap(make_step(task, opt), in_dims=(None, 0, PER_RUN))
    step = vmap(step, in_dims=(0, 0, None))
    theta = runs.theta.expand(n_phis, *runs.theta.shape)
    carry = vmap(vmap(partial(start, task, opt)))(theta)
    record = _record_loss(vmap(vmap(task.loss), in_dims=(0, None)))
    _, recorded = run(step, phis, carry, runs.feeds(), record)
    return torch.stack(recorded, dim=-1)


def _record_loss(loss: Callable) -> Callable:
    return lambda carry, feed: loss(carry.theta, feed.train)
