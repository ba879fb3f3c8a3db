"""The batch-invariant product on the GPU: one order over K, one instruction, tiles that differ only in shape.

The weights are the left operand and the tokens the right one: on Hopper a tensor core's instruction takes 64 rows on
the left and as few as 8 columns on the right, so that one token and eight thousand use the same one, m64nXk16, whose
every element is the same chain of sums of 16 products. No tile splits K. On older GPUs it is m16n8k16 for every shape,
on AMD's MFMA 16x16.

A tile is chosen by the number of tokens and outputs: the cheapest in waves over the multiprocessors.
"""

import math
from dataclasses import dataclass
from functools import cache

import triton
import triton.language as tl
from torch import Tensor

from quire_kernels import tuning

TOGETHER = 8
"""Tiles of outputs that programs take in turn before they go on to other tokens: the L2 cache holds their weights."""
LEAST_INPUTS = 16
"""Of a tensor core's instruction."""
FEW = 64
"""Tokens for which reading the weights is what takes the time."""


@dataclass(frozen=True, slots=True)
class ProductTile:
    """Of one program: outputs, tokens, inputs read at once, warps and stages. weight: time per product relative to the
    largest tile's, as far as tensor cores bound it."""

    outputs: int
    tokens: int
    inputs: int
    warps: int
    stages: int
    weight: float


# By (kind of GPU, bytes of an element); in rising order of tokens.
TILES = {
    ("cuda:90", 2): (
        ProductTile(64, 16, 128, 4, 6, 3.0),
        ProductTile(64, 32, 128, 4, 5, 2.0),
        ProductTile(64, 64, 128, 4, 4, 1.4),
        ProductTile(64, 128, 64, 4, 4, 1.15),
        ProductTile(128, 128, 64, 8, 4, 1.05),
        ProductTile(128, 256, 64, 8, 3, 1.0),
    ),
    ("cuda:100", 2): (
        ProductTile(128, 16, 64, 4, 4, 3.0),
        ProductTile(128, 64, 64, 4, 4, 1.4),
        ProductTile(128, 128, 64, 4, 4, 1.0),
    ),
    ("cuda", 2): (
        ProductTile(64, 16, 64, 4, 4, 3.0),
        ProductTile(64, 64, 64, 4, 4, 1.4),
        ProductTile(128, 128, 32, 8, 4, 1.0),
    ),
    ("cuda", 4): (ProductTile(64, 16, 32, 4, 2, 2.0), ProductTile(64, 64, 32, 4, 2, 1.0)),
    ("hip", 2): (ProductTile(64, 16, 64, 4, 2, 3.0), ProductTile(128, 128, 32, 8, 2, 1.0)),
    ("hip", 4): (ProductTile(64, 16, 32, 4, 1, 2.0), ProductTile(64, 64, 32, 4, 1, 1.0)),
}


def tiles(itemsize: int) -> tuple[ProductTile, ...]:
    """Those of the current GPU for elements of so many bytes."""
    where = tuning.architecture()
    return TILES.get((where, itemsize)) or TILES[where.split(":")[0], itemsize]


@cache
def cheapest(known: tuple[ProductTile, ...], tokens: int, outputs: int, processors: int) -> ProductTile:
    """The tile for a product of this shape on so many multiprocessors."""

    def cost(one: ProductTile) -> float:
        programs = -(-tokens // one.tokens) * -(-outputs // one.outputs)
        return -(-programs // processors) * one.outputs * one.tokens * one.weight

    # For few tokens the weights' way from memory is the bound: then the narrowest tile that holds them all is best.
    covering = next((one for one in known if one.tokens >= tokens), known[-1])
    return covering if covering.tokens <= FEW else min(known, key=cost)


def product(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Fill out [T, N] with x [T, K] @ weight [N, K].T + bias [N]; summed in fp32."""
    if len(x):
        tile = cheapest(tiles(x.dtype.itemsize), len(x), len(weight), tuning.processors())
        launch(x, weight, bias, out, tile)


def launch(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, shape: ProductTile) -> None:
    """The product by tiles of one shape; whatever the shape, the result is the same."""
    tokens, (outputs, inputs) = x.shape[0], weight.shape
    # Without a rest no load is masked: on an H200 one tile of masked loads gave bits that depend on the batch.
    at_once = math.gcd(inputs, shape.inputs)
    at_once = at_once if at_once >= LEAST_INPUTS else shape.inputs
    options = {"matrix_instr_nonkdim": 16} if tuning.architecture().startswith("hip") else {}
    _product_kernel[(triton.cdiv(tokens, shape.tokens) * triton.cdiv(outputs, shape.outputs),)](
        x, weight, weight if bias is None else bias, out, tokens, outputs, x.stride(0), weight.stride(0), out.stride(0),
        INPUTS=inputs, OUTPUTS_AT_ONCE=shape.outputs, TOKENS_AT_ONCE=shape.tokens, INPUTS_AT_ONCE=at_once,
        TOGETHER=TOGETHER, BIAS=bias is not None, IEEE=x.dtype.itemsize == 4,
        num_warps=shape.warps, num_stages=shape.stages, **options,
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens"])
def _product_kernel(
    x, weight, bias, out, tokens, outputs, x_stride, weight_stride, out_stride,
    INPUTS: tl.constexpr, OUTPUTS_AT_ONCE: tl.constexpr, TOKENS_AT_ONCE: tl.constexpr, INPUTS_AT_ONCE: tl.constexpr,
    TOGETHER: tl.constexpr, BIAS: tl.constexpr, IEEE: tl.constexpr,
):  # fmt: skip
    """One program a tile of outputs and tokens."""
    number = tl.program_id(0)
    token_tiles = tl.cdiv(tokens, TOKENS_AT_ONCE)
    output_tiles = tl.cdiv(outputs, OUTPUTS_AT_ONCE)
    band = number // (TOGETHER * token_tiles)
    height = tl.minimum(output_tiles - band * TOGETHER, TOGETHER)
    within = number % (TOGETHER * token_tiles)
    output = (band * TOGETHER + within % height) * OUTPUTS_AT_ONCE + tl.arange(0, OUTPUTS_AT_ONCE)
    token = (within // height) * TOKENS_AT_ONCE + tl.arange(0, TOKENS_AT_ONCE)
    columns = tl.arange(0, INPUTS_AT_ONCE)
    # What lies behind the last row is read from row 0 and not stored: no mask within the loop.
    weights_at = weight + tl.where(output < outputs, output, 0).to(tl.int64)[:, None] * weight_stride + columns[None, :]
    values_at = x + tl.where(token < tokens, token, 0).to(tl.int64)[:, None] * x_stride + columns[None, :]
    acc = tl.zeros([OUTPUTS_AT_ONCE, TOKENS_AT_ONCE], tl.float32)
    for start in range(0, INPUTS, INPUTS_AT_ONCE):
        if INPUTS % INPUTS_AT_ONCE == 0:
            weights = tl.load(weights_at + start)
            values = tl.load(values_at + start)
        else:
            inside = (start + columns < INPUTS)[None, :]
            weights = tl.load(weights_at + start, mask=inside, other=0.0)
            values = tl.load(values_at + start, mask=inside, other=0.0)
        if IEEE:
            acc = tl.dot(weights, tl.trans(values), acc, input_precision="ieee")
        else:
            acc = tl.dot(weights, tl.trans(values), acc)
    if BIAS:
        acc += tl.load(bias + output, mask=output < outputs, other=0.0).to(tl.float32)[:, None]
    target = out + token.to(tl.int64)[:, None] * out_stride + output[None, :]
    held = (token < tokens)[:, None] & (output < outputs)[None, :]
    tl.store(target, tl.trans(acc.to(out.dtype.element_ty)), mask=held)
