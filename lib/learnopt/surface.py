"""The loss as a function of a schedule's knobs, at every horizon, from one pass.

    losses = losses_at(
        task, opt, phis, theta, batches, horizons=[100, 1000], score=score, rate=rate
    )

If the rate of step t does not depend on the length of the run, a run of 20,000 steps has been a run
of 100 steps on the way (Wu et al. 2018, figure 5, tried each horizon anew). All points run side by
side on the same batches. A point whose rate has fallen to nothing keeps its loss and leaves the
pass, as does one that diverged.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_map

from learnopt import checkpoints, unroll
from learnopt.optimizers import Optimizer
from learnopt.tasks import Task

SMALLEST_RATE = 1e-6  # below it, the original code skips a step
EVERY = 100  # steps between two looks at which points still move


def sobol(n: int, ranges: dict[str, tuple[float, float]], seed: int = 0) -> dict[str, Tensor]:
    """n points, evenly scattered in log space: name -> logs ``(n,)``. ranges: of the values."""
    unit = torch.quasirandom.SobolEngine(len(ranges), scramble=True, seed=seed).draw(n)
    low, high = torch.tensor(list(ranges.values())).log().T
    return dict(zip(ranges, (low + (high - low) * unit).T, strict=True))


def losses_at(
    task: Task, opt: Optimizer, phis: dict[str, Tensor], theta: Tensor, batches: Sequence,
    horizons: Sequence[int], score: Callable, rate: Callable, checkpoint: Path | None = None,
    parameters: dict | None = None, train: Callable | None = None,
) -> Tensor:  # fmt: skip
    """Losses ``(len(horizons), n)`` of n schedules, each run from ``theta`` ``(n_theta,)``.

    phis: name -> ``(n,)``. ``score(theta)`` is the loss of one run, or k numbers: then the result
    is ``(len(horizons), n, k)``. No horizon twice. ``rate(phi, t)`` gives the learning rates
    ``(n,)`` of step t, to find those that no longer move. With a checkpoint, an interrupted pass
    goes on where it was. It knows the horizons and the number of schedules; ``parameters`` must
    name all else that tells one pass from another: schedules, start, batches. Raises
    checkpoints.CheckpointError where they differ. ``train`` is the step of all runs, if there is a
    faster one than vmap's, as ``smd_mlp.train``. On a CPU.
    """
    (n,) = next(iter(phis.values())).shape
    begin = unroll.start(task, opt, theta)
    carry = tree_map(lambda leaf: leaf.expand(n, *leaf.shape), begin)
    last = score(theta)
    last = last.expand(n, *last.shape)
    losses = last.new_full((len(horizons), *last.shape), torch.nan)
    state = {"t": 0, "moving": torch.arange(n), "last": last, "losses": losses}
    state |= {"carry": carry._asdict()}
    told = {**(parameters or {}), "horizons": list(horizons), "n_points": n}
    if checkpoint is not None:
        state = checkpoints.load(checkpoint, told, tuple(state)) or state
    step = train or vmap(unroll.make_step(task, opt), in_dims=(0, 0, None))
    for t in range(state["t"], max(horizons) + 1):
        if t in horizons or t % EVERY == 0:
            state = _look({**state, "t": t}, phis, score, rate, horizons)
            if checkpoint is not None and t % (10 * EVERY) == 0:
                checkpoints.save(checkpoint, state, told)
        if t < max(horizons) and len(state["moving"]):
            now = {name: x[state["moving"]] for name, x in phis.items()}
            carry = step(now, unroll.Carry(**state["carry"]), unroll.Feed(batches[t]))
            state["carry"] = carry._asdict()
    return state["losses"]


def _look(state, phis, score, rate, horizons):
    """Before step t: score what has to be scored, and let go of what no longer moves."""
    t, moving, carry = state["t"], state["moving"], state["carry"]
    now = {name: x[moving] for name, x in phis.items()}
    goes_on = (rate(now, torch.tensor(float(t))) > SMALLEST_RATE) & carry["theta"].isfinite().all(1)
    at_horizon = t in horizons
    last, losses = state["last"].clone(), state["losses"]
    for k, theta in enumerate(carry["theta"]):  # one after another: a score may need much memory
        if at_horizon or not goes_on[k]:
            last[moving[k]] = score(theta)
    if at_horizon:
        losses = losses.clone()
        losses[list(horizons).index(t)] = last
    kept = tree_map(lambda leaf: leaf[goes_on], carry)
    return {"t": t, "moving": moving[goes_on], "last": last, "losses": losses, "carry": kept}


# ---- the surface between the points, and its best place, as the original code has them ----


class Surface(NamedTuple):
    """log10 of the loss on a grid of cells, smoothed."""

    axes: list[Tensor]  # two, the logs of the values, each (n_cells,)
    height: Tensor  # (n_cells, n_cells): first knob by row, second by column

    def best(self, n_cells: int = 50) -> list[float]:
        """The two values at the middle, in logs, of the lowest cells."""
        order = self.height.flatten().argsort()[:n_cells]
        at = (order // len(self.axes[1]), order % len(self.axes[1]))
        return [axis[k].mean().exp().item() for axis, k in zip(self.axes, at, strict=True)]

    def band(self, place: Sequence[float], n_bands: int = 12) -> int:
        """In which of the contour bands, 1 the lowest, the cell nearest to the values lies."""
        near = [
            (axis - math.log(x)).abs().argmin() for axis, x in zip(self.axes, place, strict=True)
        ]
        low, high = self.height.min(), self.height.max()
        share = (self.height[near[0], near[1]] - low) / (high - low)
        return min(int(share * n_bands), n_bands - 1) + 1


def smooth(phis: dict[str, Tensor], losses: Tensor, ranges, n_cells: int = 50, worst=10.0):
    """The Surface of scattered points: kernel-weighted means of log10 loss.

    The kernel is that of the original code, exp(-d1^2 - d2^2) with d = (x - x_i)^2 / (2 width^2).
    Its width was the distance of cells, for 2,500 points; here it is the distance that the points
    would have on a grid. A run that diverged counts as a loss of ``worst``.
    """
    points = torch.stack(list(phis.values())).double()  # (2, n)
    low, high = torch.tensor(list(ranges.values()), dtype=points.dtype).log().T
    axes = [
        torch.linspace(a, b, n_cells, dtype=points.dtype) for a, b in zip(low, high, strict=True)
    ]
    width = (((high - low) / math.sqrt(points.shape[1])) ** 2).sum().sqrt()
    nearness = [
        -(((axis[:, None] - x) ** 2 / (2 * width**2)) ** 2)
        for axis, x in zip(axes, points, strict=True)
    ]
    weight = (nearness[0][:, None] + nearness[1][None]).softmax(-1)  # (n_cells, n_cells, n)
    heights = losses.double().nan_to_num(nan=worst, posinf=worst).clamp(1e-12, worst).log10()
    return Surface(axes, weight @ heights)
