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


@pytest.mark.parametrize("activation", tasks.ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(12, 8, 7, 4), (12, 4)], ids=["deep", "one layer"])
def test_gradient_and_products_are_those_of_forward_over_reverse(activation, sizes):
    task, theta, vectors, batch = drawn(activation, sizes=sizes)
    found, loss, tape = mlp_tape.forward_backward(task.layout, activation, theta, *batch)
    slope = grad(lambda theta: task.loss(theta, batch))
    close = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(found, slope(theta), **close)
    torch.testing.assert_close(loss, task.loss(theta, batch), rtol=1e-13, atol=0)
    for vector in vectors:  # the tape serves any number of products
        expected = jvp(slope, (theta,), (vector,))[1]
        torch.testing.assert_close(mlp_tape.product(tape, vector), expected, **close)


def test_wide_layers_in_float32_take_the_fast_library_and_agree():
    made = generator(0, "wide")
    task = tasks.mlp([784, 128, 10], "tanh", weight_std=None)
    theta = task.init(made)
    vector = torch.randn(task.layout.size, generator=made)
    batch = torch.rand(100, 784, generator=made), torch.randint(0, 10, (100,), generator=made)
    found, _, tape = mlp_tape.forward_backward(task.layout, "tanh", theta, *batch)
    slope = grad(lambda theta: task.loss(theta, batch))
    expected, moved = jvp(slope, (theta,), (vector,))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(mlp_tape.product(tape, vector), moved, rtol=1e-4, atol=1e-5)


def test_the_arguments_are_left_as_they_were():
    task, theta, vectors, batch = drawn("sigmoid")
    kept = theta.clone(), vectors.clone()
    _, _, tape = mlp_tape.forward_backward(task.layout, "sigmoid", theta, *batch)
    mlp_tape.product(tape, vectors[0])
    assert torch.equal(theta, kept[0]) and torch.equal(vectors, kept[1])


def test_an_unknown_activation_is_refused():
    task, theta, _, batch = drawn("tanh")
    with pytest.raises(ValueError, match="gelu"):
        mlp_tape.forward_backward(task.layout, "gelu", theta, *batch)
