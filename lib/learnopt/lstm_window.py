"""The fast path of the LSTM optimizer: a window of steps with a hand-written backward pass.

The same network, numbers and state as ``lstm_optimizer.lstm``; the derivation is in ``Window``.
"""

import torch
from torch import Tensor

from learnopt.lstm_optimizer import N_HIDDEN, N_INPUTS, averaged, features
from learnopt.matmul import matmul

aten = torch.ops.aten
STATE = ("h1", "c1", "h2", "c2")
CHUNK = 4096  # coordinates; a window's step over them fits a cache of a few MB


class Window:
    """Fast path: a window of up to ``n_steps`` steps over ``n`` coordinates, first order.

    With gradients taken as constants, the window's meta-loss sum_t w_t f(theta_t) depends on phi
    only through the updates u_s, and theta_t moves one for one with each u_s, s < t. So

        d meta_loss / d phi = sum_s <S_s, d u_s / d phi>,    S_s = sum_{t > s} w_t grad f(theta_t)

    Run ``forward`` step by step with no autograd, then ``backward`` once with the suffix sums S:
    ordinary backpropagation through the LSTM alone. A test holds it to reverse mode.

    What it exploits: coordinates in columns, so a layer is one matmul ``(80, 41) @ (41, n)`` with
    the biases as a row of ones, and each gate is a contiguous block; tanh(x) = 2 sigmoid(2x) - 1,
    so one sigmoid does all four gates; all buffers allocated once; coordinates never meet, so they
    are worked through in chunks that stay in the processor's cache.

    Memory: about 1,400 bytes a coordinate and step in float32. ``recompute=True`` keeps the inputs
    alone, 8 or so, and the state, and takes each chunk's forward pass again before its backward
    pass: a third more products, for many tasks side by side.
    """

    def __init__(
        self, inputs: str, out_scale: float, n_steps: int, n: int, dtype=torch.float32,
        recompute: bool = False,
    ):  # fmt: skip
        sizes = [len(part) for part in torch.empty(n).split(CHUNK)]
        self.inputs, self.out_scale = inputs, out_scale
        made, shape = {}, (N_INPUTS[inputs], n_steps)
        if recompute:
            made = {size: _Chunk(*shape, size, dtype) for size in set(sizes)}
        self.chunks = [
            _Replayed(made[size], *shape, size, dtype) if recompute else _Chunk(*shape, size, dtype)
            for size in sizes
        ]

    def load(self, phi, state) -> None:
        """Take the weights, and the state that the window starts from (as ``lstm`` holds it)."""
        self.averages, self.slopes = state.get("averages"), []
        parts = {name: leaf.split(CHUNK) for name, leaf in state.items()}
        for k, chunk in enumerate(self.chunks):
            chunk.load(phi, {name: part[k] for name, part in parts.items()})

    def forward(self, grad: Tensor) -> Tensor:
        """One step: gradient ``(n,)`` to update ``(n,)``."""
        if self.averages is None:
            x = features(grad, self.inputs)
        else:
            x, self.averages = averaged(grad, self.averages)
        parts = x.T.split(CHUNK, dim=1)
        outputs = [chunk.forward(x) for chunk, x in zip(self.chunks, parts, strict=True)]
        output = torch.cat(outputs)
        if self.averages is not None:
            output = output.tanh()
            self.slopes.append(1 - output**2)
        return self.out_scale * output

    def state(self) -> dict[str, Tensor]:
        """The state after the last step, as ``lstm`` holds it."""
        states = [chunk.state() for chunk in self.chunks]
        state = {name: torch.cat([state[name] for state in states]) for name in states[0]}
        return state if self.averages is None else state | {"averages": self.averages}

    def forget(self) -> None:
        """Keep the state and drop the history: the next step is the window's first again."""
        self.slopes = []
        for chunk in self.chunks:
            chunk.forget()

    def backward(self, suffix_sums: Tensor) -> dict[str, Tensor]:
        """``(t, n)`` suffix sums S of the steps taken to the meta-gradient, shaped like phi."""
        outer = self.out_scale * suffix_sums
        outer = outer * torch.stack(self.slopes) if self.slopes else outer
        parts = outer.split(CHUNK, dim=1)
        slopes = [chunk.backward(part) for chunk, part in zip(self.chunks, parts, strict=True)]
        return {name: sum(slope[name] for slope in slopes) for name in slopes[0]}


class _Chunk:
    """The two layers and the output, on a stretch of the coordinates."""

    def __init__(self, n_in: int, n_steps: int, n: int, dtype):
        self.layers = [_Layer(k, n_steps, n, dtype) for k in (n_in, N_HIDDEN)]

    def load(self, phi, state) -> None:
        self.phi = phi
        for layer, k in zip(self.layers, "12", strict=True):
            layer.load(phi, f"cell{k}")
        self.begin({name: leaf.T for name, leaf in state.items() if name in STATE})

    def begin(self, columns: dict[str, Tensor]) -> None:
        """Go on from this state, (20, n) each."""
        self.t = 0
        for layer, k in zip(self.layers, "12", strict=True):
            layer.hidden[0], layer.cells[0] = columns[f"h{k}"], columns[f"c{k}"]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer.forward(self.t, x)
        self.t += 1
        return self.phi["out.weight"][0] @ x + self.phi["out.bias"]

    def columns(self) -> dict[str, Tensor]:
        first, second, t = *self.layers, self.t
        leaves = first.hidden[t], first.cells[t], second.hidden[t], second.cells[t]
        return dict(zip(STATE, leaves, strict=True))

    def state(self) -> dict[str, Tensor]:
        return {name: leaf.T.contiguous() for name, leaf in self.columns().items()}

    def forget(self) -> None:
        self.begin(self.columns())

    def backward(self, cotangents: Tensor) -> dict[str, Tensor]:
        first, second = self.layers
        out_weight = self.phi["out.weight"][0]
        slope = torch.zeros_like(out_weight)
        for layer in self.layers:
            layer.start_backward()
        for t in reversed(range(self.t)):
            slope += second.hidden[t + 1] @ cotangents[t]
            first.backward(t, second.backward(t, torch.outer(out_weight, cotangents[t])))
        slopes = first.slopes("cell1") | second.slopes("cell2")
        slopes |= {"out.weight": slope[None], "out.bias": cotangents.sum()[None]}
        return {name: slopes[name] for name in self.phi}


class _Replayed:
    """A stretch of the coordinates that keeps its inputs and its state, and shares all else."""

    def __init__(self, chunk: _Chunk, n_in: int, n_steps: int, n: int, dtype):
        self.chunk, self.inputs = chunk, torch.empty(n_steps, n_in, n, dtype=dtype)

    def load(self, phi, state) -> None:
        self.chunk.load(phi, state)
        self.now = {name: leaf.clone() for name, leaf in self.chunk.columns().items()}
        self.forget()

    def forward(self, x: Tensor) -> Tensor:
        self.inputs[self.t] = x
        self.t += 1
        self.chunk.begin(self.now)
        output = self.chunk.forward(x)
        self.now = {name: leaf.clone() for name, leaf in self.chunk.columns().items()}
        return output

    def state(self) -> dict[str, Tensor]:
        return {name: leaf.T.contiguous() for name, leaf in self.now.items()}

    def forget(self) -> None:
        self.start, self.t = self.now, 0

    def backward(self, cotangents: Tensor) -> dict[str, Tensor]:
        self.chunk.begin(self.start)
        for x in self.inputs[: self.t]:
            self.chunk.forward(x)
        return self.chunk.backward(cotangents)


class _Layer:
    """One LSTM layer over a window; arrays are (step, feature, coordinate)."""

    def __init__(self, n_in: int, n_steps: int, n: int, dtype):
        def buffer(*shape):
            return torch.empty(*shape, n, dtype=dtype)

        self.n_in = n_in
        self.inputs = buffer(n_steps, n_in + N_HIDDEN + 1).fill_(1)  # rows: x, h, ones
        self.gates = buffer(n_steps, 4, N_HIDDEN)  # after the sigmoid; g as sigmoid(2 z)
        self.cells = buffer(n_steps + 1, N_HIDDEN)
        self.tanh_cells = buffer(n_steps, N_HIDDEN)
        self.hidden = buffer(n_steps + 1, N_HIDDEN)
        self.dgates = buffer(4, N_HIDDEN)

    def load(self, phi, name) -> None:
        bias = phi[f"{name}.bias_ih"] + phi[f"{name}.bias_hh"]
        weight = [phi[f"{name}.weight_ih"], phi[f"{name}.weight_hh"], bias[:, None]]
        self.weight = torch.cat(weight, dim=1)
        self.weight[2 * N_HIDDEN : 3 * N_HIDDEN] *= 2  # g: tanh(z) = 2 sigmoid(2 z) - 1

    def forward(self, t: int, x: Tensor) -> Tensor:
        rows, gates = self.inputs[t], self.gates[t]
        rows[: self.n_in] = x
        rows[self.n_in : -1] = self.hidden[t]
        flat = gates.view(4 * N_HIDDEN, -1)
        torch.sigmoid(matmul(self.weight, rows), out=flat)
        i, f, s, o = gates
        cell = torch.mul(f, self.cells[t], out=self.cells[t + 1])
        cell.addcmul_(i, s, value=2).sub_(i)  # f c + i (2 s - 1)
        torch.mul(cell, 2, out=self.tanh_cells[t]).sigmoid_().mul_(2).sub_(1)
        return torch.mul(o, self.tanh_cells[t], out=self.hidden[t + 1])

    def start_backward(self) -> None:
        self.dweight = torch.zeros_like(self.weight)
        self.dh = torch.zeros_like(self.hidden[0])  # from the next step
        self.dc = torch.zeros_like(self.hidden[0])

    def backward(self, t: int, dh: Tensor) -> Tensor:
        """Cotangent of h from above ``(20, n)`` to the cotangent of x ``(n_in, n)``."""
        (i, f, s, o), tanh_cell, d = self.gates[t], self.tanh_cells[t], self.dgates
        dh += self.dh
        self.dc += aten.tanh_backward(dh * o, tanh_cell)
        torch.mul(self.dc, s, out=d[0]).mul_(2).sub_(self.dc)  # g = 2 s - 1
        torch.mul(self.dc, self.cells[t], out=d[1])
        torch.mul(self.dc, i, out=d[2]).mul_(2)
        torch.mul(dh, tanh_cell, out=d[3])
        self.dc *= f
        aten.sigmoid_backward(d, self.gates[t], grad_input=d)
        flat = d.view(4 * N_HIDDEN, -1)
        self.dweight += matmul(flat, self.inputs[t].T)
        dinputs = matmul(self.weight.T, flat)
        self.dh = dinputs[self.n_in : -1]
        return dinputs[: self.n_in]

    def slopes(self, name: str) -> dict[str, Tensor]:
        self.dweight[2 * N_HIDDEN : 3 * N_HIDDEN] *= 2  # undo the scaling of load
        bias = self.dweight[:, -1]
        return {
            f"{name}.weight_ih": self.dweight[:, : self.n_in],
            f"{name}.weight_hh": self.dweight[:, self.n_in : -1],
            f"{name}.bias_ih": bias,
            f"{name}.bias_hh": bias,
        }
