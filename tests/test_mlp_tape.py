"""One network's gradient and Hessian-vector products are those of torch.func, to float64."""

import pytest
import torch
from torch.func import grad, jvp

from learnopt import mlp_tape, tasks
from learnopt.seeding import generator


def drawn(activation, dtype=torch.float64, sizes=(12, 8, 7, 4)):
    """A task, its parameters, two vectors, and a batch."""
    task = tasks.mlp(list(sizes), activation, weight_std=None, dtype=dtype)
    made = generator(0, "tape", activation)
    theta = task.init(made)
    vectors = torch.randn(2, task.layout.size, generator=made, dtype=dtype)
    x = torch.randn(9, sizes[0] // 4, 4, generator=made, dtype=dtype)
    return task, theta, vectors, (x, torch.randint(0, 4, (9,), generator=made))


def by_tape(task, activation, theta, vectors, batch):
    """Gradient ``(n,)``, value, and products ``(K, n)``."""
    parts = list(task.layout.views(theta).values())
    gradient, loss, tape = mlp_tape.forward_backward(activation, parts, *batch)
    found = mlp_tape.products(tape, list(task.layout.views(vectors).values()))
    flat = torch.cat([part.flatten() for part in gradient])
    return flat, loss, torch.cat([part.flatten(1) for part in found], dim=1)


@pytest.mark.parametrize("activation", tasks.ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(12, 8, 7, 4), (12, 4)], ids=["deep", "one layer"])
@pytest.mark.parametrize("n_vectors", [1, 2])
def test_gradient_and_products_are_those_of_forward_over_reverse(activation, sizes, n_vectors):
    task, theta, vectors, batch = drawn(activation, sizes=sizes)
    vectors = vectors[:n_vectors]
    found, loss, products = by_tape(task, activation, theta, vectors, batch)
    slope = grad(lambda theta: task.loss(theta, batch))
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(found, slope(theta), **close)
    torch.testing.assert_close(loss, task.loss(theta, batch), rtol=1e-13, atol=0)
    expected = [jvp(slope, (theta,), (vector,))[1] for vector in vectors]
    torch.testing.assert_close(products, torch.stack(expected), **close)


def test_wide_layers_in_float32_take_the_fast_library_and_agree():
    made = generator(0, "wide")
    task = tasks.mlp([784, 128, 10], "tanh", weight_std=None)
    theta = task.init(made)
    vector = torch.randn(task.layout.size, generator=made)
    batch = torch.rand(100, 784, generator=made), torch.randint(0, 10, (100,), generator=made)
    found, _, products = by_tape(task, "tanh", theta, vector[None], batch)
    slope = grad(lambda theta: task.loss(theta, batch))
    expected, moved = jvp(slope, (theta,), (vector,))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(products[0], moved, rtol=1e-4, atol=1e-5)


def test_the_arguments_are_left_as_they_were():
    task, theta, vectors, batch = drawn("sigmoid")
    kept = theta.clone(), vectors.clone()
    by_tape(task, "sigmoid", theta, vectors, batch)
    assert torch.equal(theta, kept[0]) and torch.equal(vectors, kept[1])


def test_an_unknown_activation_is_refused():
    task, theta, _, batch = drawn("tanh")
    with pytest.raises(ValueError, match="gelu"):
        mlp_tape.forward_backward("gelu", list(task.layout.views(theta).values()), *batch)
