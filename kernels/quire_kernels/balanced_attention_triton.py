"""Decode attention of many sequences on the GPU: every program reads as many keys as any other (Stream-K's division of
work, arXiv 2301.03598, for the keys of a batch).

The tiles of all sequences' keys, one sequence after another, are cut into as many equal stretches as there are slots;
one program a slot and KV head walks its stretch. So all of them end together, whatever the lengths are, and only the
sequences that a cut goes through have results to merge: the program that finishes a sequence's last part does that, in
the order of the keys. The grid does not depend on the lengths, so that one CUDA graph serves them all.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels import tuning
from quire_kernels.attention_tile_triton import LOG2_E, attend_loaded, merge
from quire_kernels.batch import AttentionBatch
from quire_kernels.overlap_triton import dependents_may_start, fetch_lines, wait_for_inputs
from quire_kernels.shared_attention_triton import SharedSums, attend_shared

LEAST = 2
"""Tiles of a slot: where there are fewer than this for each, fewer slots have any."""
WORDS = 8
MERGED_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class BalancedWork:
    """What all layers of a step share.

    stretches int32 [slots, WORDS]: the slot's first sequence, how many of its tiles come before the stretch, tiles of
    the stretch (0: none), tiles of the sequences before the first one, tiles of the batch, slots that have any.
    arrivals int32 [n, Hkv]: parts of a sequence that are finished, 0 between launches.
    partial fp32 [slots, 2, Hq, D] and sums fp32 [slots, 2, Hq]: result and, in base 2, logarithm of the sum of
    exponentials of the part that a slot begins with (0) and of the last one after it (1).
    """

    stretches: Tensor
    arrivals: Tensor
    partial: Tensor
    sums: Tensor
    shared: SharedSums | None


def balanced_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int | None, out: Tensor
) -> None:
    """As decode_attention_triton.decode_attention, for more sequences than tuning.FEW."""
    sequences, query_heads, dim = batch.num_decodes, q.shape[1], q.shape[2]
    kv_heads = k_cache.shape[1]
    block_d = max(16, triton.next_power_of_2(dim))
    shape = tuning.tile("balanced", q.dtype, block_d)
    key = ("balanced work", query_heads, kv_heads, dim, window)
    work, overlap = batch.step_work.get(key), tuning.overlapping(sequences)
    if work is None:
        work, overlap = _work(batch, q, kv_heads, window, shape), tuning.APART
        batch.step_work[key] = work
    shared = None if window is not None else batch.shared
    found = None if shared is None else attend_shared(q, k_cache, v_cache, batch, shared, scale, work.shared)
    group = query_heads // kv_heads
    _balanced_kernel[(len(work.stretches) * kv_heads,)](
        q, k_cache, v_cache, batch.block_tables, batch.seq_lens, batch.seq_lens if shared is None else shared.lens,
        work.stretches, work.arrivals, work.partial, work.sums,
        work.partial if found is None else found.partial, work.sums if found is None else found.sums,
        out, scale * LOG2_E, window or 0, sequences, batch.block_tables.stride(0),
        q.stride(0), q.stride(1), out.stride(0), out.stride(1),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        KV_HEADS=kv_heads, GROUP=group, ROWS=max(16, triton.next_power_of_2(group)), DIM=dim, BLOCK_D=block_d,
        SIZE=k_cache.shape[2], WORDS=WORDS, AT_ONCE=MERGED_AT_ONCE, KEYS=shape.keys, WINDOWED=window is not None,
        SHARED=0 if found is None else found.partial.shape[2], IEEE=q.dtype.itemsize == 4,
        num_warps=shape.warps, num_stages=shape.stages, **overlap,
    )  # fmt: skip


def _work(
    batch: AttentionBatch,
    q: Tensor,
    kv_heads: int,
    window: int | None,
    shape: tuning.Tile,
) -> BalancedWork:
    (query_heads, dim), device = q.shape[1:], q.device
    n = batch.num_decodes
    slots = max(1, shape.programs * tuning.processors() // kv_heads)
    shared = None if window is not None else batch.shared
    work = BalancedWork(
        stretches=torch.empty(slots, WORDS, dtype=torch.int32, device=device),
        arrivals=torch.empty(n, kv_heads, dtype=torch.int32, device=device),
        partial=torch.empty(slots, 2, query_heads, dim, dtype=torch.float32, device=device),
        sums=torch.empty(slots, 2, query_heads, dtype=torch.float32, device=device),
        shared=SharedSums.of(n, q, kv_heads) if shared is not None else None,
    )
    _stretches_kernel[(n,)](
        batch.seq_lens, batch.seq_lens if shared is None else shared.lens, work.stretches, work.arrivals,
        n, window or 0, slots,
        KV_HEADS=kv_heads, BLOCK=max(1024, triton.next_power_of_2(n)), BLOCK_HEADS=triton.next_power_of_2(kv_heads),
        BLOCK_SLOTS=triton.next_power_of_2(slots), LEAST=LEAST, WORDS=WORDS, KEYS=shape.keys,
        WINDOWED=window is not None, SHARED=shared is not None, num_warps=4,
        **tuning.overlapping(n),
    )  # fmt: skip
    return work


@triton.jit
def _span(length, window, shared, KEYS: tl.constexpr, WINDOWED: tl.constexpr):
    """Where the keys to be read begin, and their tiles."""
    begin = shared
    if WINDOWED:
        begin = (tl.maximum(length - window, 0) // KEYS) * KEYS
    return begin, tl.cdiv(length - begin, KEYS)


@triton.jit(do_not_specialize=["n", "window", "slots"])
def _stretches_kernel(
    seq_lens, shared_lens, stretches, arrivals, n, window, slots, KV_HEADS: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_HEADS: tl.constexpr, BLOCK_SLOTS: tl.constexpr, LEAST: tl.constexpr, WORDS: tl.constexpr,
    KEYS: tl.constexpr, WINDOWED: tl.constexpr, SHARED: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program a sequence writes the slots that begin in it; the first one also those that have nothing to do."""
    if OVERLAP:
        dependents_may_start()
        wait_for_inputs()
    sequence = tl.program_id(0)
    others = tl.arange(0, BLOCK)
    lengths = tl.load(seq_lens + others, mask=others < n, other=0)
    shared = lengths * 0
    if SHARED:
        shared = tl.load(shared_lens + others, mask=others < n, other=0)
    _, tiles = _span(lengths, window, shared, KEYS, WINDOWED)
    tiles = tl.where(others < n, tiles, 0)
    total = tl.sum(tiles, axis=0)
    before = tl.sum(tl.where(others < sequence, tiles, 0), axis=0)
    own = tl.sum(tl.where(others == sequence, tiles, 0), axis=0)
    # None where no sequence has a key: a mixed batch may hold a place for decodes and have none.
    used = tl.minimum(slots, tl.cdiv(total, LEAST))
    slot = tl.arange(0, BLOCK_SLOTS)
    start = slot * total // tl.maximum(used, 1)
    end = (slot + 1) * total // tl.maximum(used, 1)
    at = stretches + slot * WORDS
    is_own = (slot < used) & (start >= before) & (start < before + own)
    tl.store(at, sequence + slot * 0, mask=is_own)
    tl.store(at + 1, start - before, mask=is_own)
    tl.store(at + 2, end - start, mask=is_own)
    tl.store(at + 3, before + slot * 0, mask=is_own)
    tl.store(at + 4, total + slot * 0, mask=is_own)
    tl.store(at + 5, used + slot * 0, mask=is_own)
    if sequence == 0:
        is_idle = (slot >= used) & (slot < slots)
        tl.store(at, slot * 0, mask=is_idle)
        tl.store(at + 2, slot * 0, mask=is_idle)
    heads = tl.arange(0, BLOCK_HEADS)
    tl.store(arrivals + sequence * KV_HEADS + heads, 0, mask=heads < KV_HEADS)


@triton.jit(do_not_specialize=["window", "n", "table_stride"])
def _balanced_kernel(
    q, k_cache, v_cache, tables, seq_lens, shared_lens, stretches, arrivals, partial, sums, shared_partial, shared_sums,
    out, scale, window, n, table_stride,
    q_token, q_head, out_token, out_head, cache_block, cache_head, cache_slot,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SIZE: tl.constexpr, WORDS: tl.constexpr, AT_ONCE: tl.constexpr, KEYS: tl.constexpr,
    WINDOWED: tl.constexpr, SHARED: tl.constexpr, IEEE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program a slot and KV head; those of one slot lie together, as their keys do in memory."""
    if OVERLAP:
        dependents_may_start()
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    places = tl.arange(0, KEYS)
    is_head = rows < GROUP
    valid = is_head[:, None] & (dims < DIM)[None, :]
    kv_head = tl.program_id(0) % KV_HEADS
    slot = tl.program_id(0) // KV_HEADS
    heads = kv_head * GROUP + rows
    at = stretches + slot * WORDS
    sequence = tl.load(at)
    skipped = tl.load(at + 1)
    left = tl.load(at + 2)
    before = tl.load(at + 3)
    total = tl.load(at + 4)
    used = tl.load(at + 5)
    # Lengths are read a sequence ahead: while the memory is busy, a read that another one waits for costs a
    # microsecond or more.
    length = tl.load(seq_lens + sequence)
    shared = length * 0
    if SHARED:
        shared = tl.load(shared_lens + sequence)
    if OVERLAP:
        # The division of work, lengths and tables are older than the first layer's attention, which began when all
        # before it had ended; so are all keys but the newest.
        BYTES: tl.constexpr = DIM * (k_cache.dtype.element_ty.primitive_bitwidth // 8)
        if BYTES % 16 == 0:
            begin, _ = _span(length, window, shared, KEYS, WINDOWED)
            early = begin + skipped * KEYS + places
            early = tl.where((left > 0) & (early < length), early, 0)
            block = tl.load(tables + sequence.to(tl.int64) * table_stride + early // SIZE).to(tl.int64)
            early_cells = block * cache_block + kv_head * cache_head + (early % SIZE) * cache_slot
            fetch_lines(k_cache + early_cells, BYTES)
            fetch_lines(v_cache + early_cells, BYTES)
        wait_for_inputs()
    is_later = left * 0
    while left > 0:
        next_length = tl.load(seq_lens + sequence + 1, mask=sequence + 1 < n, other=1)
        next_shared = length * 0
        if SHARED:
            next_shared = tl.load(shared_lens + sequence + 1, mask=sequence + 1 < n, other=0)
        begin, tiles = _span(length, window, shared, KEYS, WINDOWED)
        taken = tl.minimum(tiles - skipped, left)
        start = begin + skipped * KEYS
        end = tl.minimum(start + taken * KEYS, length)
        place = sequence.to(tl.int64)
        table = tables + place * table_stride
        # The table is read a tile ahead, so that reading keys and values never waits for it.
        ahead = tl.load(table + (start + places) // SIZE, mask=start + places < end, other=0)
        own = tl.load(q + place * q_token + heads[:, None] * q_head + dims[None, :], mask=valid, other=0.0)
        position = rows * 0 + length - 1
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        sum_of = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for first in range(start, end, KEYS):
            keys_at = first + places
            held = (keys_at < end)[:, None] & (dims < DIM)[None, :]
            cells = ahead.to(tl.int64) * cache_block + kv_head * cache_head + (keys_at % SIZE) * cache_slot
            offsets = cells[:, None] + dims[None, :]
            ahead = tl.load(table + (keys_at + KEYS) // SIZE, mask=keys_at + KEYS < end, other=0)
            keys = tl.load(k_cache + offsets, mask=held, other=0.0)
            values = tl.load(v_cache + offsets, mask=held, other=0.0)
            highest, sum_of, acc = attend_loaded(
                own, keys, values, keys_at, position, highest, sum_of, acc, scale, window, True, WINDOWED, IEEE
            )
        is_last = (taken == tiles) & (tiles > 0)
        if taken < tiles:
            cell = (slot * 2 + is_later) * (KV_HEADS * GROUP) + heads
            seen = tl.where(sum_of == 0.0, 1.0, sum_of)
            tl.store(partial + cell[:, None] * DIM + dims[None, :], acc / seen[:, None], mask=valid)
            tl.store(sums + cell, highest + tl.log2(seen), mask=is_head)
            lowest_slot = ((before + 1) * used - 1) // total
            highest_slot = ((before + tiles) * used - 1) // total
            # All stores of this program happen before its arrival is seen.
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals + sequence * KV_HEADS + kv_head, 1, sem="acq_rel")
            is_last = arrived == highest_slot - lowest_slot
            if is_last:
                tl.debug_barrier()
                highest = tl.full([ROWS], float("-inf"), tl.float32)
                sum_of = tl.zeros([ROWS], tl.float32)
                acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
                for other in range(lowest_slot, highest_slot + 1, AT_ONCE):
                    for step in tl.static_range(AT_ONCE):
                        part_of = other + step
                        began_before = (part_of * total // used < before).to(tl.int32)
                        there = (part_of * 2 + began_before) * (KV_HEADS * GROUP) + heads
                        found = is_head & (part_of <= highest_slot)
                        weight = tl.load(sums + there, mask=found, other=float("-inf"))
                        part = tl.load(
                            partial + there[:, None] * DIM + dims[None, :], mask=valid & found[:, None], other=0.0
                        )
                        highest, sum_of, acc = merge(highest, sum_of, acc, weight, part)
                # The next layer counts from nought again.
                tl.store(arrivals + sequence * KV_HEADS + kv_head, 0)
        if is_last:
            if SHARED:
                for step in tl.static_range(SHARED):
                    there = (place * KV_HEADS * GROUP + heads) * SHARED + step
                    found = is_head & (shared > 0)
                    weight = tl.load(shared_sums + there, mask=found, other=float("-inf"))
                    part = tl.load(
                        shared_partial + there[:, None] * DIM + dims[None, :], mask=valid & found[:, None], other=0.0
                    )
                    highest, sum_of, acc = merge(highest, sum_of, acc, weight, part)
            result = acc / tl.where(is_head, sum_of, 1.0)[:, None]
            target = out + place * out_token + heads[:, None] * out_head + dims[None, :]
            tl.store(target, result.to(out.dtype.element_ty), mask=valid)
        left -= taken
        before += tiles
        sequence += 1
        skipped = skipped * 0
        is_later = is_later * 0 + 1
        length = next_length
        shared = next_shared
