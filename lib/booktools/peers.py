"""The same works written for other libraries, for `make bench` to compare with.

Each function returns a callable that computes what ours computes, shaped alike, so that the
benchmark checks agreement before it times anything. They are written as each library's own
documentation would have it: torchopt's functional gradient transformations, higher's
differentiable optimizers; jax is in peers_jax.py. A library that is not installed is reported by
name and left out.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

N_HIDDEN = 20


class Learned(nn.Module):
    """The LSTM optimizer as a module of torch's own cells, its state kept between calls."""

    def __init__(self, phi, state):
        super().__init__()
        self.cell1 = nn.LSTMCell(2, N_HIDDEN)
        self.cell2 = nn.LSTMCell(N_HIDDEN, N_HIDDEN)
        self.out = nn.Linear(N_HIDDEN, 1)
        self.load_state_dict(phi)
        self.start = state
        self.restart()

    def restart(self):
        s = self.start
        self.one, self.two = (s["h1"], s["c1"]), (s["h2"], s["c2"])

    def forward(self, x):
        self.one = self.cell1(x, self.one)
        self.two = self.cell2(self.one[0], self.two)
        return 0.1 * self.out(self.two[0]).squeeze(-1)


def network(task, theta, activation=nn.Sigmoid) -> nn.Module:
    """The task's fully connected network as a module, with theta's weights."""
    views, net = task.layout.views(theta), nn.Sequential()
    n_layers = len(views) // 2
    for k in range(n_layers):
        n_out, n_in = views[f"layer{k}.weight"].shape
        net.add_module(f"layer{k}", nn.Linear(n_in, n_out))
        if k < n_layers - 1:
            net.add_module(f"activation{k}", activation())
    net.load_state_dict(views)
    return net


def torchopt_window(task, phi, carry, batches, features):
    """The LSTM window as a torchopt gradient transformation."""
    import torchopt

    net, rule = network(task, carry.theta), Learned(phi, carry.state)
    shapes = {name: p.shape for name, p in net.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]

    def update(updates, state, *, params=None, inplace=False):
        flat = torch.cat([g.detach().flatten() for g in updates.values()])
        parts = rule(features(flat)).split(sizes)
        return {k: u.view(shapes[k]) for k, u in zip(shapes, parts, strict=True)}, state

    transform = torchopt.base.GradientTransformation(lambda params: (), update)

    def work():
        rule.restart()
        params = dict(net.named_parameters())
        opt_state, total = transform.init(params), 0.0
        for t, (x, y) in enumerate(batches):
            loss = F.cross_entropy(functional_call(net, params, (x,)), y)
            total = total + loss * (t > 0)
            if t < len(batches) - 1:
                grads = torch.autograd.grad(loss, tuple(params.values()), retain_graph=True)
                updates, opt_state = transform.update(
                    dict(zip(params, grads, strict=True)), opt_state, params=params, inplace=False
                )
                params = torchopt.apply_updates(params, updates, inplace=False)
        return dict(zip(phi, torch.autograd.grad(total, list(rule.parameters())), strict=True))

    return work


def higher_window(task, phi, carry, batches, features):
    """The LSTM window as one of higher's differentiable optimizers."""
    import higher

    net, rule = network(task, carry.theta), Learned(phi, carry.state)

    class Rule(higher.optim.DifferentiableOptimizer):
        def _update(self, grouped_grads, **_):
            for group, grads in zip(self.param_groups, grouped_grads, strict=True):
                flat = torch.cat([g.detach().flatten() for g in grads])
                parts = rule(features(flat)).split([g.numel() for g in grads])
                for k, part in enumerate(parts):
                    group["params"][k] = group["params"][k] + part.view_as(grads[k])

    class Plain(torch.optim.SGD):
        pass

    higher.optim.register_optim(Plain, Rule)

    def work():
        rule.restart()
        with higher.innerloop_ctx(net, Plain(net.parameters(), lr=1.0)) as (fnet, opt):
            total = 0.0
            for t, (x, y) in enumerate(batches):
                loss = F.cross_entropy(fnet(x), y)
                total = total + loss * (t > 0)
                if t < len(batches) - 1:
                    opt.step(loss)
            slopes = torch.autograd.grad(total, list(rule.parameters()))
        return dict(zip(phi, slopes, strict=True))

    return work
