"""The model's inputs, built on the device from rows and a few integers of the plan."""

import torch
from torch import Tensor

from quire_kernels import inputs as kernels
from quire_kernels.batch import AttentionBatch, SharedPrefix
from quire_runtime.execute.rows import Rows


def decode_inputs(
    tables: Rows,
    rows: Tensor,
    contexts: Tensor,
    new_blocks: Tensor,
    seq_lens_cpu: list[int],
    num_columns: int,
    shared: SharedPrefix | None = None,
) -> tuple[Tensor, AttentionBatch]:
    """One query token for each of n rows.

    rows, contexts, new_blocks: int32 [n]; new_blocks is written to the block table first where it is not negative.
    num_columns: block-table columns to carry, >= ceil(max(seq_lens) / block_size).
    Returns the token ids int64 [n] and the batch. Safe under graph capture: no host value depends on the device.
    """
    n = len(rows)
    made = kernels.decode_inputs(
        tables.tokens, tables.blocks, rows, contexts, new_blocks, num_columns, tables.block_size
    )
    return made.token_ids, AttentionBatch(
        positions=made.positions,
        slots=made.slots,
        query_starts=tables.counting[: n + 1],
        seq_lens=made.seq_lens,
        block_tables=made.block_tables,
        num_decodes=n,
        query_starts_cpu=list(range(n + 1)),
        seq_lens_cpu=seq_lens_cpu,
        block_size=tables.block_size,
        shared=shared,
    )


def mixed_inputs(
    tables: Rows,
    rows: Tensor,
    contexts: Tensor,
    query_lens: Tensor,
    query_starts: Tensor,
    query_starts_cpu: list[int],
    seq_lens_cpu: list[int],
    num_decodes: int,
    shared: SharedPrefix | None = None,
) -> tuple[Tensor, AttentionBatch]:
    """Any mixture of decodes and prefill chunks; rows, contexts, query_lens int32 [n], query_starts int32 [n + 1]."""
    total = query_starts_cpu[-1]
    size = tables.block_size
    sequences = torch.repeat_interleave(query_lens, output_size=total)
    positions = torch.arange(total, device=rows.device) - (query_starts[:-1] - contexts)[sequences]
    token_rows = rows[sequences]
    return tables.tokens[token_rows, positions].long(), AttentionBatch(
        positions=positions,
        slots=tables.blocks[token_rows, positions // size].long() * size + positions % size,
        query_starts=query_starts,
        seq_lens=contexts + query_lens,
        block_tables=tables.blocks[:, : -(-max(seq_lens_cpu) // size)].index_select(0, rows),
        num_decodes=num_decodes,
        query_starts_cpu=query_starts_cpu,
        seq_lens_cpu=seq_lens_cpu,
        block_size=size,
        shared=shared,
    )
