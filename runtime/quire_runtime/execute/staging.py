"""What a step sends to the device: many small int32 arrays, one copy."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGNMENT = 4
"""Words; 16 bytes, so that kernels always see pointers of the same alignment."""


class Staging:
    """Packs int32 arrays into pinned memory and copies them at once; on a CPU device the arrays are used in place.

    A ring of `depth` buffers: the caller has waited for step N before it sends step N + depth.
    """

    def __init__(self, device: torch.device, depth: int) -> None:
        self.device = device
        self._ring = [torch.empty(0, dtype=torch.int32) for _ in range(depth)]
        self._turn = 0

    def send(self, arrays: Sequence[NDArray[np.int32]]) -> list[Tensor]:
        """Each array as an int32 tensor of the same shape on the device; never waits for the device."""
        if self.device.type == "cpu":
            return [torch.from_numpy(np.ascontiguousarray(array, dtype=np.int32)) for array in arrays]
        starts, total = [], 0
        for array in arrays:
            starts.append(total)
            total += -(-array.size // ALIGNMENT) * ALIGNMENT
        pinned = self._buffer(total)
        host = pinned.numpy()
        for start, array in zip(starts, arrays, strict=True):
            host[start : start + array.size] = array.ravel()
        sent = pinned[:total].to(self.device, non_blocking=True)
        return [sent[start : start + array.size].view(array.shape) for start, array in zip(starts, arrays, strict=True)]

    def _buffer(self, words: int) -> Tensor:
        self._turn = (self._turn + 1) % len(self._ring)
        if self._ring[self._turn].numel() < words:
            capacity = 1 << max(12, (words - 1).bit_length())
            self._ring[self._turn] = torch.empty(capacity, dtype=torch.int32, pin_memory=True)
        return self._ring[self._turn]
