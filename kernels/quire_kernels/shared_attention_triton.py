"""Attention of many decodes to keys that they share, on the GPU: read once for a tile of queries, not once a sequence.

The shared part of cascade inference (flashinfer.ai/2024/02/02/cascade-inference.html): rows of a tile are sequences
times the query heads of one KV head. What it finds is merged with the sequences' own keys by decode_attention_triton.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels import tuning
from quire_kernels.attention_tile_triton import LOG2_E, attend_tile
from quire_kernels.batch import AttentionBatch, SharedPrefix

FEW_PARTS, PARTS = 2, 4
"""Of the shared keys: enough programs for all multiprocessors, and few results to merge."""
PROGRAMS = 112
"""Of one part, from which FEW_PARTS do: on an H200, with 2,048 shared keys and an 8B model's heads, 256 sequences take
91 us instead of 103, and 32 take 44 instead of 35."""


@dataclass(frozen=True, slots=True)
class SharedSums:
    """partial fp32 [n, Hq, parts, D] and sums fp32 [n, Hq, parts]: each part's result and, in base 2, the logarithm of
    its sum of exponentials, -inf where a part holds no keys. Nothing is written for sequences that share none."""

    partial: Tensor
    sums: Tensor

    @classmethod
    def of(cls, n: int, q: Tensor, kv_heads: int) -> "SharedSums":
        """Room for n sequences with queries as q [tokens, Hq, D]."""
        query_heads, dim = q.shape[1:]
        _, sequences = _rows_and_sequences(q, kv_heads)
        parts = FEW_PARTS if triton.cdiv(n, sequences) * kv_heads >= PROGRAMS else PARTS
        return cls(
            torch.empty(n, query_heads, parts, dim, dtype=torch.float32, device=q.device),
            torch.empty(n, query_heads, parts, dtype=torch.float32, device=q.device),
        )


def _rows_and_sequences(q: Tensor, kv_heads: int) -> tuple[int, int]:
    """Rows and sequences of a tile."""
    group, block_d = q.shape[1] // kv_heads, max(16, triton.next_power_of_2(q.shape[2]))
    rows = max(tuning.tile("shared", q.dtype, block_d).rows, triton.next_power_of_2(group))
    return rows, rows // group


def attend_shared(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    batch: AttentionBatch,
    shared: SharedPrefix,
    scale: float,
    found: SharedSums,
) -> SharedSums:
    """Fills `found` for the decodes of the batch that share keys."""
    query_heads, dim = q.shape[1], q.shape[2]
    kv_heads = k_cache.shape[1]
    group = query_heads // kv_heads
    block_d = max(16, triton.next_power_of_2(dim))
    shape = tuning.tile("shared", q.dtype, block_d)
    rows, sequences = _rows_and_sequences(q, kv_heads)
    parts = found.partial.shape[2]
    _shared_kernel[(triton.cdiv(batch.num_decodes, sequences) * parts, kv_heads)](
        q, k_cache, v_cache, batch.block_tables, shared.lens, shared.owner, found.partial, found.sums, scale * LOG2_E,
        batch.num_decodes, batch.block_tables.stride(0), q.stride(0), q.stride(1),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        GROUP=group, ROWS=rows, SEQUENCES=sequences, DIM=dim, BLOCK_D=block_d, SIZE=k_cache.shape[2], KEYS=shape.keys,
        PARTS=parts, IEEE=q.dtype.itemsize == 4, num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip
    return found


@triton.jit(do_not_specialize=["n", "table_stride"])
def _shared_kernel(
    q, k_cache, v_cache, tables, lens, owner, partial, sums, scale, n, table_stride,
    q_token, q_head, cache_block, cache_head, cache_slot,
    GROUP: tl.constexpr, ROWS: tl.constexpr, SEQUENCES: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SIZE: tl.constexpr, KEYS: tl.constexpr, PARTS: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """One program a tile of sequences, a part of the shared keys, and a KV head."""
    part = tl.program_id(0) % PARTS
    kv_head = tl.program_id(1)
    rows = tl.arange(0, ROWS)
    dims = tl.arange(0, BLOCK_D)
    sequence = (tl.program_id(0) // PARTS) * SEQUENCES + rows // GROUP
    inside = (rows < SEQUENCES * GROUP) & (sequence < n)
    shares = inside & (tl.load(lens + sequence, mask=inside, other=0) > 0)
    if tl.max(shares.to(tl.int32), axis=0) > 0:
        example = tl.load(owner).to(tl.int64)
        length = tl.load(lens + example)
        size = tl.cdiv(tl.cdiv(length, PARTS), KEYS) * KEYS
        start = part * size
        end = tl.minimum(start + size, length)
        heads = kv_head * GROUP + rows % GROUP
        place = sequence.to(tl.int64)
        valid = shares[:, None] & (dims < DIM)[None, :]
        own = tl.load(q + place[:, None] * q_token + heads[:, None] * q_head + dims[None, :], mask=valid, other=0.0)
        # Each row comes after all of these keys.
        position = rows * 0 + length
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        table = tables + example * table_stride
        keys = k_cache + kv_head * cache_head
        values = v_cache + kv_head * cache_head
        plain_end = start + tl.maximum(end - start, 0) // KEYS * KEYS
        for first in range(start, plain_end, KEYS):
            highest, total, acc = attend_tile(
                own, position, highest, total, acc, first, end, table, keys, values, cache_block, cache_slot,
                scale, 0, DIM, BLOCK_D, SIZE, KEYS, False, False, IEEE,
            )  # fmt: skip
        for first in range(plain_end, end, KEYS):
            highest, total, acc = attend_tile(
                own, tl.minimum(position, end - 1), highest, total, acc, first, end, table, keys, values, cache_block,
                cache_slot, scale, 0, DIM, BLOCK_D, SIZE, KEYS, True, False, IEEE,
            )  # fmt: skip
        cell = (place * (tl.num_programs(1) * GROUP) + heads) * PARTS + part
        whole = tl.where(total == 0.0, 1.0, total)
        tl.store(partial + cell[:, None] * DIM + dims[None, :], acc / whole[:, None], mask=valid)
        tl.store(sums + cell, highest + tl.log2(whole), mask=shares)
