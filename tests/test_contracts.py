"""What every optimizer promises on every task. A new optimizer or a new task: one row."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import pytest
import torch
from torch.func import jvp, vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map

from learnopt import hypergrad, lstm_optimizer, optimizers, seeding, tasks, unroll
from learnopt.optimizers import Optimizer, hyperparameters
from learnopt.unroll import Carry, Feed

F64 = torch.float64


class OptimizerRow(NamedTuple):
    opt: Optimizer
    phi: Callable  # (dtype) -> phi


def _by_hand(opt, momentum=None, schedule=None, **more):
    opt = optimizers.scheduled(opt, schedule) if schedule else opt

    def phi(dtype):
        extra = {name: torch.tensor(value, dtype=dtype) for name, value in more.items()}
        return hyperparameters(0.01, momentum, dtype=dtype) | extra

    return OptimizerRow(opt, phi)


def _learned(inputs, out_scale):
    def phi(dtype):
        return lstm_optimizer.init_phi(inputs, seeding.generator(0, "phi"), dtype=dtype)

    return OptimizerRow(lstm_optimizer.lstm(inputs, out_scale), phi)


OPTIMIZERS = {
    "sgd": _by_hand(optimizers.sgd()),
    "momentum": _by_hand(optimizers.momentum(), 0.8),
    "nesterov": _by_hand(optimizers.nesterov(), 0.8),
    "rmsprop": _by_hand(optimizers.rmsprop()),
    "adam": _by_hand(optimizers.adam()),
    "momentum-inverse-time": _by_hand(
        optimizers.momentum(), 0.8, schedule=optimizers.inverse_time(5.0), log_decay=0.3
    ),
    "adam-exponential": _by_hand(optimizers.adam(), schedule=optimizers.exponential(0.9)),
    "sgd-cosine": _by_hand(optimizers.sgd(), schedule=optimizers.cosine(10)),
    "sgd-step-decay": _by_hand(optimizers.sgd(), schedule=optimizers.step_decay(2, 0.5)),
    "lstm-raw": _learned("raw", 1.0),
    "lstm-log": _learned("log", 0.1),
    "lstm-rnnprop": _learned("rnnprop", 0.1),
}


def _noisy(dtype):
    return tasks.noisy_quadratic(*torch.tensor([[3.0, 0.1], [0.5, 0.5], [1.0, -2.0]], dtype=dtype))


def _images(shape, n_classes, dtype):
    def batches(generator, n_batches):
        draw = partial(torch.rand, generator=generator, dtype=dtype)
        label = partial(torch.randint, n_classes, generator=generator)
        return [(draw(5, *shape), label((5,))) for _ in range(n_batches)]

    return batches


def _mlp(activation, dtype):
    return tasks.mlp([6, 4, 3], activation, _images((2, 3), 3, dtype), weight_std=0.5, dtype=dtype)


def _conv_net(dtype):
    images = _images((1, 4, 8), 3, dtype)
    return tasks.conv_net((1, 4, 8), (2, 3), 4, 3, batches=images, weight_std=0.4, dtype=dtype)


# (dtype) -> Task, with data
TASKS = {
    "quadratic": lambda dtype: tasks.quadratic(4, start_std=1.0, dtype=dtype),
    "noisy-quadratic": _noisy,
    "mlp-sigmoid": partial(_mlp, "sigmoid"),
    "mlp-tanh": partial(_mlp, "tanh"),
    "mlp-relu": partial(_mlp, "relu"),
    "conv-net": _conv_net,
}

every_optimizer = pytest.mark.parametrize("opt_name", OPTIMIZERS)
every_task = pytest.mark.parametrize("task_name", TASKS)


class Case(NamedTuple):
    task: tasks.Task
    step: Callable
    phi: dict
    carry: Carry
    feeds: list


def _case(opt_name, task_name, dtype=F64, n_steps=3):
    row, task = OPTIMIZERS[opt_name], TASKS[task_name](dtype)
    draw = partial(seeding.generator, 0, "contracts")
    train = task.batches(draw("train"), n_steps)
    score = task.batches(draw("score"), n_steps)
    feeds = [Feed(a, b, 1.0) for a, b in zip(train, score, strict=True)]
    carry = unroll.start(task, row.opt, task.init(draw("init")))
    return Case(task, unroll.make_step(task, row.opt), row.phi(dtype), carry, feeds)


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _assert_same(ours, reference, rtol=1e-10, atol=1e-12):
    """Leaf by leaf; the default leaves room for batched sums in another order, 1e-16 each."""
    ours, structure = tree_flatten(ours)
    reference, same_structure = tree_flatten(reference)
    assert structure == same_structure
    for leaf, expected in zip(ours, reference, strict=True):
        torch.testing.assert_close(leaf, expected, rtol=rtol, atol=atol)


# ---- every optimizer on every task ----


@every_task
@every_optimizer
def test_a_step_keeps_structure_shapes_and_dtype_and_moves(opt_name, task_name):
    for dtype in (F64, torch.float32):
        case = _case(opt_name, task_name, dtype)
        assert case.carry.theta.shape == (case.task.layout.size,)
        before, structure = tree_flatten(case.carry)
        end, _ = unroll.run(case.step, case.phi, case.carry, case.feeds)
        after, same_structure = tree_flatten(end)
        assert structure == same_structure
        for was, leaf in zip(before, after, strict=True):
            assert leaf.shape == was.shape and leaf.dtype == was.dtype == dtype
            assert torch.isfinite(leaf).all()
        assert (end.theta - case.carry.theta).abs().max() > 1e-6
        assert end.meta_loss > 0 and end.meta_loss.shape == ()


@every_task
@every_optimizer
def test_a_step_changes_none_of_its_arguments_and_repeats_itself(opt_name, task_name):
    case = _case(opt_name, task_name)
    # one step on, so that the state is not all zeros
    carry = case.step(case.phi, case.carry, case.feeds[0])
    given = (case.phi, carry, case.feeds[1])
    before, versions = [t.clone() for t in _tensors(given)], [t._version for t in _tensors(given)]
    first = case.step(*given)
    assert [t._version for t in _tensors(given)] == versions  # not even written and restored
    for tensor, was in zip(_tensors(given), before, strict=True):
        assert torch.equal(tensor, was)
    _assert_same(case.step(*given), first, rtol=0, atol=0)


@every_task
@every_optimizer
def test_a_population_under_vmap_is_its_members_one_by_one(opt_name, task_name):
    row, task = OPTIMIZERS[opt_name], TASKS[task_name](F64)
    runs = unroll.draw_runs(task, 3, 3, seed=0)
    start = partial(unroll.start, task, row.opt)
    step, phi = unroll.make_step(task, row.opt), row.phi(F64)
    many = vmap(step, in_dims=(None, 0, unroll.PER_RUN))
    together, _ = unroll.run(many, phi, vmap(start)(runs.theta), runs.feeds())
    assert together.theta.unique(dim=0).shape[0] == 3
    for k in range(3):
        feeds = [Feed(batch) for batch in runs.batches[k]]
        alone, _ = unroll.run(step, phi, start(runs.theta[k]), feeds)
        _assert_same(tree_map(lambda leaf, k=k: leaf[k], together), alone)


@every_task
@every_optimizer
def test_a_steps_forward_derivative_is_its_difference_quotient(opt_name, task_name):
    case = _case(opt_name, task_name)
    carry = case.step(case.phi, case.carry, case.feeds[0])
    draw = partial(torch.randn, generator=seeding.generator(0, "direction"), dtype=F64)
    along = tree_map(lambda leaf: draw(leaf.shape), (case.phi, carry))
    # in proportion to each number: mean squares, which are small, must not turn negative
    along = tree_map(lambda d, leaf: d * leaf.abs(), along, (case.phi, carry))

    def step(phi, carry):
        return case.step(phi, carry, case.feeds[1])

    end, slope = jvp(step, (case.phi, carry), along)
    _assert_same(end, step(case.phi, carry))
    eps = 1e-6
    plus, minus = (
        step(*tree_map(lambda leaf, d, e=e: leaf + e * d, (case.phi, carry), along))
        for e in (eps, -eps)
    )
    for tangent, a, b in zip(*map(tree_leaves, (slope, plus, minus)), strict=True):
        quotient = (a - b) / (2 * eps)  # truncation 1e-12, rounding 1e-16 / 1e-6, times curvature
        scale = max(1.0, quotient.abs().max().item())
        torch.testing.assert_close(tangent, quotient, rtol=0, atol=1e-7 * scale)
    assert slope.theta.abs().max() > 1e-6


@every_task
@every_optimizer
def test_forward_and_reverse_hypergradients_agree(opt_name, task_name):
    case = _case(opt_name, task_name)
    inputs = (case.step, case.phi, case.carry, case.feeds)
    if opt_name.startswith("lstm"):  # 5,000 knobs: one random direction of phi stands for them
        inputs = _along_one_direction(*inputs)
    backward, _ = hypergrad.reverse(*inputs)
    forward, *_ = hypergrad.forward(*inputs)
    assert max(leaf.abs().max() for leaf in backward.values()) > 1e-6
    _assert_same(forward, backward)


def _along_one_direction(step, phi, carry, feeds):
    """The same problem with one knob: how far phi is moved along a fixed random direction."""
    draw = partial(torch.randn, generator=seeding.generator(0, "along"), dtype=F64)
    direction = {name: draw(leaf.shape) for name, leaf in phi.items()}

    def moved(knob, carry, feed):
        at = {name: leaf + knob["distance"] * direction[name] for name, leaf in phi.items()}
        return step(at, carry, feed)

    return moved, {"distance": torch.zeros((), dtype=F64)}, carry, feeds


# ---- every optimizer ----


@every_optimizer
def test_every_leaf_of_a_state_is_a_floating_tensor_like_theta(opt_name):
    opt = OPTIMIZERS[opt_name].opt
    for dtype in (torch.float32, F64):
        for leaf in tree_leaves(opt.init(torch.ones(4, dtype=dtype))):
            assert isinstance(leaf, torch.Tensor) and leaf.dtype == dtype


@every_optimizer
def test_a_gradient_of_zero_gives_finite_updates_and_slopes(opt_name):
    row = OPTIMIZERS[opt_name]
    flat = tasks.Task("flat", None, None, lambda theta, batch: 0.0 * theta.sum(), None)
    theta = torch.ones(3, dtype=F64)
    inputs = (
        unroll.make_step(flat, row.opt),
        row.phi(F64),
        unroll.start(flat, row.opt, theta),
        [Feed(None, None, 1.0)] * 3,
    )
    slope, end = hypergrad.reverse(*inputs)
    for leaf in tree_leaves((slope, end)):
        assert torch.isfinite(leaf).all()


@pytest.mark.parametrize(
    "opt_name, task_name",
    [(name, "quadratic") for name in OPTIMIZERS] + [("momentum", name) for name in TASKS],
)
def test_a_step_traces_whole_for_the_compiler(opt_name, task_name):
    # fullgraph: no graph break, so no .item() and no branch on data; "eager" needs no C++ compiler
    case = _case(opt_name, task_name)
    torch.compiler.reset()
    compiled = torch.compile(case.step, fullgraph=True, backend="eager")
    ours, _ = unroll.run(compiled, case.phi, case.carry, case.feeds)
    plain, _ = unroll.run(case.step, case.phi, case.carry, case.feeds)
    _assert_same(ours, plain)


def test_a_step_with_a_rate_per_tensor_traces_whole():
    case = _case("momentum", "mlp-tanh")

    def step(phi, carry, feed):
        per_coordinate = phi["log_lr"][case.task.layout.segment]
        return case.step(phi | {"log_lr": per_coordinate}, carry, feed)

    phi = case.phi | {"log_lr": torch.tensor([-1.0, -2.0, -3.0, -4.0], dtype=F64)}
    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    ours, _ = unroll.run(compiled, phi, case.carry, case.feeds)
    plain, _ = unroll.run(step, phi, case.carry, case.feeds)
    _assert_same(ours, plain)


# ---- every task ----


@every_task
def test_a_task_keeps_its_dtype_and_draws_only_from_its_generator(task_name):
    for dtype in (torch.float32, F64):
        task = TASKS[task_name](dtype)
        before = torch.random.get_rng_state()
        theta = task.init(seeding.generator(0, "init"))
        batches = task.batches(seeding.generator(0, "batches"), 2)
        again = task.batches(seeding.generator(0, "batches"), 2)
        assert torch.equal(torch.random.get_rng_state(), before)
        assert len(batches) == 2
        _assert_same(list(batches), list(again), rtol=0, atol=0)
        loss = task.loss(theta, batches[0])
        assert theta.shape == (task.layout.size,) and loss.shape == ()
        assert theta.dtype == loss.dtype == dtype


@every_task
def test_a_tasks_loss_is_the_same_alone_and_in_a_population(task_name):
    task = TASKS[task_name](F64)
    runs = unroll.draw_runs(task, 4, 1, seed=0)
    feed = next(iter(runs.feeds()))
    together = vmap(task.loss)(runs.theta, feed.train)
    alone = [task.loss(theta, batches[0]) for theta, batches in zip(*runs, strict=True)]
    assert torch.stack(alone).std() > 1e-3
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-12, atol=0)
