"""OHO around a torch.nn.Module: the reference's numbers, batch normalization, save and resume."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from learnopt import oho, optimizers, tasks
from learnopt.layout import Layout
from learnopt.oho_module import OHO
from learnopt.seeding import generator

DOUBLE = {"dtype": torch.float64}


def perceptron():
    torch.manual_seed(0)  # torch's own initialization draws from the global stream
    layers = [torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3)]
    return torch.nn.Sequential(*layers).double()


def conv_net():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(4 * 36, 3),
    ).double()  # fmt: skip


def feeds(n, shape=(6,)):
    made = generator(0, "module")

    def batch():
        x = torch.randn(12, *shape, generator=made, **DOUBLE)
        return x, (x.flatten(1).sum(1) > 0).long() + (x.flatten(1)[:, 0] > 1).long()

    return [(batch(), batch()) for _ in range(n)]


def as_task(model):
    """The same network as a Task of the library."""
    layout = Layout.of(dict(model.named_parameters()))

    def loss(theta, batch):
        return F.cross_entropy(functional_call(model, layout.views(theta), batch[0]), batch[1])

    return tasks.Task("module", layout, lambda generator: None, loss, None)


RULES = {
    "gradient descent": (optimizers.sgd(), {}),
    "momentum": (optimizers.momentum(), {"logit_momentum": torch.tensor(1.0, **DOUBLE)}),
    "Adam": (optimizers.adam(), {}),
}


@pytest.mark.parametrize("sets", ["one", 2, "tensor"])
@pytest.mark.parametrize("name", RULES)
def test_it_trains_and_tunes_as_the_reference_does(name, sets):
    opt, fixed = RULES[name]
    data, rule = feeds(15), oho.Rule({"lr": 1e-3, "weight_decay": 1e-4}, {"lr": (0.0, 1.0)})
    model, task = perceptron(), as_task(perceptron())
    tuner = OHO(model, F.cross_entropy, 0.05, 0.01, rule, opt, sets, fixed)
    theta = task.layout.flatten(dict(perceptron().named_parameters())).detach()
    held = {k: v.expand(len(tuner.lr)) for k, v in fixed.items()}

    def update(phi, gradient, state, theta):
        spread = {k: v[tuner_group] for k, v in held.items()}
        return optimizers.decayed(opt).update({**spread, **phi}, gradient, state, theta)

    groups = {"one": (0,) * 4, 2: (0, 0, 1, 1), "tensor": (0, 1, 2, 3)}[sets]
    tuner_group = torch.tensor(groups)[task.layout.segment]
    learner = oho.Reference(task, optimizers.Optimizer(opt.init, update), groups=groups)
    n_sets = max(groups) + 1
    phi = {"lr": torch.full((1, n_sets), 0.05, **DOUBLE)}
    phi["weight_decay"] = torch.full((1, n_sets), 0.01, **DOUBLE)
    phi, state, _ = oho.run(learner, rule, phi, learner.start(theta[None]), data)
    for batch, judge in data:
        tuner.step(batch, judge)
    torch.testing.assert_close(tuner.lr, phi["lr"][0], rtol=1e-10, atol=0)
    torch.testing.assert_close(tuner.weight_decay, phi["weight_decay"][0], rtol=1e-9, atol=1e-14)
    ours = task.layout.flatten(dict(model.named_parameters())).detach()
    torch.testing.assert_close(ours, learner.theta(state)[0], rtol=1e-10, atol=1e-12)


def test_with_batch_normalization_the_slopes_are_the_difference_of_two_trainings():
    data, still, eps = feeds(8, (1, 8, 8)), oho.Rule(rates={}), 1e-6

    def trained(lr):
        tuner = OHO(conv_net(), F.cross_entropy, lr, 0.01, still)
        for batch, judge in data:
            tuner.step(batch, judge)
        return tuner

    def judged(tuner):
        return tuner._gradient(data[-1][1], keep_buffers=False)

    tuner = trained(0.1)
    slope = tuner.tangents[0][0] @ judged(tuner)[1]
    difference = (judged(trained(0.1 + eps))[0] - judged(trained(0.1 - eps))[0]) / (2 * eps)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=0)


def test_only_training_batches_move_the_running_statistics():
    data, model, plain = feeds(5, (1, 8, 8)), conv_net(), conv_net()
    tuner = OHO(model, F.cross_entropy, 0.1, rule=oho.Rule({"lr": 1e-9}))
    torch_sgd = torch.optim.SGD(plain.parameters(), lr=0.1)
    for batch, judge in data:
        tuner.step(batch, judge)
        torch_sgd.zero_grad()
        F.cross_entropy(plain(batch[0]), batch[1]).backward()
        torch_sgd.step()
    for ours, theirs in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert model[1].num_batches_tracked == 5


def test_a_rate_that_is_too_low_grows_and_the_loss_falls():
    data, model = feeds(150, (1, 8, 8)), conv_net()
    tuner = OHO(model, F.cross_entropy, 1e-4, rule=oho.Rule({"lr": 1e-3}))
    losses = torch.stack([tuner.step(*feed) for feed in data])
    assert tuner.lr.item() > 0.01 and losses[-20:].mean() < losses[:20].mean() - 0.2


def test_a_saved_run_goes_on_bit_for_bit(tmp_path):
    data, rule = feeds(20, (1, 8, 8)), oho.Rule({"lr": 1e-3})

    def made():
        return OHO(conv_net(), F.cross_entropy, 1e-2, 1e-3, rule, optimizers.adam(), "tensor")

    whole, first = made(), made()
    for feed in data:
        whole.step(*feed)
    for feed in data[:9]:
        first.step(*feed)
    path = tmp_path / "run.pt"
    torch.save({"model": first.model.state_dict(), "tuner": first.state_dict()}, path)
    saved, second = torch.load(path, weights_only=True), made()
    second.model.load_state_dict(saved["model"])
    second.load_state_dict(saved["tuner"])
    for feed in data[9:]:
        second.step(*feed)
    assert torch.equal(second.lr, whole.lr)
    pairs = zip(second.model.state_dict().values(), whole.model.state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_a_state_of_another_model_is_refused():
    tuner, other = OHO(perceptron(), F.cross_entropy, 0.1), OHO(conv_net(), F.cross_entropy, 0.1)
    with pytest.raises(ValueError, match="another model"):
        tuner.load_state_dict(other.state_dict())


def test_a_model_with_nothing_to_train_is_refused():
    model = perceptron().requires_grad_(False)
    with pytest.raises(ValueError, match="trainable"):
        OHO(model, F.cross_entropy, 0.1)


def test_frozen_parameters_stay_as_they_are():
    model = perceptron()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    tuner = OHO(model, F.cross_entropy, 0.1)
    for feed in feeds(3):
        tuner.step(*feed)
    assert torch.equal(model[0].weight, before) and tuner.layout.size == 5 * 3 + 3


def test_parameters_of_two_types_are_refused():
    model = perceptron()
    model[0].float()
    with pytest.raises(ValueError, match="one type"):
        OHO(model, F.cross_entropy, 0.1)


def test_updates_and_resets_fall_on_their_steps_also_in_a_run_that_goes_on():
    data = feeds(7)
    rule = oho.Rule({"lr": 1e-3}, {}, update_every=3, reset_every=4)

    def made():
        return OHO(perceptron(), F.cross_entropy, 0.1, rule=rule)

    tuner, rates = made(), []
    for k, feed in enumerate(data):
        if k == 5:  # between two updates and between two resets
            saved, tuner = tuner.state_dict(), made()
            tuner.load_state_dict(saved)
        tuner.step(*feed)
        rates.append(tuner.lr.item())
    assert [k for k in range(1, 7) if rates[k] != rates[k - 1]] == [3, 6] and rates[0] != 0.1
    whole = made()
    for feed in data:
        whole.step(*feed)
    assert torch.equal(tuner.lr, whole.lr) and torch.equal(tuner.tangents[0], whole.tangents[0])


def test_loading_a_state_writes_the_parameters_into_the_model():
    first, second = (OHO(perceptron(), F.cross_entropy, 0.1) for _ in range(2))
    first.step(*feeds(1)[0])
    second.load_state_dict(first.state_dict())
    pairs = zip(second.model.parameters(), first.model.parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
