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
