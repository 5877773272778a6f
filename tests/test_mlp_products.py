"""The population's gradients and Hessian-vector products are those of torch.func, to float64."""

import pytest
import torch
from torch.func import grad, jvp

from learnopt import mlp_products, tasks
from learnopt.seeding import generator

SIZES = [12, 8, 7, 4]


def drawn(activation, n_networks=3, n_vectors=2):
    """A task, rows (b, 1 + K, n) of parameters and vectors, and a batch, in float64."""
    task = tasks.mlp(SIZES, activation, weight_std=None, dtype=torch.float64)
    made = generator(0, "products", activation)
    theta = torch.stack([task.init(made) for _ in range(n_networks)])
    vectors = torch.randn(
        n_networks, n_vectors, task.layout.size, generator=made, dtype=torch.float64
    )
    x = torch.randn(9, 3, 4, generator=made, dtype=torch.float64)
    labels = torch.randint(0, 4, (9,), generator=made)
    return task, torch.cat([theta[:, None], vectors], dim=1), (x, labels)


@pytest.mark.parametrize("activation", tasks.ACTIVATIONS)
@pytest.mark.parametrize("n_vectors", [0, 1, 3])
def test_gradient_and_products_are_those_of_forward_over_reverse(activation, n_vectors):
    task, rows, batch = drawn(activation, n_vectors=n_vectors)
    parts = mlp_products.split(task.layout, rows)
    found, loss = mlp_products.gradient_and_products(activation, parts, *batch)
    found = mlp_products.join(found)
    for theta, vectors, ours, value in zip(rows[:, 0], rows[:, 1:], found, loss, strict=True):
        slope = grad(lambda theta: task.loss(theta, batch))
        expected = [slope(theta), *(jvp(slope, (theta,), (v,))[1] for v in vectors)]
        torch.testing.assert_close(ours, torch.stack(expected), rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(value, task.loss(theta, batch), rtol=1e-13, atol=0)


def test_a_product_scales_with_its_vector():
    # the finite difference of the original code fails this from |v| = 1,000 on
    task, rows, batch = drawn("tanh", n_vectors=1)
    parts = mlp_products.split(task.layout, rows)
    once, _ = mlp_products.gradient_and_products("tanh", parts, *batch)
    for size in (1e-3, 1e5):
        scaled = rows.clone()
        scaled[:, 1] *= size
        parts = mlp_products.split(task.layout, scaled)
        many, _ = mlp_products.gradient_and_products("tanh", parts, *batch)
        expected = size * mlp_products.join(once)[:, 1]
        torch.testing.assert_close(mlp_products.join(many)[:, 1], expected, rtol=1e-11, atol=0)


def test_the_arguments_are_left_as_they_were():
    task, rows, batch = drawn("tanh")
    parts = mlp_products.split(task.layout, rows)
    mlp_products.gradient_and_products("tanh", parts, *batch)
    assert torch.equal(mlp_products.join(parts), rows)


def test_an_unknown_activation_is_refused():
    task, rows, batch = drawn("tanh")
    with pytest.raises(ValueError, match="gelu"):
        mlp_products.gradient_and_products("gelu", mlp_products.split(task.layout, rows), *batch)
