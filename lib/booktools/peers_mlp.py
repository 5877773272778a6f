"""OHO's step and SMD's look-ahead on perceptrons, as one would write them without this library.

With torch's autograd, with torch.compile, and with copied modules and finite differences, as the
original code of OHO does. Each function returns what the library's way returns, or a way that does.
"""

import copy
from functools import partial

import torch
import torch.nn.functional as F

from booktools.peers import network
from learnopt.oho_original import ROOT_EPS, SMALLEST

ACTIVATIONS = {"tanh": torch.nn.Tanh, "relu": torch.nn.ReLU}


def meta_step(rule, lr, decay, slopes):
    """The two hyperparameters after one meta-step."""
    phi = {"lr": lr, "weight_decay": decay}
    moved = rule.update(phi, dict(zip(phi, slopes, strict=True)))
    return moved["lr"], moved["weight_decay"]


def oho_by(step, theta, feeds, start, rule):
    """The recursion of ``learnopt.oho``, given a way to take its step; flat tensors."""
    a = b = torch.zeros_like(theta)
    lr, decay = map(torch.tensor, start)
    for batch, judge in feeds:
        theta, a, b, *slopes = step(theta, a, b, lr, decay, batch, judge)
        lr, decay = meta_step(rule, lr, decay, slopes)
    numbers = {"theta": theta, "tangents": torch.stack([a, b])}
    return numbers | {"lr": lr[None], "weight_decay": decay[None]}


def step_by(gradient_and_products, gradient):
    """The step, given a way to g and H v and one to g alone: flat tensors in, flat tensors out."""

    def step(theta, a, b, lr, decay, batch, judge):
        g, h_a, h_b = gradient_and_products(theta, batch, (a, b))
        push = g + decay * theta
        a = a - lr * (h_a + decay * a) - push
        b = b - lr * (h_b + decay * b) - lr * theta
        theta = theta - lr * push
        judged = gradient(theta, judge)
        return theta, a, b, judged @ a, judged @ b

    return step


def by_autograd(task, theta, batch):
    """A gradient."""
    at = theta.detach().requires_grad_()
    return torch.autograd.grad(task.loss(at, batch), at)[0]


def double_backward(task, theta, feeds, start, rule):
    """Hessian-vector products by a second backward pass."""

    def products(theta, batch, vectors):
        at = theta.detach().requires_grad_()
        (g,) = torch.autograd.grad(task.loss(at, batch), at, create_graph=True)
        a, b = vectors
        (h_a,) = torch.autograd.grad(g, at, a, retain_graph=True)
        return g.detach(), h_a, torch.autograd.grad(g, at, b)[0]

    step = step_by(products, partial(by_autograd, task))
    return lambda: oho_by(step, theta, feeds, start, rule)


def need_compiler():
    """Raises ImportError where torch cannot compile; it needs a C++ compiler."""
    try:
        torch.compile(torch.sin)(torch.ones(2))
    except (RuntimeError, OSError) as error:
        raise ImportError("torch.compile does not work here") from error


def compiled(task, theta, feeds, start, rule):
    """Forward mode over reverse mode, the whole step in one torch.compile; see need_compiler."""
    need_compiler()
    gradient = torch.func.grad(task.loss)

    def products(theta, batch, vectors):
        at = partial(gradient, batch=batch)
        (g, h_a), (_, h_b) = (torch.func.jvp(at, (theta,), (v,)) for v in vectors)
        return g, h_a, h_b

    step = torch.compile(step_by(products, gradient))
    return lambda: oho_by(step, theta, feeds, start, rule)


def differences(task, activation, theta, feeds, start, rule):
    """By central differences, each on two copies of the module."""
    net = network(task, theta, ACTIVATIONS[activation])

    def slope(model, batch):
        x, y = batch
        grads = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
        return torch.cat([g.flatten() for g in grads])

    def moved(model, vector, r):
        model = copy.deepcopy(model)
        parts = task.layout.views(vector).values()
        with torch.no_grad():
            for p, part in zip(model.parameters(), parts, strict=True):
                p.add_(part, alpha=r)
        return model

    def product(model, vector, batch):
        first = next(iter(model.parameters())).detach()
        longest = vector[: first.numel()].abs().max().item() or 1.0
        r = max(SMALLEST, ROOT_EPS * (1 + first.abs().max().item()) / longest)
        ahead, behind = moved(model, vector, r), moved(model, vector, -r)
        return (slope(ahead, batch) - slope(behind, batch)) / (2 * r)

    def products(theta, batch, vectors):
        net.load_state_dict(task.layout.views(theta))
        return slope(net, batch), *(product(net, vector, batch) for vector in vectors)

    step = step_by(products, partial(by_autograd, task))
    return lambda: oho_by(step, theta, feeds, start, rule)


def plain_descent(task, theta, feeds, start, rule):
    """The same training, with nothing tuned."""
    rate, decay = start

    def way():
        at = theta.clone().requires_grad_()
        for batch, _ in feeds:
            (g,) = torch.autograd.grad(task.loss(at, batch), at)
            with torch.no_grad():
                at.mul_(1 - rate * decay).sub_(g, alpha=rate)
        return {"theta": at.detach()}

    return way


def ahead(task, gradient, logs, theta, batches):
    """The loss on the last batch after a step of momentum on each of the others."""
    damping = logs["log_damping"].exp()
    mu, rate = 1 - damping, logs["log_effective_lr"].exp() * damping
    velocity = torch.zeros_like(theta)
    for batch in batches[:-1]:
        velocity = mu * velocity + gradient(theta, batch)
        theta = theta - rate * velocity
    return task.loss(theta, batches[-1])


def autograd_ahead(task, activation, theta, batches, logs):
    """d loss after the steps / d logs, by autograd through all of them."""

    def gradient(at, batch):
        return torch.autograd.grad(task.loss(at, batch), at, create_graph=True)[0]

    logs = {name: value.clone().requires_grad_() for name, value in logs.items()}
    found = ahead(task, gradient, logs, theta.clone().requires_grad_(), batches)
    return dict(zip(logs, torch.autograd.grad(found, list(logs.values())), strict=True))


def compiled_ahead(task, activation, theta, batches, logs):
    """The same in one torch.compile, all steps unrolled; see need_compiler."""
    need_compiler()
    meta_loss = partial(ahead, task, torch.func.grad(task.loss))
    slopes = torch.compile(torch.func.grad(meta_loss))
    return lambda: slopes(logs, theta, batches)


def plain_momentum(task, activation, theta, batches, logs):
    """The steps of the look-ahead alone."""
    damping = logs["log_damping"].exp().item()
    rate = logs["log_effective_lr"].exp().item() * damping
    at, velocity = theta.clone().requires_grad_(), torch.zeros_like(theta)
    for batch in batches[:-1]:
        (g,) = torch.autograd.grad(task.loss(at, batch), at)
        with torch.no_grad():
            at.sub_(velocity.mul_(1 - damping).add_(g), alpha=rate)
