"""Attention that gives each query bitwise the same result whatever else is in the batch."""

import torch
from torch import Tensor

from quire_kernels.batch import AttentionBatch

LEAST_SPLIT = 1024
MOST_SPLITS = 32


def split_for(max_model_len: int) -> int:
    """Keys that are summed before results are merged, for an engine that serves sequences of up to max_model_len
    tokens: a part of its arithmetic, and of the memory that decodes take."""
    return LEAST_SPLIT * max(1, -(-max_model_len // (LEAST_SPLIT * MOST_SPLITS)))


def invariant_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    split: int,
) -> Tensor:
    """What quire_kernels.attention.paged_attention computes, for CUDA tensors; `batch.shared` is not made use of.

    Whether a query comes as a decode, in a chunk or in a whole prompt, and which keys were in the cache before, changes
    no bit of its result. split: of `split_for`.
    """
    from quire_kernels.invariant_attention_triton import invariant_attention

    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    invariant_attention(q, k_cache, v_cache, batch, scale, window, split, out)
    return out
