"""Attention of several query tokens per sequence over its paged keys and values: the CPU path and the reference."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from quire_kernels.batch import AttentionBatch

TILE = 512
"""Query tokens that share a mask: bounds its memory, and spares the keys behind the tile."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Query tokens start .. end of the batch over the keys first .. last that were gathered; mask None: causal."""

    start: int
    end: int
    first: int
    last: int
    mask: Tensor | None


@dataclass(frozen=True, slots=True)
class Chunk:
    """One sequence. cells: int64 [Hkv * blocks], rows of the cache seen as [blocks * Hkv, block size * D]."""

    cells: Tensor
    tiles: list[Tile]


def prefill_attention_reference(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int | None, out: Tensor
) -> None:
    """Fill the rows of `out` [T, Hq, D] that are no decodes'; shapes as quire_kernels.attention.paged_attention's."""
    num_blocks, kv_heads, block_size, dim = k_cache.shape
    keys = k_cache.view(num_blocks * kv_heads, block_size * dim)
    values = v_cache.view(num_blocks * kv_heads, block_size * dim)
    key = ("prefill", kv_heads, window)
    chunks = batch.step_work.get(key)
    if chunks is None:
        chunks = batch.step_work[key] = _chunks(batch, kv_heads, window)
    for chunk in chunks:
        own_keys = keys.index_select(0, chunk.cells).view(1, kv_heads, -1, dim)
        own_values = values.index_select(0, chunk.cells).view(1, kv_heads, -1, dim)
        for tile in chunk.tiles:
            attended = F.scaled_dot_product_attention(
                q[tile.start : tile.end].transpose(0, 1).unsqueeze(0),
                own_keys[:, :, tile.first : tile.last],
                own_values[:, :, tile.first : tile.last],
                attn_mask=tile.mask,
                is_causal=tile.mask is None,
                scale=scale,
                enable_gqa=True,
            )
            out[tile.start : tile.end] = attended[0].transpose(0, 1)


def _chunks(batch: AttentionBatch, kv_heads: int, window: int | None) -> list[Chunk]:
    size = batch.block_size
    heads = torch.arange(kv_heads).unsqueeze(1)
    chunks = []
    for sequence in range(batch.num_decodes, len(batch.seq_lens_cpu)):
        start, end = batch.query_starts_cpu[sequence : sequence + 2]
        total = batch.seq_lens_cpu[sequence]
        context = total - (end - start)
        first_block = 0 if window is None else max(0, context - window + 1) // size
        blocks = batch.block_tables[sequence, first_block : -(-total // size)].long()
        if context == 0 and (window is None or window >= total):
            tiles = [Tile(start, end, 0, total, None)]
        else:
            tiles = [
                _query_tile(first, min(first + TILE, end), context - start, first_block * size, window)
                for first in range(start, end, TILE)
            ]
        chunks.append(Chunk((blocks * kv_heads + heads).flatten(), tiles))
    return chunks


def _query_tile(start: int, end: int, shift: int, origin: int, window: int | None) -> Tile:
    """shift: a query's position less its number in the batch; origin: position of the first key gathered."""
    first = origin if window is None else max(origin, start + shift - window + 1)
    queries = torch.arange(start + shift, end + shift).unsqueeze(1)
    keys = torch.arange(first, end + shift)
    mask = keys <= queries
    if window is not None:
        mask &= keys > queries - window
    return Tile(start, end, first - origin, end + shift - origin, mask)
