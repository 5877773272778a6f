"""The LSTM optimizer: an update rule whose phi is the weights of a small recurrent network.

Andrychowicz et al. 2016 (arXiv 1606.04474); settings of Kostagiolas 2019. Every coordinate of theta
runs the same two-layer LSTM on its own gradient, with its own hidden state:

    x_t         = g_t                                   ``inputs="raw"``
                  (log|g_t| / p, sign g_t)              ``inputs="log"``
                  (m_t, g_t) / sqrt(v_t)                ``inputs="rnnprop"``, as Lv et al. 2017
    h1, c1      = LSTMCell(x_t; h1, c1)                 1 or 2 -> 20
    h2, c2      = LSTMCell(h1; h2, c2)                  20 -> 20
    theta_{t+1} = theta_t + out_scale * (w . h2 + b)    rnnprop: out_scale * tanh(w . h2 + b)

(Lv et al. have a fully connected layer before the LSTM, which is left out here.)

``load("mnist")`` gives one that is trained. ``lstm(...)`` is the reference, an ``Optimizer`` like
any other. Its fast path is ``lstm_window.Window``.
"""

import io
import math
import os
from importlib import resources
from pathlib import Path
from reprlib import repr as short
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from learnopt import atomic, npz
from learnopt.optimizers import Optimizer

N_HIDDEN = 20
N_INPUTS = {"raw": 1, "log": 2, "rnnprop": 2}
BETA = 0.95  # of rnnprop's moving averages


def init_phi(inputs: str, generator: torch.Generator, dtype=torch.float32) -> dict[str, Tensor]:
    """Draw the weights from U(-1/sqrt(20), 1/sqrt(20)): 5,221 numbers (raw) or 5,301.

    Names and shapes are those of two torch.nn.LSTMCell and one Linear; the four gate blocks of a
    ``(80, ...)`` tensor are i, f, g, o. Raises KeyError for inputs that are not in N_INPUTS.
    """
    bound = 1 / math.sqrt(N_HIDDEN)
    shapes = {}
    for cell, n_in in (("cell1", N_INPUTS[inputs]), ("cell2", N_HIDDEN)):
        shapes |= {
            f"{cell}.weight_ih": (4 * N_HIDDEN, n_in),
            f"{cell}.weight_hh": (4 * N_HIDDEN, N_HIDDEN),
            f"{cell}.bias_ih": (4 * N_HIDDEN,),
            f"{cell}.bias_hh": (4 * N_HIDDEN,),
        }
    shapes |= {"out.weight": (1, N_HIDDEN), "out.bias": (1,)}
    return {
        name: bound * (2 * torch.rand(shape, generator=generator, dtype=dtype) - 1)
        for name, shape in shapes.items()
    }


def features(grad: Tensor, inputs: str, p: float = 10.0) -> Tensor:
    """What the network sees of a gradient ``(n,)`` alone: ``(n, 1)`` raw or ``(n, 2)`` log.

    Log inputs, as in the thesis' notebook and appendix A of the paper: (log|g| / p, sign g) where
    |g| >= e^-p, else (-1, e^p g). Written with clamps, the two cases need no branch.
    """
    if inputs == "raw":
        return grad.unsqueeze(-1)
    tiny = torch.finfo(grad.dtype).tiny  # only so that log(0) is finite before the clamp
    size = (grad.abs().clamp(min=tiny).log() / p).clamp(min=-1)
    return torch.stack([size, (math.exp(p) * grad).clamp(-1, 1)], dim=-1)


def averaged(grad: Tensor, averages: Tensor) -> tuple[Tensor, Tensor]:
    """RNNprop's inputs ``(n, 2)``, and the moving averages ``(n, 3)`` of (g, g^2, 1) after g.

    m and v are Adam's averages, divided by that of 1 (Adam's correction of their start), so the
    inputs do not change when the loss is multiplied by a constant. Lv, Jiang & Li 2017.
    """
    now = torch.stack([grad, grad**2, torch.ones_like(grad)], dim=-1)
    averages = BETA * averages + (1 - BETA) * now
    m, v, weight = averages.unbind(-1)
    size = (v / weight).clamp(min=torch.finfo(grad.dtype).tiny).sqrt()
    return torch.stack([m / weight / size, grad / size], dim=-1), averages


def lstm(inputs: str = "log", out_scale: float = 0.1) -> Optimizer:
    """The learned optimizer. The thesis: ("raw", 1.0) on quadratics, ("log", 0.1) on networks.

    Raises ValueError for inputs that are not in N_INPUTS.
    """
    if inputs not in N_INPUTS:
        raise ValueError(f"inputs {inputs!r} is not one of {sorted(N_INPUTS)}")

    def init(theta):
        zeros = theta.new_zeros(theta.shape[0], N_HIDDEN)
        state = {"h1": zeros, "c1": zeros, "h2": zeros, "c2": zeros}
        return state | ({"averages": zeros[:, :3]} if inputs == "rnnprop" else {})

    def update(phi, grad, state, theta):
        seen = {}
        if inputs == "rnnprop":
            x, seen["averages"] = averaged(grad, state["averages"])
        else:
            x = features(grad, inputs)
        h1, c1 = _cell(phi, "cell1", x, state["h1"], state["c1"])
        h2, c2 = _cell(phi, "cell2", h1, state["h2"], state["c2"])
        output = F.linear(h2, phi["out.weight"], phi["out.bias"]).squeeze(-1)
        output = output.tanh() if inputs == "rnnprop" else output
        return out_scale * output, {"h1": h1, "c1": c1, "h2": h2, "c2": c2} | seen

    return Optimizer(init, update)


def _cell(phi, name, x, h, c):
    gates = F.linear(x, phi[f"{name}.weight_ih"], phi[f"{name}.bias_ih"])
    gates = gates + F.linear(h, phi[f"{name}.weight_hh"], phi[f"{name}.bias_hh"])
    i, f, g, o = gates.chunk(4, dim=-1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


HEAD = {"inputs": "U", "out_scale": "fi", "about": "U"}  # what a file holds beside phi: its types
MAX_BYTES = 1_000_000
RESTORE = "restore it with git or from a copy"


class OptimizerError(ValueError):
    """A trained optimizer that is unknown, damaged or cannot be written."""


class Trained(NamedTuple):
    """A trained optimizer: ``delta, state = opt.update(phi, gradient, state, theta)``."""

    opt: Optimizer
    phi: dict[str, Tensor]
    inputs: str
    out_scale: float
    about: str  # what it was trained on


def _folders() -> list:
    """Where trained optimizers are: in a batch first those of the run of an earlier chapter."""
    own = Path(os.environ.get("LEARNOPT_TRAINED") or "-")
    return [own] * own.is_dir() + [resources.files("learnopt").joinpath("trained")]


def names() -> list[str]:
    """The trained optimizers that come with the library."""
    files = [file.name for folder in _folders() for file in folder.iterdir()]
    return sorted({name[:-4] for name in files if name.endswith(".npz")})


def load(name: str) -> Trained:
    """A trained optimizer of the library (see ``names``), or of a file ``*.npz`` by ``save``.

    Raises OptimizerError for an unknown name or a file that does not hold one.
    """
    if str(name).endswith(".npz"):
        source = Path(name)
    elif name in names():
        files = [folder.joinpath(f"{name}.npz") for folder in _folders()]
        source = next(file for file in files if file.is_file())
    else:
        raise OptimizerError(
            f"no trained optimizer {short(name)}; there are {names()}, or a file *.npz"
        )
    try:
        found = npz.read(source.read_bytes(), MAX_BYTES)
    except (OSError, ValueError) as error:
        raise OptimizerError(f"{name}: not a trained LSTM optimizer ({error}); {RESTORE}") from None
    wrong = _problem(found)
    if wrong:
        raise OptimizerError(f"{name}: not a trained LSTM optimizer: {wrong}; {RESTORE}")
    inputs, out_scale, about = (found.pop(field).item() for field in HEAD)
    phi = {key: torch.from_numpy(found[key]) for key in init_phi(inputs, torch.Generator())}
    return Trained(lstm(inputs, out_scale), phi, inputs, float(out_scale), about)


def _problem(found: dict[str, np.ndarray]) -> str | None:
    """What is wrong with these arrays as a trained optimizer, or None."""
    for field, kinds in HEAD.items():
        if field not in found or found[field].shape != () or found[field].dtype.kind not in kinds:
            return f"{field!r} must be one {'text' if kinds == 'U' else 'number'}"
    if not 0 < found["out_scale"] < math.inf:
        return "'out_scale' must be finite and above 0"
    if str(found["inputs"]) not in N_INPUTS:
        return f"'inputs' must be one of {sorted(N_INPUTS)}"
    like = init_phi(str(found["inputs"]), torch.Generator())
    for field in sorted(found.keys() - HEAD.keys() ^ like.keys()):
        return f"{field!r} is {'missing' if field in like else 'not known'}"
    for field, leaf in like.items():
        shape, values = tuple(leaf.shape), found[field]
        if values.shape != shape or values.dtype != np.float32 or not np.isfinite(values).all():
            return f"{field!r} must be finite float32 numbers of shape {shape}"
    return None


def save(path, phi, inputs: str, out_scale: float, about: str) -> None:
    """Write a trained optimizer for ``load``: float32 arrays, about 25 kB, no pickle.

    Raises OptimizerError where the file cannot be written. Not noticed here is what ``load``
    refuses: numbers that are not finite, an out_scale of 0, a name that does not end in .npz.
    """
    content = io.BytesIO()
    leaves = {name: leaf.detach().float().numpy() for name, leaf in phi.items()}
    np.savez_compressed(content, **leaves, inputs=inputs, out_scale=out_scale, about=about)
    try:
        atomic.write({path: content.getvalue()})
    except OSError as error:
        raise OptimizerError(
            f"{path}: cannot be written ({error.strerror or error}); free disk space or choose a "
            "folder that can be written"
        ) from None
