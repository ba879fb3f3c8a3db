"""The likeliest token of each row on the GPU, in two passes: blocks of the vocabulary, then the blocks' winners."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels import tuning
from quire_kernels.overlap_triton import dependents_may_start, wait_for_inputs

BLOCK = 4096


def likeliest(
    logits: Tensor,
    poisoned: int,
    out: Tensor,
    turn: Tensor,
    rows: Tensor | None,
    positions: Tensor | None,
    tokens: Tensor | None,
) -> None:
    """As quire_kernels.greedy.likeliest."""
    n, vocab = logits.shape
    blocks = triton.cdiv(vocab, BLOCK)
    best = torch.empty(n, blocks, dtype=torch.float32, device=logits.device)
    token = torch.empty(n, blocks, dtype=torch.int32, device=logits.device)
    _blocks_kernel[(n, blocks)](
        logits, best, token, logits.stride(0), vocab, BLOCK=BLOCK, num_warps=4, **tuning.overlapping(n)
    )
    _winner_kernel[(n,)](
        best, token, out, turn, out if rows is None else rows, out if positions is None else positions,
        out if tokens is None else tokens, blocks, out.stride(0), 0 if tokens is None else tokens.stride(0), poisoned,
        BLOCKS=triton.next_power_of_2(blocks), RECORD=tokens is not None, num_warps=1,
        **tuning.overlapping(n),
    )  # fmt: skip


@triton.jit
def _blocks_kernel(logits, best, token, stride, vocab, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """One program a row and block; a NaN anywhere makes the block's best score NaN."""
    if OVERLAP:
        dependents_may_start()
        wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(logits + row * stride + ids, mask=ids < vocab, other=float("-inf")).to(tl.float32)
    is_nan = tl.max((x != x).to(tl.int32), axis=0)
    # Whatever is recorded of a poisoned row must be a token: the next step may read it.
    x = tl.where(x != x, float("-inf"), x)
    highest = tl.where(is_nan != 0, float("nan"), tl.max(x, axis=0))
    place = row * tl.num_programs(1) + block
    tl.store(best + place, highest)
    tl.store(token + place, block * BLOCK + tl.argmax(x, axis=0))


@triton.jit
def _winner_kernel(
    best, token, out, turn, rows, positions, tokens, blocks, out_stride, width, poisoned,
    BLOCKS: tl.constexpr, RECORD: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    if OVERLAP:
        dependents_may_start()
        wait_for_inputs()
    slot = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCKS)
    scores = tl.load(best + slot * blocks + block, mask=block < blocks, other=float("-inf"))
    is_nan = tl.max((scores != scores).to(tl.int32), axis=0)
    winner = tl.argmax(tl.where(scores != scores, float("-inf"), scores), axis=0)
    drawn = tl.load(token + slot * blocks + winner)
    tl.store(out + tl.load(turn) * out_stride + slot, tl.where(is_nan != 0, poisoned, drawn))
    if RECORD:
        row = tl.load(rows + slot).to(tl.int64)
        tl.store(tokens + row * width + tl.load(positions + slot), drawn)
