"""Repairs of a learned optimizer's horizon: longer trajectories by stages, lessons, random scales.

Meta-training on 100 steps teaches what helps within 100 steps. Three additions to ``meta_train``,
all for the same network:

- **stages** (Chen et al. 2020): trajectories that grow, each stage going on from the last phi;
- **imitation** (Chen et al. 2020): on a share of the trajectories a tuned hand-designed rule moves
  theta, and the LSTM, which sees the same gradients, learns to propose the same updates;
- **random scales** (Lv, Jiang & Li 2017): f(c * theta) instead of f(theta), with c drawn anew for
  each coordinate and trajectory, so that no fixed size of an update can be learned by heart.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from learnopt import lstm_optimizer, meta_train, unroll
from learnopt.optimizers import Optimizer
from learnopt.seeding import generator
from learnopt.tasks import Task


class Teacher(NamedTuple):
    """Whom to imitate, and on which share of the trajectories."""

    opt: Optimizer
    phi: dict[str, Tensor]
    share: float = 0.3  # Chen et al. 2020: about 30 %


def rescaled(task: Task, scale: Tensor) -> Task:
    """The same task in other units: loss(scale * theta), from init / scale. scale: ``(n,)``."""
    return task._replace(
        init=lambda generator: task.init(generator) / scale,
        loss=lambda theta, batch: task.loss(scale * theta, batch),
    )


def random_scale(generator: torch.Generator, n: int, bound: float) -> Tensor:
    """exp(u), u uniform in [-bound, bound], one for each of n coordinates."""
    return (bound * (2 * torch.rand(n, generator=generator) - 1)).exp()


def imitation_gradient(fast, gradient: Callable, teacher: Teacher, phi, carry, batches):
    """d error / d phi over a window that the teacher walks, and the carry after it.

    error = 1/2 sum_t |u_t - u*_t|^2 / sum_t |u*_t|^2 with the LSTM's updates u and the teacher's
    u*. ``carry.state`` is the pair (LSTM's state, teacher's state). As in ``window_gradient`` the
    gradients that the LSTM sees are constants, so the backward pass is that of the fast window.
    """
    own_state, teacher_state = carry.state
    fast.load(phi, own_state)
    theta, own, shown = carry.theta, [], []
    for batch in batches:
        grad, _ = gradient(theta, batch)
        own.append(fast.forward(grad))
        delta, teacher_state = teacher.opt.update(teacher.phi, grad, teacher_state, theta)
        shown.append(delta)
        theta = theta + delta
    shown = torch.stack(shown)
    error = (torch.stack(own) - shown) / (shown**2).sum()
    end = unroll.Carry(theta, (fast.state(), teacher_state), carry.meta_loss)
    return fast.backward(error), end


def trajectories(draw: Callable | None = None, teacher: Teacher | None = None) -> Callable:
    """A ``trajectory`` for ``meta_train.train``: one task at a time.

    ``draw(generator) -> Task``, with as many parameters as the task of ``train``, gives each
    trajectory a task of its own. With ``teacher`` a share of them is imitation.
    """

    def trajectory(task, settings, fast, layout, flat, adam_state, k):
        own = draw(generator(settings.seed, "task", k)) if draw else task
        chance = torch.rand((), generator=generator(settings.seed, "lesson", k))
        if teacher is None or chance >= teacher.share:
            return meta_train.one_trajectory(own, settings, fast, layout, flat, adam_state, k)
        return _lesson(own, teacher, settings, fast, layout, flat, adam_state, k)

    return trajectory


def _lesson(task, teacher, settings, fast, layout, flat, adam_state, k):
    s = settings
    runs = unroll.draw_runs(task, 1, s.n_steps, s.seed, f"lesson/{k}")
    batches = [feed.train for feed in runs.feeds()]
    theta = runs.theta[0]
    state = (lstm_optimizer.lstm(s.inputs, s.out_scale).init(theta), teacher.opt.init(theta))
    carry = unroll.Carry(theta, state, theta.new_zeros(()))
    gradient = meta_train.task_gradients(task, 1)
    for a in range(0, s.n_steps, s.n_unroll):
        part = batches[a : a + s.n_unroll]
        slope, carry = imitation_gradient(fast, gradient, teacher, layout.views(flat), carry, part)
        flat, adam_state = meta_train.meta_step(s, flat, adam_state, layout.flatten(slope))
    return flat, adam_state


def train(
    task: Task,
    settings: meta_train.Settings,
    stages: Sequence[tuple[int, int]],
    validation: unroll.Runs,
    trajectory: Callable | None = None,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> list[meta_train.Trained]:
    """Meta-train stage by stage, (n_steps, n_trajectories) each, from the best phi so far.

    ``validation`` is as long as the last stage and judges all of them, so the best phi of one is
    comparable with that of the next. ``checkpoint``: a folder; each stage has its own file there.
    """
    results, best, score = [], None, float("inf")
    for k, (n_steps, n_trajectories) in enumerate(stages):
        now = settings._replace(
            n_steps=n_steps,
            n_trajectories=n_trajectories,
            seed=settings.seed + 1000 * k,
            evaluate_every=min(settings.evaluate_every, n_trajectories),
        )
        path = checkpoint and Path(checkpoint, f"stage{k}-seed{now.seed}-{n_steps}.checkpoint")
        found = meta_train.train(task, now, validation, path, progress, trajectory, best)
        results.append(found)
        if found.history[:, 1].min() < score:
            best, score = found.phi, found.history[:, 1].min()
        best = best or found.phi
    return results
