"""Measured bytes are those of the tensors alive at one time; measured seconds are seconds."""

import time

import pytest
import torch
from torch.func import grad, vmap

from learnopt.measure import cpu_seconds, peak_bytes


def test_two_tensors_alive_together_count_twice_and_one_after_the_other_once():
    def together():
        a = torch.zeros(1000)
        return a, torch.ones(1000)

    def in_turn():
        for _ in range(5):
            torch.zeros(1000)

    assert peak_bytes(together) == 8000
    assert peak_bytes(in_turn) == 4000


def test_what_was_made_before_and_views_of_it_do_not_count():
    before, target = torch.zeros(1000), torch.zeros(1000)
    assert peak_bytes(lambda: (before.view(10, 100), before[::2], before[None])) == 0
    assert peak_bytes(lambda: torch.sin(before, out=target)) == 0


def test_what_a_backward_pass_keeps_grows_with_the_number_of_operations():
    def chain(n):
        x = torch.ones(1000, requires_grad=True)
        for _ in range(n):
            x = x.sin()
        x.sum().backward()

    short, long = peak_bytes(lambda: chain(10)), peak_bytes(lambda: chain(20))
    assert long - short == 10 * 4000


def test_it_sees_through_torch_func():
    work = vmap(grad(lambda x: x.sin().sum()))
    assert peak_bytes(lambda: work(torch.ones(10, 1000))) >= 3 * 40_000  # in, saved, gradient


def test_time_is_a_median_after_a_warm_up_and_sleep_costs_nothing():
    def burn(seconds):
        start = time.process_time()
        while time.process_time() - start < seconds:
            pass

    work = iter([0.3, 0.0, 0.02, 0.3])
    assert 0.02 <= cpu_seconds(lambda: burn(next(work)), n_repeats=3) < 0.1
    assert cpu_seconds(lambda: time.sleep(0.05), n_repeats=1) < 0.02


def test_an_error_inside_is_not_swallowed():
    with pytest.raises(ZeroDivisionError):
        peak_bytes(lambda: 1 / 0)
