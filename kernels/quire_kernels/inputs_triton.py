"""A decode step's inputs on the GPU: one program a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels.inputs import DecodeInputs

BLOCK = 256


def decode_inputs(
    tokens: Tensor, blocks: Tensor, rows: Tensor, contexts: Tensor, new_blocks: Tensor, columns: int, block_size: int
) -> DecodeInputs:
    n = len(rows)
    whole = torch.empty(3, n, dtype=torch.int64, device=rows.device)
    made = DecodeInputs(
        token_ids=whole[0],
        positions=whole[1],
        slots=whole[2],
        seq_lens=torch.empty(n, dtype=torch.int32, device=rows.device),
        block_tables=torch.empty(n, columns, dtype=torch.int32, device=rows.device),
    )
    _decode_inputs_kernel[(n,)](
        tokens, blocks, rows, contexts, new_blocks, made.token_ids, made.positions, made.slots, made.seq_lens,
        made.block_tables, tokens.stride(0), blocks.stride(0), columns, SIZE=block_size, BLOCK=BLOCK, num_warps=2,
    )  # fmt: skip
    return made


@triton.jit
def _decode_inputs_kernel(
    tokens, blocks, rows, contexts, new_blocks, token_ids, positions, slots, seq_lens, block_tables,
    width, max_blocks, columns, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    slot = tl.program_id(0).to(tl.int64)
    row = tl.load(rows + slot).to(tl.int64)
    position = tl.load(contexts + slot)
    new = tl.load(new_blocks + slot)
    column = position // SIZE
    table = blocks + row * max_blocks
    block = tl.where(new >= 0, new, tl.load(table + column))
    tl.store(table + column, block)
    tl.store(token_ids + slot, tl.load(tokens + row * width + position).to(tl.int64))
    tl.store(positions + slot, position.to(tl.int64))
    tl.store(slots + slot, block.to(tl.int64) * SIZE + position % SIZE)
    tl.store(seq_lens + slot, position + 1)
    for start in range(0, column + 1, BLOCK):
        places = start + tl.arange(0, BLOCK)
        held = (places <= column) & (places < columns)
        entries = tl.load(table + places, mask=held, other=0)
        tl.store(block_tables + slot * columns + places, tl.where(places == column, block, entries), mask=held)
