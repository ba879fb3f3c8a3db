"""Prefill attention on the GPU.

A tile's rows are query tokens times the query heads that share one KV head: keys are read once for all of them.
"""

import triton
import triton.language as tl
from torch import Tensor

from quire_kernels import tuning
from quire_kernels.attention_tile_triton import LOG2_E, attend_tile, find_tile
from quire_kernels.batch import AttentionBatch


def prefill_attention(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, scale: float, window: int | None, out: Tensor
) -> None:
    """Fill the rows of `out` [T, Hq, D] that are no decodes'; shapes as quire_kernels.attention.paged_attention's."""
    query_heads, dim = q.shape[1], q.shape[2]
    kv_heads, block_size = k_cache.shape[1], k_cache.shape[2]
    group = query_heads // kv_heads
    block_d = max(16, triton.next_power_of_2(dim))
    shape = tuning.tile("prefill", q.dtype, block_d)
    rows = max(shape.rows, triton.next_power_of_2(group))
    tokens = rows // group
    sequences = len(batch.seq_lens_cpu) - batch.num_decodes
    queries = batch.query_starts_cpu[-1] - batch.query_starts_cpu[batch.num_decodes]
    _prefill_kernel[(queries // tokens + sequences, kv_heads)](
        q, k_cache, v_cache, batch.block_tables, batch.seq_lens, batch.query_starts, out, scale * LOG2_E,
        window or 0, batch.num_decodes, len(batch.seq_lens_cpu), batch.block_tables.stride(0),
        q.stride(0), q.stride(1), out.stride(0), out.stride(1),
        k_cache.stride(0), k_cache.stride(1), k_cache.stride(2),
        GROUP=group, ROWS=rows, TOKENS=tokens, DIM=dim, BLOCK_D=block_d, SIZE=block_size, KEYS=shape.keys,
        WINDOWED=window is not None, IEEE=q.dtype.itemsize == 4, num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip


@triton.jit(do_not_specialize=["window", "num_decodes", "num_sequences", "table_stride"])
def _prefill_kernel(
    q, k_cache, v_cache, tables, seq_lens, query_starts, out, scale, window, num_decodes, num_sequences, table_stride,
    q_token, q_head, out_token, out_head, cache_block, cache_head, cache_slot,
    GROUP: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    SIZE: tl.constexpr, KEYS: tl.constexpr, WINDOWED: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """One program a tile of query tokens and a KV head; late tiles have the most keys and start first."""
    number = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence, start, queries, first_token = find_tile(number, query_starts, num_decodes, num_sequences, TOKENS)
    if first_token < queries:
        length = tl.load(seq_lens + sequence)
        context = length - queries
        rows = tl.arange(0, ROWS)
        dims = tl.arange(0, BLOCK_D)
        token = first_token + rows // GROUP
        live = (rows < TOKENS * GROUP) & (token < queries)
        position = context + token
        heads = kv_head * GROUP + rows % GROUP
        valid = live[:, None] & (dims < DIM)[None, :]
        places = (start + token).to(tl.int64)
        own = tl.load(q + places[:, None] * q_token + heads[:, None] * q_head + dims[None, :], mask=valid, other=0.0)
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        total = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        table = tables + sequence.to(tl.int64) * table_stride
        keys = k_cache + kv_head * cache_head
        values = v_cache + kv_head * cache_head
        end = tl.minimum(context + first_token + TOKENS, length)
        begin = 0
        if WINDOWED:
            begin = (tl.maximum(context + first_token - window + 1, 0) // KEYS) * KEYS
        else:
            # Every row sees the keys up to the tile's first token.
            plain_end = ((context + first_token + 1) // KEYS) * KEYS
            for first in range(0, plain_end, KEYS):
                highest, total, acc = attend_tile(
                    own, position, highest, total, acc, first, end, table, keys, values, cache_block, cache_slot,
                    scale, window, DIM, BLOCK_D, SIZE, KEYS, False, False, IEEE,
                )  # fmt: skip
            begin = plain_end
        for first in range(begin, end, KEYS):
            highest, total, acc = attend_tile(
                own, position, highest, total, acc, first, end, table, keys, values, cache_block, cache_slot,
                scale, window, DIM, BLOCK_D, SIZE, KEYS, True, WINDOWED, IEEE,
            )  # fmt: skip
        result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        target = out + places[:, None] * out_token + heads[:, None] * out_head + dims[None, :]
        tl.store(target, result.to(out.dtype.element_ty), mask=valid)
