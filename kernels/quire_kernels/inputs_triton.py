"""A step's inputs on the GPU: one program a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels import tuning
from quire_kernels.overlap_triton import dependents_may_start, wait_for_inputs
from quire_kernels.step_inputs import DecodeInputs, MixedInputs

BLOCK = 256
LEAST_BLOCK_N = 256
"""One kernel for all numbers of sequences up to it."""


def decode_inputs(
    tokens: Tensor, blocks: Tensor, rows: Tensor, contexts: Tensor, new_blocks: Tensor, columns: int, block_size: int
) -> DecodeInputs:
    """As quire_kernels.inputs.decode_inputs."""
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
        **tuning.overlapping(n),
    )  # fmt: skip
    return made


@triton.jit
def _decode_inputs_kernel(
    tokens, blocks, rows, contexts, new_blocks, token_ids, positions, slots, seq_lens, block_tables,
    width, max_blocks, columns, SIZE: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        dependents_may_start()
        wait_for_inputs()
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
    """As quire_kernels.inputs.mixed_inputs."""
    n = len(rows)
    whole = torch.empty(3, num_tokens, dtype=torch.int64, device=rows.device)
    small = torch.empty(2, n, dtype=torch.int32, device=rows.device)
    made = MixedInputs(
        token_ids=whole[0],
        positions=whole[1],
        slots=whole[2],
        seq_lens=small[0],
        decode_lens=small[1],
        prefill_starts=torch.empty(n + 1, dtype=torch.int32, device=rows.device),
        block_tables=torch.empty(n, columns, dtype=torch.int32, device=rows.device),
        last=torch.empty(n, dtype=torch.int64, device=rows.device),
    )
    _mixed_inputs_kernel[(n + 1,)](
        tokens, blocks, rows, contexts, starts, made.token_ids, made.positions, made.slots, made.seq_lens,
        made.decode_lens, made.prefill_starts, made.block_tables, made.last, n, num_tokens,
        tokens.stride(0), blocks.stride(0), columns, SIZE=block_size, BLOCK=BLOCK,
        BLOCK_N=max(LEAST_BLOCK_N, triton.next_power_of_2(n)), num_warps=2, **tuning.overlapping(num_tokens),
    )  # fmt: skip
    return made


@triton.jit(do_not_specialize=["n", "num_tokens"])
def _mixed_inputs_kernel(
    tokens, blocks, rows, contexts, starts, token_ids, positions, slots, seq_lens, decode_lens, prefill_starts,
    block_tables, last, n, num_tokens, width, max_blocks, columns,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, BLOCK_N: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program a sequence, and one for the padding."""
    if OVERLAP:
        dependents_may_start()
        wait_for_inputs()
    slot = tl.program_id(0).to(tl.int64)
    others = tl.arange(0, BLOCK_N)
    counts = tl.load(starts + others + 1, mask=others < n, other=0) - tl.load(starts + others, mask=others < n, other=0)
    num_decodes = tl.sum((counts == 1).to(tl.int32), axis=0)
    start = tl.load(starts + slot)
    tl.store(prefill_starts + slot, tl.maximum(start, num_decodes))
    if slot == n:
        for first in range(start, num_tokens, BLOCK):
            at = first + tl.arange(0, BLOCK)
            zero = tl.zeros([BLOCK], tl.int64)
            tl.store(token_ids + at, zero, mask=at < num_tokens)
            tl.store(positions + at, zero, mask=at < num_tokens)
            tl.store(slots + at, zero, mask=at < num_tokens)
    else:
        end = tl.load(starts + slot + 1)
        count = end - start
        row = tl.load(rows + slot).to(tl.int64)
        context = tl.load(contexts + slot)
        table = blocks + row * max_blocks
        length = tl.where(count > 0, context + count, 0)
        tl.store(seq_lens + slot, length)
        tl.store(decode_lens + slot, tl.where(count == 1, length, 0))
        tl.store(last + slot, tl.maximum(end - 1, 0).to(tl.int64))
        for first in range(0, count, BLOCK):
            offsets = first + tl.arange(0, BLOCK)
            held = offsets < count
            position = context + offsets
            token = tl.load(tokens + row * width + position, mask=held, other=0)
            block = tl.load(table + position // SIZE, mask=held, other=0)
            tl.store(token_ids + start + offsets, token.to(tl.int64), mask=held)
            tl.store(positions + start + offsets, position.to(tl.int64), mask=held)
            tl.store(slots + start + offsets, block.to(tl.int64) * SIZE + position % SIZE, mask=held)
        for first in range(0, tl.cdiv(length, SIZE), BLOCK):
            places = first + tl.arange(0, BLOCK)
            held = (places * SIZE < length) & (places < columns)
            tl.store(block_tables + slot * columns + places, tl.load(table + places, mask=held, other=0), mask=held)
