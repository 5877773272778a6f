"""Hand-designed optimizers, tuned as hard as the method they are compared with.

    runs = unroll.draw_runs(task, n_runs=100, n_steps=100, seed=0, stream="tuning")
    tuned = {name: tune(task, rule, runs) for name, rule in RULES.items()}

Every optimizer and every learning rate sees the same runs (common random numbers), so differences
between two of them are paired. A grid is one batched pass. A run that diverges scores infinity: it
is a result, and never the best.
"""

from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

from learnopt import optimizers, unroll
from learnopt.optimizers import Optimizer
from learnopt.tasks import Task

# The grid of Kostagiolas 2019, for every optimizer and for the meta-learning rate alike.
LEARNING_RATES = (1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 3e-4, 1e-4, 3e-5, 1e-5)


class Rule(NamedTuple):
    """An optimizer and what of its phi is not tuned."""

    opt: Optimizer
    momentum: float | None = None

    def phi(self, lr: float, dtype=None) -> dict[str, Tensor]:
        """The rule's hyperparameters at this learning rate."""
        return optimizers.hyperparameters(lr, self.momentum, dtype)


# The four baselines of the paper and the thesis, torch's defaults but for the learning rate.
RULES = {
    "Adam": Rule(optimizers.adam()),
    "RMSprop": Rule(optimizers.rmsprop()),
    "SGD": Rule(optimizers.sgd()),
    "Nesterov": Rule(optimizers.nesterov(), momentum=0.9),
}


def sum_of_losses(losses: Tensor) -> Tensor:
    """``(..., n_runs, n_steps)`` to ``(...)``: the sum over the steps, averaged over the runs."""
    return losses.sum(-1).mean(-1)


def final_loss(losses: Tensor) -> Tensor:
    """``(..., n_runs, n_steps)`` to ``(...)``: the mean of the last 10 steps, over the runs."""
    return losses[..., -10:].mean((-2, -1))


CRITERIA = {"sum": sum_of_losses, "final": final_loss}


class Tuned(NamedTuple):
    """The chosen rate and the whole grid: ``scores[k]`` belongs to ``grid[k]``; lower is better."""

    lr: float
    score: float
    grid: tuple[float, ...]
    scores: tuple[float, ...]


def tune(
    task: Task, rule: Rule, runs: unroll.Runs, criterion: str = "sum", grid=LEARNING_RATES
) -> Tuned:
    """Try every rate of the grid on the same runs and keep the best under a named criterion.

    ``"sum"`` is the thesis' choice for all its figures, ``"final"`` the one its text describes:
    they pick different rates. Raises ValueError for another name, or where every rate diverges.
    """
    if criterion not in CRITERIA:
        raise ValueError(f"criterion {criterion!r} is not one of {sorted(CRITERIA)}")
    dtype = runs.theta.dtype
    each = [rule.phi(lr, dtype) for lr in grid]
    phis = {name: torch.stack([phi[name] for phi in each]) for name in each[0]}
    losses = unroll.grid_losses(task, rule.opt, phis, runs)
    scores = CRITERIA[criterion](losses).nan_to_num(nan=torch.inf, posinf=torch.inf)
    best = int(scores.argmin())
    if scores[best].isinf():
        raise ValueError(f"every rate of the grid {tuple(grid)} diverged: try smaller ones")
    return Tuned(grid[best], scores[best].item(), tuple(grid), tuple(scores.tolist()))


class Difference(NamedTuple):
    """Mean of paired differences with a 95 % confidence interval (Student's t)."""

    mean: float
    low: float
    high: float


def paired_difference(a: Tensor, b: Tensor) -> Difference:
    """a - b over common runs, both ``(n_runs,)``; negative where a is lower. Raises ValueError."""
    if a.shape != b.shape or a.dim() != 1 or len(a) < 2:
        raise ValueError(f"expected two (n_runs,) of 2 runs or more: {a.shape}, {b.shape}")
    result = stats.ttest_rel(a.double().numpy(), b.double().numpy())
    interval = result.confidence_interval(0.95)
    return Difference((a - b).double().mean().item(), float(interval.low), float(interval.high))
