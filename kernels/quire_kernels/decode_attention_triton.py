"""Decode attention on the GPU (Flash-Decoding, crfm.stanford.edu/2023/10/12/flashdecoding.html).

The keys of a sequence are cut into equal splits, and a fixed number of programs walks the list of all of them, so that
one CUDA graph serves every length and no program is launched for nothing. The program that finishes a sequence's last
split merges them, in the order of the splits. All query heads of one KV head are the rows of one tile.

Keys that many sequences share (batch.shared) are read by shared_attention_triton for all of them; the splits then begin
behind them, and the merge takes in what it found.

This is for few sequences, which need many programs; balanced_attention_triton divides the keys of more of them. So a
sequence's sums are taken in another order in a large batch than alone.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels import tuning
from quire_kernels.attention_tile_triton import LOG2_E, attend_loaded, merge
from quire_kernels.balanced_attention_triton import balanced_attention
from quire_kernels.batch import AttentionBatch
from quire_kernels.overlap_triton import dependents_may_start, wait_for_inputs
from quire_kernels.shared_attention_triton import SharedSums, attend_shared

SPLIT = 192
"""Keys of a split."""
MAX_SPLITS = 32
"""Of a sequence; above MAX_SPLITS splits' worth of keys they grow instead of becoming more."""
MERGED_AT_ONCE = 4
WORDS = 4


@dataclass(frozen=True, slots=True)
class DecodeWork:
    """What all layers of a step share: who reads which keys, and room for what they found.

    items int32 [1 + n * splits, WORDS]: how many there are, then for each: sequence * MAX_SPLITS + split, its first key
    and last + 1, splits of the sequence times 2 and 1 if it shares keys. arrivals int32 [n, Hkv]: splits finished.
    partial fp32 [n, Hq, splits, D] and sums fp32 [n, Hq, splits]: each split's result and, in base 2, the logarithm of
    its sum of exponentials. shared: room for the same of shared keys, where there are any.
    """

    items: Tensor
    arrivals: Tensor
    partial: Tensor
    sums: Tensor
    splits: int
    shared: SharedSums | None


def decode_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int | None, out: Tensor
) -> None:
    """Fill the decodes' rows of `out` [T, Hq, D]; shapes are those of quire_kernels.attention.paged_attention.

    Sizes follow from the width of the block table, so that a CUDA graph holds for every length.
    """
    if batch.num_decodes > tuning.FEW:
        balanced_attention(q, k_cache, v_cache, batch, scale, window, out)
        return
    sequences, query_heads, dim = batch.num_decodes, q.shape[1], q.shape[2]
    kv_heads, block_size = k_cache.shape[1], k_cache.shape[2]
    group = query_heads // kv_heads
    block_d = max(16, triton.next_power_of_2(dim))
    shape = tuning.tile("decode", q.dtype, block_d)
    key = ("decode work", query_heads, kv_heads, dim, window)
    work = batch.step_work.get(key)
    if work is None:
        work = batch.step_work[key] = _work(batch, q, kv_heads, window, shape.keys)
    shared = None if window is not None else batch.shared
    found = None if shared is None else attend_shared(q, k_cache, v_cache, batch, shared, scale, work.shared)
    programs = min(sequences * kv_heads * work.splits, shape.programs * tuning.processors())
    _decode_kernel[(programs,)](
        q, k_cache, v_cache, batch.block_tables, batch.seq_lens, work.items, work.arrivals, work.partial,
        work.sums, work.partial if found is None else found.partial, work.sums if found is None else found.sums,
        out, scale * LOG2_E, window or 0, work.splits, batch.block_tables.stride(0),
        q.stride(0), q.stride(1), out.stride(0), out.stride(1),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        KV_HEADS=kv_heads, GROUP=group, ROWS=max(16, triton.next_power_of_2(group)), DIM=dim, BLOCK_D=block_d,
        SIZE=block_size, MAX_SPLITS=MAX_SPLITS, WORDS=WORDS, AT_ONCE=MERGED_AT_ONCE, KEYS=shape.keys,
        WINDOWED=window is not None, SHARED=0 if found is None else found.partial.shape[2],
        IEEE=q.dtype.itemsize == 4, num_warps=shape.warps, num_stages=shape.stages, **tuning.overlapping(sequences),
    )  # fmt: skip


def _work(
    batch: AttentionBatch,
    q: Tensor,
    kv_heads: int,
    window: int | None,
    keys: int,
) -> DecodeWork:
    (query_heads, dim), device = q.shape[1:], q.device
    n = batch.num_decodes
    capacity = batch.block_tables.shape[1] * batch.block_size
    splits = min(triton.cdiv(capacity, SPLIT) + (window is not None), MAX_SPLITS)
    work = DecodeWork(
        items=torch.empty(1 + n * splits, WORDS, dtype=torch.int32, device=device),
        arrivals=torch.empty(n, kv_heads, dtype=torch.int32, device=device),
        partial=torch.empty(n, query_heads, splits, dim, dtype=torch.float32, device=device),
        sums=torch.empty(n, query_heads, splits, dtype=torch.float32, device=device),
        splits=splits,
        shared=SharedSums.of(n, q, kv_heads) if batch.shared is not None and window is None else None,
    )
    shared = None if window is not None else batch.shared
    _work_kernel[(n,)](
        batch.seq_lens, batch.seq_lens if shared is None else shared.lens, work.items, work.arrivals, n, window or 0,
        KV_HEADS=kv_heads,
        BLOCK=max(16, triton.next_power_of_2(n)), BLOCK_HEADS=triton.next_power_of_2(kv_heads),
        SPLIT=SPLIT,
        MAX_SPLITS=MAX_SPLITS, WORDS=WORDS, KEYS=keys, WINDOWED=window is not None, SHARED=shared is not None,
        num_warps=1, **tuning.overlapping(n),
    )  # fmt: skip
    return work


@triton.jit
def _cut(
    length, window, shared, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr, KEYS: tl.constexpr, WINDOWED: tl.constexpr
):  # fmt: skip
    """Where the keys to be read begin: at a multiple of KEYS, or behind the shared ones; keys of a split, such a
    multiple; how many splits."""
    begin = shared
    if WINDOWED:
        begin = (tl.maximum(length - window, 0) // KEYS) * KEYS
    span = length - begin
    wanted = tl.minimum(tl.cdiv(span, SPLIT), MAX_SPLITS)
    size = tl.cdiv(tl.cdiv(span, tl.maximum(wanted, 1)), KEYS) * KEYS
    return begin, size, tl.cdiv(span, tl.maximum(size, 1))


@triton.jit(do_not_specialize=["n", "window"])
def _work_kernel(
    seq_lens, shared_lens, items, arrivals, n, window, KV_HEADS: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_HEADS: tl.constexpr, SPLIT: tl.constexpr, MAX_SPLITS: tl.constexpr,
    WORDS: tl.constexpr, KEYS: tl.constexpr, WINDOWED: tl.constexpr, SHARED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program a sequence: its items follow those of the sequences before it."""
    if OVERLAP:
        dependents_may_start()
        wait_for_inputs()
    sequence = tl.program_id(0)
    others = tl.arange(0, BLOCK)
    lengths = tl.load(seq_lens + others, mask=others < n, other=0)
    shared = lengths * 0
    if SHARED:
        shared = tl.load(shared_lens + others, mask=others < n, other=0)
    _, _, counts = _cut(lengths, window, shared, SPLIT, MAX_SPLITS, KEYS, WINDOWED)
    before = tl.sum(tl.where(others < sequence, counts, 0), axis=0)
    length = tl.load(seq_lens + sequence)
    ours = length * 0
    if SHARED:
        ours = tl.load(shared_lens + sequence)
    begin, size, count = _cut(length, window, ours, SPLIT, MAX_SPLITS, KEYS, WINDOWED)
    splits = tl.arange(0, MAX_SPLITS)
    own = splits < count
    at = items + (1 + before + splits) * WORDS
    start = begin + splits * size
    tl.store(at, sequence * MAX_SPLITS + splits, mask=own)
    tl.store(at + 1, start, mask=own)
    tl.store(at + 2, tl.minimum(start + size, length), mask=own)
    tl.store(at + 3, splits * 0 + 2 * count + (ours > 0).to(tl.int32), mask=own)
    heads = tl.arange(0, BLOCK_HEADS)
    tl.store(arrivals + sequence * KV_HEADS + heads, 0, mask=heads < KV_HEADS)
    if sequence == n - 1:
        tl.store(items, before + count)


@triton.jit
def _item(items, pair, pairs, KV_HEADS: tl.constexpr, WORDS: tl.constexpr):
    """The item of a pair as DecodeWork has it; without keys where there is no such pair."""
    at = items + (1 + pair // KV_HEADS) * WORDS
    held = pair < pairs
    return (
        tl.load(at, mask=held, other=0), tl.load(at + 1, mask=held, other=0), tl.load(at + 2, mask=held, other=0),
        tl.load(at + 3, mask=held, other=0),
    )  # fmt: skip


@triton.jit(do_not_specialize=["window", "splits", "table_stride"])
def _decode_kernel(
    q, k_cache, v_cache, tables, seq_lens, items, arrivals, partial, sums, shared_partial, shared_sums,
    out, scale, window, splits, table_stride,
    q_token, q_head, out_token, out_head, cache_block, cache_head, cache_slot,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SIZE: tl.constexpr, MAX_SPLITS: tl.constexpr, WORDS: tl.constexpr, AT_ONCE: tl.constexpr, KEYS: tl.constexpr,
    WINDOWED: tl.constexpr, SHARED: tl.constexpr, IEEE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Each program takes every num_programs-th pair of an item and a KV head."""
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    places = tl.arange(0, KEYS)
    is_head = rows < GROUP
    valid = is_head[:, None] & (dims < DIM)[None, :]
    if OVERLAP:
        dependents_may_start()
        wait_for_inputs()
    pairs = tl.load(items) * KV_HEADS
    stride = tl.num_programs(0)
    # What a pair is about is read a pair ahead: while the memory is busy, each read that another one waits for costs a
    # microsecond or more.
    item, start, end, flags = _item(items, tl.program_id(0), tl.program_id(0) + 1, KV_HEADS, WORDS)
    for pair in range(tl.program_id(0), pairs, stride):
        kv_head = pair % KV_HEADS
        sequence = (item // MAX_SPLITS).to(tl.int64)
        split = item % MAX_SPLITS
        count = flags // 2
        table = tables + sequence * table_stride
        # The table is read a tile ahead, so that reading keys and values never waits for it.
        ahead = tl.load(table + (start + places) // SIZE, mask=start + places < end, other=0)
        next_item, next_start, next_end, next_flags = _item(items, pair + stride, pairs, KV_HEADS, WORDS)
        heads = kv_head * GROUP + rows
        own = tl.load(q + sequence * q_token + heads[:, None] * q_head + dims[None, :], mask=valid, other=0.0)
        position = rows * 0 + end - 1
        if WINDOWED:
            position = rows * 0 + tl.load(seq_lens + sequence) - 1
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for first in range(start, end, KEYS):
            at = first + places
            held = (at < end)[:, None] & (dims < DIM)[None, :]
            cells = ahead.to(tl.int64) * cache_block + kv_head * cache_head + (at % SIZE) * cache_slot
            offsets = cells[:, None] + dims[None, :]
            ahead = tl.load(table + (at + KEYS) // SIZE, mask=at + KEYS < end, other=0)
            keys = tl.load(k_cache + offsets, mask=held, other=0.0)
            values = tl.load(v_cache + offsets, mask=held, other=0.0)
            highest, total, acc = attend_loaded(
                own, keys, values, at, position, highest, total, acc, scale, window, True, WINDOWED, IEEE
            )
        target = out + sequence * out_token + heads[:, None] * out_head + dims[None, :]
        cell = (sequence * KV_HEADS * GROUP + heads) * splits
        is_last = count == 1
        if count > 1:
            tl.store(partial + (cell + split)[:, None] * DIM + dims[None, :], acc / total[:, None], mask=valid)
            tl.store(sums + cell + split, highest + tl.log2(total), mask=is_head)
            # All stores of this program happen before its arrival is seen.
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals + sequence * KV_HEADS + kv_head, 1, sem="acq_rel")
            is_last = arrived == count - 1
            if is_last:
                tl.debug_barrier()
                highest = tl.full([ROWS], float("-inf"), tl.float32)
                total = tl.zeros([ROWS], tl.float32)
                acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
                for other in range(0, count, AT_ONCE):
                    for step in tl.static_range(AT_ONCE):
                        there = cell + other + step
                        found = is_head & (other + step < count)
                        weight = tl.load(sums + there, mask=found, other=float("-inf"))
                        part = tl.load(
                            partial + there[:, None] * DIM + dims[None, :], mask=valid & found[:, None], other=0.0
                        )
                        highest, total, acc = merge(highest, total, acc, weight, part)
                # The next layer counts from nought again.
                tl.store(arrivals + sequence * KV_HEADS + kv_head, 0)
        if is_last:
            if SHARED:
                for step in tl.static_range(SHARED):
                    there = (sequence * KV_HEADS * GROUP + heads) * SHARED + step
                    found = is_head & (flags % 2 > 0)
                    weight = tl.load(shared_sums + there, mask=found, other=float("-inf"))
                    part = tl.load(
                        shared_partial + there[:, None] * DIM + dims[None, :], mask=valid & found[:, None], other=0.0
                    )
                    highest, total, acc = merge(highest, total, acc, weight, part)
            result = acc / tl.where(is_head, total, 1.0)[:, None]
            tl.store(target, result.to(out.dtype.element_ty), mask=valid)
        item, start, end, flags = next_item, next_start, next_end, next_flags
