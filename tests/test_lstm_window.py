"""A window that repeats its forward pass has the numbers of one that keeps everything."""

import pytest
import torch

from learnopt import lstm_optimizer, lstm_window, measure
from learnopt.seeding import generator

F64 = torch.float64
N, N_STEPS = 11, 6  # chunks of 4, 4 and 3


def worked_through(fast, inputs, forget_after=0):
    """Updates, state and slopes of some steps on drawn gradients, after another window."""
    made = generator(0, "window", inputs)
    grads = torch.randn(N_STEPS + forget_after, N, generator=made, dtype=F64)
    phi = lstm_optimizer.init_phi(inputs, generator(1), dtype=F64)
    state = lstm_optimizer.lstm(inputs, 0.1).init(torch.zeros(N, dtype=F64))
    fast.load(phi, state)
    updates = [fast.forward(grad) for grad in grads[:2]]
    fast.load(phi, fast.state())  # the next window
    for grad in grads[:forget_after]:
        fast.forward(grad)
        fast.forget()
    updates = [fast.forward(grad) for grad in grads[forget_after:]]
    return torch.stack(updates), fast.state(), fast.backward(grads[forget_after:].cos())


@pytest.mark.parametrize("inputs", lstm_optimizer.N_INPUTS)
@pytest.mark.parametrize("forget_after", [0, 2])
def test_repeating_the_forward_pass_changes_no_number(inputs, forget_after, monkeypatch):
    monkeypatch.setattr(lstm_window, "CHUNK", 4)
    found, expected = (
        worked_through(
            lstm_window.Window(inputs, 0.1, N_STEPS, N, F64, recompute=recompute),
            inputs,
            forget_after,
        )
        for recompute in (True, False)
    )
    assert torch.equal(found[0], expected[0])
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-13, atol=0)


def test_repeating_it_needs_a_fraction_of_the_memory():
    def window(recompute):
        return lstm_window.Window("log", 0.1, 20, 20 * lstm_window.CHUNK, recompute=recompute)

    kept, repeated = (measure.peak_bytes(lambda r=r: window(r)) for r in (False, True))
    assert kept > 20 * 20 * lstm_window.CHUNK * 1100  # bytes a coordinate and step
    assert repeated < kept / 10
