"""Prefill attention on the GPU (FlashAttention-2, arXiv 2307.08691).

A tile's rows are query tokens times the query heads that share one KV head: keys are read once for all of them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.batch import AttentionBatch

LOG2_E = 1.4426950408889634


def prefill_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int | None, out: Tensor
) -> None:
    query_heads, dim = q.shape[1], q.shape[2]
    kv_heads, block_size = k_cache.shape[1], k_cache.shape[2]
    group = query_heads // kv_heads
    block_d = max(16, triton.next_power_of_2(dim))
    wide = q.dtype == torch.float32
    rows = max(64 if wide or block_d > 128 else 128, triton.next_power_of_2(group))
    tokens_per_tile = rows // group
    starts = batch.query_starts_cpu
    tiles = sum(
        -(-(starts[sequence + 1] - starts[sequence]) // tokens_per_tile)
        for sequence in range(batch.num_decodes, len(batch.seq_lens_cpu))
    )
    _prefill_kernel[(tiles, kv_heads)](
        q, k_cache, v_cache, batch.block_tables, batch.seq_lens, batch.query_starts, out, scale * LOG2_E,
        window or 0, batch.num_decodes, len(batch.seq_lens_cpu), batch.block_tables.stride(0),
        q.stride(0), q.stride(1), out.stride(0), out.stride(1),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        GROUP=group, ROWS=rows, TOKENS=tokens_per_tile, DIM=dim, BLOCK_D=block_d, SIZE=block_size,
        TILE=32 if wide or block_d > 128 else 64, WINDOWED=window is not None, IEEE=wide,
        num_warps=4 if wide else 8, num_stages=1 if wide else 2,
    )  # fmt: skip


@triton.jit
def _prefill_kernel(
    q, k_cache, v_cache, tables, seq_lens, query_starts, out, scale, window, num_decodes, num_sequences, table_stride,
    q_token, q_head, out_token, out_head, cache_block, cache_head, cache_slot,
    GROUP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SIZE: tl.constexpr, TILE: tl.constexpr, WINDOWED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """One program a query tile and KV head. Tiles are numbered through all sequences; the last ones are the longest to
    run in a causal mask, so they start first."""
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = num_decodes
    start = tl.load(query_starts + sequence)
    queries = tl.load(query_starts + sequence + 1) - start
    tiles = tl.cdiv(queries, TOKENS)
    while tile >= tiles:
        tile -= tiles
        sequence += 1
        start = tl.load(query_starts + sequence)
        queries = tl.load(query_starts + sequence + 1) - start
        tiles = tl.cdiv(queries, TOKENS)
    length = tl.load(seq_lens + sequence)
    context = length - queries
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    places = tl.arange(0, TILE)
    token = tile * TOKENS + rows // GROUP
    live = (rows < TOKENS * GROUP) & (token < queries)
    position = context + token
    heads = kv_head * GROUP + rows % GROUP
    valid = live[:, None] & (dims < DIM)[None, :]
    at_query = (start + token).to(tl.int64)
    own = tl.load(q + at_query[:, None] * q_token + heads[:, None] * q_head + dims[None, :], mask=valid, other=0.0)
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    end = tl.minimum(context + (tile + 1) * TOKENS, length)
    begin = 0
    if WINDOWED:
        begin = (tl.maximum(context + tile * TOKENS - window + 1, 0) // TILE) * TILE
    table = tables + sequence.to(tl.int64) * table_stride
    for first in range(begin, end, TILE):
        at = first + places
        inside = at < end
        blocks = tl.load(table + at // SIZE, mask=inside, other=0).to(tl.int64)
        cells = blocks * cache_block + kv_head * cache_head + (at % SIZE) * cache_slot
        held = inside[:, None] & (dims < DIM)[None, :]
        keys = tl.load(k_cache + cells[:, None] + dims[None, :], mask=held, other=0.0)
        if IEEE:
            scores = tl.dot(own, tl.trans(keys), input_precision="ieee") * scale
        else:
            scores = tl.dot(own, tl.trans(keys)) * scale
        seen = at[None, :] <= position[:, None]
        if WINDOWED:
            seen = seen & (at[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
        above = tl.maximum(highest, tl.max(scores, axis=1))
        # A row may see nothing of this tile, or be padding.
        base = tl.where(above == float("-inf"), 0.0, above)
        weights = tl.exp2(scores - base[:, None])
        fade = tl.exp2(highest - base)
        values = tl.load(v_cache + cells[:, None] + dims[None, :], mask=held, other=0.0)
        acc = acc * fade[:, None]
        if IEEE:
            acc += tl.dot(weights, values, input_precision="ieee")
        else:
            acc += tl.dot(weights.to(values.dtype), values)
        total = total * fade + tl.sum(weights, axis=1)
        highest = above
    result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    places_out = out + at_query[:, None] * out_token + heads[:, None] * out_head + dims[None, :]
    tl.store(places_out, result.to(out.dtype.element_ty), mask=valid)
