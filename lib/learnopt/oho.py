"""Online hyperparameter optimization: hyperparameters tuned while the one run trains.

    learner = Reference(task, decayed(sgd()))        # or oho_mlp.MLP(task, "tanh"), the fast path
    phi = {"lr": torch.full((b, 1), 0.1), "weight_decay": torch.zeros(b, 1)}
    phi, state, _ = run(learner, Rule(), phi, learner.start(theta), feeds)

Im, Savin & Cho 2021. Training is a recurrent network: theta is its hidden state, phi its weights.
Real-time recurrent learning carries the tangents Z = d theta / d phi along with training. For
gradient descent with rate eta and weight decay lambda, A = d theta / d eta, B = d theta / d lambda:

    theta <- theta - eta (g + lambda theta)                     g, H: gradient and Hessian of the
    A <- A - eta (H A + lambda A) - (g + lambda theta)          training batch's loss at the old
    B <- B - eta (H B + lambda B) - eta theta                   theta
    eta <- eta - alpha <grad L_V(theta), A>                     V: a validation batch; new theta
    lambda <- lambda - alpha' <grad L_V(theta), B>

All right sides hold old values, except in the last two lines. With alpha = alpha' = 0 the products
are the derivatives of L_V with respect to a constant eta and lambda. As these move, Z is the
derivative with respect to a common shift of all their past values.

phi maps names to ``(b, G)``: b runs side by side, G sets of hyperparameters. ``groups`` tells the
set of each tensor of the task's layout. With G > 1 each set has tangents of its own, which costs G
times as many Hessian-vector products. The original code keeps one pair for all: ``shared=True``
carries S = sum_k Z_k, and takes for set k the part of <grad L_V, S> that lies in the set's tensors.
The parts sum to the exact total; each part alone is an approximation.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from tqdm.auto import tqdm

from learnopt import checkpoints, hypergrad, unroll
from learnopt.layout import Layout
from learnopt.optimizers import Optimizer
from learnopt.tasks import Task

Phi = dict[str, Tensor]

LIMITS = {"lr": (0.0, torch.inf), "weight_decay": (0.0, 2e-4)}  # the original code's, for MLPs


class Rule(NamedTuple):
    """How slopes move phi: down, at each knob's meta-rate, and back inside its limits.

    ``in_log=True`` multiplies: value <- value exp(-alpha d L_V / d log value), with the exponent
    kept within ``largest``. A value then never changes its sign. ``rates={}`` leaves phi alone.
    """

    rates: dict[str, float] = {"lr": 1e-5, "weight_decay": 1e-7}  # alpha, alpha'
    limits: dict[str, tuple[float, float]] = LIMITS
    in_log: bool = False
    largest: float = 0.1
    update_every: int = 1  # steps
    reset_every: int = 0  # steps; 1: what a single step does, 0: never forget

    def update(self, phi: Phi, slopes: Phi) -> Phi:
        """phi after one meta-step."""
        moved = dict(phi)
        for name, alpha in self.rates.items():
            if self.in_log:
                exponent = (-alpha * slopes[name] * phi[name]).clamp(-self.largest, self.largest)
                moved[name] = phi[name] * exponent.exp()
            else:
                moved[name] = phi[name] - alpha * slopes[name]
            moved[name] = moved[name].clamp(*self.limits.get(name, (-torch.inf, torch.inf)))
        return moved


def run(learner, rule, phi, state, feeds: Iterable, begin=0, factor=None, record=None):
    """Train on ``feeds``, pairs (training batch, validation batch), from step ``begin`` on.

    ``factor(t)`` scales the learning rate of step t: a schedule, for runs that are not tuned
    (``rates={}``), since the slopes leave it out. ``record(t, phi, state)`` is called before each
    step. Returns phi, the state and what was recorded.
    """
    recorded = []
    for t, (batch, judge) in enumerate(feeds, begin):
        if record is not None:
            recorded.append(record(t, phi, state))
        if rule.reset_every and t % rule.reset_every == 0:
            state = learner.reset(state)
        now = phi if factor is None else {**phi, "lr": phi["lr"] * factor(t)}
        state = learner.advance(now, state, batch)
        if rule.rates and t % rule.update_every == 0:
            phi = rule.update(phi, learner.slopes(state, judge))
    return phi, state, recorded


def train(learner, rule, phi, theta, draw, n_epochs, look, factor=None, checkpoint=None,
          parameters=None):  # fmt: skip
    """``run`` by epochs, with a progress bar and, given a path, a checkpoint after each.

    ``draw(epoch)`` makes an epoch's feeds; ``look(epoch, phi, state)`` is recorded before each
    epoch and at the end. ``parameters`` tells one run's checkpoint from another's, and must name
    n_epochs where that may shrink: a checkpoint of more epochs is returned as it is. Returns phi,
    the state and the n_epochs + 1 looks. An interrupted run goes on where it was, bit for bit, on a
    CPU: a checkpoint is loaded there. Raises checkpoints.CheckpointError for a damaged checkpoint,
    another's, or looks that cannot be saved.
    """
    state, seen, begun = learner.start(theta), [], 0
    _, spec = tree_flatten((phi, state))
    found = checkpoint and checkpoints.load(checkpoint, parameters or {}, ("leaves", "seen"))
    if found:
        (phi, state), seen = tree_unflatten(found["leaves"], spec), found["seen"]
        begun = len(seen)
    for epoch in tqdm(range(begun, n_epochs), initial=begun, total=n_epochs, leave=False):
        seen = [*seen, look(epoch, phi, state)]
        feeds = draw(epoch)
        phi, state, _ = run(learner, rule, phi, state, feeds, epoch * len(feeds), factor)
        if checkpoint:
            kept = {"leaves": tree_leaves((phi, state)), "seen": seen}
            checkpoints.save(checkpoint, kept, parameters or {})
    return phi, state, [*seen, look(n_epochs, phi, state)]


def layer_groups(layout: Layout, n_groups: int) -> tuple[int, ...]:
    """The set of each tensor: n_groups runs of layers (weight and bias), the last takes the rest.

    Layers are modules: a batch norm is one of its own. Raises ValueError where there are fewer
    layers than groups.
    """
    layers = [name.rsplit(".", 1)[0] for name in layout.shapes]
    names = list(dict.fromkeys(layers))
    if not 1 <= n_groups <= len(names):
        raise ValueError(f"n_groups is {n_groups}; the network has {len(names)} layers")
    each = len(names) // n_groups
    return tuple(min(names.index(layer) // each, n_groups - 1) for layer in layers)


def tensor_groups(layout: Layout) -> tuple[int, ...]:
    """A set for each tensor: what the original calls full, or layer-wise."""
    return tuple(range(len(layout.shapes)))


class State(NamedTuple):
    """b carries, and their derivatives with respect to phi."""

    carry: Any
    tangents: Any  # each leaf (b, K, ...)


class Reference:
    """The recursion as forward mode through one step, for any task and any optimizer.

    Exact for whatever phi the optimizer has; ``names`` are the knobs, in the tangents' order.
    """

    def __init__(self, task: Task, opt: Optimizer, names=("lr", "weight_decay"), groups=None,
                 shared=False):  # fmt: skip
        self.task, self.opt, self.names, self.shared = task, opt, tuple(names), shared
        self.group = torch.tensor(groups or [0] * len(task.layout.shapes))[task.layout.segment]
        self.n_groups = int(self.group.max()) + 1
        self.step = unroll.make_step(task, grouped(opt, self.group))

    def start(self, theta: Tensor) -> State:
        """b runs at theta ``(b, n)``."""
        carry = vmap(lambda theta: unroll.start(self.task, self.opt, theta))(theta)
        n = len(self.names) * (1 if self.shared else self.n_groups)
        return State(carry, tree_map(lambda x: x.new_zeros(len(x), n, *x.shape[1:]), carry))

    def advance(self, phi: Phi, state: State, batch) -> State:
        """One training step, and what it does to the tangents."""
        phi = {name: phi[name] for name in self.names}
        return State(*vmap(self._one, in_dims=(0, 0, 0, None))(phi, *state, batch))

    def _one(self, phi, carry, tangents, batch):
        step, at = self.step, phi
        if self.shared:  # one knob a name: a common shift of all sets
            at = {name: value.new_zeros(()) for name, value in phi.items()}

            def step(shift, carry, feed):
                return self.step({k: phi[k] + shift[k] for k in phi}, carry, feed)

        feeds = [unroll.Feed(batch)]
        _, carry, tangents = hypergrad.forward(step, at, carry, feeds, tangents)
        return carry, tangents

    def slopes(self, state: State, batch) -> Phi:
        """d loss(theta, batch) / d phi, by the chain rule: <grad loss, Z>."""
        gradient = vmap(grad(self.task.loss), in_dims=(0, None))(state.carry.theta, batch)
        products = gradient[:, None] * state.tangents.theta  # (b, K, n)
        if self.shared:
            sums = products.new_zeros(*products.shape[:2], self.n_groups)
            sums = sums.index_add(2, self.group, products)
        else:
            sums = products.sum(-1).unflatten(1, (len(self.names), self.n_groups))
        return dict(zip(self.names, sums.unbind(1), strict=True))

    def theta(self, state: State) -> Tensor:
        """Parameters ``(b, n)``."""
        return state.carry.theta

    def tangents(self, state: State) -> Tensor:
        """d theta / d phi, ``(b, K, n)``."""
        return state.tangents.theta

    def reset(self, state: State) -> State:
        """The same runs with their past forgotten."""
        return state._replace(tangents=tree_map(torch.zeros_like, state.tangents))


def grouped(opt: Optimizer, group: Tensor) -> Optimizer:
    """The same rule with knobs ``(G,)``, spread over the coordinates by ``group`` ``(n,)``."""

    def update(phi, gradient, state, theta):
        spread = {name: value[group] for name, value in phi.items()}
        return opt.update(spread, gradient, state, theta)

    return Optimizer(opt.init, update)
