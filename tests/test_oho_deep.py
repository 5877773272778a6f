"""The original's experiments on CIFAR-10, on tiny networks and images."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from booktools import claims, deep, deep_experiments, ledger, rules
from learnopt import checkpoints, cifar, datasets, oho, oho_deep, optimizers, records, tasks
from learnopt.layout import Layout
from learnopt.oho_deep import Settings
from learnopt.oho_module import OHO
from learnopt.oho_tuners import Exact, Shared, Untuned
from learnopt.seeding import generator

ROOT = Path(__file__).parents[1]
DOUBLE = {"dtype": torch.float64}
RULE = oho.Rule({"lr": 1e-3, "weight_decay": 1e-3}, {"lr": (0.0, 1.0)}, reset_every=7)


def tiny(made, width=64, normalised=True):
    """A convolutional network for images of 8x8, as wide as it is."""
    norm = torch.nn.BatchNorm2d(4) if normalised else torch.nn.Identity()
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, stride=2), norm, torch.nn.Tanh(),
        torch.nn.Flatten(), torch.nn.Linear(36, 10),
    )  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=made) + 0.1)
    return net


def double(normalised=True):
    return tiny(generator(0, "tiny"), normalised=normalised).double()


def feeds(n):
    made = generator(0, "feeds")

    def batch():
        x = torch.randn(12, 3, 8, 8, generator=made, **DOUBLE)
        return x, torch.randint(0, 10, (12,), generator=made)

    return [(batch(), batch()) for _ in range(n)]


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def trained(tuner, data):
    for batch, judge in data:
        tuner.step(batch, judge)
    return tuner


# ---- the tuners ----


@pytest.mark.parametrize("sets", ["one", 2, "tensor"])
def test_shared_tangents_are_those_of_the_reference(sets):
    data, model = feeds(15), double(normalised=False)
    layout = Layout.of(dict(model.named_parameters()))

    def loss(theta, batch):
        return F.cross_entropy(functional_call(model, layout.views(theta), batch[0]), batch[1])

    task = tasks.Task("tiny", layout, None, loss, None)
    groups = {"one": (0,) * 4, 2: (0, 0, 1, 1), "tensor": (0, 1, 2, 3)}[sets]
    learner = oho.Reference(task, optimizers.decayed(optimizers.sgd()), groups=groups, shared=True)
    starts = {"lr": 0.05, "weight_decay": 0.01}
    phi = {k: torch.full((1, max(groups) + 1), x, **DOUBLE) for k, x in starts.items()}
    theta = parameters(model)[None].clone()
    phi, state, _ = oho.run(learner, RULE, phi, learner.start(theta), data)

    tuner = trained(Shared(model, F.cross_entropy, 0.05, 0.01, RULE, sets), data)
    # the same products, summed in another order, over 15 steps
    close = {"rtol": 1e-9, "atol": 1e-12}
    assert tuner.lr.std(correction=0) > 1e-6 or sets == "one"
    torch.testing.assert_close(tuner.lr, phi["lr"][0], **close)
    torch.testing.assert_close(tuner.weight_decay, phi["weight_decay"][0], **close)
    torch.testing.assert_close(parameters(model), learner.theta(state)[0], **close)
    torch.testing.assert_close(tuner.tangents[0], learner.tangents(state)[0], **close)


def test_one_set_is_the_librarys_oho_with_batch_normalization_too():
    data = feeds(15)
    ours = trained(Shared(double(), F.cross_entropy, 0.05, 0.01, RULE), data)
    plain = trained(OHO(double(), F.cross_entropy, 0.05, 0.01, RULE), data)
    for name in ("lr", "weight_decay"):
        torch.testing.assert_close(ours.phi[name], plain.phi[name], rtol=1e-10, atol=1e-14)
    pairs = zip(ours.model.state_dict().values(), plain.model.state_dict().values(), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)


def test_the_parts_of_shared_slopes_sum_to_those_of_exact_ones():
    data, still = feeds(9), oho.Rule(rates={})
    shared = trained(Shared(double(), F.cross_entropy, 0.05, 0.01, still, "tensor"), data)
    exact = trained(Exact(double(), F.cross_entropy, 0.05, 0.01, still, sets="tensor"), data)
    sums = exact.tangents[0].unflatten(0, (2, -1)).sum(1)
    torch.testing.assert_close(shared.tangents[0], sums, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(shared.gradient, exact.gradient, rtol=1e-10, atol=1e-13)


def test_an_untuned_run_is_torchs_gradient_descent_under_its_schedule():
    data, model, plain = feeds(6), double(), double()
    trained(Untuned(model, F.cross_entropy, 0.1, 0.01, lambda t: 0.5**t), data)
    sgd = torch.optim.SGD(plain.parameters(), 0.1, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.5)
    for batch, _ in data:
        sgd.zero_grad()
        F.cross_entropy(plain(batch[0]), batch[1]).backward()
        sgd.step()
        schedule.step()
    torch.testing.assert_close(parameters(model), parameters(plain), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    "kind", [Shared, Exact, lambda *given: Untuned(*given, lambda t: 1.0)],
    ids=["shared", "exact", "untuned"],
)  # fmt: skip
def test_a_step_returns_the_loss_before_it_and_keeps_the_training_gradient(kind):
    (batch, judge), plain = feeds(1)[0], double()
    loss = F.cross_entropy(plain(batch[0]), batch[1])
    loss.backward()
    tuner = kind(double(), F.cross_entropy, 0.1, 0.01)
    torch.testing.assert_close(tuner.step(batch, judge), loss.detach(), rtol=1e-12, atol=0)
    gradient = torch.cat([p.grad.flatten() for p in plain.parameters()])
    torch.testing.assert_close(tuner.gradient, gradient, rtol=1e-10, atol=1e-14)


def test_shared_tangents_move_the_rates_only_on_the_steps_that_are_due():
    rule = oho.Rule({"lr": 1e-3}, {}, update_every=3)
    tuner, rates = Shared(double(), F.cross_entropy, 0.1, rule=rule, sets=2), [0.1]
    for feed in feeds(7):
        tuner.step(*feed)
        rates.append(tuner.lr[0].item())
    assert [k for k in range(7) if rates[k + 1] != rates[k]] == [0, 3, 6]


@pytest.mark.parametrize(
    "arm, factors",
    [
        ("fixed", [1, 1, 1, 1]),
        ("cosine", [1, 0.5 + 0.5 * math.sin(math.pi / 100), 0.5, 0.5 - 2**0.5 / 4]),
        ("step", [1, 1, 0.1, 0.01]),
        ("exponential", [1, 10**-0.98, 0.1, 10**-1.5]),
    ],
)
def test_a_schedule_runs_from_the_first_step_to_the_last(arm, factors):
    trains = oho_deep.tuner(Settings(arm=arm, n_epochs=4, n_steps=25), double())
    assert [trains.factor(step) for step in (0, 49, 50, 75)] == pytest.approx(factors, rel=1e-12)


@pytest.mark.parametrize("shared, kind, n_tangents", [(True, Shared, 2), (False, Exact, 4)])
def test_settings_reach_the_tuner(shared, kind, n_tangents):
    told = Settings(sets=2, shared=shared, meta_rate=0.25, decay_limit=0.125, reset_every=5)
    trains = oho_deep.tuner(told, double())
    limits = {"lr": (0.0, math.inf), "weight_decay": (0.0, 0.125)}
    rule = oho.Rule({"lr": 0.25, "weight_decay": 0.25}, limits, reset_every=5)
    assert type(trains) is kind and len(trains.tangents[0]) == n_tangents
    assert (trains.meta if shared else trains.rule) == rule


# ---- the network and the images ----


def test_resnet18_has_the_originals_counts_and_torchs_initialization():
    before = torch.get_rng_state()
    net, again = (cifar.resnet18(generator(0, "init")) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())  # the global stream is left alone
    assert sum(p.numel() for p in net.parameters()) == 11_173_962
    assert len(list(net.parameters())) == 62
    assert torch.equal(parameters(net), parameters(again))
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    for layer in (*convolutions, net.fc):
        bound = layer.weight[0].numel() ** -0.5  # torch's: uniform up to 1 / sqrt(inputs)
        assert 0.98 * bound < layer.weight.abs().max() <= bound
        assert abs(layer.weight.std() * math.sqrt(3) / bound - 1) < 0.05
    assert all(b.isfinite().all() for b in net.buffers())
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_narrow_resnet18_has_the_same_tensors_with_fewer_channels():
    wide, narrow = (cifar.resnet18(generator(0, "init"), width) for width in (64, 8))
    assert sum(p.numel() for p in narrow.parameters()) == 176_402
    kept = {3, 1, 7, 10}  # colours, kernels, classes
    for mine, theirs in zip(narrow.parameters(), wide.parameters(), strict=True):
        eighth = [n if n in kept else n // 8 for n in theirs.shape]
        assert list(mine.shape) == eighth
    assert [m.stride for m in narrow.modules() if isinstance(m, torch.nn.Conv2d)] == [
        m.stride for m in wide.modules() if isinstance(m, torch.nn.Conv2d)
    ]
    assert narrow(torch.zeros(2, 3, 16, 16)).shape == (2, 10)


def test_pooled_images_are_means_of_squares():
    whole, pooled = cifar.images("digits", 4), cifar.images("digits", 4, pool=2)
    assert pooled.train[0].shape == (4, 3, 4, 4)
    square = whole.test[0][3, 1, 2:4, 4:6]
    torch.testing.assert_close(pooled.test[0][3, 1, 1, 2], square.mean())


def test_the_first_layer_is_drawn_as_torch_draws_it():
    made, torchs = generator(0, "init"), torch.nn.Conv2d(3, 64, 3, bias=False)
    torch.nn.init.kaiming_uniform_(torchs.weight, a=5**0.5, generator=made)
    assert torch.equal(cifar.resnet18(generator(0, "init")).conv1.weight, torchs.weight)


def test_crops_of_a_batch_are_those_of_its_images_one_by_one():
    x = torch.rand(40, 3, 8, 6, generator=generator(0, "x"))
    new, made = cifar.shifted(x, generator(0, "crops")), generator(0, "crops")
    corners = torch.randint(0, 3, (40, 2), generator=made).tolist()  # by up to an eighth of 8
    mirrored = torch.randint(0, 2, (40, 1), generator=made).flatten().tolist()
    padded = F.pad(x, (1, 1, 1, 1))
    for ours, image, (i, j), flip in zip(new, padded, corners, mirrored, strict=True):
        cut = image[:, i : i + 8, j : j + 6]
        assert torch.equal(ours, cut.flip(2) if flip else cut)
    assert 0 < sum(mirrored) < 40 and len({tuple(c) for c in corners}) == 9


def test_grey_images_get_three_channels_and_colours_of_mean_0():
    data = cifar.images("digits", 32)
    assert data.train[0].shape == (32, 3, 8, 8) and len(data.test[1]) == 32
    seen = data.look(data.train[0])
    assert seen.mean().abs() < 1e-5 and abs(seen.std() - 1) < 1e-3


def test_the_parts_are_those_of_the_data_set():
    data, whole = cifar.images("digits", 5), datasets.load("digits")
    for part, name in ((data.train, "train"), (data.validation, "valid"), (data.test, "test")):
        assert torch.equal(part[0][:, 2], getattr(whole, f"x_{name}")[:5])
        assert torch.equal(part[1], getattr(whole, f"y_{name}")[:5])
    colours = whole.x_train[:5]
    expected = torch.stack([colours.mean(), colours.std()])[:, None, None, None].expand(2, 3, 1, 1)
    torch.testing.assert_close(torch.stack([data.shift, data.scale]), expected)


def test_cifar10_is_normalised_by_the_originals_numbers(monkeypatch):
    digits = datasets.load("digits")
    monkeypatch.setattr(datasets, "load", lambda *_: digits)
    data = cifar.images("cifar10", 4)
    grey = torch.full((1, 3, 1, 1), 0.5)
    expected = [(0.5 - 0.4914) / 0.2023, (0.5 - 0.4822) / 0.1994, (0.5 - 0.4465) / 0.2010]
    torch.testing.assert_close(data.look(grey).flatten(), torch.tensor(expected))


def test_resnet18_halves_the_image_three_times_and_starts_from_torchs_constants():
    net, x, sizes = cifar.resnet18(generator(0, "init"), 8), torch.zeros(1, 3, 32, 32), []
    for name, part in net.named_children():
        x = part(x.flatten(1) if name == "fc" else x)
        sizes.append((name, x.shape[-1]))
    stem = [(name, 32) for name in ("conv1", "bn1", "relu", "maxpool", "layer1")]
    tail = [("layer2", 16), ("layer3", 8), ("layer4", 4), ("avgpool", 1), ("fc", 10)]
    assert sizes == stem + tail
    fresh = torch.nn.BatchNorm2d(8).state_dict()
    net = cifar.resnet18(generator(0, "init"), 8)
    for name, value in net.bn1.state_dict().items():
        assert torch.equal(value, fresh[name])
    assert 0.5 < net.fc.bias.abs().max() * 8 <= 1 and net.fc.bias.min() < 0 < net.fc.bias.max()


# ---- runs ----

SMALL = Settings(lr=0.05, weight_decay=1e-4, meta_rate=1e-4, n_epochs=3, n_steps=3, batch_size=8,
                 judge_size=16)  # fmt: skip
DIGITS = cifar.images("digits", 48)


def small(path=None, watch=None, **changes):
    return oho_deep.run(SMALL._replace(**changes), DIGITS, path, network=tiny, watch=watch)


def alike(one, two):
    names = one.keys() - {"seconds"}
    return one.keys() == two.keys() and all(
        torch.equal(one[name].nan_to_num(7), two[name].nan_to_num(7)) for name in names
    )


@pytest.mark.parametrize(
    "changes",
    [{}, {"sets": "tensor"}, {"sets": 2, "shared": False}, {"arm": "cosine"}],
    ids=["one", "tensor", "exact", "cosine"],
)
def test_an_interrupted_run_goes_on_bit_for_bit(changes, tmp_path):
    def stop(rows):
        raise KeyboardInterrupt

    path, changes = tmp_path / "run.pt", changes | {"disturbance": (2, "lr", 0.2), "n_cosines": 3}
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            small(path, stop, **changes)
    whole = small(**changes)
    assert alike(small(path, **changes), whole)
    began = []
    assert alike(small(path, began.append, **changes), whole) and not began  # finished: not again
    assert whole["test_loss"].shape == (4,) and whole["cosine_sd"][1:].isfinite().all()


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    small(tmp_path / "run.pt", n_epochs=1)
    with pytest.raises(checkpoints.CheckpointError, match="judge_size"):
        small(tmp_path / "run.pt", n_epochs=1, judge_size=15)


@pytest.mark.parametrize("arm", ["oho", "fixed"])
@pytest.mark.parametrize("name, value", [("lr", 0.2), ("weight_decay", 0.0)])
def test_a_disturbance_hits_either_arm_from_its_epoch_on(arm, name, value):
    slow = {"arm": arm, "meta_rate": 1e-7}
    alone, struck = small(**slow), small(**slow, disturbance=(1, name, value))
    for key in ("test_loss", name):
        assert torch.equal(alone[key][:2], struck[key][:2])
    # OHO moves on from the value, at this meta-rate by less in 3 steps
    torch.testing.assert_close(struck[name][2].item(), value, rtol=1e-3, atol=1e-6)
    assert (alone["train_loss"][2:] != struck["train_loss"][2:]).all()


def test_arms_of_a_seed_begin_alike_and_the_judge_matters():
    found = [small(), small(arm="fixed"), small(judge_on="train"), small(judge_size=8)]
    assert len({curves["test_loss"][0].item() for curves in found}) == 1
    assert len({curves["test_loss"][-1].item() for curves in found}) == 4
    assert (found[0]["norm_lr"][1:] > 0).all() and "norm_lr" not in found[1]
    assert (small(reset_every=1)["norm_lr"][1:] < found[0]["norm_lr"][1:]).all()


def test_a_run_that_breaks_is_a_result():
    curves = small(arm="fixed", lr=1e30)
    assert curves["train_loss"][1].isnan() and curves["test_loss"].shape == (4,)
    assert curves["test_loss"][-1].isnan() and curves["lr"][-1].isnan()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("changes", [{}, {"sets": "tensor"}, {"arm": "fixed"}])
def test_a_gpu_gives_the_processors_numbers(changes, tmp_path):
    slow, data = SMALL._replace(lr=0.01, **changes), cifar.images("digits", 48, "cuda")
    ours = oho_deep.run(slow, data, tmp_path / "run.pt", "cuda", tiny)
    theirs = small(lr=0.01, **changes)
    for name in ("train_loss", "test_loss", "lr"):  # 9 steps in float32, summed in another order
        torch.testing.assert_close(ours[name][1:], theirs[name][1:], rtol=1e-3, atol=1e-5)


def test_convolutions_are_in_float32_unless_tf32_is_asked_for():
    before, found = torch.backends.cudnn.allow_tf32, []
    for tf32 in (False, True):
        seen = []

        def network(made, width, seen=seen):
            net = tiny(made)
            net.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
            return net

        settings = SMALL._replace(n_epochs=1, tf32=tf32)
        oho_deep.run(settings, DIGITS, network=network)
        found.append(set(seen))
    assert found == [{False}, {True}] and torch.backends.cudnn.allow_tf32 == before


def flat_images(n=40):
    """Image k is (k + 1) / n all over, and k is its label."""
    y = torch.arange(n)
    part = ((y + 1) / n)[:, None, None, None].expand(n, 3, 16, 16), y
    return cifar.Images("flat", part, part, part, torch.tensor(-1.0), torch.tensor(2.0))


@pytest.mark.parametrize("judge_on", ["validation", "train"])
def test_feeds_are_cropped_then_normalised_and_drawn_anew_for_each_epoch_part_and_seed(judge_on):
    told = Settings(n_steps=7, batch_size=12, judge_size=30, judge_on=judge_on)
    seen = [
        [pair for pair in oho_deep.feeds(told._replace(seed=seed), flat_images(), epoch)]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    for pair in seen[0]:
        for (x, y), size in zip(pair, (12, 30), strict=True):
            inside = (((y + 1) / 40 + 1) / 2)[:, None, None, None]
            assert x.shape == (size, 3, 16, 16) and len(set(y.tolist())) == size
            assert torch.equal(x[..., 2:-2, 2:-2], inside.expand(size, 3, 12, 12))
            assert ((x == inside) | (x == 0.5)).all()  # black, normalised
        assert len({tuple(row) for row in (pair[0][0][:, 0, :, 0] == 0.5).tolist()}) > 1
    drawn = [(run[0][k][1].tolist()[:12], run[0][k][0][:12] == 0.5) for run in seen for k in (0, 1)]
    for k, (labels, edges) in enumerate(drawn):
        for others, other_edges in drawn[:k]:
            assert labels != others and not torch.equal(edges, other_edges)


def test_another_seed_starts_from_another_network():
    one, other = (small(n_epochs=1, n_steps=1, seed=seed) for seed in (0, 1))
    assert one["test_loss"][0] != other["test_loss"][0]


def test_a_judge_batch_that_is_larger_than_its_images_is_refused():
    with pytest.raises(ValueError, match="48 images"):
        small(judge_size=49)


def test_a_look_is_at_all_test_images_in_eval_mode_and_at_the_norms_of_the_tangents():
    model = tiny(generator(0, "tiny"))
    told = SMALL._replace(sets=2, shared=False)
    trains = oho_deep.tuner(told, model)
    for pair in oho_deep.feeds(told, DIGITS, 0):
        trains.step(*pair)
    seen = oho_deep.look(model, DIGITS, trains, size=20)
    assert model.training
    x, y = DIGITS.test
    outputs = model.eval()(DIGITS.look(x)).detach()
    assert seen["test_loss"] == pytest.approx(F.cross_entropy(outputs, y).item(), rel=1e-5)
    right = sum(int(row.argmax()) == label for row, label in zip(outputs, y.tolist(), strict=True))
    assert seen["test_accuracy"] == pytest.approx(right / 48, rel=1e-6)
    z = trains.tangents[0]  # of the rates of two sets, then of their decays
    assert seen["norm_lr"] == pytest.approx(math.hypot(*z[:2].norm(dim=1).tolist()), rel=1e-5)
    norm = math.hypot(*z[2:].norm(dim=1).tolist())
    assert seen["norm_weight_decay"] == pytest.approx(norm, rel=1e-5)
    assert seen["lr"] == trains.lr.tolist()


class Scripted:
    """A tuner whose losses are 1, 2, 3 ... and whose gradients turn by 60 degrees."""

    def __init__(self):
        self.k = 0

    def step(self, batch, judge):
        self.k += 1
        angle = torch.tensor(math.pi / 3 * (self.k - 1), **DOUBLE)
        self.gradient = self.k * torch.stack([angle.cos(), angle.sin()])
        return torch.tensor(float(self.k))


def test_an_epoch_gives_the_mean_loss_and_the_cosines_of_every_second_gradient():
    told = SMALL._replace(n_steps=7, n_cosines=3)
    seen = oho_deep.train_epoch(told, DIGITS, Scripted(), 0)
    assert seen["train_loss"] == 4
    # the second, fourth and sixth: 120 degrees apart, each two of them
    assert seen["cosine_mean"] == pytest.approx(-0.5) and seen["cosine_sd"] < 1e-7
    seen = oho_deep.train_epoch(told._replace(n_steps=3), DIGITS, Scripted(), 0)
    # cosines 1/2, -1/2, 1/2: mean 1/6, squared deviation 1/4 - 1/36
    assert seen["cosine_mean"] == pytest.approx(1 / 6)
    assert seen["cosine_sd"] == pytest.approx((1 / 4 - 1 / 36) ** 0.5)


def test_an_arm_that_is_none_is_refused():
    with pytest.raises(ValueError, match="must be oho or one of fixed"):
        small(arm="adam")


def test_a_step_of_the_paper_costs_as_many_gradients_as_the_command_assumes():
    counts = {}
    for arm in ("oho", "fixed"):
        told = Settings(arm=arm)
        trains = oho_deep.tuner(told, cifar.resnet18(generator(0, "count")).to("meta"))
        batch, judge = (
            (torch.empty(n, 3, 32, 32, device="meta"), torch.empty(n, device="meta").long())
            for n in (told.batch_size, told.judge_size)
        )
        with FlopCounterMode(display=False) as counter:
            trains.step(batch, judge)
        counts[arm] = counter.get_total_flops()
    assert counts["oho"] / counts["fixed"] == pytest.approx(deep.gradients(Settings()), rel=0.01)


# ---- the command and the ledger ----


def test_every_claim_on_cifar_has_an_experiment_and_says_its_command():
    _, rows = claims.load(ROOT / "data" / "claims.yaml")
    rows = [row for row in rows if row.chapter == deep.CHAPTER and "mnist" not in row.id]
    narrow = [row for row in rows if row.preset == "narrow"]
    for row in narrow:
        name = row.records.removeprefix("narrow-").removesuffix("-seed*")
        assert f"python -m booktools.deep {name} --narrow" in row.not_run_reason
    rows = [row for row in rows if row.preset == "paper"]
    of_figures = [k for k, e in deep.EXPERIMENTS.items() if e.item.startswith("figure")]
    assert {row.records for row in rows} == {f"paper-{k}-seed*" for k in of_figures}
    assert set(deep.EXPERIMENTS) - set(of_figures) == {"schedules", "shaken-reset"}
    for row in rows:
        name = row.records.removeprefix("paper-").removesuffix("-seed*")
        assert f"python -m booktools.deep {name}" in row.not_run_reason
        assert "GPU" in row.not_run_reason
        assert (f"--runs {row.min_seeds}" in row.not_run_reason) == (row.min_seeds > 1)


@pytest.mark.parametrize("name", deep_experiments.EXPERIMENTS)
def test_an_experiment_makes_the_metrics_that_its_claim_wants(name):
    _, rows = claims.load(ROOT / "data" / "claims.yaml")
    names = f"paper-{name}-seed*", f"narrow-{name}-seed*"
    found = [r for r in rows if r.chapter == deep.CHAPTER and r.records in names]
    experiment = deep.EXPERIMENTS[name]
    one = {"oho": small(n_epochs=10, n_cosines=3, n_steps=2)}
    one["fixed"] = small(arm="fixed", n_epochs=10, n_cosines=3, n_steps=2)
    arms = {k: one["fixed" if "arm" in how else "oho"] for k, how in experiment.arms(10).items()}
    metrics = experiment.metrics(arms, 10)
    for claim in found:
        published = {entry["metric"] for entry in claim.published} - {None}
        assert {*rules.metrics_of(claim), *published} <= metrics.keys()
    of_figure = experiment.item.startswith("figure")
    assert any(claim.preset == "paper" for claim in found) == of_figure
    assert all(isinstance(float(value), float) for value in metrics.values())


def test_moments_scale_with_the_epochs_and_a_return_is_counted_in_epochs_of_300():
    assert [deep_experiments.moment(at, 300) for at in (30, 270)] == [30, 270]
    assert [deep_experiments.moment(at, 10) for at in (30, 270)] == [1, 9]
    flat = torch.full((11, 1), 0.1, **DOUBLE)
    back = flat.clone()
    back[4:] = 0.01  # struck at epoch 1: below 0.02 at the end of the third epoch from there on
    loss = torch.ones(11, **DOUBLE)
    arms = deep.EXPERIMENTS["shaken-rate"].arms(10)
    found = {k: {"lr": back if "30" in k else flat, "test_loss": loss} for k in arms}
    metrics = deep_experiments.rate_returns(found, 10)
    assert metrics["epochs_to_return_epoch30"] == 90
    assert metrics["epochs_to_return_epoch50"] == math.inf
    assert {how["disturbance"][1:] for how in arms.values() if how["disturbance"]} == {("lr", 0.2)}


def test_a_median_counts_a_broken_run_as_inf():
    ends = iter([math.nan, 0.3, 0.5] * 100)
    arms = {k: {"test_loss": torch.tensor([2.3, next(ends)])} for k in deep_experiments.grid(300)}
    metrics = deep_experiments.distribution(arms, 300)
    assert metrics["n_diverged_fixed"] == 7 and metrics["median_fixed"] == 0.5
    assert metrics["spread_fixed"] == metrics["max_fixed"] == math.inf


def ending(*losses, **more):
    """Curves by hand; a list of rates or decays becomes those of one set."""
    found = {"test_loss": torch.tensor(losses, **DOUBLE)}
    for name, values in more.items():
        values = torch.tensor(values, **DOUBLE)
        found[name] = values[:, None] if name in ("lr", "weight_decay") else values
    return found


def metrics_of(name, found, n_epochs=10):
    found = deep.EXPERIMENTS[name].metrics(found, n_epochs)
    return {key: float(value) for key, value in found.items()}


def test_the_distribution_of_figure_1_is_that_of_each_methods_21_runs():
    arms = deep.EXPERIMENTS["robustness"].arms(300)
    assert len(arms) == 6 * 7 * 3
    assert arms["step-lr0.2-decay0"] == {"arm": "step", "lr": 0.2, "weight_decay": 0.0}
    assert arms["oho_full-lr0.005-decay0.0001"] == {
        "sets": "tensor", "decay_limit": 2e-4, "meta_rate": 1e-4, "lr": 0.005, "weight_decay": 1e-4,
    }  # fmt: skip
    ends = {name: iter(range(1, 22)) for name in deep_experiments.METHODS}
    ends["cosine"] = (k**2 for k in range(1, 22))
    found = {k: ending(19.5, next(ends[k.split("-")[0]])) for k in arms}
    metrics = metrics_of("robustness", found)
    for name, values in (("oho_global", (21, 11, 1, 20, 2)), ("cosine", (441, 121, 1, 440, 17))):
        keys = [f"{key}_{name}" for key in ("max", "median", "min", "spread", "n_diverged")]
        assert tuple(metrics[key] for key in keys) == values


def test_spreads_of_figure_3b_are_over_the_initial_rates_of_one_method():
    arms = deep.EXPERIMENTS["initial-rates"].arms(300)
    assert arms["global_lr015"] == {"lr": 0.15}
    assert arms["full_lr020"] == {"sets": "tensor", "decay_limit": 2e-4, "lr": 0.2}
    found = {k: ending(9, x) for k, x in zip(arms, (1, 4, 2, 30, 10, 20), strict=True)}
    metrics = metrics_of("initial-rates", found)
    assert (metrics["spread_global"], metrics["spread_full"]) == (3, 20)
    assert metrics["loss_global_lr015"] == 4


def test_seconds_are_summed_and_the_lowest_loss_skips_what_broke():
    curves = ending(3, math.nan, 1, 2, seconds=[math.nan, 2, 3, 4])
    assert metrics_of("groups", {"q1": curves}) == {"loss_q1": 2, "seconds_q1": 9}
    metrics = metrics_of("objective", {"train": curves})
    assert metrics == {"loss_train_objective": 2, "lowest_train_objective": 1}


def test_a_decay_grows_back_until_its_limit_or_the_end():
    arms = deep.EXPERIMENTS["shaken-decay"].arms(10)
    assert arms["fixed_alone"] == {"disturbance": None, "arm": "fixed", "weight_decay": 3e-4}
    assert arms["oho_epoch90"] == {"disturbance": (3, "weight_decay", 0.0)}
    ramp = [1e-5 * epoch for epoch in range(11)]
    full = [1e-4] * 2 + [1e-4, 2e-4, 2.99e-4, 3e-4, 3e-4] + [3e-4] * 4  # struck at epoch 1
    ends = iter([2, 4, 3, 6, 1, 2, 5, 8, 4, 10, 99, 99])
    decays = {k: full if k.endswith("epoch30") else ramp for k in arms}
    found = {k: ending(next(ends), weight_decay=decay) for k, decay in decays.items()}
    metrics = metrics_of("shaken-decay", found)
    expected = {
        "loss_oho": 3, "loss_oho_worst": 5, "loss_oho_best": 1,
        "loss_fixed": 6, "loss_fixed_worst": 10, "loss_fixed_best": 2, "loss_fixed_alone": 99,
        "decay_slope_epoch30": 3e-4 / 4, "decay_slope_epoch50": 1e-4 / 8,
        "decay_slope_epoch90": 1e-4 / 7, "decay_slope_epoch180": 1e-4 / 4,
        "decay_slope_epoch270": 1e-4, "decay_slope": (0.75 + 1 / 8 + 1 / 7 + 1 / 4 + 1) * 1e-4 / 5,
    }  # fmt: skip
    assert {key: metrics[key] for key in expected} == pytest.approx(expected, rel=1e-12)


def test_a_rate_has_returned_once_it_is_below_a_fiftieth():
    arms = deep.EXPERIMENTS["shaken-rate"].arms(300)
    rates = [0.2] * 33 + [0.0201, 0.02, 0.0199] + [0.1] * 265  # ends of the epochs, the start first
    found = {k: ending(5 if k == "fixed_alone" else 7, lr=rates) for k in arms}
    metrics = metrics_of("shaken-rate", found, 300)
    assert metrics["epochs_to_return_epoch30"] == 5 and metrics["loss_fixed"] == 5
    resets = deep.EXPERIMENTS["shaken-reset"].arms(300)
    assert resets["reset_epoch180"] == {"disturbance": (180, "lr", 0.2), "reset_every": 100}
    assert list(resets) == ["reset_epoch30", "reset_epoch180"]


def test_norms_are_those_after_training_began_and_cosines_those_of_the_last_epoch():
    cosines = {"cosine_mean": [math.nan, 0.1, 0.2, 0.3], "cosine_sd": [math.nan, 1, 2, 3]}
    norms = {"norm_lr": [0, 1, 2, 9], "norm_weight_decay": [0, 4, 5, 30]}
    curves = ending(1, 1, 1, 1, **norms, **cosines)
    sgd = ending(1, 2, 3, 4, cosine_mean=[math.nan, 0.4, 0.5, 0.6])
    assert metrics_of("tangents", {"oho": curves, "sgd": sgd}) == pytest.approx({
        "loss_oho": 1, "loss_sgd": 4, "norm_rate_max": 9, "norm_rate_median": 2,
        "norm_decay_max": 30, "norm_decay_median": 5, "cosine_mean_oho": 0.3, "cosine_sd_oho": 3,
        "cosine_mean_sgd": 0.6, "cosine_sd_sgd": math.nan,
    }, nan_ok=True)  # fmt: skip


def command(tmp_path, *more):
    given = ["--data", "digits", "--images", "40", "--device", "cpu", "--epochs", "2", *more]
    folders = ["--results", str(tmp_path / "data" / "results"), "--checkpoints", str(tmp_path)]
    return deep.main([*given, *folders], network=tiny)


def test_the_command_leaves_records_that_the_ledger_judges(tmp_path, capsys):
    assert command(tmp_path, "reset", "--arms", "reset_1", "--runs", "3") == 0  # a first command
    assert "no record" in capsys.readouterr().out
    assert command(tmp_path, "reset", "--runs", "3") == 0
    said = capsys.readouterr().out
    assert "s for an epoch; about" in said and "for all 4 from the beginning" in said
    for name in ("data/claims.yaml", "data/published"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name)
    _, judged = ledger.evaluate(tmp_path)
    verdict = next(v for claim, v in judged if claim.id == "im-fig-10")
    assert verdict.n_seeds == 3 and verdict.verdict in ("reproduced", "partly", "not reproduced")
    record = records.find(deep.CHAPTER, "paper-reset-seed0", tmp_path / "data" / "results")[0]
    told = record.parameters
    assert (told["epochs"], told["training_images"], told["data"]) == (2, 40, "digits")
    assert record.curves["test_loss_reset_1"].shape == record.curves["lr_reset_1"].shape == (3,)
    json.dumps(told)
    lock = record.provenance["versions"]["lock"]
    assert (tmp_path / "data" / "results" / "versions" / f"{lock}.txt").is_file()


def test_a_run_that_breaks_is_recorded_as_inf(tmp_path, monkeypatch):
    arms = {"validation": {"arm": "fixed", "lr": 3e38}, "train": {"arm": "fixed"}}
    broken = deep.EXPERIMENTS["objective"]._replace(arms=lambda n_epochs: arms)
    monkeypatch.setitem(deep.EXPERIMENTS, "objective", broken)
    assert command(tmp_path, "objective", "--steps", "3") == 0
    (record,) = records.find(deep.CHAPTER, "paper-*", tmp_path / "data" / "results")
    assert record.metrics["loss_validation_objective"] == math.inf
    assert math.isfinite(record.metrics["loss_train_objective"])


def test_small_trials_stay_out_of_the_ledger_and_whole_experiments_do_not():
    assert deep.parse(["groups", "--epochs", "3"]).results.parts[-2:] == ("deep", "results")
    assert deep.parse(["groups", "--images", "10"]).results.parts[-2:] == ("deep", "results")
    assert deep.parse(["groups"]).results is None  # records.save: data/results


def test_the_narrow_scale_has_records_of_its_own(tmp_path):
    seen = []

    def network(made, width):
        seen.append(width)
        return torch.nn.Sequential(torch.nn.Upsample(scale_factor=2), tiny(made))

    folders = ["--results", str(tmp_path), "--checkpoints", str(tmp_path / "checkpoints")]
    more = ["--data", "digits", "--images", "40", "--epochs", "2"]
    given = ["objective", "--narrow", *more, *folders]
    assert deep.main(given, network=network) == 0
    (record,) = records.find(deep.CHAPTER, "*-objective-*", tmp_path)
    assert record.name == "narrow-objective-seed0" and record.preset == "narrow"
    told = record.parameters
    assert set(seen) == {told["width"]} == {8} and told["pixels"] == 4
    options = deep.parse(["objective", "--narrow"])
    arms = deep.settings_of(options, deep.EXPERIMENTS["objective"], cifar.images("digits"), 0)
    assert arms["train"].meta_rate == 1e-5 * deep.NARROW["meta_factor"]
    assert arms["train"].judge_size == deep.NARROW["largest_judge"]
    assert options.results is None and options.device == "cpu"
    fewer = deep.parse(["objective", "--narrow", "--images", "10"])
    assert fewer.results.parts[-2:] == ("deep", "results") and fewer.epochs == options.epochs


def test_experiments_share_the_runs_of_equal_arms(tmp_path):
    assert command(tmp_path, "objective", "--arms", "validation") == 0
    (path,) = tmp_path.glob("*.pt")
    before = path.stat().st_mtime_ns
    assert command(tmp_path, "groups", "--arms", "q1") == 0
    assert list(tmp_path.glob("*.pt")) == [path] and path.stat().st_mtime_ns == before
    others = ["--seed", "1"], ["--epochs", "3"], ["--images", "50"]
    for n_before, more in enumerate(others, 1):
        assert command(tmp_path, "objective", "--arms", "validation", *more) == 0
        assert len(list(tmp_path.glob("*.pt"))) == n_before + 1


@pytest.mark.parametrize("noted", [None, "{", "[]", '{"learnopt.oho_deep": "another hash"}'])
def test_the_command_does_not_go_on_from_checkpoints_of_other_code(tmp_path, capsys, noted):
    assert command(tmp_path, "objective", "--arms", "validation") == 0
    assert command(tmp_path, "objective", "--arms", "train") == 0  # of the same code
    (tmp_path / "code.json").unlink()
    if noted:
        (tmp_path / "code.json").write_text(noted)
    n_before = len(list(tmp_path.glob("*.pt")))
    assert command(tmp_path, "groups", "--arms", "q1") == 2
    said = capsys.readouterr().err
    assert "learnopt.oho_deep" in said and "--checkpoints" in said
    assert len(list(tmp_path.glob("*.pt"))) == n_before


def test_the_command_says_what_is_wrong(tmp_path, capsys):
    assert command(tmp_path, "reset", "--data", "cifar11") == 2
    assert "cifar11" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        command(tmp_path, "reset", "--arms", "reset_2")
    assert "reset_never" in capsys.readouterr().err
