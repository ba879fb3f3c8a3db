"""Attention of one query token per sequence over its paged keys and values: the CPU path and the reference."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from quire_kernels.batch import AttentionBatch

GROUP_SIZE = 16
"""Sequences gathered at once: few enough for their keys to stay in the processor's cache, many enough to pay a call."""
GROWTH = 1.25
"""A group's longest sequence has at most this many times the blocks of its shortest."""
SMALL = 4
"""Blocks; sequences of up to so many may share a group whatever their ratio."""


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """g sequences of similar length, padded to the longest: one gather and one batched product for all of them.

    members: int64 [g] rows of the batch. cells: int64 [g * Hkv * blocks], rows of the cache seen as
    [blocks * Hkv, block size * D]. bias: fp32 [g * Hkv, 1, keys], 0 for a visible key and -inf for any other.
    """

    members: Tensor
    cells: Tensor
    bias: Tensor


def decode_attention_reference(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int | None, out: Tensor
) -> None:
    """Fill the decodes' rows of `out` [T, Hq, D]; shapes as quire_kernels.attention.paged_attention's."""
    num_blocks, kv_heads, block_size, dim = k_cache.shape
    key = ("decode", kv_heads, window)
    groups = batch.step_work.get(key)
    if groups is None:
        groups = batch.step_work[key] = decode_groups(batch, kv_heads, window)
    keys = k_cache.view(num_blocks * kv_heads, block_size * dim)
    values = v_cache.view(num_blocks * kv_heads, block_size * dim)
    for group in groups:
        out.index_copy_(0, group.members, _attend(q, keys, values, group, kv_heads, scale, False))
    if out[: batch.num_decodes].sum().isnan():
        # Stale slots behind a sequence's end may hold NaN, which a weight of 0 does not silence.
        for group in groups:
            out.index_copy_(0, group.members, _attend(q, keys, values, group, kv_heads, scale, True))


def _attend(
    q: Tensor, keys: Tensor, values: Tensor, group: DecodeGroup, kv_heads: int, scale: float, clears: bool
) -> Tensor:
    heads, dim = q.shape[1:]
    shape = (-1, group.bias.shape[2], dim)
    own_keys = keys.index_select(0, group.cells).view(shape)
    own_values = values.index_select(0, group.cells).view(shape)
    if clears:
        is_hidden = group.bias.transpose(1, 2) != 0
        own_keys.masked_fill_(is_hidden, 0)
        own_values.masked_fill_(is_hidden, 0)
    queries = q.index_select(0, group.members).view(-1, heads // kv_heads, dim)
    if q.dtype == torch.float32:
        scores = torch.baddbmm(group.bias, queries, own_keys.transpose(1, 2), alpha=scale)
        attended = scores.softmax(dim=-1).bmm(own_values)
    else:
        mask = group.bias.to(q.dtype)
        attended = F.scaled_dot_product_attention(
            queries.unsqueeze(1),
            own_keys.unsqueeze(1),
            own_values.unsqueeze(1),
            attn_mask=mask.unsqueeze(1),
            scale=scale,
        )
    return attended.view(-1, heads, dim)


def decode_groups(batch: AttentionBatch, kv_heads: int, window: int | None) -> list[DecodeGroup]:
    """Sequences in rising order of length, cut where a group has GROUP_SIZE members or its padding would grow."""
    size = batch.block_size
    tables: NDArray[np.int32] = batch.block_tables[: batch.num_decodes].numpy()
    lens = np.asarray(batch.seq_lens_cpu[: batch.num_decodes])
    firsts = np.zeros_like(lens) if window is None else np.maximum(lens - window, 0)
    first_blocks = firsts // size
    counts = -(-lens // size) - first_blocks
    order = np.argsort(counts, kind="stable")
    rising = counts[order]
    heads = np.arange(kv_heads)[:, None]
    groups = []
    start = 0
    while start < len(order):
        limit = max(int(rising[start] * GROWTH), SMALL)
        end = min(int(np.searchsorted(rising, limit, side="right")), start + GROUP_SIZE)
        members = order[start:end]
        columns = first_blocks[members, None] + np.arange(rising[end - 1])
        is_held = columns * size < lens[members, None]
        blocks = np.where(is_held, tables[members[:, None], np.where(is_held, columns, 0)], 0).astype(np.int64)
        places = ((columns * size)[:, :, None] + np.arange(size)).reshape(len(members), -1)
        is_visible = (places >= firsts[members, None]) & (places < lens[members, None])
        bias = np.where(is_visible, np.float32(0), np.float32(-np.inf))
        groups.append(
            DecodeGroup(
                members=torch.from_numpy(members),
                cells=torch.from_numpy((blocks[:, None, :] * kv_heads + heads).ravel()),
                bias=torch.from_numpy(np.repeat(bias, kv_heads, axis=0)).unsqueeze(1),
            )
        )
        start = end
    return groups
