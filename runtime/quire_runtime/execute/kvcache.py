"""The tensors of the paged KV cache."""

import math

import numpy as np
import torch
from torch import Tensor


class KVCache:
    """One tensor [layers, 2, num_blocks, kv_heads, block_size, head_dim]; `layers[i]` is layer i's (keys, values)."""

    def __init__(
        self,
        num_layers: int,
        num_blocks: int,
        num_kv_heads: int,
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = (num_layers, 2, num_blocks, num_kv_heads, block_size, head_dim)
        self.data = lazy_zeros(shape, dtype) if device.type == "cpu" else torch.zeros(shape, dtype=dtype, device=device)
        self.num_blocks = num_blocks
        self.layers: list[tuple[Tensor, Tensor]] = [(layer[0], layer[1]) for layer in self.data]

    def copy_blocks(self, sources: Tensor, targets: Tensor) -> None:
        """Copy whole blocks in every layer; int32 [k] each."""
        self.data.index_copy_(2, targets.long(), self.data.index_select(2, sources))


def lazy_zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros on the CPU whose pages take memory only once they are written; torch.zeros writes them all."""
    return torch.from_numpy(np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)).view(dtype).view(shape)


def block_bytes(num_layers: int, num_kv_heads: int, block_size: int, head_dim: int, dtype: torch.dtype) -> int:
    """Memory of one block over all layers, keys and values."""
    return 2 * num_layers * num_kv_heads * block_size * head_dim * dtype.itemsize
