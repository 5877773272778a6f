"""The original code's recursion: exact once its habits are undone, and off by what was measured."""

import pytest
import torch

from learnopt import oho, optimizers, tasks
from learnopt.oho_original import Original, Point, difference_product, exact_product
from learnopt.seeding import generator

DOUBLE = {"dtype": torch.float64}


def setting(n_steps=40):
    task = tasks.mlp([12, 8, 8, 4], "tanh", weight_std=None, **DOUBLE)
    made = generator(0, "original")
    theta = task.init(made)
    feeds = [
        tuple(
            (
                torch.randn(20, 12, generator=made, **DOUBLE),
                torch.randint(0, 4, (20,), generator=made),
            )
            for _ in range(2)
        )
        for _ in range(n_steps)
    ]
    return task, theta, feeds


def reference(task, theta, feeds, lr, decay, rule):
    learner = oho.Reference(task, optimizers.decayed(optimizers.sgd()))
    phi = {"lr": torch.tensor([[lr]], **DOUBLE), "weight_decay": torch.tensor([[decay]], **DOUBLE)}
    phi, state, _ = oho.run(learner, rule, phi, learner.start(theta[None]), feeds)
    return phi, learner.tangents(state)[0], learner.slopes(state, feeds[-1][1])


def walk(original, theta, feeds, lr, decay, meta_rates=(0.0, 0.0)):
    point = Point.start(theta, lr, decay)
    for batch, judge in feeds:
        point = original.step(point, batch, judge, meta_rates)
    return point


def exactly(task):
    return Original(task, factor=1, late=False, stale=False, products=exact_product)


def test_without_its_habits_it_is_the_exact_recursion_while_it_tunes():
    task, theta, feeds = setting()
    rule = oho.Rule({"lr": 1e-3, "weight_decay": 1e-6})
    phi, tangents, _ = reference(task, theta, feeds, 0.2, 1e-4, rule)
    point = walk(exactly(task), theta, feeds, 0.2, 1e-4, (1e-3, 1e-6))
    torch.testing.assert_close(point.by_lr, tangents[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(point.by_decay, tangents[1], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(point.lr, phi["lr"][0, 0], rtol=1e-11, atol=0)
    torch.testing.assert_close(point.decay, phi["weight_decay"][0, 0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("habit", [{"factor": 2}, {"late": True}, {"stale": True}])
def test_each_habit_alone_changes_the_tangents(habit):
    task, theta, feeds = setting(10)
    exact = walk(exactly(task), theta, feeds, 0.5, 1e-3, (1e-2, 1e-6))
    other = walk(exactly(task)._replace(**habit), theta, feeds, 0.5, 1e-3, (1e-2, 1e-6))
    assert (other.by_decay - exact.by_decay).norm() > 1e-5 * exact.by_decay.norm()


def test_the_published_decay_slope_is_about_twice_the_true_one():
    task, theta, feeds = setting()
    slopes = reference(task, theta, feeds, 0.2, 0.0, oho.Rule(rates={}))[2]
    point = walk(Original(task, products=exact_product), theta, feeds, 0.2, 0.0)
    judged = torch.func.grad(lambda theta: task.loss(theta, feeds[-1][1]))(point.theta)
    ratio = (judged @ point.by_decay) / slopes["weight_decay"][0, 0]
    assert 1.5 < ratio < 2.1


def test_the_difference_is_good_for_short_vectors_and_noise_for_long_ones():
    task = tasks.mlp([784, 32, 10], "tanh", weight_std=None)
    made = generator(0, "difference")
    theta = task.init(made)
    batch = torch.rand(50, 784, generator=made), torch.randint(0, 10, (50,), generator=made)
    slope = torch.func.grad(lambda theta: task.loss(theta, batch))
    direction = torch.randn(theta.shape, generator=made)
    n_first, errors = 784 * 32, {}
    for length in (1.0, 1e5):
        vector = length * direction / direction.norm()
        exact = exact_product(slope, theta, vector, n_first)
        error = difference_product(slope, theta, vector, n_first) - exact
        errors[length] = error.norm() / exact.norm()
    assert errors[1.0] < 1e-2 and errors[1e5] > 0.5


def test_a_zero_tangent_has_a_zero_product():
    task, theta, feeds = setting(1)
    slope = torch.func.grad(lambda theta: task.loss(theta, feeds[0][0]))
    assert not difference_product(slope, theta, torch.zeros_like(theta), 96).any()


def test_two_published_steps_on_a_parabola_are_those_by_hand():
    # L = 3 theta^2 / 2, judged alike: g = 3 theta, H = 3. Rate 0.1, decay 0.01, both meta-rates.
    task = tasks.noisy_quadratic(*torch.tensor([[3.0], [0.0], [2.0]], **DOUBLE))
    centre, alphas = torch.zeros(1, **DOUBLE), (1e-3, 1e-5)
    theta, a, b, lr, decay = 2.0, 0.0, 0.0, 0.1, 0.01
    point = Point.start(torch.tensor([theta], **DOUBLE), lr, decay)
    for _ in range(2):
        point = Original(task, products=exact_product).step(point, centre, centre, alphas, cap=1.0)
        new = theta - lr * (3 * theta + decay * theta)
        a = a - lr * (3 * a + 2 * decay * a) - 3 * theta - 2 * decay * new  # theta after the step
        lr = lr - alphas[0] * 3 * new * a
        b = b - lr * (3 * b + 2 * decay * b) - 2 * lr * new  # the rate after the meta-step
        decay = decay - alphas[1] * 3 * new * b
        theta = new
    torch.testing.assert_close([x.item() for x in point], [theta, a, b, lr, decay])
    assert lr > 0.11 and decay > 0.01001


@pytest.mark.parametrize("sign, ends", [(1, (0.5 + 1.2, 2e-4)), (-1, (0.0, 0.0))])
def test_a_rate_stays_above_zero_and_a_decay_below_its_cap(sign, ends):
    # one step from 2 to 0.5: a = -3, b = -1 with no decay, grad L_V = sign x 0.5 x curvature
    task = tasks.noisy_quadratic(*torch.tensor([[1.5], [0.0], [2.0]], **DOUBLE))
    point = Point.start(torch.tensor([2.0], **DOUBLE), 0.5, 0.0)
    target = torch.tensor([0.5 - sign * 0.4 / 1.5], **DOUBLE)  # so that grad L_V = sign x 0.4
    point = exactly(task).step(point, torch.zeros(1, **DOUBLE), target, (1.0, 1.0))
    torch.testing.assert_close((point.lr.item(), point.decay.item()), ends)


@pytest.mark.parametrize(
    "vector, step",
    [([0.01, -0.02, 5.0], 3.45e-4 * 5 / 0.02), ([7.0, 1.0, 0.0], 1e-3), ([0, 0, 2], 3.45e-4 * 5)],
)
def test_the_differences_step_comes_from_the_first_tensor_and_is_never_below_a_thousandth(
    vector, step
):
    # of theta^3 the central difference is 3 theta^2 v + r^2 v^3
    theta = torch.tensor([1.0, -4.0, 5.0], **DOUBLE)
    vector = torch.tensor(vector, **DOUBLE)
    found = difference_product(lambda theta: theta**3, theta, vector, 2)
    excess = (found - 3 * theta**2 * vector).abs().max() / vector.abs().max() ** 3
    torch.testing.assert_close(excess.sqrt().item(), step, rtol=1e-4, atol=0)


def test_the_difference_is_told_the_size_of_the_first_tensor():
    task, theta, feeds = setting(1)
    seen = []

    def products(slope, theta, vector, n_first):
        seen.append(int(n_first))
        return torch.zeros_like(vector)

    Original(task, products=products).step(Point.start(theta, 0.1), *feeds[0])
    assert seen == [12 * 8, 12 * 8]
