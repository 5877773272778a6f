"""Named random streams: fixed by their names, and independent of one another."""

import torch

from learnopt import seeding


def _draw(*names, n=1000):
    return torch.randn(n, generator=seeding.generator(*names), dtype=torch.float64)


def test_the_same_names_give_the_same_stream():
    assert torch.equal(_draw(0, "task", 3), _draw(0, "task", 3))


def test_streams_are_the_same_on_every_machine_and_in_every_process():
    # Pinned once. Were Python's salted hash() in the seed, these would change from run to run.
    stream = seeding.generator(0, "task", 3)
    assert stream.initial_seed() == 1111605048468804131
    drawn = torch.rand(3, generator=stream, dtype=torch.float64).tolist()
    assert drawn == [0.008348908673396993, 0.39991696705118074, 0.6938897125644488]  # k / 2^53


def test_the_order_of_the_names_matters():
    assert not torch.equal(_draw(0, "init", "task"), _draw(0, "task", "init"))
    assert not torch.equal(_draw(1, "a", 2), _draw(2, "a", 1))


def test_neighbouring_seeds_and_names_are_uncorrelated():
    # 120 streams that differ in one digit: 7,140 pairs, each correlation close to N(0, 1/1000)
    streams = [_draw(seed, name, k) for seed in range(3) for name in "ab" for k in range(20)]
    correlation = torch.corrcoef(torch.stack(streams))
    between = correlation[~torch.eye(len(streams), dtype=torch.bool)]
    assert between.abs().max() < 6 / 1000**0.5  # 6 sd: chance 1e-5 over all pairs
    assert between.std() > 0.5 / 1000**0.5  # they were drawn, not constant


def test_first_draws_across_streams_are_normal():
    # A population takes a few numbers from each of many streams: those must be independent too.
    first = torch.stack([_draw(0, "test", "batches", k, n=4) for k in range(5000)])
    assert first.mean(0).abs().max() < 5 / 5000**0.5  # 5 sd of a mean
    assert (first.var(0) - 1).abs().max() < 5 * (2 / 5000) ** 0.5  # 5 sd of a variance
    successive = torch.corrcoef(torch.stack([first[:-1, 0], first[1:, 0]]))[0, 1]
    assert successive.abs() < 5 / 5000**0.5


def test_drawing_leaves_the_global_stream_alone():
    before = torch.random.get_rng_state()
    _draw(0, "anything")
    assert torch.equal(torch.random.get_rng_state(), before)
