"""The fast path of ``lstm_optimizer.lstm``: a window of steps, its backward pass by hand."""

import torch
from torch import Tensor

from learnopt.lstm_optimizer import N_HIDDEN, N_INPUTS, averaged, features
from learnopt.matmul import matmul

aten = torch.ops.aten
STATE = ("h1", "c1", "h2", "c2")
MINUS_ONE = torch.tensor(-1.0)  # torch.add(MINUS_ONE, s, alpha=2) is 2 s - 1 in one pass
CHUNK = 5312  # coordinates; a window's step over them fits a cache of a few MB


class Window:
    """Fast path: a window of up to ``n_steps`` steps over ``n`` coordinates, first order, on a CPU.

    With gradients taken as constants, the window's meta-loss sum_t w_t f(theta_t) depends on phi
    only through the updates u_s, and theta_t moves one for one with each u_s, s < t. So

        d meta_loss / d phi = sum_s <S_s, d u_s / d phi>,    S_s = sum_{t > s} w_t grad f(theta_t)

    Run ``forward`` step by step, then ``backward`` once with the suffix sums S: backpropagation
    through the LSTM alone, without autograd. A test holds it to reverse mode.

    What it exploits: coordinates in columns, so a layer is one matmul ``(80, 41) @ (41, n)`` with
    the biases as a row of ones; one sigmoid for all four gates, since tanh(x) = 2 sigmoid(2x) - 1;
    buffers allocated once; chunks of coordinates, which never meet, so that what one operation of a
    step leaves to the next is in the processor's cache.

    Memory: about 1,100 bytes a coordinate and step in float32. ``recompute=True`` keeps the inputs
    alone, 8 or so, and the state, and repeats each chunk's forward pass before its backward pass.
    """

    def __init__(self, inputs: str, out_scale: float, n_steps: int, n: int, dtype=torch.float32,
                 recompute: bool = False):  # fmt: skip
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
    """The two layers and the output, on a stretch of the coordinates.

    Nothing that a layer reads is copied: block t of memory has the rows h2, h1, 1, x. The first
    layer reads h1, 1, x there and writes h1 of block t + 1; the second reads h2, h1, 1 of that one
    and writes h2 of block t + 2.
    """

    def __init__(self, n_in: int, n_steps: int, n: int, dtype):
        rows = torch.empty(n_steps + 2, 2 * N_HIDDEN + 1 + n_in, n, dtype=dtype)
        rows[:, 2 * N_HIDDEN] = 1  # for the biases
        self.x = rows[:, 2 * N_HIDDEN + 1 :]
        dgates = rows.new_empty(4, N_HIDDEN, n)  # of one step of one layer
        first, second = ("weight_hh", "bias", "weight_ih"), ("weight_hh", "weight_ih", "bias")
        self.layers = (
            _Layer("cell1", first, rows[:, N_HIDDEN:], dgates, n_steps),
            _Layer("cell2", second, rows[1:, :-n_in], dgates, n_steps),
        )

    def load(self, phi, state) -> None:
        self.phi = phi
        for layer in self.layers:
            layer.load(phi)
        self.begin({name: leaf.T for name, leaf in state.items() if name in STATE})

    def begin(self, columns: dict[str, Tensor]) -> None:
        self.t = 0
        for layer, k in zip(self.layers, "12", strict=True):
            layer.hidden[0], layer.cells[0] = columns[f"h{k}"], 2 * columns[f"c{k}"]

    def forward(self, x: Tensor) -> Tensor:
        self.x[self.t] = x
        for layer in self.layers:
            h = layer.forward(self.t)
        self.t += 1
        return self.phi["out.weight"][0] @ h + self.phi["out.bias"]

    def columns(self) -> dict[str, Tensor]:
        first, second, t = *self.layers, self.t
        leaves = first.hidden[t], first.cells[t] / 2, second.hidden[t], second.cells[t] / 2
        return dict(zip(STATE, leaves, strict=True))

    def state(self) -> dict[str, Tensor]:
        return {name: leaf.T.contiguous() for name, leaf in self.columns().items()}

    def forget(self) -> None:
        self.begin(self.columns())

    def backward(self, cotangents: Tensor) -> dict[str, Tensor]:
        first, second = self.layers
        out_weight = self.phi["out.weight"][0]
        slope = torch.zeros_like(out_weight)
        dh1, dh2 = (torch.zeros_like(layer.hidden[0]) for layer in self.layers)
        for layer in self.layers:
            layer.start_backward()
        for t in reversed(range(self.t)):
            slope += second.hidden[t + 1] @ cotangents[t]
            dh2.addcmul_(out_weight[:, None], cotangents[t])
            dh2, from_above = second.backward(t, dh2).split(N_HIDDEN)
            dh1 = first.backward(t, from_above.add_(dh1))
        slopes = first.slopes() | second.slopes()
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
    """One LSTM layer over a window; arrays are (step, feature, coordinate).

    ``rows`` is what the steps read, its own h first; ``order`` names the weights that meet them.
    ``cells`` is 2 c, for tanh(c) = 2 sigmoid(2 c) - 1; for it, f's row of ``back`` is halved.
    """

    def __init__(self, name: str, order: tuple[str, ...], rows: Tensor, dgates: Tensor, n_steps):
        def buffer(*shape):
            return rows.new_empty(*shape, rows.shape[-1])

        self.name, self.order, self.rows, self.dgates = name, order, rows, dgates
        self.hidden = rows[:, :N_HIDDEN]
        self.gates = buffer(n_steps, 4, N_HIDDEN)  # i, f, g, o
        self.cells = buffer(n_steps + 1, N_HIDDEN)  # 2 c
        self.tanh_cells = buffer(n_steps, N_HIDDEN)

    def load(self, phi) -> None:
        weights = {part: phi.get(f"{self.name}.{part}") for part in self.order}
        weights["bias"] = (phi[f"{self.name}.bias_ih"] + phi[f"{self.name}.bias_hh"])[:, None]
        self.weight = torch.cat(list(weights.values()), dim=1)
        self.back = self.weight[:, : N_HIDDEN * self.order.index("bias")].clone()  # of the h's
        self.weight[2 * N_HIDDEN : 3 * N_HIDDEN] *= 2  # g: tanh(z) = 2 sigmoid(2 z) - 1
        self.back[N_HIDDEN : 2 * N_HIDDEN] /= 2

    def forward(self, t: int) -> Tensor:
        (i, f, g, o), tanh_cell = self.gates[t], self.tanh_cells[t]
        flat = self.gates[t].view(4 * N_HIDDEN, -1)
        torch.sigmoid(matmul(self.weight, self.rows[t]), out=flat)
        torch.add(MINUS_ONE, g, alpha=2, out=g)
        cell = torch.mul(f, self.cells[t], out=self.cells[t + 1]).addcmul_(i, g, value=2)
        torch.sigmoid(cell, out=tanh_cell)
        torch.add(MINUS_ONE, tanh_cell, alpha=2, out=tanh_cell)
        return torch.mul(o, tanh_cell, out=self.hidden[t + 1])

    def start_backward(self) -> None:
        self.dweight = torch.zeros_like(self.weight.T)
        self.dc = torch.zeros_like(self.cells[0])  # from the next step

    def backward(self, t: int, dh: Tensor) -> Tensor:
        """Cotangent of h ``(20, n)`` to that of the h's which the step read."""
        (i, f, g, o), tanh_cell, d = self.gates[t], self.tanh_cells[t], self.dgates
        self.dc += aten.tanh_backward(torch.mul(dh, o, out=d[3]), tanh_cell, grad_input=d[3])
        torch.mul(self.dc, g, out=d[0])
        torch.mul(self.dc, self.cells[t], out=d[1])
        torch.mul(self.dc, i, out=d[2])
        torch.mul(dh, tanh_cell, out=d[3])
        self.dc *= f
        aten.sigmoid_backward(d[:2], self.gates[t, :2], grad_input=d[:2])
        aten.tanh_backward(d[2], g, grad_input=d[2])
        aten.sigmoid_backward(d[3], o, grad_input=d[3])
        flat = d.view(4 * N_HIDDEN, -1)
        self.dweight += matmul(self.rows[t], flat.T)
        return matmul(self.back.T, flat)

    def slopes(self) -> dict[str, Tensor]:
        weight = self.dweight.T.clone()
        weight[N_HIDDEN : 2 * N_HIDDEN] /= 2
        n_in = weight.shape[1] - N_HIDDEN - 1
        widths = {"weight_hh": N_HIDDEN, "weight_ih": n_in, "bias": 1}
        parts = weight.split([widths[part] for part in self.order], dim=1)
        slopes = dict(zip(self.order, parts, strict=True))
        bias = slopes.pop("bias")[:, 0]
        slopes |= {"bias_ih": bias, "bias_hh": bias}
        return {f"{self.name}.{part}": slope for part, slope in slopes.items()}
