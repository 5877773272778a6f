"""What is minimised. A task holds no parameters, only how to make and judge them.

    task = quadratic()
    theta = task.init(generator)            # (n,), flat
    batches = task.batches(generator, 100)  # the data of one run of 100 steps
    task.loss(theta, batches[0])            # (), differentiable

``task.layout`` names the tensors inside theta. A classifier also has ``task.predict(theta, x)``,
the logits ``(batch, n_classes)``. Under ``torch.func.vmap`` the same functions serve a population.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from learnopt.layout import Layout

ACTIVATIONS = {"sigmoid": torch.sigmoid, "tanh": torch.tanh, "relu": torch.relu}


class Task(NamedTuple):
    """A family of losses over flat parameters theta ``(n,)``."""

    name: str
    layout: Layout
    init: Callable  # (generator) -> theta (n,)
    loss: Callable  # (theta, batch) -> ()
    batches: Callable | None  # (generator, n_batches) -> sequence of batches: one run's data
    predict: Callable | None = None  # (theta, x) -> logits (batch, n_classes); classifiers only


def quadratic(n: int = 10, start_std: float = 0.0, dtype: torch.dtype = torch.float32) -> Task:
    """f(theta) = |W theta - y|^2 with W ``(n, n)`` and y ``(n,)`` drawn from N(0, 1) once per run.

    Andrychowicz et al. 2016, section 3.1. A batch is the pair (W, y), the same at every step. The
    thesis starts at theta = 0 (``start_std`` 0), where the mean loss is n.
    """

    def init(generator):
        return start_std * _normal((n,), generator, dtype)

    def loss(theta, batch):
        matrix, target = batch
        return ((matrix @ theta - target) ** 2).sum()

    def batches(generator, n_batches):
        return [(_normal((n, n), generator, dtype), _normal((n,), generator, dtype))] * n_batches

    return Task(f"quadratic-{n}", Layout({"theta": (n,)}), init, loss, batches)


def noisy_quadratic(curvature: Tensor, noise_std: Tensor, start: Tensor) -> Task:
    """f(theta) = 1/2 sum_i h_i (theta_i - c_i)^2, with the centre c drawn anew at every step.

    Wu et al. 2018, section 2 (after Schaul et al. 2013). ``curvature`` h, ``noise_std`` sigma and
    ``start`` are ``(n,)``; a batch is the centre c = sigma * xi, xi ~ N(0, 1). The loss includes
    the noise: at theta = 0 it averages 1/2 sum h sigma^2, not 0.
    """
    (n,) = curvature.shape

    def loss(theta, centre):
        return 0.5 * (curvature * (theta - centre) ** 2).sum()

    def batches(generator, n_batches):
        noise = _normal((n_batches, n), generator, curvature.dtype, curvature.device)
        return list(noise_std * noise)

    layout = Layout({"theta": (n,)})
    return Task(f"noisy-quadratic-{n}", layout, lambda generator: start.clone(), loss, batches)


def mlp(
    sizes: Sequence[int],
    activation: str = "sigmoid",
    batches: Callable | None = None,
    weight_std: float | None = 1e-3,
    dtype: torch.dtype = torch.float32,
) -> Task:
    """A fully connected classifier, e.g. ``mlp([784, 20, 10])``; mean cross-entropy.

    Weights start at N(0, weight_std^2) and biases at 0 (the thesis: 0.001; Wu et al.: 0.05);
    ``weight_std=None`` is torch's default, U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for both. A batch is
    (x ``(batch, ...)``, labels ``(batch,)``); x is flattened. Raises ValueError for an activation
    that is not in ACTIVATIONS.
    """
    shapes = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        shapes |= {f"layer{i}.weight": (fan_out, fan_in), f"layer{i}.bias": (fan_out,)}
    layout = Layout(shapes)
    act = _activation(activation)

    def predict(theta, x):
        views, h = layout.views(theta), x.flatten(1)
        for i in range(len(sizes) - 1):
            h = F.linear(h, views[f"layer{i}.weight"], views[f"layer{i}.bias"])
            if i < len(sizes) - 2:
                h = act(h)
        return h

    name = f"mlp-{'-'.join(map(str, sizes))}-{activation}"
    return _classifier(name, layout, predict, batches, weight_std, dtype)


def conv_net(
    image: tuple[int, int, int] = (3, 32, 32),
    channels: Sequence[int] = (32, 32, 64),
    hidden: int = 100,
    n_classes: int = 10,
    batches: Callable | None = None,
    weight_std: float | None = 0.1,
    dtype: torch.dtype = torch.float32,
) -> Task:
    """[conv 5x5 same, max-pool 2x2, ReLU] per entry of ``channels``, then hidden ReLU, then logits.

    The defaults are the CIFAR-10 network of Wu et al. 2018 (182,838 parameters); ``image`` is
    (channels, height, width).
    """
    shapes, fan_in = {}, image[0]
    for i, width in enumerate(channels):
        shapes |= {f"conv{i}.weight": (width, fan_in, 5, 5), f"conv{i}.bias": (width,)}
        fan_in = width
    n_pixels = (image[1] >> len(channels)) * (image[2] >> len(channels))
    sizes = [fan_in * n_pixels, hidden, n_classes]
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        shapes |= {f"layer{i}.weight": (fan_out, fan_in), f"layer{i}.bias": (fan_out,)}
    layout = Layout(shapes)

    def predict(theta, x):
        views, h = layout.views(theta), x
        for i in range(len(channels)):
            h = F.conv2d(h, views[f"conv{i}.weight"], views[f"conv{i}.bias"], padding=2)
            h = torch.relu(F.max_pool2d(h, 2))
        h = torch.relu(F.linear(h.flatten(1), views["layer0.weight"], views["layer0.bias"]))
        return F.linear(h, views["layer1.weight"], views["layer1.bias"])

    name = f"conv-{'-'.join(map(str, channels))}"
    return _classifier(name, layout, predict, batches, weight_std, dtype)


def accuracy(task: Task, theta: Tensor, x: Tensor, labels: Tensor) -> Tensor:
    """The fraction () of x that a classifier labels correctly."""
    return (task.predict(theta, x).argmax(-1) == labels).double().mean()


def _classifier(name, layout, predict, batches, weight_std, dtype) -> Task:
    def init(generator):
        return _draw_weights(layout, weight_std, generator, dtype)

    def loss(theta, batch):
        x, labels = batch
        return F.cross_entropy(predict(theta, x), labels)

    return Task(name, layout, init, loss, batches, predict)


def _draw_weights(layout: Layout, weight_std, generator, dtype) -> Tensor:
    tensors, bound = {}, 0.0
    for name, shape in layout.shapes.items():
        if name.endswith("weight"):
            bound = 1 / math.sqrt(math.prod(shape[1:]))  # fan-in, also for the bias that follows
        if weight_std is None:
            unit = torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
            tensors[name] = bound * (2 * unit - 1)
        elif name.endswith("weight"):
            tensors[name] = weight_std * _normal(shape, generator, dtype)
        else:
            tensors[name] = torch.zeros(shape, dtype=dtype, device=generator.device)
    return layout.flatten(tensors)


def _normal(shape, generator: Generator, dtype, device=None) -> Tensor:
    # drawn on the generator's device: cpu and cuda generators give different numbers
    drawn = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    return drawn if device is None else drawn.to(device)


def _activation(name: str) -> Callable:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not one of {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]
