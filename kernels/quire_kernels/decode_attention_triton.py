"""Decode attention on the GPU (Flash-Decoding, crfm.stanford.edu/2023/10/12/flashdecoding.html).

The keys of a sequence are cut into splits of fixed size and a second kernel merges them. A split is a range of
positions, never a share of the batch, so that a sequence's result does not depend on its neighbours. All query heads of
one KV head are the rows of one tile.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.batch import AttentionBatch

SPLIT = 256
LOG2_E = 1.4426950408889634


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int | None, out: Tensor
) -> None:
    """The number of splits follows from the width of the block table, so that a CUDA graph holds for every length."""
    sequences, query_heads, dim = batch.num_decodes, q.shape[1], q.shape[2]
    kv_heads, block_size = k_cache.shape[1], k_cache.shape[2]
    group = query_heads // kv_heads
    splits = triton.cdiv(batch.block_tables.shape[1] * block_size, SPLIT)
    partial = torch.empty(sequences, query_heads, splits, dim, dtype=torch.float32, device=q.device)
    # Of each partial result: the largest score, and the sum of exponentials, both in base 2.
    stats = torch.empty(sequences, query_heads, splits, 2, dtype=torch.float32, device=q.device)
    block_d = max(16, triton.next_power_of_2(dim))
    _split_kernel[(sequences, kv_heads, splits)](
        q, k_cache, v_cache, batch.block_tables, batch.seq_lens, partial, stats, scale * LOG2_E,
        window or 0, splits, batch.block_tables.stride(0), q.stride(0), q.stride(1),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        GROUP=group, ROWS=max(16, triton.next_power_of_2(group)), DIM=dim, BLOCK_D=block_d, SIZE=block_size,
        SPLIT=SPLIT, TILE=64 if block_d <= 128 else 32, WINDOWED=window is not None,
        IEEE=q.dtype == torch.float32, num_warps=4, num_stages=2,
    )  # fmt: skip
    _merge_kernel[(sequences, query_heads)](
        partial, stats, batch.seq_lens, out, window or 0, splits, out.stride(0), out.stride(1),
        DIM=dim, BLOCK_D=block_d, SPLIT=SPLIT, WINDOWED=window is not None, num_warps=2,
    )  # fmt: skip


@triton.jit
def _split_kernel(
    q, k_cache, v_cache, tables, seq_lens, partial, stats, scale, window, splits, table_stride, q_token, q_head,
    cache_block, cache_head, cache_slot,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, SIZE: tl.constexpr,
    SPLIT: tl.constexpr, TILE: tl.constexpr, WINDOWED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """One program a sequence, KV head and split. Splits without visible keys leave their place unwritten."""
    sequence = tl.program_id(0).to(tl.int64)
    kv_head = tl.program_id(1)
    split = tl.program_id(2)
    length = tl.load(seq_lens + sequence)
    first = split * SPLIT
    end = tl.minimum(first + SPLIT, length)
    if WINDOWED:
        lowest = tl.maximum(length - window, 0)
    else:
        lowest = 0
    if (first < length) & (end > lowest):
        rows = tl.arange(0, ROWS)
        dims = tl.arange(0, BLOCK_D)
        places = tl.arange(0, TILE)
        heads = kv_head * GROUP + rows
        valid = (rows < GROUP)[:, None] & (dims < DIM)[None, :]
        queries = tl.load(q + sequence * q_token + heads[:, None] * q_head + dims[None, :], mask=valid, other=0.0)
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        # Tiles start at multiples of TILE, so that what is added to what never depends on the window's edge alone.
        begin = tl.maximum(first, (lowest // TILE) * TILE)
        for start in range(begin, end, TILE):
            at = start + places
            inside = at < end
            seen = inside
            if WINDOWED:
                seen = inside & (at >= lowest)
            blocks = tl.load(tables + sequence * table_stride + at // SIZE, mask=inside, other=0).to(tl.int64)
            cells = blocks * cache_block + kv_head * cache_head + (at % SIZE) * cache_slot
            held = inside[:, None] & (dims < DIM)[None, :]
            keys = tl.load(k_cache + cells[:, None] + dims[None, :], mask=held, other=0.0)
            if IEEE:
                scores = tl.dot(queries, tl.trans(keys), input_precision="ieee") * scale
            else:
                scores = tl.dot(queries, tl.trans(keys)) * scale
            scores = tl.where(seen[None, :], scores, float("-inf"))
            above = tl.maximum(highest, tl.max(scores, axis=1))
            # A tile whose keys all lie below the window leaves no score at all.
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
        cell = (sequence * tl.num_programs(1) * GROUP + heads) * splits + split
        tl.store(partial + cell[:, None] * DIM + dims[None, :], acc / total[:, None], mask=valid)
        tl.store(stats + cell * 2, highest, mask=rows < GROUP)
        tl.store(stats + cell * 2 + 1, total, mask=rows < GROUP)


@triton.jit
def _merge_kernel(
    partial, stats, seq_lens, out, window, splits, out_token, out_head,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, SPLIT: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """One program a sequence and query head: partial results weighted by their sums of exponentials, in split order."""
    sequence = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    length = tl.load(seq_lens + sequence)
    lowest = 0
    if WINDOWED:
        lowest = tl.maximum(length - window, 0)
    dims = tl.arange(0, BLOCK_D)
    cell = (sequence * tl.num_programs(1) + head) * splits
    highest = float("-inf")
    total = 0.0
    acc = tl.zeros([BLOCK_D], tl.float32)
    for split in range(lowest // SPLIT, tl.cdiv(length, SPLIT)):
        own_highest = tl.load(stats + (cell + split) * 2)
        own_total = tl.load(stats + (cell + split) * 2 + 1)
        values = tl.load(partial + (cell + split) * DIM + dims, mask=dims < DIM, other=0.0)
        above = tl.maximum(highest, own_highest)
        fade = tl.exp2(highest - above)
        weight = own_total * tl.exp2(own_highest - above)
        acc = acc * fade + values * weight
        total = total * fade + weight
        highest = above
    at = out + sequence * out_token + head * out_head + dims
    tl.store(at, (acc / total).to(out.dtype.element_ty), mask=dims < DIM)
