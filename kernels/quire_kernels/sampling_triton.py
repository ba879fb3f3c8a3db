"""Sampling on the GPU: thresholds by bisection over the bits of the scores, then the argmax of noisy scores."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048
GOLDEN = tl.constexpr(0x9E3779B9)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    choices: Tensor,
    any_filter: bool,
) -> Tensor:
    """As quire_kernels.sampling.sample."""
    logits = logits.float()
    rows, width = logits.shape
    lowest = logits.new_empty(rows if any_filter else 0)
    if any_filter:
        _threshold_kernel[(rows,)](
            logits, temperature, top_k, top_p, min_p, lowest, logits.stride(0), width, BLOCK=BLOCK, num_warps=8
        )
    blocks = triton.cdiv(width, BLOCK)
    best = logits.new_empty(rows, blocks)
    token = torch.empty(rows, blocks, dtype=torch.int32, device=logits.device)
    _gumbel_kernel[(rows, blocks)](
        logits, temperature, lowest, seeds, positions, choices, best, token, logits.stride(0), width,
        BLOCK=BLOCK, FILTER=any_filter, num_warps=4,
    )  # fmt: skip
    return token.gather(1, best.argmax(dim=-1, keepdim=True)).squeeze(1)


@triton.jit
def _ordered(x):
    """fp32 as uint32 keys in the same order."""
    bits = x.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _mixed(x):
    """quire_kernels.noise's mixer on uint32."""
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def _threshold_kernel(logits, temperature, top_k, top_p, min_p, lowest, stride, width, BLOCK: tl.constexpr):
    """One program a row: top-k and top-p by bisection over the scores' bits, 32 halvings each, no sort."""
    row = tl.program_id(0).to(tl.int64)
    heat = tl.load(temperature + row)
    inverse = 1.0 / tl.where(heat == 0.0, 1.0, heat)
    k = tl.load(top_k + row)
    p = tl.load(top_p + row)
    least = tl.load(min_p + row)
    columns = tl.arange(0, BLOCK)
    highest = tl.full([BLOCK], float("-inf"), tl.float32)
    for start in range(0, width, BLOCK):
        inside = start + columns < width
        x = tl.load(logits + row * stride + start + columns, mask=inside, other=float("-inf")) * inverse
        highest = tl.maximum(highest, x)
    top = tl.max(highest, axis=0)
    floor = tl.where(least > 0.0, top + tl.log(tl.where(least > 0.0, least, 1.0)), float("-inf"))
    if (k > 0) & (k < width):
        low = tl.zeros([], tl.uint32)
        bit = tl.full([], 0x80000000, tl.uint32)
        for _ in range(32):
            middle = low | bit
            bit = bit >> 1
            count = tl.zeros([BLOCK], tl.int32)
            for start in range(0, width, BLOCK):
                inside = start + columns < width
                x = tl.load(logits + row * stride + start + columns, mask=inside, other=float("-inf")) * inverse
                count += ((_ordered(x) >= middle) & inside).to(tl.int32)
            low = tl.where(tl.sum(count, axis=0) >= k, middle, low)
        key = tl.where(low >> 31 == 1, low & 0x7FFFFFFF, low ^ 0xFFFFFFFF)
        floor = tl.maximum(floor, key.to(tl.float32, bitcast=True))
    if p < 1.0:
        mass = tl.zeros([BLOCK], tl.float32)
        for start in range(0, width, BLOCK):
            inside = start + columns < width
            x = tl.load(logits + row * stride + start + columns, mask=inside, other=float("-inf")) * inverse
            mass += tl.where(x >= floor, tl.exp(x - top), 0.0)
        wanted = tl.sum(mass, axis=0) * p
        # The lowest kept score is the largest threshold at which the kept mass reaches p.
        low = tl.zeros([], tl.uint32)
        bit = tl.full([], 0x80000000, tl.uint32)
        for _ in range(32):
            middle = low | bit
            bit = bit >> 1
            above = tl.zeros([BLOCK], tl.float32)
            for start in range(0, width, BLOCK):
                inside = start + columns < width
                x = tl.load(logits + row * stride + start + columns, mask=inside, other=float("-inf")) * inverse
                above += tl.where((_ordered(x) >= middle) & (x >= floor) & inside, tl.exp(x - top), 0.0)
            low = tl.where(tl.sum(above, axis=0) >= wanted, middle, low)
        key = tl.where(low >> 31 == 1, low & 0x7FFFFFFF, low ^ 0xFFFFFFFF)
        floor = tl.maximum(floor, tl.where(low == 0, float("-inf"), key.to(tl.float32, bitcast=True)))
    tl.store(lowest + row, tl.minimum(floor, top))


@triton.jit
def _gumbel_kernel(
    logits, temperature, lowest, seeds, positions, choices, best, token, stride, width,
    BLOCK: tl.constexpr, FILTER: tl.constexpr,
):  # fmt: skip
    """One program a row and block of tokens: the block's best noisy score and its token."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    ids = block * BLOCK + tl.arange(0, BLOCK)
    inside = ids < width
    heat = tl.load(temperature + row)
    x = tl.load(logits + row * stride + ids, mask=inside, other=float("-inf"))
    if heat != 0.0:
        x = x * (1.0 / heat)
        if FILTER:
            x = tl.where(x >= tl.load(lowest + row), x, float("-inf"))
        seed = tl.load(seeds + row)
        key = _mixed(seed.to(tl.uint32) ^ _mixed((seed >> 32).to(tl.uint32) + GOLDEN))
        key = _mixed(key ^ _mixed(tl.load(positions + row).to(tl.uint32) + GOLDEN))
        key = _mixed(key ^ _mixed(tl.load(choices + row).to(tl.uint32) + GOLDEN))
        bits = _mixed(_mixed((ids.to(tl.uint32) * GOLDEN) ^ key) + _mixed(key + GOLDEN))
        u = tl.minimum(bits.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10, 0.99999994)
        # -log(1 - u), by its series where 1 - u would lose the digits of a small u.
        waiting = tl.where(u < 1e-3, u * (1.0 + u * (0.5 + u * 0.33333334)), -tl.log(1.0 - u))
        x = x - tl.log(waiting)
    winner = tl.argmax(x, axis=0)
    tl.store(best + row * tl.num_programs(1) + block, tl.max(x, axis=0))
    # Among NaN any lane may win, padding too; a token id must stay in the vocabulary.
    tl.store(token + row * tl.num_programs(1) + block, tl.minimum(block * BLOCK + winner, width - 1))
