"""Meta-training an LSTM optimizer by truncated backpropagation through time.

Andrychowicz et al. 2016, section 2, with the settings of Kostagiolas 2019: trajectories of 100
steps on fresh tasks are cut into windows of 20; each window's meta-loss, the sum of f(theta_t) over
its steps, gives one first-order meta-gradient and one Adam step on phi; theta and the LSTM state
are carried over, their history is dropped.

Which losses a window counts, and so which updates get credit, differs between the thesis, the older
notebook it grew from, and the paper's code: ``windows`` has all three.
"""

import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map
from tqdm import tqdm

from learnopt import checkpoints, lstm_optimizer, lstm_window, optimizers, unroll
from learnopt.layout import Layout
from learnopt.seeding import generator
from learnopt.tasks import Task

RULES = ("thesis", "pre-thesis", "deepmind")


class Window(NamedTuple):
    """Updates start <= t < stop; weights[t - start] * f(theta_{t+1}) judges update t."""

    start: int
    stop: int
    weights: tuple[float, ...]


def windows(rule: str, n_steps: int = 100, n_unroll: int = 20) -> list[Window]:
    """Where one trajectory is cut, under one of three rules (see the page Discrepancies).

    - ``"deepmind"``: n_unroll updates, and the loss after each is counted: all 100 get credit.
    - ``"pre-thesis"``: a window ends before the loss after its last update: 95 of 100.
    - ``"thesis"``: the cut falls one step early (``t % 20 == 0`` is true at t = 0), so the first
      window is a single update without credit and the steps after the last cut are never used: 76.

    Raises ValueError for another rule.
    """
    if rule not in RULES:
        raise ValueError(f"window rule {rule!r} is not one of {RULES}")
    if rule == "thesis":
        cuts = [0, *range(1, n_steps + 1, n_unroll)]
    else:
        cuts = [*range(0, n_steps, n_unroll), n_steps]
    last = 1.0 if rule == "deepmind" else 0.0
    return [Window(a, b, (1.0,) * (b - a - 1) + (last,)) for a, b in pairwise(cuts)]


def window_gradient(fast: lstm_window.Window, gradient: Callable, phi, carry, batches, weights):
    """The first-order meta-gradient of one window, by the fast path.

    ``gradient(theta, batch) -> (grad, loss)``; ``batches`` holds one batch per update and, where
    the last weight is not 0, the batch that judges the last point. Returns the meta-gradient (like
    phi), the carry after the window and the losses before each update.
    """
    fast.load(phi, carry.state)
    theta, grads, losses = carry.theta, [], []
    for t in range(len(weights)):
        grad, loss = gradient(theta, batches[t])
        grads.append(grad)
        losses.append(loss)
        theta = theta + fast.forward(grad)
    last = gradient(theta, batches[len(weights)])[0] if weights[-1] else torch.zeros_like(theta)
    scored = torch.stack([w * g for w, g in zip(weights, [*grads[1:], last], strict=True)])
    suffix_sums = scored.flip(0).cumsum(0).flip(0)
    end = unroll.Carry(theta, fast.state(), carry.meta_loss)
    return fast.backward(suffix_sums), end, torch.stack(losses)


def trajectories(task: Task, inputs: str, out_scale: float, phi, runs: unroll.Runs):
    """``unroll.trajectories`` of an LSTM optimizer by the fast path."""
    n_runs = len(runs.theta)
    fast = lstm_window.Window(inputs, out_scale, 1, runs.theta.numel(), runs.theta.dtype)
    opt, gradient = lstm_optimizer.lstm(inputs, out_scale), task_gradients(task, n_runs)
    theta = runs.theta.flatten()
    fast.load(phi, opt.init(theta))
    seen = []
    for feed in runs.feeds():
        grad, loss = gradient(theta, feed.train)
        seen.append(loss)
        theta = theta + fast.forward(grad)
        fast.forget()
    return torch.stack(seen, dim=-1), theta.view(n_runs, -1)


def losses(task: Task, inputs: str, out_scale: float, phi, runs: unroll.Runs) -> Tensor:
    """The losses of ``trajectories``."""
    return trajectories(task, inputs, out_scale, phi, runs)[0]


class Settings(NamedTuple):
    """How to meta-train. The defaults are the thesis' quadratic, with every update credited."""

    inputs: str = "raw"  # what the LSTM sees: "raw" or "log" gradients, or "rnnprop"
    out_scale: float = 1.0  # thesis: 1.0 quadratic, 0.1 networks
    lr: float = 0.003  # Adam on phi; thesis: 0.003 quadratic, 0.01 MNIST
    clip: float = math.inf  # largest norm of a meta-gradient; thesis: none
    rule: str = "deepmind"  # see ``windows``
    n_steps: int = 100  # updates per trajectory
    n_unroll: int = 20  # updates per window
    n_tasks: int = 1  # fresh tasks side by side in a trajectory, their meta-gradients averaged
    n_trajectories: int = 10_000
    evaluate_every: int = 100  # trajectories; the thesis calls this an epoch
    give_up: float = math.inf  # stop where three scores in a row are above this: a collapse
    seed: int = 0


class Trained(NamedTuple):
    """``history`` is ``(n_evaluations, 2)``: trajectories so far, validation sum of losses."""

    phi: dict[str, Tensor]  # the best of the evaluations
    last_phi: dict[str, Tensor]
    history: Tensor
    seconds: float


def train(
    task: Task,
    settings: Settings,
    validation: unroll.Runs,
    checkpoint: Path | str | None = None,
    progress: bool = False,
    trajectory: Callable | None = None,
    start=None,
) -> Trained:
    """Meta-train from ``settings.seed`` and keep the phi with the lowest validation score.

    ``trajectory`` replaces ``one_trajectory``, ``start`` is a phi to go on from. A checkpoint knows
    the settings, not these, the task or ``validation``: give it another name for each.

    The score is the loss summed over the steps of ``validation`` and averaged over its runs (the
    thesis' sum100). Training stops early where phi or its gradient is no longer finite (the history
    then ends with infinity) and where ``settings.give_up`` says so. With ``checkpoint`` the state
    is saved at every evaluation, and a killed call goes on where it was; random streams are named
    by trajectory, so the result is the same bit for bit. Raises ValueError for an unknown rule,
    KeyError for unknown inputs, checkpoints.CheckpointError for a damaged or another's checkpoint.
    """
    layout = Layout.of(lstm_optimizer.init_phi(settings.inputs, generator(0)))
    run_state = _fresh_state(settings, layout, start)
    if checkpoint is not None:
        run_state = checkpoints.load(checkpoint, settings._asdict(), run_state) or run_state
    bar = tqdm(total=settings.n_trajectories, unit="trajectory", disable=not progress, leave=False)
    bar.update(run_state["done"])
    n = settings.n_tasks * task.layout.size
    fast = lstm_window.Window(settings.inputs, settings.out_scale, settings.n_unroll, n)
    walk = trajectory or one_trajectory
    while run_state["done"] < settings.n_trajectories:
        run_state = _advance(task, walk, settings, fast, layout, validation, run_state, bar)
        if checkpoint is not None:
            checkpoints.save(checkpoint, run_state, settings._asdict())
    bar.close()
    return Trained(
        layout.views(run_state["best_phi"]),
        layout.views(run_state["phi"]),
        torch.tensor(run_state["history"]),
        run_state["seconds"],
    )


def _fresh_state(settings: Settings, layout: Layout, start) -> dict:
    phi = start or lstm_optimizer.init_phi(settings.inputs, generator(settings.seed, "phi"))
    flat = layout.flatten({name: phi[name] for name in layout.shapes})
    return {
        "phi": flat,
        "adam": optimizers.adam().init(flat),
        "best_phi": flat,
        "best_score": math.inf,
        "history": [],
        "done": 0,
        "seconds": 0.0,
    }


def _advance(task, trajectory, settings, fast, layout, validation, state, bar) -> dict:
    """Trajectories up to the next evaluation, and that evaluation."""
    started = time.perf_counter()
    flat, adam_state = state["phi"], state["adam"]
    until = min(state["done"] + settings.evaluate_every, settings.n_trajectories)
    for k in range(state["done"], until):
        flat, adam_state = trajectory(task, settings, fast, layout, flat, adam_state, k)
        bar.update()
    phi = layout.views(flat)
    score = losses(task, settings.inputs, settings.out_scale, phi, validation).sum(1).mean().item()
    score = score if math.isfinite(score) else math.inf
    better = score < state["best_score"]
    recent = [*(past for _, past in state["history"][-2:]), score]
    hopeless = len(recent) == 3 and min(recent) > settings.give_up
    bar.set_postfix(score=f"{score:.4g}")
    return {
        "phi": flat,
        "adam": adam_state,
        "best_phi": flat if better else state["best_phi"],
        "best_score": score if better else state["best_score"],
        "history": [*state["history"], (until, score)],
        "done": settings.n_trajectories if hopeless or not flat.isfinite().all() else until,
        "seconds": state["seconds"] + time.perf_counter() - started,
    }


def one_trajectory(task, settings, fast, layout, flat, adam_state, k):
    """One trajectory: an Adam step on phi after each of its windows."""
    s = settings
    runs = unroll.draw_runs(task, s.n_tasks, s.n_steps + 1, s.seed, f"trajectory/{k}")
    batches = [feed.train for feed in runs.feeds()]
    opt = lstm_optimizer.lstm(s.inputs, s.out_scale)
    carry = unroll.start(task, opt, runs.theta.flatten())
    gradient = task_gradients(task, s.n_tasks)
    for window in windows(s.rule, s.n_steps, s.n_unroll):
        meta_grad, carry, _ = window_gradient(
            fast, gradient, layout.views(flat), carry, batches[window.start :], window.weights
        )
        flat, adam_state = meta_step(s, flat, adam_state, layout.flatten(meta_grad) / s.n_tasks)
    return flat, adam_state


def meta_step(settings: Settings, flat: Tensor, adam_state, gradient: Tensor):
    """One clipped Adam step on the flat phi: (new phi, new Adam state)."""
    gradient = gradient * (settings.clip / gradient.norm()).clamp(max=1.0)
    meta_phi = optimizers.hyperparameters(settings.lr, dtype=flat.dtype)
    delta, adam_state = optimizers.adam().update(meta_phi, gradient, adam_state, flat)
    return flat + delta, adam_state


def task_gradients(task: Task, n_tasks: int) -> Callable:
    """(theta of all tasks in one vector, stacked batch) -> (gradients in one vector, losses)."""

    def gradient(theta, batch):
        theta = theta.detach().requires_grad_()
        if n_tasks == 1:  # the thesis' case: vmap would cost as much as the loss itself
            losses = task.loss(theta, tree_map(lambda leaf: leaf[0], batch))[None]
        else:
            losses = vmap(task.loss)(theta.view(n_tasks, -1), batch)
        (grad,) = torch.autograd.grad(losses.sum(), theta)
        return grad, losses.detach()

    return gradient
