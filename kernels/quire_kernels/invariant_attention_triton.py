"""Attention on the GPU whose result for a query is bitwise the same wherever the query comes: as a decode, in a chunk
or in a whole prompt, alone or beside others.

Every query walks over the same tiles of keys in the same order, with the same instruction, and begins anew at each
multiple of `split` keys; what it found between two of them is merged in order. A prefill's program does all of that by
itself, decodes give each split to a program of its own, and the last to arrive merges: the same sums, at once.
Keys that a query may not see leave its maximum, sum and weighted values exactly as they are, so that it does not matter
which tokens share its tile. Products followed by sums are written as one operation: which of them a compiler fuses
would otherwise depend on what stands around them.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels import tuning
from quire_kernels.attention_tile_triton import LOG2_E, find_tile, load_tile
from quire_kernels.batch import AttentionBatch


@dataclass(frozen=True, slots=True)
class DecodeSums:
    """What splits of decodes found, for all layers of a step: weighted values fp32 [n, Hq, splits, D], maximum and sum
    of exponentials fp32 [2, n, Hq, splits]; arrivals int32 [n, Hkv]: splits finished, 0 between layers."""

    values: Tensor
    scalars: Tensor
    arrivals: Tensor


def invariant_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    split: int,
    out: Tensor,
) -> None:
    """Fill `out` as quire_kernels.attention.paged_attention does; split: keys, a multiple of 64."""
    for part in batch.parts or (batch,):
        if part.num_decodes:
            _decode(q, k_cache, v_cache, part, scale, window, split, out)
        if part.num_decodes < len(part.seq_lens_cpu):
            _prefill(q, k_cache, v_cache, part, scale, window, split, out)


def _decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    split: int,
    out: Tensor,
) -> None:
    n, query_heads, dim = batch.num_decodes, q.shape[1], q.shape[2]
    kv_heads = k_cache.shape[1]
    splits = triton.cdiv(batch.block_tables.shape[1] * batch.block_size, split)
    key = ("invariant decode", query_heads, kv_heads, dim, splits)
    sums = batch.step_work.get(key)
    if sums is None:
        sums = batch.step_work[key] = DecodeSums(
            torch.empty(n, query_heads, splits, dim, dtype=torch.float32, device=q.device),
            torch.empty(2, n, query_heads, splits, dtype=torch.float32, device=q.device),
            torch.zeros(n, kv_heads, dtype=torch.int32, device=q.device),
        )
    _decode_kernel[(kv_heads, n, splits)](
        q, k_cache, v_cache, batch.block_tables, batch.seq_lens, out, sums.values, sums.scalars[0], sums.scalars[1],
        sums.arrivals, scale * LOG2_E, window or 0, split, splits, batch.block_tables.stride(0),
        q.stride(0), q.stride(1), out.stride(0), out.stride(1),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2), **_shape(q, k_cache, window),
    )  # fmt: skip


def _prefill(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    scale: float,
    window: int | None,
    split: int,
    out: Tensor,
) -> None:
    kv_heads = k_cache.shape[1]
    shape = _shape(q, k_cache, window)
    tokens = shape["ROWS"] // shape["GROUP"]
    sequences = len(batch.seq_lens_cpu) - batch.num_decodes
    queries = batch.query_starts_cpu[-1] - batch.query_starts_cpu[batch.num_decodes]
    _prefill_kernel[(queries // tokens + sequences, kv_heads)](
        q, k_cache, v_cache, batch.block_tables, batch.seq_lens, batch.query_starts, out, scale * LOG2_E,
        window or 0, split, batch.num_decodes, len(batch.seq_lens_cpu), batch.block_tables.stride(0),
        q.stride(0), q.stride(1), out.stride(0), out.stride(1),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2), TOKENS=tokens, **shape,
    )  # fmt: skip


def _shape(q: Tensor, k_cache: Tensor, window: int | None) -> dict[str, int]:
    """The constants and options that both kernels have in common."""
    dim, group = q.shape[2], q.shape[1] // k_cache.shape[1]
    block_d = max(16, triton.next_power_of_2(dim))
    shape = tuning.tile("invariant", q.dtype, block_d)
    options = {"matrix_instr_nonkdim": 16} if tuning.architecture().startswith("hip") else {}
    return dict(
        GROUP=group,
        ROWS=max(shape.rows, triton.next_power_of_2(group)),
        DIM=dim,
        BLOCK_D=block_d,
        SIZE=k_cache.shape[2],
        KEYS=shape.keys,
        WINDOWED=window is not None,
        IEEE=q.dtype.itemsize == 4,
        num_warps=shape.warps,
        num_stages=shape.stages,
        **options,
    )


@triton.jit
def _join(highest, total, acc, other_highest, other_total, other_acc):
    """Both of two parts' maximum [ROWS], sum [ROWS] and weighted values [ROWS, D]; -inf, 0, 0 changes nothing."""
    above = tl.maximum(highest, other_highest)
    base = tl.where(above == float("-inf"), 0.0, above)
    fade = tl.exp2(highest - base)
    share = tl.exp2(other_highest - base)
    total = tl.fma(other_total, share, total * fade)
    wide_share = tl.broadcast_to(share[:, None], acc.shape)
    return above, total, tl.fma(other_acc, wide_share, acc * fade[:, None])


@triton.jit
def _see(
    queries, position, highest, total, acc, first, end, table, k_cache, v_cache, cache_block, cache_slot, scale, window,
    DIM: tl.constexpr, BLOCK_D: tl.constexpr, SIZE: tl.constexpr, KEYS: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """Add keys first .. first + KEYS - 1; MASKED False promises that every row sees each of them."""
    at, keys, values = load_tile(
        first, end, table, k_cache, v_cache, cache_block, cache_slot, DIM, BLOCK_D, SIZE, KEYS, MASKED
    )
    if IEEE:
        scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
    else:
        scores = tl.dot(queries, tl.trans(keys))
    if MASKED:
        seen = at[None, :] <= position[:, None]
        if WINDOWED:
            seen = seen & (at[None, :] > position[:, None] - window)
        scores = tl.where(seen, scores, float("-inf"))
    above = tl.maximum(highest, tl.max(scores, axis=1) * scale)
    base = tl.where(above == float("-inf"), 0.0, above)
    factor = tl.full(scores.shape, 1.0, tl.float32) * scale
    weights = tl.exp2(tl.fma(scores, factor, tl.broadcast_to(-base[:, None], scores.shape)))
    fade = tl.exp2(highest - base)
    acc = acc * fade[:, None]
    if IEEE:
        acc = tl.dot(weights, values, acc, input_precision="ieee")
    else:
        acc = tl.dot(weights.to(values.dtype), values, acc)
    return above, tl.fma(total, fade, tl.sum(weights, axis=1)), acc


@triton.jit
def _walk(
    queries, position, start, plain_end, end, table, k_cache, v_cache, cache_block, cache_slot, scale, window,
    ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, SIZE: tl.constexpr, KEYS: tl.constexpr,
    WINDOWED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """What the rows find among keys start .. end - 1, of which those before plain_end are seen by every row; start and
    plain_end are multiples of KEYS."""
    highest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
    masked_start = start
    if not WINDOWED:
        masked_start = tl.maximum(start, tl.minimum(plain_end, end // KEYS * KEYS))
        for first in range(start, masked_start, KEYS):
            highest, total, acc = _see(
                queries, position, highest, total, acc, first, end, table, k_cache, v_cache, cache_block, cache_slot,
                scale, window, DIM, BLOCK_D, SIZE, KEYS, False, False, IEEE,
            )  # fmt: skip
    for first in range(masked_start, end, KEYS):
        highest, total, acc = _see(
            queries, position, highest, total, acc, first, end, table, k_cache, v_cache, cache_block, cache_slot,
            scale, window, DIM, BLOCK_D, SIZE, KEYS, True, WINDOWED, IEEE,
        )  # fmt: skip
    return highest, total, acc


@triton.jit(do_not_specialize=["window", "split", "splits", "table_stride"])
def _decode_kernel(
    q, k_cache, v_cache, tables, seq_lens, out, found_values, found_highest, found_total, arrivals, scale, window,
    split, splits, table_stride, q_token, q_head, out_token, out_head, cache_block, cache_head, cache_slot,
    GROUP: tl.constexpr, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, SIZE: tl.constexpr,
    KEYS: tl.constexpr, WINDOWED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """One program a KV head, a sequence and a split; it has nothing to do behind the sequence's last key."""
    kv_head = tl.program_id(0)
    kv_heads = tl.num_programs(0)
    sequence = tl.program_id(1).to(tl.int64)
    number = tl.program_id(2)
    length = tl.load(seq_lens + sequence)
    begin = 0
    if WINDOWED:
        begin = (tl.maximum(length - window, 0) // KEYS) * KEYS
    first_split = begin // split
    count = tl.cdiv(length, split) - first_split
    if number < count:
        start = tl.maximum((first_split + number) * split, begin)
        end = tl.minimum((first_split + number + 1) * split, length)
        rows = tl.arange(0, ROWS)
        dims = tl.arange(0, BLOCK_D)
        is_head = rows < GROUP
        valid = is_head[:, None] & (dims < DIM)[None, :]
        heads = kv_head * GROUP + rows
        own = tl.load(q + sequence * q_token + heads[:, None] * q_head + dims[None, :], mask=valid, other=0.0)
        highest, total, acc = _walk(
            own, rows * 0 + length - 1, start, length, end, tables + sequence * table_stride,
            k_cache + kv_head * cache_head, v_cache + kv_head * cache_head, cache_block, cache_slot, scale, window,
            ROWS, DIM, BLOCK_D, SIZE, KEYS, WINDOWED, IEEE,
        )  # fmt: skip
        is_last = count == 1
        if count > 1:
            cell = (sequence * kv_heads * GROUP + heads) * splits
            there = cell + number
            tl.store(found_values + there[:, None] * DIM + dims[None, :], acc, mask=valid)
            tl.store(found_highest + there, highest, mask=is_head)
            tl.store(found_total + there, total, mask=is_head)
            # All stores of this program happen before its arrival is seen.
            tl.debug_barrier()
            arrived = tl.atomic_add(arrivals + sequence * kv_heads + kv_head, 1, sem="acq_rel")
            is_last = arrived == count - 1
            if is_last:
                tl.debug_barrier()
                highest = tl.full([ROWS], float("-inf"), tl.float32)
                total = tl.zeros([ROWS], tl.float32)
                acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
                for other in range(count):
                    there = cell + other
                    other_highest = tl.load(found_highest + there, mask=is_head, other=float("-inf"))
                    other_total = tl.load(found_total + there, mask=is_head, other=0.0)
                    values = tl.load(found_values + there[:, None] * DIM + dims[None, :], mask=valid, other=0.0)
                    highest, total, acc = _join(highest, total, acc, other_highest, other_total, values)
                # The next layer counts from nought again.
                tl.store(arrivals + sequence * kv_heads + kv_head, 0)
        if is_last:
            result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
            target = out + sequence * out_token + heads[:, None] * out_head + dims[None, :]
            tl.store(target, result.to(out.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=["window", "split", "num_decodes", "num_sequences", "table_stride"])
def _prefill_kernel(
    q, k_cache, v_cache, tables, seq_lens, query_starts, out, scale, window, split, num_decodes, num_sequences,
    table_stride, q_token, q_head, out_token, out_head, cache_block, cache_head, cache_slot,
    GROUP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SIZE: tl.constexpr, KEYS: tl.constexpr, WINDOWED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """One program a tile of query tokens and a KV head."""
    number = tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence, start, queries, first_token = find_tile(number, query_starts, num_decodes, num_sequences, TOKENS)
    if first_token < queries:
        length = tl.load(seq_lens + sequence)
        context = length - queries
        rows = tl.arange(0, ROWS)
        dims = tl.arange(0, BLOCK_D)
        token = first_token + rows // GROUP
        live = (rows < TOKENS * GROUP) & (token < queries)
        heads = kv_head * GROUP + rows % GROUP
        valid = live[:, None] & (dims < DIM)[None, :]
        places = (start + token).to(tl.int64)
        own = tl.load(q + places[:, None] * q_token + heads[:, None] * q_head + dims[None, :], mask=valid, other=0.0)
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        end = tl.minimum(context + first_token + TOKENS, length)
        # Every row sees the keys up to the tile's first token.
        plain_end = ((context + first_token + 1) // KEYS) * KEYS
        begin = 0
        if WINDOWED:
            begin = (tl.maximum(context + first_token - window + 1, 0) // KEYS) * KEYS
        for split_start in range(begin // split * split, end, split):
            split_highest, split_total, split_acc = _walk(
                own, context + token, tl.maximum(split_start, begin), plain_end, tl.minimum(split_start + split, end),
                tables + sequence.to(tl.int64) * table_stride, k_cache + kv_head * cache_head,
                v_cache + kv_head * cache_head, cache_block, cache_slot, scale, window,
                ROWS, DIM, BLOCK_D, SIZE, KEYS, WINDOWED, IEEE,
            )  # fmt: skip
            highest, total, acc = _join(highest, total, acc, split_highest, split_total, split_acc)
        result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        target = out + places[:, None] * out_token + heads[:, None] * out_head + dims[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=valid)
