"""What is minimised: values known in closed form, parameter counts, and torch.nn as a reference."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad

from learnopt import tasks
from learnopt.seeding import generator

F64 = torch.float64


def _z(sample, expected):
    """How many standard errors the sample's mean lies from what it should be."""
    assert sample.std() > 0
    return ((sample.mean() - expected) / (sample.std() / len(sample) ** 0.5)).abs().item()


def _images(n=6, pixels=784, n_classes=10, name="images"):
    draw = generator(0, name)
    x = torch.rand(n, pixels, generator=draw, dtype=F64)
    return x, torch.randint(n_classes, (n,), generator=draw)


# ---- quadratics ----


def test_a_quadratic_starts_at_zero_with_mean_loss_n():
    # f(0) = |y|^2, y ~ N(0, I): mean n, whatever W is
    task = tasks.quadratic(n=10, dtype=F64)
    starts = []
    for k in range(4000):
        batch = task.batches(generator(0, "start", k), 1)[0]
        starts.append(task.loss(task.init(generator(0, "init", k)), batch))
    starts = torch.stack(starts)
    assert _z(starts, 10.0) < 4
    assert starts.var().item() == pytest.approx(20, rel=0.15)  # of a chi-square with 10 degrees


def test_a_quadratics_loss_and_gradient_are_the_formulas():
    task = tasks.quadratic(n=4, start_std=1.0, dtype=F64)
    theta = task.init(generator(0, "theta"))
    matrix, target = task.batches(generator(0, "batch"), 1)[0]
    residual = matrix @ theta - target
    assert theta.std() > 0.1
    torch.testing.assert_close(task.loss(theta, (matrix, target)), residual @ residual)
    slope = grad(task.loss)(theta, (matrix, target))
    torch.testing.assert_close(slope, 2 * matrix.T @ residual)


def test_a_quadratic_is_the_same_function_at_every_step_and_another_in_every_run():
    task = tasks.quadratic()
    batches = task.batches(generator(0, "run", 1), 5)
    assert len(batches) == 5 and all(batch is batches[0] for batch in batches)
    other = task.batches(generator(0, "run", 2), 5)
    assert not torch.equal(batches[0][0], other[0][0])


def test_the_noisy_quadratics_mean_loss_at_the_minimum_is_the_noise():
    # E 1/2 sum h (0 - sigma xi)^2 = 1/2 sum h sigma^2
    h = torch.tensor([1.0, 0.1, 3.0], dtype=F64)
    sigma = torch.tensor([0.5, 2.0, 1.0], dtype=F64)
    task = tasks.noisy_quadratic(h, sigma, torch.ones(3, dtype=F64))
    centres = task.batches(generator(0, "noise"), 20_000)
    losses = torch.stack([task.loss(torch.zeros(3, dtype=F64), centre) for centre in centres])
    assert _z(losses, 0.5 * (h * sigma**2).sum()) < 4


def test_the_noisy_quadratic_draws_a_new_centre_at_every_step():
    h, start = torch.ones(3, dtype=F64), torch.arange(3, dtype=F64)
    task = tasks.noisy_quadratic(h, 0.5 * h, start)
    centres = torch.stack(task.batches(generator(0, "noise"), 500))
    assert centres.unique(dim=0).shape == (500, 3)
    assert centres.std(0).tolist() == pytest.approx([0.5] * 3, rel=0.15)  # sd of a sd: 3 %
    assert torch.equal(task.init(None), start) and task.init(None) is not start


def test_without_noise_the_noisy_quadratic_is_a_parabola():
    task = tasks.noisy_quadratic(*torch.tensor([[3.0], [0.0], [2.0]], dtype=F64))
    theta = task.init(None)
    assert task.loss(theta, task.batches(generator(0, "noise"), 1)[0]).item() == 6.0


# ---- classifiers ----


@pytest.mark.parametrize(
    "sizes, count",
    [
        ([784, 20, 10], 15_910),
        ([784, 40, 10], 31_810),
        ([784, 20, 20, 10], 16_330),
        ([784, 20, 27], 16_267),
        ([3072, 20, 10], 61_670),
        ([784, 100, 100, 10], 89_610),
        ([784, 128, 128, 128, 10], 134_794),
    ],
)
def test_an_mlp_has_the_published_number_of_parameters(sizes, count):
    task = tasks.mlp(sizes)
    assert task.layout.size == count
    assert task.init(generator(0, "init")).shape == (count,)


def test_the_conv_net_has_the_published_number_of_parameters():
    assert tasks.conv_net().layout.size == 182_838


@pytest.mark.parametrize("n_classes, activation", [(10, "sigmoid"), (27, "sigmoid"), (10, "relu")])
def test_with_tiny_weights_the_loss_starts_at_log_of_the_number_of_classes(n_classes, activation):
    # logits are at most about 0.001 sqrt(20) = 0.005 in size, so the loss is within 0.01 of uniform
    task = tasks.mlp([784, 20, n_classes], activation, weight_std=1e-3, dtype=F64)
    batch = _images(n=64, n_classes=n_classes)
    start = task.loss(task.init(generator(0, "init")), batch).item()
    assert start == pytest.approx(math.log(n_classes), abs=0.01)
    assert start != math.log(n_classes)


ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


def _assert_same_function(task, module, x, labels):
    """The task's logits, loss and gradient are those of a torch.nn module with these weights."""
    theta = task.init(generator(0, "init"))
    leaves = [view.clone().requires_grad_() for view in task.layout.views(theta).values()]
    names = [name for name, _ in module.named_parameters()]
    logits = torch.func.functional_call(module, dict(zip(names, leaves, strict=True)), x)
    assert logits.std() > 1e-3
    torch.testing.assert_close(task.predict(theta, x), logits.detach(), rtol=1e-12, atol=1e-12)
    loss = F.nll_loss(logits.log_softmax(-1), labels)
    torch.testing.assert_close(task.loss(theta, (x, labels)), loss.detach(), rtol=1e-12, atol=0)
    slopes = torch.cat([s.flatten() for s in torch.autograd.grad(loss, leaves)])
    torch.testing.assert_close(grad(task.loss)(theta, (x, labels)), slopes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_mlp_is_torchs_sequential(activation):
    task = tasks.mlp([12, 5, 4, 3], activation, weight_std=0.5, dtype=F64)
    act = ACTIVATIONS[activation]
    module = nn.Sequential(nn.Linear(12, 5), act(), nn.Linear(5, 4), act(), nn.Linear(4, 3))
    x, labels = _images(pixels=12, n_classes=3)
    _assert_same_function(task, module.double(), x, labels)
    x = x.reshape(-1, 3, 4)  # an image is flattened
    _assert_same_function(task, nn.Sequential(nn.Flatten(), *module), x, labels)


def test_the_conv_net_is_torchs_sequential():
    task = tasks.conv_net((3, 8, 12), (4, 5), hidden=7, n_classes=3, weight_std=0.2, dtype=F64)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 5, padding="same"), nn.MaxPool2d(2), nn.ReLU(),
        nn.Conv2d(4, 5, 5, padding="same"), nn.MaxPool2d(2), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 2 * 3, 7), nn.ReLU(), nn.Linear(7, 3),
    )  # fmt: skip
    x, labels = _images(pixels=3 * 8 * 12, n_classes=3)
    _assert_same_function(task, module.double(), x.reshape(-1, 3, 8, 12), labels)


def test_weights_start_normal_with_the_asked_spread_and_biases_at_zero():
    task = tasks.mlp([784, 100, 10], weight_std=0.05, dtype=F64)
    views = task.layout.views(task.init(generator(0, "init")))
    for layer in ("layer0", "layer1"):
        weight = views[f"{layer}.weight"].flatten()
        assert _z(weight, 0.0) < 4
        assert weight.std().item() == pytest.approx(0.05, rel=4 / (2 * weight.numel()) ** 0.5)
        assert weight.abs().max() > 0.125  # beyond 2.5 sd: not a truncated or a uniform draw
        assert not views[f"{layer}.bias"].any()


@pytest.mark.parametrize(
    "task, module",
    [
        (tasks.mlp([64, 50, 10], weight_std=None, dtype=F64), nn.Linear(64, 50)),
        (
            tasks.conv_net((3, 8, 8), (32, 4), weight_std=None, dtype=F64),
            nn.Conv2d(3, 32, 5, padding=2),
        ),
    ],
)
def test_torchs_default_start_has_torchs_bounds(task, module):
    weight, bias = list(task.layout.views(task.init(generator(0, "init"))).values())[:2]
    bound = 1 / math.prod(weight.shape[1:]) ** 0.5  # torch: 1 / sqrt(fan-in), for both
    for ours, torchs in ((weight, module.weight), (bias, module.bias)):
        assert ours.shape == torchs.shape
        assert 0.8 * bound < ours.abs().max() <= bound
        assert torchs.abs().max() <= bound * (1 + 1e-6)  # float32
        # uniform: sd = bound / sqrt(3); the sd of that sd is about 0.45 / sqrt(n)
        n_draws = ours.numel()
        assert ours.std().item() == pytest.approx(bound / 3**0.5, rel=4 * 0.45 / n_draws**0.5)


@pytest.mark.parametrize("task, std", [(tasks.mlp([784, 20, 10]), 1e-3), (tasks.conv_net(), 0.1)])
def test_weights_start_with_their_documented_spread_where_none_is_asked_for(task, std):
    drawn = task.layout.views(task.init(generator(0, "init")))["layer0.weight"]
    assert drawn.std().item() == pytest.approx(std, rel=4 / (2 * drawn.numel()) ** 0.5)


@pytest.mark.parametrize("task", [tasks.quadratic(), tasks.mlp([12, 5, 3]), tasks.conv_net()])
def test_a_task_is_in_single_precision_where_nothing_else_is_asked_for(task):
    assert task.init(generator(0, "init")).dtype == torch.float32
    if task.batches:
        assert {leaf.dtype for leaf in task.batches(generator(0, "run"), 1)[0]} == {torch.float32}


def test_the_hidden_units_are_sigmoids_where_nothing_else_is_asked_for():
    task, theta = tasks.mlp([1, 1, 1]), torch.tensor([1.0, 2.0, 1.0, 0.0])  # weight, bias, twice
    logit = task.predict(theta, torch.tensor([[-2.0], [1.0]]))
    assert logit.flatten().tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-3))])


def test_two_streams_start_at_two_points_and_one_stream_at_one():
    task = tasks.mlp([12, 5, 3])
    first = task.init(generator(0, "init", 0))
    assert torch.equal(first, task.init(generator(0, "init", 0)))
    assert not torch.equal(first, task.init(generator(0, "init", 1)))


def test_accuracy_counts_the_labels_that_are_right():
    task = tasks.mlp([4, 4], weight_std=0.0, dtype=F64)
    theta = task.layout.flatten({"layer0.weight": torch.eye(4), "layer0.bias": torch.zeros(4)})
    x = torch.eye(4, dtype=F64)
    assert tasks.accuracy(task, theta.double(), x, torch.tensor([0, 1, 2, 3])) == 1
    assert tasks.accuracy(task, theta.double(), x, torch.tensor([0, 1, 3, 2])) == 0.5


def test_an_unknown_activation_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'swish' is not one of \['relu', 'sigmoid', 'tanh'\]"):
        tasks.mlp([4, 4], "swish")
