"""The inputs of a decode step, read from the tables that stay on the device."""

from typing import NamedTuple

import torch
from torch import Tensor


class DecodeInputs(NamedTuple):
    """token_ids, positions, slots int64 [n]; seq_lens int32 [n]; block_tables int32 [n, columns], whose entries behind
    a sequence's last block mean nothing."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    seq_lens: Tensor
    block_tables: Tensor


def decode_inputs(
    tokens: Tensor, blocks: Tensor, rows: Tensor, contexts: Tensor, new_blocks: Tensor, columns: int, block_size: int
) -> DecodeInputs:
    """One query token for each of n rows, at position contexts[i] of row rows[i].

    tokens int32 [rows, width], blocks int32 [rows, max_blocks]; rows, contexts, new_blocks int32 [n]. Where new_blocks
    is not negative it is written to the row's block table first, for the block of the query token.
    """
    if rows.is_cuda:
        from quire_kernels import inputs_triton

        return inputs_triton.decode_inputs(tokens, blocks, rows, contexts, new_blocks, columns, block_size)
    return decode_inputs_reference(tokens, blocks, rows, contexts, new_blocks, columns, block_size)


def decode_inputs_reference(
    tokens: Tensor, blocks: Tensor, rows: Tensor, contexts: Tensor, new_blocks: Tensor, columns: int, block_size: int
) -> DecodeInputs:
    rows, positions = rows.long(), contexts.long()
    column = positions // block_size
    block = torch.where(new_blocks >= 0, new_blocks, blocks[rows, column])
    blocks[rows, column] = block
    return DecodeInputs(
        token_ids=tokens[rows, positions].long(),
        positions=positions,
        slots=block.long() * block_size + positions % block_size,
        seq_lens=contexts + 1,
        block_tables=blocks[:, :columns].index_select(0, rows),
    )


class MixedInputs(NamedTuple):
    """token_ids, positions, slots int64 [T]; of n sequences int32: seq_lens [n], decode_lens [n] (0 where more than one
    token is asked), prefill_starts [n + 1] (no tokens for decodes), block_tables [n, columns], last int64 [n]."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    seq_lens: Tensor
    decode_lens: Tensor
    prefill_starts: Tensor
    block_tables: Tensor
    last: Tensor


def mixed_inputs(
    tokens: Tensor,
    blocks: Tensor,
    rows: Tensor,
    contexts: Tensor,
    starts: Tensor,
    num_tokens: int,
    columns: int,
    block_size: int,
) -> MixedInputs:
    """Query tokens starts[i] .. starts[i + 1] - 1 belong to row rows[i] from position contexts[i] on.

    tokens int32 [rows, width], blocks int32 [rows, max_blocks]; rows, contexts int32 [n], starts int32 [n + 1].
    Sequences of one token come first, those without a token (padding) last. Tokens from starts[n] up to num_tokens are
    padding: they go to slot 0. On a CUDA device only, for graphs.
    """
    from quire_kernels import inputs_triton

    return inputs_triton.mixed_inputs(tokens, blocks, rows, contexts, starts, num_tokens, columns, block_size)


def mixed_inputs_reference(
    tokens: Tensor,
    blocks: Tensor,
    rows: Tensor,
    contexts: Tensor,
    starts: Tensor,
    num_tokens: int,
    columns: int,
    block_size: int,
) -> MixedInputs:
    counts = starts.diff()
    total = int(starts[-1])
    sequences = torch.repeat_interleave(counts)
    whole = torch.zeros(3, num_tokens, dtype=torch.int64)
    positions = torch.arange(total) - starts[sequences] + contexts[sequences]
    own_rows = rows[sequences].long()
    whole[0, :total] = tokens[own_rows, positions]
    whole[1, :total] = positions
    whole[2, :total] = blocks[own_rows, positions // block_size].long() * block_size + positions % block_size
    seq_lens = torch.where(counts > 0, contexts + counts, 0).int()
    num_decodes = int((counts == 1).sum())
    return MixedInputs(
        *whole,
        seq_lens=seq_lens,
        decode_lens=torch.where(counts == 1, seq_lens, 0).int(),
        prefill_starts=starts.clamp_min(num_decodes),
        block_tables=blocks[:, :columns].index_select(0, rows.long()),
        last=(starts[1:].long() - 1).clamp_min(0),
    )
