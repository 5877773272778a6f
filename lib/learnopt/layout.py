"""Named tensors over one flat vector.

Every set of parameters in this library, the weights of a network or the weights of a learned
optimizer, is one flat tensor ``(n,)``. A ``Layout`` remembers which stretch of it is which tensor:

    layout = Layout({"weight": (10, 3), "bias": (10,)})
    layout.views(theta)["bias"]    # shape (10,), shares memory with theta
    layout.segment                 # (n,): 0 for the first tensor's coordinates, 1 for the second's

Leading axes are kept, so a population ``(b, n)`` has views ``(b, 10, 3)`` and ``(b, 10)``.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Layout:
    """Shapes by name, in order. ``size`` is the length n of the flat vector.

    ``segment``, ``(n,)`` int64, is the index of the tensor that each coordinate belongs to: a rate
    per tensor, ``lr`` of shape ``(n_tensors,)``, becomes a rate per coordinate as ``lr[segment]``.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]):
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        self._counts = [math.prod(shape) for shape in self.shapes.values()]
        self.size = sum(self._counts)
        counts = torch.tensor(self._counts, dtype=torch.int64)
        # a known output size is what lets a step that makes a Layout trace whole
        self.segment = torch.arange(len(counts)).repeat_interleave(counts, output_size=self.size)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> "Layout":
        """The layout that these tensors would have."""
        return cls({name: tuple(tensor.shape) for name, tensor in tensors.items()})

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Split ``(..., n)`` into named tensors ``(..., *shape)``, without copying.

        Raises ValueError where the last axis is not n long.
        """
        if flat.shape[-1] != self.size:
            raise ValueError(f"expected a last axis of {self.size}, got shape {tuple(flat.shape)}")
        parts = flat.split(self._counts, dim=-1)
        return {
            name: part.reshape((*flat.shape[:-1], *shape))
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The inverse of ``views``: named ``(..., *shape)`` to one ``(..., n)``.

        Raises ValueError for other names than the layout's. Shapes are not checked.
        """
        if tensors.keys() != self.shapes.keys():
            raise ValueError(f"expected tensors {list(self.shapes)}, got {list(tensors)}")
        parts = []
        for name, shape in self.shapes.items():
            n_lead = tensors[name].dim() - len(shape)
            parts.append(tensors[name].reshape(*tensors[name].shape[:n_lead], -1))
        return torch.cat(parts, dim=-1)

    def __repr__(self) -> str:
        return f"Layout({self.shapes})"
