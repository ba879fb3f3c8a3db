"""Attention of several query tokens per sequence over its paged keys and values: the CPU path and the reference."""

import torch
import torch.nn.functional as F
from torch import Tensor

from quire_kernels.batch import AttentionBatch


def prefill_attention_reference(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int | None, out: Tensor
) -> None:
    num_blocks, kv_heads, block_size, dim = k_cache.shape
    keys = k_cache.view(num_blocks * kv_heads, block_size * dim)
    values = v_cache.view(num_blocks * kv_heads, block_size * dim)
    group = q.shape[1] // kv_heads
    key = ("prefill", kv_heads, window)
    layout = batch.layouts.get(key)
    if layout is None:
        layout = batch.layouts[key] = _prefill_layout(batch, kv_heads, window)
    for start, end, total, cells, mask in layout:
        shape = (kv_heads, 1, -1, dim)
        own_keys = keys.index_select(0, cells).view(shape)[:, :, :total]
        own_values = values.index_select(0, cells).view(shape)[:, :, :total]
        attended = F.scaled_dot_product_attention(
            q[start:end].view(end - start, kv_heads, group, dim).permute(1, 2, 0, 3),
            own_keys.expand(-1, group, -1, -1),
            own_values.expand(-1, group, -1, -1),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
        )
        out[start:end] = attended.permute(2, 0, 1, 3).reshape(end - start, -1, dim)


def _prefill_layout(
    batch: AttentionBatch, kv_heads: int, window: int | None
) -> list[tuple[int, int, int, Tensor, Tensor | None]]:
    """Per sequence: its query tokens from..to, its keys, its cache rows, its mask (None where plain causal will do)."""
    heads = torch.arange(kv_heads).unsqueeze(1)
    layout = []
    for sequence in range(batch.num_decodes, len(batch.seq_lens_cpu)):
        start, end = batch.query_starts_cpu[sequence : sequence + 2]
        total = batch.seq_lens_cpu[sequence]
        blocks = batch.block_tables[sequence, : -(-total // batch.block_size)].long()
        mask = None
        if end - start < total or (window is not None and window < total):
            queries = torch.arange(total - (end - start), total).unsqueeze(1)
            places = torch.arange(total)
            mask = places <= queries
            if window is not None:
                mask &= places > queries - window
        layout.append((start, end, total, (blocks * kv_heads + heads).flatten(), mask))
    return layout
