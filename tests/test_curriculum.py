"""Stages, lessons and random scales: each does to meta-training what it says."""

from pathlib import Path

import pytest
import torch
from torch.func import grad

from learnopt import (
    baselines,
    checkpoints,
    curriculum,
    lstm_optimizer,
    lstm_window,
    meta_train,
    tasks,
    unroll,
)
from learnopt.layout import Layout
from learnopt.seeding import generator

F64 = torch.float64
SETTINGS = meta_train.Settings(
    "rnnprop", 0.1, n_steps=10, n_unroll=5, n_trajectories=4, evaluate_every=2
)


def teacher(share=1.0, dtype=torch.float32):
    rule = baselines.RULES["Adam"]
    return curriculum.Teacher(rule.opt, rule.phi(0.1, dtype), share)


@pytest.fixture
def task():
    return tasks.quadratic()


@pytest.fixture
def validation(task):
    return unroll.draw_runs(task, 3, 10, 0, "validation")


def test_a_rescaled_task_has_the_same_losses_and_the_gradient_times_the_scale():
    task = tasks.quadratic(start_std=1.0, dtype=F64)
    scale = curriculum.random_scale(generator(0), 10, bound=2.0).to(F64)
    assert scale.log().abs().max() <= 2 and scale.log().std() > 0.5
    other = curriculum.rescaled(task, scale)
    batch = task.batches(generator(1), 1)[0]
    theta, moved = task.init(generator(2)), other.init(generator(2))
    torch.testing.assert_close(other.loss(moved, batch), task.loss(theta, batch))
    slopes = grad(other.loss)(moved, batch), grad(task.loss)(theta, batch)
    torch.testing.assert_close(slopes[0], scale * slopes[1])


@pytest.mark.parametrize("inputs", ["raw", "log", "rnnprop"])
def test_the_imitation_gradient_equals_autograd_through_the_reference(inputs):
    task, shown = tasks.quadratic(start_std=1.0, dtype=F64), teacher(dtype=F64)
    opt, phi = (
        lstm_optimizer.lstm(inputs, 0.1),
        lstm_optimizer.init_phi(inputs, generator(0), dtype=F64),
    )
    theta, batches = task.init(generator(1)), task.batches(generator(2), 6)
    start = (opt.init(theta), shown.opt.init(theta))

    def error(phi):
        point, (state, other), own, wanted = theta, start, [], []
        for batch in batches:
            slope = grad(task.loss)(point, batch)
            step, state = opt.update(phi, slope, state, point)
            delta, other = shown.opt.update(shown.phi, slope, other, point)
            own, wanted, point = [*own, step], [*wanted, delta], point + delta
        own, wanted = torch.stack(own), torch.stack(wanted)
        return 0.5 * ((own - wanted) ** 2).sum() / (wanted**2).sum()

    fast = lstm_window.Window(inputs, 0.1, 6, 10, F64)
    carry = unroll.Carry(theta, start, theta.new_zeros(()))
    stacked = [tuple(part[None] for part in batch) for batch in batches]
    found, end = curriculum.imitation_gradient(
        fast, meta_train.task_gradients(task, 1), shown, phi, carry, stacked
    )
    layout = Layout.of(phi)
    expected = layout.flatten(grad(error)(phi))
    assert (layout.flatten(found) - expected).norm() < 1e-10 * expected.norm()
    assert not torch.equal(end.theta, theta)


def test_lessons_make_the_lstm_move_like_its_teacher(task, validation):
    def distance(phi):
        opt, shown = lstm_optimizer.lstm("rnnprop", 0.1), teacher()
        theta, batch = torch.zeros(10), task.batches(generator(9), 1)[0]
        slope = grad(task.loss)(theta, batch)
        own, _ = opt.update(phi, slope, opt.init(theta), theta)
        wanted, _ = shown.opt.update(shown.phi, slope, shown.opt.init(theta), theta)
        return (own - wanted).norm() / wanted.norm()

    settings = SETTINGS._replace(n_trajectories=60, evaluate_every=60)
    only_lessons = curriculum.trajectories(teacher=teacher(share=1.0))
    after = meta_train.train(task, settings, validation, trajectory=only_lessons).last_phi
    before = lstm_optimizer.init_phi("rnnprop", generator(settings.seed, "phi"))
    assert distance(after) < 0.7 * distance(before)


def test_without_a_teacher_and_without_tasks_of_their_own_nothing_changes(task, validation):
    plain = meta_train.train(task, SETTINGS, validation)
    same = meta_train.train(task, SETTINGS, validation, trajectory=curriculum.trajectories())
    assert torch.equal(plain.history, same.history)


def test_each_trajectory_has_a_task_of_its_own(task, validation):
    drawn = []

    def draw(generator):
        drawn.append(curriculum.random_scale(generator, 10, 1.0))
        return curriculum.rescaled(task, drawn[-1])

    trajectory = curriculum.trajectories(draw)
    meta_train.train(task, SETTINGS, validation, trajectory=trajectory)
    assert len({tuple(scale.tolist()) for scale in drawn}) == SETTINGS.n_trajectories


STAGES = [(5, 4), (10, 5)]


def recording(seen):
    def trajectory(*arguments):
        flat, adam_state = meta_train.one_trajectory(*arguments)
        seen.append(flat)
        return flat, adam_state

    return trajectory


def test_a_stage_ends_at_the_mean_of_its_last_half_and_the_next_goes_on_from_there(
    task, validation
):
    seen, start = [], lstm_optimizer.init_phi("rnnprop", generator(7))
    layout = Layout.of(start)
    first, second = curriculum.train(
        task, SETTINGS, STAGES, validation, recording(seen), start=start
    )
    torch.testing.assert_close(layout.flatten(first.phi), (seen[2] + seen[3]) / 2)
    torch.testing.assert_close(layout.flatten(second.phi), torch.stack(seen[6:]).mean(0))
    assert torch.equal(layout.flatten(first.last_phi), seen[3])  # the mean only where it is asked

    later = SETTINGS._replace(n_steps=10, n_trajectories=5, seed=1000)
    same = meta_train.train(task, later, validation, start=first.phi)
    assert torch.equal(layout.flatten(same.last_phi), seen[-1])


@pytest.mark.parametrize("killed_at", [1, 3, 4, 8])
def test_killed_stages_go_on_bit_for_bit(task, validation, tmp_path, killed_at):
    whole = curriculum.train(task, SETTINGS, STAGES, validation)
    calls = []

    def dies(*arguments):
        calls.append(1)
        if len(calls) > killed_at:
            raise KeyboardInterrupt
        return meta_train.one_trajectory(*arguments)

    with pytest.raises(KeyboardInterrupt):
        curriculum.train(task, SETTINGS, STAGES, validation, dies, tmp_path)
    for _ in range(2):  # the second time all is there already
        resumed = curriculum.train(task, SETTINGS, STAGES, validation, checkpoint=tmp_path)
        for a, b in zip(whole, resumed, strict=True):
            assert torch.equal(a.history, b.history)
            assert all(torch.equal(a.phi[name], b.phi[name]) for name in a.phi)


def test_a_stage_without_its_second_file_is_refused(task, validation, tmp_path):
    curriculum.train(task, SETTINGS, STAGES, validation, checkpoint=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "stage0-seed0-5.checkpoint",
        "stage0-seed0-5.walked",
        "stage1-seed1000-10.checkpoint",
        "stage1-seed1000-10.walked",
    ]
    Path(tmp_path, "stage1-seed1000-10.walked").unlink()
    with pytest.raises(checkpoints.CheckpointError, match="missing; delete .*stage1"):
        curriculum.train(task, SETTINGS, STAGES, validation, checkpoint=tmp_path)
