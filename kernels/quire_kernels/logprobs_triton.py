"""Normaliser and rank on the GPU: one program a row, one pass over the logits."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096


def normaliser_and_rank(logits: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
    """As quire_kernels.logprobs.normaliser_and_rank."""
    rows, width = logits.shape
    normaliser = torch.empty(rows, dtype=torch.float32, device=logits.device)
    rank = torch.empty(rows, dtype=torch.int32, device=logits.device)
    if rows:
        _normaliser_and_rank_kernel[(rows,)](
            logits, own, normaliser, rank, logits.stride(0), width, BLOCK=BLOCK, num_warps=8
        )
    return normaliser, rank


@triton.jit
def _normaliser_and_rank_kernel(logits, own, normaliser, rank, stride, width, BLOCK: tl.constexpr):
    """Each lane keeps the maximum, the sum of exponentials and the count of its own columns."""
    row = tl.program_id(0).to(tl.int64)
    chosen = tl.load(own + row).to(tl.float32)
    columns = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    above = tl.zeros([BLOCK], tl.int32)
    for start in range(0, width, BLOCK):
        inside = start + columns < width
        x = tl.load(logits + row * stride + start + columns, mask=inside, other=float("-inf")).to(tl.float32)
        above += (x > chosen).to(tl.int32)
        rising = tl.maximum(highest, x)
        base = tl.where(rising == float("-inf"), 0.0, rising)
        total = total * tl.exp(highest - base) + tl.exp(x - base)
        highest = rising
    top = tl.max(highest, axis=0)
    tl.store(normaliser + row, top + tl.log(tl.sum(total * tl.exp(highest - top), axis=0)))
    tl.store(rank + row, 1 + tl.sum(above, axis=0))
