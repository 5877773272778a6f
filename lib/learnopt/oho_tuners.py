"""What trains a module in ``oho_deep``: OHO with one pair of tangents, OHO, or a schedule.

    tuner = Shared(model, F.cross_entropy, lr=0.1, sets="tensor")
    for batch, judge in zip(train_loader, validation_batches):
        loss = tuner.step(batch, judge)

All three have ``phi`` (name -> one value for each set), ``step``, ``gradient`` and the functions
of a saved state, and train the module that they are given in place.
"""

import torch
from torch import Tensor

from learnopt.oho import Rule
from learnopt.oho_module import NAMES, OHO, _groups


class Exact(OHO):
    """``OHO`` that remembers the last training ``gradient`` ``(n,)``."""

    def _products(self, batch):
        loss, self.gradient, products = super()._products(batch)
        return loss, self.gradient, products


class Shared(Exact):
    """``OHO`` by gradient descent with the original's one pair of tangents for all sets.

    S = (d theta / d rate, d theta / d decay), ``(2, n)``, for a common shift of all sets. The slope
    of set k is the part of <grad L_V, S> in the set's tensors: ``oho.Reference(shared=True)``. With
    one set it is ``OHO``. Two Hessian-vector products a step, whatever the number of sets.
    """

    def __init__(self, model, loss, lr, weight_decay=0.0, rule=None, sets="one"):
        self.meta = rule or Rule()
        super().__init__(model, loss, lr, weight_decay, self.meta._replace(rates={}))
        self.groups = _groups(self.layout, sets)
        self.spread = torch.tensor(self.groups)[self.layout.segment].to(self.lr.device)
        n_sets = max(self.groups) + 1
        self.phi = {name: value.repeat(n_sets) for name, value in self.phi.items()}

    def step(self, batch, judge) -> Tensor:
        """One training step on ``batch`` and one meta-step on ``judge``; the loss before it."""
        due = self.meta.rates and self.n_steps % self.meta.update_every == 0
        loss = super().step(batch, judge)  # of a rule that moves nothing
        if due:
            parts = self.tangents[0] * self._gradient(judge, keep_buffers=False)[1]
            sums = [part.reshape(2, -1).sum(1) for part in self.layout.views(parts).values()]
            slopes = torch.zeros_like(parts[:, : len(self.lr)])
            for k, part in zip(self.groups, sums, strict=True):
                slopes[:, k] += part
            self.phi = self.meta.update(self.phi, dict(zip(NAMES, slopes, strict=True)))
        return loss

    @torch.no_grad()
    def _advance(self, gradient, products) -> None:
        """The recursion at the head of ``oho``, with a rate and a decay for each coordinate."""
        (theta, state), (tangents, _) = self.carry, self.tangents
        rate, decay = (self.phi[name][self.spread] for name in NAMES)
        direct = torch.stack([gradient + decay * theta, rate * theta])
        self.tangents = tangents - rate * (products + decay * tangents) - direct, state
        self.carry = theta - rate * direct[0], state


class Untuned:
    """Gradient descent under a schedule, with the manners of ``OHO``."""

    def __init__(self, model, loss, lr, weight_decay, factor):
        self.model, self.loss, self.factor, self.n_steps = model, loss, factor, 0
        values = zip(NAMES, (lr, weight_decay), strict=True)
        self.phi = {name: torch.tensor([x], dtype=torch.float64) for name, x in values}
        self.sgd = torch.optim.SGD(model.parameters(), lr)

    def step(self, batch, judge) -> Tensor:
        """One training step; ``judge`` is not looked at."""
        now = {name: value.item() for name, value in self.phi.items()}
        now["lr"] *= self.factor(self.n_steps)
        self.sgd.param_groups[0].update(now)
        loss = self.loss(self.model(batch[0]), batch[1])
        self.sgd.zero_grad()
        loss.backward()
        self.sgd.step()
        self.n_steps += 1
        return loss.detach()

    @property
    def gradient(self) -> Tensor:
        """The last training gradient ``(n,)``."""
        return torch.cat([p.grad.flatten() for p in self.model.parameters()])

    def state_dict(self) -> dict:
        """What the model's own state_dict lacks."""
        return {"phi": dict(self.phi), "n_steps": self.n_steps}

    def load_state_dict(self, state: dict) -> None:
        """Go on where a saved run was."""
        self.phi, self.n_steps = state["phi"], state["n_steps"]
