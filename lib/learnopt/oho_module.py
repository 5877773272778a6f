"""OHO for a PyTorch module of your own, in an ordinary training loop.

    tuner = OHO(model, F.cross_entropy, lr=0.01)
    for batch, judge in zip(train_loader, validation_batches):   # (inputs, targets) each
        loss = tuner.step(batch, judge)                          # instead of backward and step
    tuner.lr                                                     # where the rate is now

One step is the training step of the optimizer, its tangents' recursion (``oho``), and one meta-step
of the hyperparameters. The gradient's graph is kept and differentiated again along each tangent, so
any module with second derivatives will do; the optimizer's own part goes through forward mode, so
any rule of ``learnopt.optimizers`` will do. Batch normalization uses each batch's statistics, and
only training batches move its running ones. Tangents take as much memory as K copies of the model,
K = 2 for each set of hyperparameters.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, jvp, vmap
from torch.utils._pytree import tree_leaves, tree_map

from learnopt import optimizers
from learnopt.layout import Layout
from learnopt.oho import Rule, grouped, layer_groups, tensor_groups
from learnopt.optimizers import Optimizer

NAMES = ("lr", "weight_decay")


class OHO:
    """Trains ``model`` in place while tuning its learning rate and weight decay.

    loss: (outputs, targets) -> (). rule: an ``oho.Rule``; its default is the paper's, whose limits
    cut a weight_decay above 2e-4 to 2e-4 at the first meta-step. opt: an optimizer that takes
    ``lr``, so not one that is ``scheduled``; gradient descent by default. sets: "one", "tensor", or
    a number of groups of layers;
    with more than one set each has exact tangents. Other hyperparameters of ``opt`` stand in
    ``fixed``, e.g. {"logit_momentum": torch.tensor(2.2)}. Raises ValueError for a model with no
    trainable parameter, or parameters of several types or devices.
    """

    def __init__(
        self, model: torch.nn.Module, loss: Callable, lr: float, weight_decay: float = 0.0,
        rule: Rule | None = None, opt: Optimizer | None = None, sets="one", fixed=None,
    ):  # fmt: skip
        self.model, self.loss, self.rule = model, loss, rule or Rule()
        trained = {k: p for k, p in model.named_parameters() if p.requires_grad}
        if len({(p.dtype, p.device) for p in trained.values()}) != 1:
            raise ValueError("the model needs trainable parameters, all of one type and device")
        self.layout = Layout.of(trained)
        groups = _groups(self.layout, sets)
        theta = self.layout.flatten({k: p.detach() for k, p in trained.items()})
        group = torch.tensor(groups, device=theta.device)[self.layout.segment.to(theta.device)]
        self.opt = grouped(optimizers.decayed(opt or optimizers.sgd()), group)
        n_sets = max(groups) + 1
        values = (lr, weight_decay)
        self.phi = {k: theta.new_full((n_sets,), x) for k, x in zip(NAMES, values, strict=True)}
        scalars = {k: x.to(theta).expand(n_sets) for k, x in (fixed or {}).items()}
        self.fixed, self.n_steps = scalars, 0
        self.carry = (theta, self.opt.init(theta))
        n = 2 * n_sets
        self.tangents = tree_map(lambda x: x.new_zeros(n, *x.shape), self.carry)

    @property
    def lr(self) -> Tensor:
        """The learning rates, one for each set."""
        return self.phi["lr"]

    @property
    def weight_decay(self) -> Tensor:
        """The weight decays, one for each set."""
        return self.phi["weight_decay"]

    def step(self, batch, judge) -> Tensor:
        """One training step on ``batch`` and, if it is due, a meta-step judged on ``judge``.

        Returns the loss ``()`` on ``batch`` before the step.
        """
        if self.rule.reset_every and self.n_steps % self.rule.reset_every == 0:
            self.tangents = tree_map(torch.zeros_like, self.tangents)
        loss, gradient, products = self._products(batch)
        self._advance(gradient, products)
        self._write()
        if self.rule.rates and self.n_steps % self.rule.update_every == 0:
            slopes = self.tangents[0] @ self._gradient(judge, keep_buffers=False)[1]
            self.phi = self.rule.update(self.phi, Layout.of(self.phi).views(slopes))
        self.n_steps += 1
        return loss

    def _gradient(self, batch, keep_buffers: bool, create_graph=False):
        """Loss, gradient ``(n,)`` at the present parameters, and the leaf they hang on."""
        theta = self.carry[0].detach().requires_grad_()
        buffers = {k: b.clone() for k, b in self.model.named_buffers()}
        inputs, targets = batch
        with torch.enable_grad():
            outputs = functional_call(self.model, {**self.layout.views(theta), **buffers}, inputs)
            loss = self.loss(outputs, targets)
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=create_graph)
        if keep_buffers:
            for k, buffer in self.model.named_buffers():
                buffer.copy_(buffers[k])
        return loss.detach(), gradient, theta

    def _products(self, batch):
        """Loss, gradient, and H z for each tangent z of theta, ``(K, n)``."""
        loss, gradient, theta = self._gradient(batch, keep_buffers=True, create_graph=True)
        products = [
            torch.autograd.grad(gradient, theta, z, retain_graph=True)[0] for z in self.tangents[0]
        ]
        return loss, gradient.detach(), torch.stack(products)

    def _advance(self, gradient, products) -> None:
        """Carry and tangents after the optimizer's update, by forward mode through it."""
        layout = Layout.of(self.phi)
        basis = layout.views(torch.eye(layout.size, dtype=gradient.dtype, device=gradient.device))

        def update(phi, gradient, carry):
            theta, state = carry
            delta, state = self.opt.update({**self.fixed, **phi}, gradient, state, theta)
            return theta + delta, state

        def push(dphi, dgradient, dcarry):
            return jvp(update, (self.phi, gradient, self.carry), (dphi, dgradient, dcarry))

        with torch.no_grad():
            ends, self.tangents = vmap(push)(basis, products, self.tangents)
            self.carry = tree_map(lambda x: x[0], ends)  # one end, seen K times

    @torch.no_grad()
    def _write(self) -> None:
        views = self.layout.views(self.carry[0])
        for name, parameter in self.model.named_parameters():
            if name in views:
                parameter.copy_(views[name])

    def state_dict(self) -> dict:
        """All that the model's own state_dict lacks: tensors and a number, safe to save."""
        leaves = tree_leaves((self.phi, self.carry, self.tangents))
        return {"leaves": [x.clone() for x in leaves], "n_steps": self.n_steps}

    def load_state_dict(self, state: dict) -> None:
        """Go on where a saved run was; also writes the parameters into the model.

        Raises ValueError for a state of another model, optimizer or number of sets.
        """
        own, spec = torch.utils._pytree.tree_flatten((self.phi, self.carry, self.tangents))
        shapes = [tuple(x.shape) for x in state["leaves"]]
        if shapes != [tuple(x.shape) for x in own]:
            raise ValueError(
                "this state is of another model, optimizer or number of sets: make the OHO with "
                "the arguments of the saved run"
            )
        leaves = [x.to(mine) for x, mine in zip(state["leaves"], own, strict=True)]
        self.phi, self.carry, self.tangents = torch.utils._pytree.tree_unflatten(leaves, spec)
        self.n_steps = state["n_steps"]
        self._write()


def _groups(layout: Layout, sets) -> tuple[int, ...]:
    if sets == "tensor":
        return tensor_groups(layout)
    return layer_groups(layout, 1 if sets == "one" else sets)
