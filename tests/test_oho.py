"""Real-time recurrent learning of hyperparameters, against reverse mode, differences and torch."""

import pytest
import torch
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves

from learnopt import hypergrad, oho, optimizers, tasks, unroll
from learnopt.oho_mlp import MLP
from learnopt.seeding import generator

SIZES = [10, 8, 6, 4]
DOUBLE = {"dtype": torch.float64}


def network(activation="tanh"):
    return tasks.mlp(SIZES, activation, weight_std=None, **DOUBLE)


def batches(n, size=9, stream="train"):
    made = generator(0, stream)
    return [
        (
            torch.randn(size, SIZES[0], generator=made, **DOUBLE),
            torch.randint(0, SIZES[-1], (size,), generator=made),
        )
        for _ in range(n)
    ]


def feeds(n):
    return list(zip(batches(n), batches(n, stream="validation"), strict=True))


def starts(task, n=2):
    made = generator(0, "init")
    return torch.stack([task.init(made) for _ in range(n)])


def knobs(lrs, decays, n_groups=1):
    def spread(values):
        return torch.tensor(values, **DOUBLE)[:, None].expand(-1, n_groups).clone()

    return {"lr": spread(lrs), "weight_decay": spread(decays)}


def rolled_out(task, phi, theta, data, judge, group):
    """The validation loss at the end of plain training, as one function of phi {name: (G,)}."""
    for batch in data:
        gradient = grad(task.loss)(theta, batch)
        lr, decay = phi["lr"][group], phi["weight_decay"][group]
        theta = theta - lr * (gradient + decay * theta)
    return task.loss(theta, judge)


STILL = oho.Rule(rates={})
GROUPS = {"global": None, "two sets": (0, 0, 0, 0, 1, 1), "each tensor": (0, 1, 2, 3, 4, 5)}


@pytest.mark.parametrize("lr", [0.02, 0.2, 0.5])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_exact_slopes_are_those_of_reverse_mode_through_the_whole_training(lr, groups):
    task, data = network(), feeds(30)
    group = torch.tensor(groups or [0] * 6)[task.layout.segment]
    n_groups = int(group.max()) + 1
    phi, theta = knobs([lr, lr / 2], [0.01, 0.0], n_groups), starts(task)
    for learner in (
        oho.Reference(task, optimizers.decayed(optimizers.sgd()), groups=groups),
        MLP(task, "tanh", groups),
    ):
        _, state, _ = oho.run(learner, STILL, phi, learner.start(theta), data)
        slopes = learner.slopes(state, data[-1][1])
        for k in range(2):
            one = {name: value[k] for name, value in phi.items()}
            expected = grad(
                lambda phi, k=k: rolled_out(
                    task, phi, theta[k], [b for b, _ in data], data[-1][1], group
                )
            )(one)
            for name in phi:
                torch.testing.assert_close(slopes[name][k], expected[name], rtol=1e-10, atol=1e-14)


def test_exact_slopes_are_the_difference_of_two_trainings():
    task, data, eps = network(), feeds(20), 1e-5
    learner, theta = MLP(task, "tanh"), starts(task, 1)

    def end(lr, decay):
        phi = knobs([lr], [decay])
        return oho.run(learner, STILL, phi, learner.start(theta), data)[1]

    slopes = learner.slopes(end(0.2, 0.01), data[-1][1])

    def loss(lr, decay):
        return task.loss(learner.theta(end(lr, decay))[0], data[-1][1])

    by_lr = (loss(0.2 + eps, 0.01) - loss(0.2 - eps, 0.01)) / (2 * eps)
    by_decay = (loss(0.2, 0.01 + eps) - loss(0.2, 0.01 - eps)) / (2 * eps)
    torch.testing.assert_close(slopes["lr"][0, 0], by_lr, rtol=1e-7, atol=0)
    torch.testing.assert_close(slopes["weight_decay"][0, 0], by_decay, rtol=1e-7, atol=0)


@pytest.mark.parametrize("activation", tasks.ACTIVATIONS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS.keys())
def test_the_fast_path_tunes_as_the_reference_does(activation, shared, groups):
    task, data = network(activation), feeds(25)
    rule = oho.Rule({"lr": 1e-3, "weight_decay": 1e-5}, {"lr": (0.0, 1.0)}, reset_every=20)
    n_groups = max(groups or [0]) + 1
    ends = []
    for learner in (
        oho.Reference(task, optimizers.decayed(optimizers.sgd()), groups=groups, shared=shared),
        MLP(task, activation, groups, shared),
    ):
        phi = knobs([0.1, 0.4], [0.01, 1e-3], n_groups)
        phi, state, _ = oho.run(learner, rule, phi, learner.start(starts(task)), data)
        ends.append((phi, learner.theta(state), learner.tangents(state)))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-10, atol=1e-13)


def test_shared_tangents_are_the_sum_of_the_exact_ones_and_so_are_their_slopes():
    task, data, groups = network(), feeds(30), oho.tensor_groups(network().layout)
    phi, theta = knobs([0.2], [0.01], 6), starts(task, 1)
    found = {}
    for shared in (False, True):
        learner = MLP(task, "tanh", groups, shared)
        _, state, _ = oho.run(learner, STILL, phi, learner.start(theta), data)
        found[shared] = learner.tangents(state), learner.slopes(state, data[-1][1])
    sums = found[False][0].unflatten(1, (2, 6)).sum(2)
    torch.testing.assert_close(found[True][0], sums, rtol=1e-12, atol=1e-14)
    for name in phi:
        exact, parts = (found[shared][1][name] for shared in (False, True))
        torch.testing.assert_close(parts.sum(), exact.sum(), rtol=1e-11, atol=0)
        assert (parts - exact).abs().max() > 1e-3 * exact.abs().max()  # but not each by itself


@pytest.mark.parametrize("rule", [optimizers.momentum(), optimizers.adam(), optimizers.rmsprop()])
def test_momentum_and_adam_carry_the_tangents_of_their_state(rule):
    task, data = network(), feeds(20)
    opt = optimizers.decayed(rule)
    phi = {**knobs([0.01], [0.01]), "logit_momentum": torch.tensor([[1.5]], **DOUBLE)}
    names = tuple(phi)
    learner, theta = oho.Reference(task, opt, names), starts(task, 1)
    _, state, _ = oho.run(learner, STILL, phi, learner.start(theta), data)
    slopes = learner.slopes(state, data[-1][1])
    plain = [unroll.Feed(batch) for batch, _ in data[:-1]]
    steps = [*plain, unroll.Feed(*data[-1], 1.0)]
    one = {name: value[0, 0] for name, value in phi.items()}
    step = unroll.make_step(task, opt)
    expected, _ = hypergrad.reverse(step, one, unroll.start(task, opt, theta[0]), steps)
    for name in names:
        torch.testing.assert_close(slopes[name][0, 0], expected[name], rtol=1e-9, atol=1e-13)


def test_without_meta_rates_training_is_that_of_torch_sgd():
    task, data = network(), feeds(25)
    learner, theta = MLP(task, "tanh", tuned=False), starts(task, 1)
    _, state, _ = oho.run(learner, STILL, knobs([0.3], [0.02]), learner.start(theta), data)
    ours = learner.theta(state)[0]
    weight = theta[0].clone().requires_grad_()
    torch_sgd = torch.optim.SGD([weight], lr=0.3, weight_decay=0.02)
    for batch, _ in data:
        torch_sgd.zero_grad()
        task.loss(weight, batch).backward()
        torch_sgd.step()
    torch.testing.assert_close(ours, weight.detach(), rtol=1e-12, atol=1e-15)


def test_the_tangents_of_a_quadratic_are_the_closed_form():
    # L = |theta - b|_Q^2 / 2: A_t = -t Q (1 - eta Q)^(t - 1) (theta_0 - b), in coordinates of Q
    curvature, centre = (
        torch.tensor([0.5, 2.0, 4.0], **DOUBLE),
        torch.tensor([1.0, -1, 2], **DOUBLE),
    )
    task = tasks.noisy_quadratic(curvature, torch.zeros(3), torch.zeros(3, **DOUBLE))
    learner = oho.Reference(task, optimizers.sgd(), ("lr",))
    for lr, bounded in ((0.3, True), (0.6, False)):
        phi, norms = {"lr": torch.full((1, 1), lr, **DOUBLE)}, []
        state = learner.start(torch.zeros(1, 3, **DOUBLE))
        for t in range(1, 61):
            state = learner.advance(phi, state, centre)
            expected = t * curvature * (1 - lr * curvature) ** (t - 1) * centre
            torch.testing.assert_close(learner.tangents(state)[0, 0], expected)
            norms.append(learner.tangents(state).norm())
        assert (
            norms[-1] < max(norms)
        ) == bounded  # contraction: |1 - eta q| < 1 in every direction


def test_resetting_every_step_is_a_one_step_hypergradient():
    task, data = network(), feeds(6)
    learner, theta = MLP(task, "tanh"), starts(task, 1)
    rule = oho.Rule({}, reset_every=1)
    phi = knobs([0.2], [0.0])
    _, state, _ = oho.run(learner, rule, phi, learner.start(theta), data)
    _, before, _ = oho.run(learner, rule, phi, learner.start(theta), data[:-1])
    gradient = grad(task.loss)(learner.theta(before)[0], data[-1][0])
    torch.testing.assert_close(learner.tangents(state)[0, 0], -gradient, rtol=1e-12, atol=1e-15)


def test_the_rule_moves_down_and_stays_inside_its_limits():
    rule = oho.Rule({"lr": 0.5}, {"lr": (0.0, 0.3)})
    phi = {"lr": torch.tensor([[0.2], [0.2], [0.2]]), "weight_decay": torch.ones(3, 1)}
    slopes = {"lr": torch.tensor([[0.1], [1.0], [-1.0]])}
    moved = rule.update(phi, slopes)
    torch.testing.assert_close(moved["lr"], torch.tensor([[0.15], [0.0], [0.3]]))
    assert moved["weight_decay"] is phi["weight_decay"]


def test_in_log_space_a_rate_never_reaches_zero():
    rule = oho.Rule({"lr": 1.0}, in_log=True, largest=0.1)
    phi = rule.update({"lr": torch.tensor([[0.2]])}, {"lr": torch.tensor([[1e6]])})
    torch.testing.assert_close(phi["lr"], torch.tensor([[0.2]]) * torch.tensor(-0.1).exp())


def test_in_log_space_a_value_follows_the_slope_of_its_logarithm_within_the_largest_step():
    rule = oho.Rule({"lr": 0.5, "momentum": 0.5}, in_log=True, largest=0.1)
    phi = {"lr": torch.tensor([[0.2], [0.2]], **DOUBLE)}
    phi["momentum"] = torch.tensor([[-0.4], [-0.4]], **DOUBLE)  # in no limits: may be negative
    slopes = {name: torch.tensor([[0.3], [-1e6]], **DOUBLE) for name in phi}
    # d L / d log value = value x slope: 0.5 x 0.2 x 0.3 = 0.03, 0.5 x 0.4 x 0.3 = 0.06
    expected = {
        "lr": torch.tensor([[-0.03], [0.1]], **DOUBLE).exp() * 0.2,
        "momentum": torch.tensor([[0.06], [-0.1]], **DOUBLE).exp() * -0.4,
    }
    torch.testing.assert_close(rule.update(phi, slopes), expected, rtol=1e-14, atol=0)


def test_the_default_rule_is_the_papers():
    phi = {"lr": torch.tensor([[0.1]], **DOUBLE), "weight_decay": torch.tensor([[1e-4]], **DOUBLE)}
    moved = oho.Rule().update(phi, {name: torch.tensor([[-100.0]], **DOUBLE) for name in phi})
    torch.testing.assert_close(moved["lr"].item(), 0.1 + 100 * 1e-5, rtol=1e-14, atol=0)
    torch.testing.assert_close(moved["weight_decay"].item(), 1e-4 + 100 * 1e-7, rtol=1e-14, atol=0)
    beyond = oho.Rule().update(phi, {name: torch.full((1, 1), -1e9, **DOUBLE) for name in phi})
    assert beyond["lr"].item() == pytest.approx(0.1 + 1e4) and beyond["weight_decay"].item() == 2e-4


def test_updates_may_be_rarer_than_steps_while_the_tangents_move_at_every_step():
    task, data = network(), feeds(10)
    learner, theta = MLP(task, "tanh"), starts(task, 1)
    seen = []
    rule = oho.Rule({"lr": 1e-3}, update_every=4)
    oho.run(
        learner, rule, knobs([0.2], [0.0]), learner.start(theta), data,
        record=lambda _, phi, state: seen.append((phi["lr"].item(), learner.tangents(state).sum())),
    )  # fmt: skip
    changes = [t for t in range(1, 10) if seen[t][0] != seen[t - 1][0]]
    assert changes == [1, 5, 9]  # moved at the end of steps 0, 4, 8
    assert len({total.item() for _, total in seen}) == 10


def test_a_run_may_go_on_where_it_was():
    task, data, rule = network(), feeds(12), oho.Rule({"lr": 1e-3, "weight_decay": 1e-5})
    learner = MLP(task, "tanh")
    phi, state, _ = oho.run(
        learner, rule, knobs([0.2], [0.0]), learner.start(starts(task, 1)), data
    )
    half, middle, _ = oho.run(
        learner, rule, knobs([0.2], [0.0]), learner.start(starts(task, 1)), data[:5]
    )
    half, middle, _ = oho.run(learner, rule, half, middle, data[5:], begin=5)
    assert torch.equal(half["lr"], phi["lr"])
    assert torch.equal(learner.theta(middle), learner.theta(state))


@pytest.mark.parametrize("b", [1, 2])
def test_a_state_that_someone_holds_is_left_as_it_was(b):
    task, data, rule = network(), feeds(4), oho.Rule({"lr": 1e-3}, reset_every=3)
    learner, theta = MLP(task, "tanh"), starts(task, b)
    held, phi = [], knobs([0.2] * b, [0.01] * b)

    def record(_, phi, state):
        held.append((tree_leaves(state), [leaf.clone() for leaf in tree_leaves(state)]))

    oho.run(learner, rule, phi, learner.start(theta), data, record=record)
    for leaves, kept in held:
        assert all(torch.equal(a, b) for a, b in zip(leaves, kept, strict=True))


def test_a_diverged_run_leaves_its_neighbours_alone():
    task, data = network("relu"), feeds(60)
    learner, theta = MLP(task, "relu"), starts(task, 1).expand(2, -1)
    _, both, _ = oho.run(learner, STILL, knobs([0.1, 1e4], [0.0, 1.0]), learner.start(theta), data)
    _, one, _ = oho.run(learner, STILL, knobs([0.1], [0.0]), learner.start(theta[:1]), data)
    ends = learner.theta(both)
    assert not ends[1].isfinite().all()
    torch.testing.assert_close(ends[:1], learner.theta(one), rtol=1e-12, atol=1e-15)


def test_every_layer_is_in_one_set_and_no_set_is_empty():
    layout = tasks.mlp([20, 8, 8, 8, 8, 4]).layout  # 5 layers, 10 tensors
    for n_groups in range(1, 6):
        groups = oho.layer_groups(layout, n_groups)
        assert set(groups) == set(range(n_groups)) and list(groups) == sorted(groups)
        assert groups[0::2] == groups[1::2]  # a bias goes with its weight
    assert oho.layer_groups(layout, 2) == (0, 0, 0, 0, 1, 1, 1, 1, 1, 1)
    assert oho.tensor_groups(layout) == tuple(range(10))
    for n_groups in (0, 6):
        with pytest.raises(ValueError, match="5 layers"):
            oho.layer_groups(layout, n_groups)


def test_a_schedule_scales_the_rate_of_each_step():
    task, data = network(), feeds(5)
    learner, theta = MLP(task, "tanh", tuned=False), starts(task, 1)
    phi, factors = knobs([0.2], [0.0]), [1.0, 0.5, 0.25, 0.0, 0.0]
    _, ours, _ = oho.run(
        learner, STILL, phi, learner.start(theta), data, factor=factors.__getitem__
    )
    _, stopped, _ = oho.run(
        learner, STILL, phi, learner.start(theta), data[:3], factor=factors.__getitem__
    )
    assert torch.equal(learner.theta(ours), learner.theta(stopped))


def test_a_training_under_a_schedule_is_that_of_torch_sgd_step_by_step_over_its_epochs():
    task, data = network(), feeds(6)
    learner, theta = MLP(task, "tanh", tuned=False), starts(task, 1)
    phi, state, _ = oho.train(
        learner, STILL, knobs([0.3], [0.02]), theta, lambda epoch: data[2 * epoch : 2 * epoch + 2],
        3, lambda epoch, phi, state: phi["lr"].item(), factor=lambda t: 0.7**t,
    )  # fmt: skip
    weight = theta[0].clone().requires_grad_()
    torch_sgd = torch.optim.SGD([weight], lr=0.3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.ExponentialLR(torch_sgd, 0.7)
    for batch, _ in data:
        torch_sgd.zero_grad()
        task.loss(weight, batch).backward()
        torch_sgd.step()
        schedule.step()
    assert phi["lr"].item() == 0.3
    torch.testing.assert_close(learner.theta(state)[0], weight.detach(), rtol=1e-12, atol=1e-15)


def test_a_run_that_goes_on_counts_its_resets_and_updates_from_its_first_step():
    task, data = network(), feeds(8)
    rule = oho.Rule({"lr": 1e-3}, reset_every=3, update_every=2)
    learner, theta = MLP(task, "tanh"), starts(task, 1)
    phi, state, _ = oho.run(learner, rule, knobs([0.2], [0.0]), learner.start(theta), data)
    half, middle, _ = oho.run(learner, rule, knobs([0.2], [0.0]), learner.start(theta), data[:5])
    half, middle, _ = oho.run(learner, rule, half, middle, data[5:], begin=5)
    assert torch.equal(half["lr"], phi["lr"])
    assert torch.equal(learner.tangents(middle), learner.tangents(state))


def test_knobs_may_come_in_another_order_than_the_tangents():
    task, data = network(), feeds(3)
    learner = oho.Reference(task, optimizers.decayed(optimizers.sgd()))
    found = []
    for names in (("lr", "weight_decay"), ("weight_decay", "lr")):
        phi = {name: knobs([0.2], [0.01])[name] for name in names}
        state = oho.run(learner, STILL, phi, learner.start(starts(task, 1)), data)[1]
        found.append(learner.tangents(state))
    assert torch.equal(*found)


def test_a_knob_per_coordinate_is_a_population_member():
    task = network()
    opt = oho.grouped(optimizers.sgd(), task.layout.segment)
    phi = {"lr": torch.arange(6.0, **DOUBLE)}
    one = torch.ones(task.layout.size, **DOUBLE)
    delta, _ = opt.update(phi, one, {}, one)
    torch.testing.assert_close(-delta, task.layout.segment.double())
    stacked, _ = vmap(lambda phi: opt.update(phi, one, {}, one))({"lr": phi["lr"][None]})
    assert torch.equal(stacked[0], delta)


@pytest.mark.parametrize(
    "make", [MLP, lambda task, _: oho.Reference(task, optimizers.decayed(optimizers.sgd()))]
)
def test_an_interrupted_training_goes_on_bit_for_bit(make, tmp_path):
    task, data, rule = network(), feeds(12), oho.Rule({"lr": 1e-3, "weight_decay": 1e-5})
    learner, theta, path = make(task, "tanh"), starts(task, 1), tmp_path / "run.checkpoint"

    def draw(epoch):
        return data[4 * epoch : 4 * epoch + 4]

    def killed(epoch):
        if epoch == 2:
            raise KeyboardInterrupt
        return draw(epoch)

    def look(epoch, phi, state):
        return {"lr": phi["lr"], "norm": learner.tangents(state).norm()}

    def train(draw, checkpoint=None):
        phi = knobs([0.2], [0.0])
        told = {"setting": 1}
        return oho.train(
            learner, rule, phi, theta, draw, 3, look, checkpoint=checkpoint, parameters=told
        )

    with pytest.raises(KeyboardInterrupt):
        train(killed, path)
    phi, state, seen = train(draw, path)
    expected_phi, expected_state, expected = train(draw)
    assert len(seen) == 4 and torch.equal(phi["lr"], expected_phi["lr"])
    assert torch.equal(learner.theta(state), learner.theta(expected_state))
    assert all(torch.equal(a["norm"], b["norm"]) for a, b in zip(seen, expected, strict=True))
