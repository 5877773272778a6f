"""OHO's step and SMD's look-ahead on perceptrons, as one would write them without this library.

With torch's autograd; with copied modules and finite differences, as the original code of OHO does;
and in jax. Each function returns what the library's way returns, or a way that does.
"""

import copy
from functools import partial

import torch
import torch.nn.functional as F

from booktools.peers import network, unflatten
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
    numbers = {"theta": theta, "by_lr": a, "by_decay": b}
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


def autograd_ahead(task, activation, theta, batches, logs):
    """d loss after the steps / d logs, by autograd through all of them."""
    logs = {name: value.clone().requires_grad_() for name, value in logs.items()}
    damping = logs["log_damping"].exp()
    mu, rate = 1 - damping, logs["log_effective_lr"].exp() * damping
    at, velocity = theta.clone().requires_grad_(), torch.zeros_like(theta)
    for batch in batches[:-1]:
        (g,) = torch.autograd.grad(task.loss(at, batch), at, create_graph=True)
        velocity = mu * velocity + g
        at = at - rate * velocity
    slopes = torch.autograd.grad(task.loss(at, batches[-1]), list(logs.values()))
    return dict(zip(logs, slopes, strict=True))


def compiled_ahead(task, activation, theta, batches, logs):
    """The same in one torch.compile, all steps unrolled; see need_compiler."""
    need_compiler()

    def meta_loss(logs, theta, batches):
        damping = logs["log_damping"].exp()
        mu, rate = 1 - damping, logs["log_effective_lr"].exp() * damping
        at, velocity = theta, torch.zeros_like(theta)
        for batch in batches[:-1]:
            velocity = mu * velocity + torch.func.grad(task.loss)(at, batch)
            at = at - rate * velocity
        return task.loss(at, batches[-1])

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


def to_jax(tensor):
    import jax.numpy as jnp

    return jnp.asarray(tensor.detach().numpy())


def to_torch(tree):
    """A dict of arrays, in the layout's order, as one flat tensor."""
    return torch.cat([torch.tensor(leaf.__array__()).flatten() for leaf in tree.values()])


def jax_loss(layout, activation):
    """The mean cross-entropy of a network whose weights are a dict of arrays."""
    import jax
    import jax.numpy as jnp

    n_layers, s = len(layout.shapes) // 2, {"tanh": jnp.tanh, "relu": jax.nn.relu}[activation]

    def loss(p, x, y):
        h = x
        for k in range(n_layers):
            h = h @ p[f"layer{k}.weight"].T + p[f"layer{k}.bias"]
            h = s(h) if k < n_layers - 1 else h
        return -jnp.take_along_axis(jax.nn.log_softmax(h), y[:, None], 1).mean()

    return loss


def jax_oho(task, activation, theta, feeds, start, rule):
    """The recursion as a jitted scan: one linearization, both products by vmap."""
    import jax
    import jax.numpy as jnp

    slope, tree = jax.grad(jax_loss(task.layout, activation)), jax.tree.map
    (mu_lr, mu_decay), limits = rule.rates.values(), rule.limits

    def step(state, feed):
        p, tangents, lr, decay = state
        x, y, x_judge, y_judge = feed
        g, push = jax.linearize(lambda p: slope(p, x, y), p)
        pull = tree(lambda g, p: g + decay * p, g, p)
        own = tree(lambda pull, p: jnp.stack([pull, lr * p]), pull, p)
        tangents = tree(
            lambda z, h, own: z - lr * (h + decay * z) - own,
            tangents,
            jax.vmap(push)(tangents),
            own,
        )
        p = tree(lambda p, pull: p - lr * pull, p, pull)
        judged = slope(p, x_judge, y_judge)
        shares = tree(lambda g, z: jnp.tensordot(z, g, g.ndim), judged, tangents)
        by_lr, by_decay = sum(jax.tree.leaves(shares))
        lr = jnp.clip(lr - mu_lr * by_lr, *limits["lr"])
        decay = jnp.clip(decay - mu_decay * by_decay, *limits["weight_decay"])
        return (p, tangents, lr, decay), None

    run = jax.jit(lambda state, feeds: jax.lax.scan(step, state, feeds)[0])
    columns = [
        jnp.stack(list(map(to_jax, c))) for c in zip(*[a + b for a, b in feeds], strict=True)
    ]
    p = unflatten(task.layout, to_jax(theta))
    zeros = tree(lambda p: jnp.zeros((2, *p.shape), p.dtype), p)
    begin = (p, zeros, *map(jnp.float32, start))

    def way():
        p, tangents, lr, decay = jax.block_until_ready(run(begin, tuple(columns)))
        by_lr, by_decay = (tree(lambda z, k=k: z[k], tangents) for k in (0, 1))
        names = {"theta": p, "by_lr": by_lr, "by_decay": by_decay}
        numbers = {"lr": torch.tensor([float(lr)]), "weight_decay": torch.tensor([float(decay)])}
        order = task.layout.shapes
        flat = {k: to_torch({name: v[name] for name in order}) for k, v in names.items()}
        return flat | numbers

    return way


def jax_ahead(task, activation, theta, batches, logs, mode):
    """The look-ahead as a scan, differentiated in reverse or forward mode and jitted."""
    import jax
    import jax.numpy as jnp

    loss, tree = jax_loss(task.layout, activation), jax.tree.map
    xs, ys = (jnp.stack(list(map(to_jax, column))) for column in zip(*batches, strict=True))

    def meta_loss(logs, p):
        damping = jnp.exp(logs["log_damping"])
        mu, rate = 1 - damping, jnp.exp(logs["log_effective_lr"]) * damping

        def step(state, batch):
            p, velocity = state
            velocity = tree(lambda v, g: mu * v + g, velocity, jax.grad(loss)(p, *batch))
            return (tree(lambda p, v: p - rate * v, p, velocity), velocity), None

        (p, _), _ = jax.lax.scan(step, (p, tree(jnp.zeros_like, p)), (xs[:-1], ys[:-1]))
        return loss(p, xs[-1], ys[-1])

    slope = jax.jit({"reverse": jax.grad, "forward": jax.jacfwd}[mode](meta_loss))
    logs = {name: to_jax(value) for name, value in logs.items()}
    p = unflatten(task.layout, to_jax(theta))

    def way():
        found = jax.block_until_ready(slope(logs, p))
        return {name: torch.tensor([float(value)]) for name, value in found.items()}

    return way
