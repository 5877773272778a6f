"""The bounded meta-step is the plain one until that would throw the rate far."""

import math

import torch

from learnopt import oho
from learnopt.oho_guards import Bounded

RATES = {"lr": 0.1, "weight_decay": 1e-6}


def moved(slope, rule=None, lr=0.5):
    phi = {"lr": torch.tensor([[lr]]), "weight_decay": torch.tensor([[1e-4]])}
    slopes = {"lr": torch.tensor([[slope]]), "weight_decay": torch.tensor([[slope]])}
    found = (rule or Bounded(RATES, largest=0.02)).update(phi, slopes)
    assert found.keys() == phi.keys()
    return found["lr"].item(), found["weight_decay"].item()


def test_small_steps_are_those_of_the_plain_rule():
    for slope in (-0.09, 0.0, 0.05):
        assert moved(slope) == moved(slope, oho.Rule(RATES))


def test_a_large_step_is_a_share_of_the_rate_whatever_the_slope():
    for slope in (-1e3, -math.inf, -0.2):
        assert math.isclose(moved(slope)[0], 0.5 * 1.02, rel_tol=1e-6)
    for slope in (1e3, math.inf):
        assert math.isclose(moved(slope)[0], 0.5 * 0.98, rel_tol=1e-6)


def test_the_plain_rule_throws_the_same_rate_to_zero():
    assert moved(1e3, oho.Rule(RATES))[0] == 0.0


def test_no_slope_moves_nothing():
    assert moved(math.nan) == moved(0.0)


def test_a_decay_moves_as_under_the_plain_rule_and_inside_its_limits():
    assert moved(1.0)[1] == moved(1.0, oho.Rule(RATES))[1]
    assert moved(-1e9)[1] == moved(-1e9, oho.Rule(RATES))[1]


def test_a_changed_rule_is_still_bounded():
    rule = Bounded(RATES, largest=0.02)._replace(reset_every=7)
    assert (type(rule), rule.reset_every) == (Bounded, 7)
    assert moved(1e3, rule)[0] > 0.4
