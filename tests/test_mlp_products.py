"""Gradients and Hessian-vector products by hand are those of torch.func, to float64."""

import pytest
import torch
from torch.func import grad, jvp

from learnopt import mlp_products, tasks
from learnopt.seeding import generator


def drawn(activation, b=3, n_vectors=2, sizes=(12, 8, 7, 4), dtype=torch.float64, batch=9):
    """A task, parameters (b, n), vectors (b, K, n), and a batch of images."""
    task = tasks.mlp(list(sizes), activation, weight_std=None, dtype=dtype)
    made = generator(0, "products", activation)
    theta = torch.stack([task.init(made) for _ in range(b)])
    vectors = torch.randn(b, n_vectors, task.layout.size, generator=made, dtype=dtype)
    x = torch.randn(batch, sizes[0] // 4, 4, generator=made, dtype=dtype)
    return task, theta, vectors, (x, torch.randint(0, sizes[-1], (batch,), generator=made))


def by_hand(task, activation, theta, vectors, batch):
    """Gradients like theta, losses, and products like vectors."""
    parts = mlp_products.split(task.layout, theta)
    gradient, tape = mlp_products.forward_backward(activation, parts, *batch)
    found = mlp_products.products(tape, mlp_products.split(task.layout, vectors))
    return mlp_products.join(gradient), tape.loss(), mlp_products.join(found)


def expected(task, theta, vectors, batch):
    """The same of one network: theta (n,), vectors (K, n)."""
    slope = grad(lambda theta: task.loss(theta, batch))
    moved = [jvp(slope, (theta,), (vector,))[1] for vector in vectors]
    return slope(theta), task.loss(theta, batch), torch.stack(moved)


@pytest.mark.parametrize("activation", tasks.ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(12, 8, 7, 4), (12, 4)], ids=["deep", "one layer"])
@pytest.mark.parametrize("n_vectors", [1, 3])
def test_gradient_and_products_are_those_of_forward_over_reverse(activation, sizes, n_vectors):
    task, *rows, batch = drawn(activation, n_vectors=n_vectors, sizes=sizes)
    close = {"rtol": 1e-12, "atol": 1e-14}
    together = by_hand(task, activation, *rows, batch)
    for k, one in enumerate(zip(*rows, strict=True)):
        wanted = expected(task, *one, batch)
        torch.testing.assert_close(tuple(found[k] for found in together), wanted, **close)
        torch.testing.assert_close(by_hand(task, activation, *one, batch), wanted, **close)


@pytest.mark.parametrize("b", [1, 2])
def test_wide_layers_in_float32_take_the_fast_library_and_agree(b):
    drawing = {"sizes": (784, 128, 128, 10), "dtype": torch.float32, "batch": 100}
    task, *rows, batch = drawn("tanh", b, **drawing)
    together = by_hand(task, "tanh", *rows, batch)
    for k, one in enumerate(zip(*rows, strict=True)):
        wanted = expected(task, *one, batch)
        for found in (by_hand(task, "tanh", *one, batch), [found[k] for found in together]):
            for ours, theirs in zip(found, wanted, strict=True):
                assert (ours - theirs).norm() < 1e-5 * theirs.norm()


def test_a_product_scales_with_its_vector():
    # the finite difference of the original code fails this from |v| = 1,000 on
    task, theta, vectors, batch = drawn("tanh", n_vectors=1)
    once = by_hand(task, "tanh", theta, vectors, batch)[2]
    for size in (1e-3, 1e5):
        many = by_hand(task, "tanh", theta, size * vectors, batch)[2]
        torch.testing.assert_close(many, size * once, rtol=1e-11, atol=0)


@pytest.mark.parametrize("one", [True, False])
def test_the_arguments_are_left_as_they_were(one):
    task, theta, vectors, batch = drawn("sigmoid")
    if one:
        theta, vectors = theta[0], vectors[0]
    kept = theta.clone(), vectors.clone()
    by_hand(task, "sigmoid", theta, vectors, batch)
    assert torch.equal(theta, kept[0]) and torch.equal(vectors, kept[1])


def test_an_unknown_activation_is_refused():
    task, theta, _, batch = drawn("tanh")
    with pytest.raises(ValueError, match="gelu"):
        mlp_products.forward_backward("gelu", mlp_products.split(task.layout, theta), *batch)
