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
    k: Tensor | None = None,
    v: Tensor | None = None,
) -> Tensor:
    """Query i of a sequence sees its keys j with i - window < j <= i; window None: all up to i.

    q [T, Hq, D], last dimension contiguous; caches [blocks, Hkv, block size, D] contiguous, of q's dtype, the step's
    own K and V already stored. Softmax and sums in fp32. Returns [T, Hq, D] contiguous, or fills `out`.
    With k and v, the step's own keys and values [T, Hkv, D], whole long prompts are spared the way through the cache.
    """
    is_own = out is None
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device) if out is None else out
    if q.is_cuda:
        from quire_kernels.decode_attention_triton import decode_attention
        from quire_kernels.prefill_attention_triton import prefill_attention
    else:
        decode_attention, prefill_attention = decode_attention_reference, prefill_attention_reference
    for part in batch.parts or (batch,):
        if part.num_decodes:
            decode_attention(q, k_cache, v_cache, part, scale, window, out)
        if part.num_decodes == len(part.seq_lens_cpu):
            continue
        fresh, rest = [], [part]
        if k is not None and v is not None and q.is_cuda and q.dtype.itemsize == 2:
            from quire_kernels import fresh_attention

            if q.shape[2] in fresh_attention.DIMENSIONS and fresh_attention.is_available():
                fresh, rest = fresh_attention.divide(part, window)
        for prompts in fresh:
            attended = fresh_attention.attend(q, k, v, prompts, scale)
            if is_own and len(attended) == len(out):
                return attended
            out[prompts.start : prompts.end].copy_(attended)
        for prefills in rest:
            prefill_attention(q, k_cache, v_cache, prefills, scale, window, out)
    return out
