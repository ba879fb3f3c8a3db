"""Causal attention of a mixed batch over the paged cache: decodes and longer queries each have their own kernel."""

import torch
from torch import Tensor

from quire_kernels.batch import AttentionBatch
from quire_kernels.decode_attention import decode_attention_reference
from quire_kernels.prefill_attention import prefill_attention_reference


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    out: Tensor | None = None,
) -> Tensor:
    """Query i of a sequence sees its keys j with i - window < j <= i; window None: all up to i.

    q [T, Hq, D], last dimension contiguous; caches [blocks, Hkv, block size, D] contiguous, of q's dtype, the step's
    own K and V already stored. Softmax and sums in fp32. Returns [T, Hq, D] contiguous, or fills `out`.
    """
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    if q.is_cuda:
        from quire_kernels.decode_attention_triton import decode_attention
        from quire_kernels.prefill_attention_triton import prefill_attention
    else:
        decode_attention, prefill_attention = decode_attention_reference, prefill_attention_reference
    for part in batch.parts or (batch,):
        if part.num_decodes:
            decode_attention(q, k_cache, v_cache, part, scale, window, out)
        if part.num_decodes < len(part.seq_lens_cpu):
            prefill_attention(q, k_cache, v_cache, part, scale, window, out)
    return out
