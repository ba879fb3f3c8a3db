"""Attention of one query token per sequence over its paged keys and values: the CPU path and the reference."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quire_kernels.batch import AttentionBatch

GROUP_SHRINK = 0.75


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Sequences of similar length, padded to the longest: one gather and one batched product for all of them.

    members: int64 [g] batch slots, None for the whole batch in order. cells: int64 [g * Hkv * blocks], rows of the
    cache seen as [blocks * Hkv, block size * D]. mask: bool [g, 1, 1, keys].
    """

    members: Tensor | None
    size: int
    cells: Tensor
    mask: Tensor


def decode_attention_reference(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int | None, out: Tensor
) -> None:
    num_blocks, kv_heads, block_size, dim = k_cache.shape
    queries = q[: batch.num_decodes]
    keys = k_cache.view(num_blocks * kv_heads, block_size * dim)
    values = v_cache.view(num_blocks * kv_heads, block_size * dim)
    key = ("decode", kv_heads, window)
    groups = batch.layouts.get(key)
    if groups is None:
        groups = batch.layouts[key] = decode_groups(batch, kv_heads, window)
    for group in groups:
        chosen = queries if group.members is None else queries.index_select(0, group.members)
        shape = (group.size, kv_heads, -1, dim)
        attended = F.scaled_dot_product_attention(
            chosen.reshape(shape),
            keys.index_select(0, group.cells).view(shape),
            values.index_select(0, group.cells).view(shape),
            attn_mask=group.mask,
            scale=scale,
        ).reshape(group.size, -1, dim)
        if group.members is None:
            out[: batch.num_decodes] = attended
        else:
            out.index_copy_(0, group.members, attended)


def decode_groups(batch: AttentionBatch, kv_heads: int, window: int | None) -> list[DecodeGroup]:
    """Cut the decodes, longest first, where a length falls below GROUP_SHRINK of its group's longest."""
    lengths = batch.seq_lens_cpu[: batch.num_decodes]
    heads = torch.arange(kv_heads).view(1, -1, 1)

    def group(members: Tensor | None, tables: Tensor, own: list[int]) -> DecodeGroup:
        blocks = -(-max(own) // batch.block_size)
        cells = (tables[:, :blocks].long().unsqueeze(1) * kv_heads + heads).flatten()
        places = torch.arange(blocks * batch.block_size)
        ends = torch.tensor(own).unsqueeze(1)
        mask = places < ends
        if window is not None:
            mask &= places >= ends - window
        return DecodeGroup(members, len(own), cells, mask.view(len(own), 1, 1, -1))

    if min(lengths) >= GROUP_SHRINK * max(lengths):
        return [group(None, batch.block_tables[: batch.num_decodes], lengths)]
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    groups, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or lengths[order[end]] < GROUP_SHRINK * lengths[order[start]]:
            members = torch.tensor(order[start:end])
            own = [lengths[slot] for slot in order[start:end]]
            groups.append(group(members, batch.block_tables.index_select(0, members), own))
            start = end
    return groups
