"""A guard for online hyperparameter optimization: a meta-step that cannot throw the rate far.

    rule = Bounded({"lr": 1e-4, "weight_decay": 1e-6})        # in place of oho.Rule
    phi, state, _ = oho.run(learner, rule, phi, state, feeds)

The plain meta-step is -alpha <grad L_V, A>. Where training is about to come apart the tangent A
grows by orders of magnitude within a few steps, and one meta-step can set the rate to 0 or to a
number from which no network recovers. Here the rate moves by at most a share of itself,

    eta <- eta + clip(-alpha <grad L_V, A>, -c eta, c eta),

which needs no scale of its own: while the slopes are as usual, nothing is clipped.
"""

from learnopt import oho


class Bounded(oho.Rule):
    """``oho.Rule`` whose meta-step changes the rate "lr" by at most the share ``largest`` of it.

    A rate outside its limits comes back by that share a step. A slope that is NaN moves nothing.
    The other knobs move as they do under ``oho.Rule``: a weight decay that starts at 0 has no share
    to move by. Not for ``in_log=True``, where ``largest`` bounds the exponent already.
    """

    def update(self, phi: oho.Phi, slopes: oho.Phi) -> oho.Phi:
        """phi after one meta-step."""
        known = {name: slope.nan_to_num(nan=0.0) for name, slope in slopes.items()}
        lr, moved = phi["lr"], super().update(phi, known)
        return moved | {"lr": moved["lr"].clamp((1 - self.largest) * lr, (1 + self.largest) * lr)}
