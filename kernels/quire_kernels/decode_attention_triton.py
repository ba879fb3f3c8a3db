"""Decode attention on the GPU (Flash-Decoding, crfm.stanford.edu/2023/10/12/flashdecoding.html).

The keys of a sequence are cut into splits, and a second kernel merges the results of sequences that have more than one.
A split is a fixed range of positions, never a share of the batch, so that a sequence's result does not depend on its
neighbours: 16 splits of 256 keys, then 16 equal ones for every doubling of the length, which bounds their number.
The grid is persistent: its size follows from the GPU, and each program takes every so-manieth split of the batch, so
that a captured CUDA graph wastes nothing on lengths that are not there.
"""

from itertools import islice

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels import tuning
from quire_kernels.attention_tile_triton import attend_tile
from quire_kernels.batch import AttentionBatch

LOG2_E = 1.4426950408889634
PROGRAMS_PER_PROCESSOR = 4


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int | None, out: Tensor
) -> None:
    """`batch.seq_lens` may hold less than `batch.seq_lens_cpu`, which bounds the scratch memory, but not more."""
    sequences, query_heads, dim = batch.num_decodes, q.shape[1], q.shape[2]
    kv_heads, block_size = k_cache.shape[1], k_cache.shape[2]
    group = query_heads // kv_heads
    splits = _splits(batch, window)
    # Weighted values and, in base 2, the logarithm of the sum of exponentials.
    partial = torch.empty(splits, query_heads, dim, dtype=torch.float32, device=q.device)
    sums = torch.empty(splits, query_heads, dtype=torch.float32, device=q.device)
    block_d = max(16, triton.next_power_of_2(dim))
    rows = max(16, triton.next_power_of_2(group))
    block_n = max(64, triton.next_power_of_2(sequences))
    shape = tuning.tile("decode", q.dtype, block_d)
    is_windowed = window is not None
    programs = min(splits * kv_heads, PROGRAMS_PER_PROCESSOR * tuning.processors())
    _split_kernel[(programs,)](
        q, k_cache, v_cache, batch.block_tables, batch.seq_lens, partial, sums, out, scale * LOG2_E,
        window or 0, sequences, batch.block_tables.stride(0), q.stride(0), q.stride(1), out.stride(0), out.stride(1),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        KV_HEADS=kv_heads, GROUP=group, ROWS=rows, DIM=dim, BLOCK_D=block_d, BLOCK_N=block_n, SIZE=block_size,
        KEYS=shape.keys, WINDOWED=is_windowed, IEEE=q.dtype.itemsize == 4,
        num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
    _merge_kernel[(sequences, kv_heads)](
        partial, sums, batch.seq_lens, out, window or 0, sequences, out.stride(0), out.stride(1),
        KV_HEADS=kv_heads, GROUP=group, ROWS=triton.next_power_of_2(group), DIM=dim, BLOCK_D=block_d, BLOCK_N=block_n,
        WINDOWED=is_windowed, num_warps=4,
    )  # fmt: skip


def _splits(batch: AttentionBatch, window: int | None) -> int:
    """Of all decodes together, by the lengths that the host knows; counted once for all layers."""
    key = ("splits", window)
    if key not in batch.layouts:
        lens = islice(batch.seq_lens_cpu, batch.num_decodes)
        batch.layouts[key] = max(1, sum(split_of(n - 1) - split_of(max(n - (window or n), 0)) + 1 for n in lens))
    return batch.layouts[key]


def split_of(position: int) -> int:
    """Number of the split that holds a position: `_split_of` on the host."""
    octave = (max(position, 0) >> 12).bit_length()
    return position // 256 if octave == 0 else 16 * octave + (position - (2048 << octave)) // (128 << octave)


@triton.jit
def _split_of(position):
    octave = position * 0
    for doubling in tl.static_range(16):
        octave += (position >= (4096 << doubling)).to(tl.int32)
    later = 16 * octave + (position - (2048 << octave)) // (128 << octave)
    return tl.where(octave == 0, position // 256, later)


@triton.jit
def _counts(seq_lens, indices, sequences, window, WINDOWED: tl.constexpr):
    """Splits of each sequence that hold a visible key."""
    lens = tl.load(seq_lens + indices, mask=indices < sequences, other=0)
    firsts = lens * 0
    if WINDOWED:
        firsts = tl.maximum(lens - window, 0)
    counts = _split_of(tl.maximum(lens - 1, 0)) - _split_of(firsts) + 1
    return tl.where(lens > 0, counts, 0)


@triton.jit(do_not_specialize=["window", "sequences", "table_stride"])
def _split_kernel(
    q, k_cache, v_cache, tables, seq_lens, partial, sums, out, scale, window, sequences, table_stride,
    q_token, q_head, out_token, out_head, cache_block, cache_head, cache_slot,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, SIZE: tl.constexpr, KEYS: tl.constexpr, WINDOWED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """A work item is one split of one sequence for one KV head with all its query heads."""
    indices = tl.arange(0, BLOCK_N)
    counts = _counts(seq_lens, indices, sequences, window, WINDOWED)
    ends = tl.cumsum(counts, axis=0)
    items = tl.sum(counts, axis=0) * KV_HEADS
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    valid = (rows < GROUP)[:, None] & (dims < DIM)[None, :]
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        kv_head = item % KV_HEADS
        slot = item // KV_HEADS
        sequence = tl.sum((ends <= slot).to(tl.int32), axis=0)
        count = tl.sum(tl.where(indices == sequence, counts, 0), axis=0)
        slot_of_first = tl.sum(tl.where(indices < sequence, counts, 0), axis=0)
        length = tl.load(seq_lens + sequence)
        lowest = length * 0
        if WINDOWED:
            lowest = tl.maximum(length - window, 0)
        split = _split_of(lowest) + slot - slot_of_first
        octave = split // 16
        start = tl.where(octave == 0, split * 256, (2048 << octave) + (split % 16) * (128 << octave))
        end = tl.minimum(start + tl.where(octave == 0, 256, 128 << octave), length)

        heads = kv_head * GROUP + rows
        row = sequence.to(tl.int64)
        own = tl.load(q + row * q_token + heads[:, None] * q_head + dims[None, :], mask=valid, other=0.0)
        position = rows * 0 + length - 1
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        table = tables + row * table_stride
        keys = k_cache + kv_head * cache_head
        values = v_cache + kv_head * cache_head
        # Tiles start at multiples of KEYS, window or not.
        begin = tl.maximum(start, (lowest // KEYS) * KEYS)
        for first in range(begin, end, KEYS):
            highest, total, acc = attend_tile(
                own, position, highest, total, acc, first, end, table, keys, values, cache_block, cache_slot,
                scale, window, DIM, BLOCK_D, SIZE, KEYS, True, WINDOWED, IEEE,
            )  # fmt: skip
        result = acc / total[:, None]
        if count == 1:
            target = out + row * out_token + heads[:, None] * out_head + dims[None, :]
            tl.store(target, result.to(out.dtype.element_ty), mask=valid)
        else:
            cell = slot.to(tl.int64) * (KV_HEADS * GROUP) + heads
            tl.store(partial + cell[:, None] * DIM + dims[None, :], result, mask=valid)
            tl.store(sums + cell, highest + tl.log2(total), mask=rows < GROUP)


@triton.jit(do_not_specialize=["window", "sequences"])
def _merge_kernel(
    partial, sums, seq_lens, out, window, sequences, out_token, out_head,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr, WINDOWED: tl.constexpr,
):  # fmt: skip
    """One program a sequence and KV head: the splits' results weighted by their sums, in the order of the splits."""
    sequence = tl.program_id(0)
    indices = tl.arange(0, BLOCK_N)
    counts = _counts(seq_lens, indices, sequences, window, WINDOWED)
    count = tl.sum(tl.where(indices == sequence, counts, 0), axis=0)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    heads = tl.program_id(1) * GROUP + rows
    valid = (rows < GROUP)[:, None] & (dims < DIM)[None, :]
    target = out + sequence.to(tl.int64) * out_token + heads[:, None] * out_head + dims[None, :]
    if count == 0:
        tl.store(target, tl.zeros([ROWS, BLOCK_D], out.dtype.element_ty), mask=valid)
    if count > 1:
        first = tl.sum(tl.where(indices < sequence, counts, 0), axis=0).to(tl.int64)
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for split in range(count):
            cell = (first + split) * (KV_HEADS * GROUP) + heads
            own = tl.load(sums + cell, mask=rows < GROUP, other=0.0)
            values = tl.load(partial + cell[:, None] * DIM + dims[None, :], mask=valid, other=0.0)
            above = tl.maximum(highest, own)
            fade = tl.exp2(highest - above)
            weight = tl.exp2(own - above)
            acc = acc * fade[:, None] + values * weight[:, None]
            total = total * fade + weight
            highest = above
        tl.store(target, (acc / total[:, None]).to(out.dtype.element_ty), mask=valid)
