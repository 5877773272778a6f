"""Learned optimizers and hyperparameters tuned while training, over one idea.

Everything is a step with a knob: step(phi, carry, feed) -> carry. The modules form
floors; a file imports only from lower ones (tests/test_floors.py).
"""

__version__ = "0.1.0"
