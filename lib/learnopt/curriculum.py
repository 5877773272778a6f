"""Repairs of a learned optimizer's horizon: longer trajectories by stages, lessons, random scales.

Meta-training on 100 steps teaches what helps within 100 steps. Three additions to ``meta_train``,
all for the same network:

- **stages** (Chen et al. 2020): trajectories that grow, each stage going on from the one before;
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

from learnopt import checkpoints, lstm_optimizer, meta_train, unroll
from learnopt.layout import Layout
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
    """A ``trajectory`` for ``meta_train.train``.

    ``draw(generator) -> Task``, with as many parameters as the task of ``train``, gives each
    trajectory a task of its own. With ``teacher`` a share of them is imitation: then the settings'
    ``n_tasks`` must be 1.
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
    start=None,
) -> list[meta_train.Trained]:
    """Meta-train stage by stage, (n_steps, n_trajectories) each; ``start`` is a phi to go on from.

    The ``phi`` of a stage, from which the next one goes on, is the mean of phi after each of the
    last half of its trajectories (Polyak & Juditsky 1992). After one long trajectory phi is noisy,
    and a validation of a few runs is too noisy to choose by: ``validation`` shows how it goes. A
    stage that stops because phi is not finite gives NaN, and so do those after it; its history then
    ends with infinity.

    ``checkpoint``: a folder; each stage has its own two files there. They know the settings of
    their stage, and not the stages before it, the task, ``validation``, ``trajectory`` or
    ``start``: give each curriculum a folder of its own. Raises checkpoints.CheckpointError where a
    file is damaged or missing.
    """
    results, phi = [], start
    for k, (n_steps, n_trajectories) in enumerate(stages):
        now = settings._replace(
            n_steps=n_steps,
            n_trajectories=n_trajectories,
            seed=settings.seed + 1000 * k,
            evaluate_every=min(settings.evaluate_every, n_trajectories),
        )
        path = checkpoint and Path(checkpoint, f"stage{k}-seed{now.seed}-{n_steps}.checkpoint")
        keeping = _Keeping(trajectory or meta_train.one_trajectory, now, path)
        found = meta_train.train(task, now, validation, path, progress, keeping, phi)
        phi = keeping.mean(like=found.phi)
        results.append(found._replace(phi=phi))
    return results


class _Keeping:
    """A ``trajectory`` that keeps phi, flat, after each one, in a file beside the checkpoint."""

    def __init__(self, trajectory: Callable, settings: meta_train.Settings, path: Path | None):
        self.trajectory, self.told, self.walked = trajectory, settings._asdict(), []
        self.path = path and path.with_suffix(".walked")
        if path and path.exists():
            found = checkpoints.load(self.path, self.told, ("walked",))
            if found is None:
                raise checkpoints.CheckpointError(f"{self.path}: missing; delete {path} too")
            self.walked = found["walked"]

    def __call__(self, task, settings, fast, layout, flat, adam_state, k):
        flat, adam_state = self.trajectory(task, settings, fast, layout, flat, adam_state, k)
        self.walked[k:] = [flat]
        if self.path:
            checkpoints.save(self.path, {"walked": self.walked}, self.told)
        return flat, adam_state

    def mean(self, like) -> dict[str, Tensor]:
        """Over the last half of the trajectories, with the names and shapes of ``like``."""
        flat = torch.stack(self.walked[len(self.walked) // 2 :]).mean(0)
        return Layout.of(like).views(flat)
