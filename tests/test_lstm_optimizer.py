"""The exact checks of the LSTM optimizer: inputs, sizes, isolation, the first-order identity."""

import math

import pytest
import torch
from torch.func import grad

from learnopt import hypergrad, lstm_optimizer, lstm_window, tasks, unroll
from learnopt.seeding import generator

SETTINGS = [("raw", 1.0), ("log", 0.1), ("rnnprop", 0.1)]
F64 = torch.float64


def small_task(inputs):
    if inputs == "raw":
        return tasks.quadratic(dtype=F64)

    def batches(gen, n):
        return [
            (
                torch.rand(12, 6, dtype=F64, generator=gen),
                torch.randint(0, 3, (12,), generator=gen),
            )
            for _ in range(n)
        ]

    return tasks.mlp([6, 5, 3], batches=batches, weight_std=0.5, dtype=F64)


def warm_start(task, opt):
    """A carry whose LSTM state is not zero, as in the middle of a trajectory."""
    carry = unroll.start(task, opt, task.init(generator(0, "init")) + 0.1)
    state = {
        name: 0.3 * torch.randn(leaf.shape, dtype=F64, generator=generator(0, name))
        for name, leaf in carry.state.items()
    }
    return carry._replace(state=state)


def test_the_log_inputs_take_the_values_of_the_formula():
    e = math.e
    grads = torch.tensor([1.0, e**-5, e**-10, -(e**-10), -(e**-11), 0.0], dtype=F64)
    expected = [[0, 1], [-0.5, 1], [-1, 1], [-1, -1], [-1, -1 / e], [-1, 0]]
    seen = lstm_optimizer.features(grads, "log")
    torch.testing.assert_close(seen, torch.tensor(expected, dtype=F64), rtol=1e-12, atol=1e-12)


def test_the_clamped_log_inputs_equal_the_two_branches_of_the_paper():
    grads = torch.randn(1000, dtype=F64, generator=generator(0)) * 10 ** torch.linspace(-9, 2, 1000)
    size = grads.abs()
    large = torch.stack([size.log() / 10, grads.sign()], -1)
    small = torch.stack([-torch.ones_like(grads), math.exp(10) * grads], -1)
    branches = torch.where((size >= math.exp(-10))[:, None], large, small)
    assert 100 < (size < math.exp(-10)).sum() < 900  # both branches are tried
    torch.testing.assert_close(lstm_optimizer.features(grads, "log"), branches)


@pytest.mark.parametrize("inputs, count", [("raw", 5221), ("log", 5301), ("rnnprop", 5301)])
def test_the_optimizer_has_the_published_number_of_parameters(inputs, count):
    phi = lstm_optimizer.init_phi(inputs, generator(0))
    assert sum(leaf.numel() for leaf in phi.values()) == count
    bound = 1 / math.sqrt(20)
    assert all(leaf.abs().max() <= bound for leaf in phi.values())
    assert phi["cell2.weight_hh"].abs().max() > 0.9 * bound


@pytest.mark.parametrize("inputs", ["raw", "log"])
def test_the_network_is_two_torch_cells_and_a_linear_layer(inputs):
    phi = lstm_optimizer.init_phi(inputs, generator(1), dtype=F64)
    modules = {
        "cell1": torch.nn.LSTMCell(lstm_optimizer.N_INPUTS[inputs], 20, dtype=F64),
        "cell2": torch.nn.LSTMCell(20, 20, dtype=F64),
        "out": torch.nn.Linear(20, 1, dtype=F64),
    }
    for name, module in modules.items():
        prefix = name + "."
        own = {k[len(prefix) :]: v for k, v in phi.items() if k.startswith(prefix)}
        module.load_state_dict(own)
    opt, theta = lstm_optimizer.lstm(inputs, 0.5), torch.zeros(7, dtype=F64)
    state = opt.init(theta)
    one = two = None
    for t in range(3):
        gradient = torch.randn(7, dtype=F64, generator=generator(2, t))
        delta, state = opt.update(phi, gradient, state, theta)
        one = modules["cell1"](lstm_optimizer.features(gradient, inputs), one)
        two = modules["cell2"](one[0], two)
        torch.testing.assert_close(delta, 0.5 * modules["out"](two[0]).squeeze(-1))


@pytest.mark.parametrize("inputs, scale", SETTINGS)
def test_coordinates_are_alike_and_apart(inputs, scale):
    phi = lstm_optimizer.init_phi(inputs, generator(0), dtype=F64)
    opt, theta = lstm_optimizer.lstm(inputs, scale), torch.zeros(9, dtype=F64)
    state = {
        name: torch.randn(leaf.shape, dtype=F64, generator=generator(0, name))
        for name, leaf in opt.init(theta).items()
    }
    gradient = torch.randn(9, dtype=F64, generator=generator(3))
    delta, _ = opt.update(phi, gradient, state, theta)

    order = torch.randperm(9, generator=generator(4))
    shuffled = {name: leaf[order] for name, leaf in state.items()}
    permuted, _ = opt.update(phi, gradient[order], shuffled, theta)
    torch.testing.assert_close(permuted, delta[order])

    nudged = gradient.clone()
    nudged[4] += 1.0
    moved, _ = opt.update(phi, nudged, state, theta)
    assert ((moved - delta).abs() > 1e-12).nonzero().flatten().tolist() == [4]

    head = {name: leaf[:5] for name, leaf in state.items()}
    torch.testing.assert_close(opt.update(phi, gradient[:5], head, theta[:5])[0], delta[:5])


@pytest.mark.parametrize("inputs, scale", SETTINGS)
@pytest.mark.parametrize("weights", [(1.0,) * 8, (1.0,) * 7 + (0.0,), (0.5, 0, 2.0, 1, 0, 1, 1, 3)])
def test_the_fast_window_equals_reverse_mode_with_gradients_detached(inputs, scale, weights):
    task, opt = small_task(inputs), lstm_optimizer.lstm(inputs, scale)
    phi = lstm_optimizer.init_phi(inputs, generator(0, "phi"), dtype=F64)
    carry = warm_start(task, opt)
    batches = task.batches(generator(0, "batches"), 9)
    feeds = [unroll.Feed(batches[t], batches[t + 1], w) for t, w in enumerate(weights)]
    step = unroll.make_step(task, opt, second_order=False)
    expected, end = hypergrad.reverse(step, phi, carry, feeds)

    fast = lstm_window.Window(inputs, scale, 10, task.layout.size, F64)
    fast.load(phi, carry.state)
    theta, slopes = carry.theta, []
    for t in range(8):
        gradient = grad(task.loss)(theta, batches[t])
        theta = theta + fast.forward(gradient)
        slopes.append(weights[t] * grad(task.loss)(theta, batches[t + 1]))
    suffix_sums = torch.stack(slopes).flip(0).cumsum(0).flip(0)
    found = fast.backward(suffix_sums)

    assert list(found) == list(expected)
    for name in expected:
        error = (found[name] - expected[name]).norm() / expected[name].norm()
        assert error < 1e-10, name  # seen: 5e-16
    torch.testing.assert_close(theta, end.theta)
    for name, leaf in end.state.items():
        torch.testing.assert_close(fast.state()[name], leaf)


def test_the_first_order_gradient_is_close_to_the_second_order_one_but_not_equal():
    task, opt = tasks.quadratic(dtype=F64), lstm_optimizer.lstm("raw", 1.0)
    phi = lstm_optimizer.init_phi("raw", generator(0, "phi"), dtype=F64)
    carry = unroll.start(task, opt, task.init(generator(0)))
    batch = task.batches(generator(0, "batches"), 1)[0]
    feeds = [unroll.Feed(batch, batch, 1.0)] * 20
    both = []
    for second_order in (False, True):
        slopes, _ = hypergrad.reverse(unroll.make_step(task, opt, second_order), phi, carry, feeds)
        both.append(torch.cat([leaf.flatten() for leaf in slopes.values()]))
    cosine = torch.cosine_similarity(*both, dim=0)
    assert 0.9 < cosine < 1 - 1e-9
    assert (both[0] - both[1]).norm() > 1e-3 * both[1].norm()


def test_a_one_parameter_rule_has_the_first_order_gradient_of_the_closed_form():
    # u = -eta g: d/d eta = -sum_s <S_s, g_s>, the replayed loss with the gradients frozen
    from learnopt import optimizers

    task, opt = tasks.quadratic(dtype=F64), optimizers.sgd()
    carry = unroll.start(task, opt, task.init(generator(0)))
    batch = task.batches(generator(0, "batches"), 1)[0]
    eta, theta, grads = 0.01, carry.theta, []
    for _ in range(6):
        grads.append(grad(task.loss)(theta, batch))
        theta = theta - eta * grads[-1]
    grads.append(grad(task.loss)(theta, batch))
    suffix = torch.stack(grads[1:]).flip(0).cumsum(0).flip(0)
    expected = -(suffix * torch.stack(grads[:-1])).sum() * eta  # d/d log eta

    phi = optimizers.hyperparameters(eta, dtype=F64)
    feeds = [unroll.Feed(batch, batch, 1.0)] * 6
    first, _ = hypergrad.reverse(unroll.make_step(task, opt, False), phi, carry, feeds)
    second, _ = hypergrad.reverse(unroll.make_step(task, opt), phi, carry, feeds)
    numeric, _ = hypergrad.central_difference(unroll.make_step(task, opt), phi, carry, feeds)
    torch.testing.assert_close(first["log_lr"], expected, rtol=1e-10, atol=0)
    torch.testing.assert_close(second["log_lr"], numeric["log_lr"], rtol=1e-6, atol=0)
    assert abs(first["log_lr"] / second["log_lr"] - 1) > 0.01


def test_an_unknown_input_form_is_refused():
    with pytest.raises(ValueError, match="'logs' is not one of"):
        lstm_optimizer.lstm("logs")


def test_the_fast_window_over_several_chunks_equals_one_over_all(monkeypatch):
    n, phi = 25, lstm_optimizer.init_phi("log", generator(0), dtype=F64)
    grads = torch.randn(4, n, dtype=F64, generator=generator(1))
    state = lstm_optimizer.lstm("log").init(torch.zeros(n, dtype=F64))
    results = []
    for chunk in (4096, 10):
        monkeypatch.setattr(lstm_window, "CHUNK", chunk)
        fast = lstm_window.Window("log", 0.1, 4, n, F64)
        fast.load(phi, state)
        updates = torch.stack([fast.forward(g) for g in grads])
        results.append((updates, fast.state(), fast.backward(grads)))
    assert len(fast.chunks) == 3
    torch.testing.assert_close(results[0], results[1])


def test_rnnprop_inputs_are_adams_averages_and_blind_to_the_scale_of_the_loss():
    averages = torch.zeros(4, 3, dtype=F64)
    m = v = torch.zeros(4, dtype=F64)
    for t in range(1, 6):
        g = torch.randn(4, dtype=F64, generator=generator(0, t))
        m, v = 0.95 * m + 0.05 * g, 0.95 * v + 0.05 * g**2
        root = (v / (1 - 0.95**t)).sqrt()
        x, averages = lstm_optimizer.averaged(g, averages)
        expected = torch.stack([m / (1 - 0.95**t) / root, g / root], dim=-1)
        torch.testing.assert_close(x, expected, rtol=1e-12, atol=0)
    opt, phi = lstm_optimizer.lstm("rnnprop"), lstm_optimizer.init_phi("rnnprop", generator(0))
    phi = {name: leaf.double() for name, leaf in phi.items()}
    theta = torch.zeros(4, dtype=F64)
    one, two = (opt.update(phi, c * g, opt.init(theta), theta)[0] for c in (1.0, 1e-9))
    torch.testing.assert_close(one, two, rtol=1e-10, atol=0)
