"""The inputs of a step, read from the tables that stay on the device."""

import torch
from torch import Tensor

from quire_kernels.step_inputs import DecodeInputs, MixedInputs


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
    """As `decode_inputs`."""
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
    """As `mixed_inputs`, on a CPU."""
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
