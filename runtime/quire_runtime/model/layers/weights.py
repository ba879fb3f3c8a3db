"""The tensors of a model, and where each tensor of a checkpoint belongs in them."""

import math

import torch
from torch import Tensor


class Weights:
    """Allocates a model's tensors; several of the checkpoint's may share one (fused projections).

    `slots` maps each name in the checkpoint to the view that its values are copied into. Every element of every tensor
    in `tensors` belongs to exactly one slot. Nothing is initialised.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype = dtype
        self.device = device
        self.tensors: list[Tensor] = []
        self.slots: dict[str, Tensor] = {}
        self.ignored: set[str] = set()
        """Names a checkpoint may hold that the model has no use for."""

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def one(self, name: str, *shape: int) -> Tensor:
        tensor = torch.empty(shape, dtype=self.dtype, device=self.device)
        self.tensors.append(tensor)
        self.slots[name] = tensor
        return tensor

    def stacked(self, rows: dict[str, int], *columns: int) -> Tensor:
        """One tensor [sum of rows, *columns] whose consecutive rows are the named tensors of the checkpoint."""
        tensor = torch.empty((sum(rows.values()), *columns), dtype=self.dtype, device=self.device)
        self.tensors.append(tensor)
        self.slots.update(zip(rows, tensor.split(list(rows.values())), strict=True))
        return tensor

    def fill_randomly(self, seed: int) -> None:
        """Matrices uniform with variance 1 / inputs, vectors 1: a stand-in for a checkpoint, equal for equal seeds."""
        generator = torch.Generator(self.device).manual_seed(seed)
        for tensor in self.tensors:
            if tensor.ndim < 2:
                tensor.fill_(1.0)
            else:
                bound = math.sqrt(3.0 / tensor.shape[1])
                tensor.uniform_(-bound, bound, generator=generator)
