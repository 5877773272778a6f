"""The works in jax, as its documentation would have them: a jitted `jax.lax.scan`.

Each function returns a callable, as those of peers.py do.
"""

import math

import torch


def unflatten(layout, theta) -> dict:
    """A flat vector, of whatever library, as named arrays."""
    view, at = {}, 0
    for name, shape in layout.shapes.items():
        view[name] = theta[at : at + math.prod(shape)].reshape(shape)
        at += math.prod(shape)
    return view


def to_jax(tensor):
    import jax.numpy as jnp

    return jnp.asarray(tensor.detach().numpy())


def to_torch(tree):
    """A dict of arrays, in the layout's order, as one flat tensor."""
    return torch.cat([torch.tensor(leaf.__array__()).flatten() for leaf in tree.values()])


def loss_of(layout, activation):
    """The mean cross-entropy of a network whose weights are a dict of arrays."""
    import jax
    import jax.numpy as jnp

    n_layers, s = len(layout.shapes) // 2, getattr(jax.nn, activation)

    def loss(p, x, y):
        h = x
        for k in range(n_layers):
            h = h @ p[f"layer{k}.weight"].T + p[f"layer{k}.bias"]
            h = s(h) if k < n_layers - 1 else h
        return -jnp.take_along_axis(jax.nn.log_softmax(h), y[:, None], 1).mean()

    return loss


def window(task, phi, carry, batches, features):
    """The LSTM window as a jitted scan, gradients stopped."""
    import jax
    import jax.numpy as jnp

    of_parts, tiny, p = loss_of(task.layout, "sigmoid"), jnp.finfo(jnp.float32).tiny, 10.0
    xs = jnp.stack([to_jax(x) for x, _ in batches])
    ys = jnp.stack([to_jax(y) for _, y in batches])

    def loss(theta, x, y):
        return of_parts(unflatten(task.layout, theta), x, y)

    def cell(phi, name, x, h, c):
        gates = x @ phi[f"{name}.weight_ih"].T + phi[f"{name}.bias_ih"]
        gates = gates + h @ phi[f"{name}.weight_hh"].T + phi[f"{name}.bias_hh"]
        i, f, g, o = jnp.split(gates, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    def meta_loss(phi, theta, state):
        def step(carry, batch):
            theta, (h1, c1, h2, c2) = carry
            here, grad = jax.value_and_grad(loss)(theta, *batch)
            grad = jax.lax.stop_gradient(grad)
            size = jnp.maximum(jnp.log(jnp.maximum(jnp.abs(grad), tiny)) / p, -1)
            x = jnp.stack([size, jnp.clip(jnp.exp(p) * grad, -1, 1)], axis=-1)
            h1, c1 = cell(phi, "cell1", x, h1, c1)
            h2, c2 = cell(phi, "cell2", h1, h2, c2)
            move = 0.1 * (h2 @ phi["out.weight"].T + phi["out.bias"])[:, 0]
            return (theta + move, (h1, c1, h2, c2)), here

        (theta, _), losses = jax.lax.scan(step, (theta, state), (xs[:-1], ys[:-1]))
        return losses[1:].sum() + loss(theta, xs[-1], ys[-1])

    slope = jax.jit(jax.grad(meta_loss))
    phi, theta = {k: to_jax(v) for k, v in phi.items()}, to_jax(carry.theta)
    state = tuple(to_jax(carry.state[k]) for k in ("h1", "c1", "h2", "c2"))

    def work():
        ours = jax.block_until_ready(slope(phi, theta, state))
        return {k: torch.tensor(v.__array__()) for k, v in ours.items()}

    return work


def oho(task, activation, theta, feeds, start, rule, groups=None):
    """The recursion as a jitted scan: one linearization, all products by vmap.

    groups: the set of hyperparameters of each tensor; without, there is one set.
    """
    import jax
    import jax.numpy as jnp

    slope, tree = jax.grad(loss_of(task.layout, activation)), jax.tree.map
    (mu_lr, mu_decay), limits = rule.rates.values(), rule.limits
    order = task.layout.shapes
    group_of = dict(zip(order, groups or [0] * len(order), strict=True))
    n = max(group_of.values()) + 1

    def moved(k, z, h, g, p, lr, decay):
        """A tensor of set k and its tangents (2n, ...) after a step."""
        pull = g + decay[k] * p
        own = [{k: pull, n + k: lr[k] * p}.get(i, jnp.zeros_like(p)) for i in range(2 * n)]
        return p - lr[k] * pull, z - lr[k] * (h + decay[k] * z) - jnp.stack(own)

    def step(state, feed):
        p, tangents, lr, decay = state
        x, y, x_judge, y_judge = feed
        g, push = jax.linearize(lambda p: slope(p, x, y), p)
        h = jax.vmap(push)(tangents)
        new = {a: moved(k, tangents[a], h[a], g[a], p[a], lr, decay) for a, k in group_of.items()}
        p, tangents = ({a: pair[i] for a, pair in new.items()} for i in (0, 1))
        judged = slope(p, x_judge, y_judge)
        shares = tree(lambda g, z: jnp.tensordot(z, g, g.ndim), judged, tangents)
        by_lr, by_decay = sum(jax.tree.leaves(shares)).reshape(2, n)
        lr = jnp.clip(lr - mu_lr * by_lr, *limits["lr"])
        decay = jnp.clip(decay - mu_decay * by_decay, *limits["weight_decay"])
        return (p, tangents, lr, decay), None

    run = jax.jit(lambda state, feeds: jax.lax.scan(step, state, feeds)[0])
    columns = [
        jnp.stack(list(map(to_jax, c))) for c in zip(*[a + b for a, b in feeds], strict=True)
    ]
    p = unflatten(task.layout, to_jax(theta))
    zeros = tree(lambda p: jnp.zeros((2 * n, *p.shape), p.dtype), p)
    begin = (p, zeros, *(jnp.full(n, value, jnp.float32) for value in start))

    def way():
        p, tangents, lr, decay = jax.block_until_ready(run(begin, tuple(columns)))
        rows = [to_torch({a: tangents[a][i] for a in order}) for i in range(2 * n)]
        numbers = {"theta": to_torch({a: p[a] for a in order}), "tangents": torch.stack(rows)}
        phi = {"lr": lr, "weight_decay": decay}
        return numbers | {name: torch.tensor(value.__array__()) for name, value in phi.items()}

    return way


def ahead(task, activation, theta, batches, logs, mode):
    """The look-ahead as a scan, differentiated in reverse or forward mode and jitted."""
    import jax
    import jax.numpy as jnp

    loss, tree = loss_of(task.layout, activation), jax.tree.map
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
