"""A few rows times a matrix on the GPU, where that is faster than cuBLAS; a gated activation may be part of it.

The weights are the left operand, so that a tensor core's 64 rows are outputs and its columns the few tokens. A program
has a tile of outputs and all tokens, and its weights come through the tensor memory accelerator.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from quire_kernels import tuning
from quire_kernels.overlap_triton import dependents_may_start, wait_for_inputs


@dataclass(frozen=True, slots=True)
class FewRowsTile:
    """Of one program: outputs (gates and what they gate together), tokens, inputs read at once, warps and stages."""

    outputs: int
    tokens: int
    inputs: int
    warps: int
    stages: int


MANY_OUTPUTS = 1 << 14
"""Enough for a tile of 128 on nearly every multiprocessor."""
MOST_INPUTS = 4096
"""Above it cuBLAS is faster, because it divides them among programs."""
MOST_TOKENS = 128


def tile_for(tokens: int, outputs: int, inputs: int, is_gated: bool) -> FewRowsTile | None:
    """For x [tokens, inputs] @ weight [outputs, inputs].T, as measured on an H200; None where cuBLAS is faster."""
    if inputs % 128 or inputs > MOST_INPUTS or not 1 < tokens <= MOST_TOKENS:
        return None
    covering = max(16, triton.next_power_of_2(tokens))
    has_many = outputs >= MANY_OUTPUTS
    if covering == MOST_TOKENS:
        return FewRowsTile(128, covering, 64, 4, 3) if has_many and is_gated and tokens > 112 else None
    if is_gated or has_many:
        return FewRowsTile(128, covering, 128, 4, 4)
    if covering == 64:
        return FewRowsTile(64, covering, 128, 4, 4) if inputs <= 1024 else None
    return FewRowsTile(64, covering, 128, 4, 5)


DEEP_STAGES = {16: 8, 32: 7, 64: 6}
"""By tokens of a tile, of products with many inputs: as much as the shared memory holds."""


def any_tile_for(tokens: int, outputs: int, inputs: int) -> FewRowsTile | None:
    """The same where nothing else is asked than a product that does not split K; None for more than 64 tokens."""
    if found := tile_for(max(2, tokens), outputs, inputs, is_gated=False):
        return found
    covering = max(16, triton.next_power_of_2(tokens))
    if inputs % 128 or covering not in DEEP_STAGES:
        return None
    return FewRowsTile(64, covering, 128, 4, DEEP_STAGES[covering])


def launch(
    x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor, tile: FewRowsTile, is_gated: bool = False
) -> None:
    """Fill out [T, N] with x [T, K] @ weight [N, K].T + bias [N], summed in fp32; T is at most tile.tokens and K a
    multiple of tile.inputs. is_gated: the first half of the outputs are gates, silu(first) * second -> [T, N / 2]."""
    tokens, (outputs, inputs) = x.shape[0], weight.shape
    rows = tile.outputs
    if is_gated:
        outputs, rows = outputs // 2, rows // 2
    _few_rows_kernel[(triton.cdiv(outputs, rows),)](
        TensorDescriptor.from_tensor(x, [tile.tokens, tile.inputs]),
        TensorDescriptor.from_tensor(weight, [rows, tile.inputs]),
        weight if bias is None else bias, out, tokens, outputs, out.stride(0),
        INPUTS=inputs, ROWS=rows, TOKENS=tile.tokens, DEPTH=tile.inputs, GATED=is_gated, BIAS=bias is not None,
        num_warps=tile.warps, num_stages=tile.stages, **tuning.overlapping(tokens),
    )  # fmt: skip


@triton.jit(do_not_specialize=["tokens"])
def _few_rows_kernel(
    x, weight, bias, out, tokens, outputs, out_stride, INPUTS: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr,
    DEPTH: tl.constexpr, GATED: tl.constexpr, BIAS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program a tile of outputs."""
    first = tl.program_id(0) * ROWS
    row = first + tl.arange(0, ROWS)
    token = tl.arange(0, TOKENS)
    inside = row < outputs
    if OVERLAP:
        dependents_may_start()
        wait_for_inputs()
    acc = tl.zeros([ROWS, TOKENS], tl.float32)
    other = tl.zeros([ROWS, TOKENS], tl.float32)
    for at in range(0, INPUTS, DEPTH):
        values = x.load([0, at])
        acc = tl.dot(weight.load([first, at]), tl.trans(values), acc)
        if GATED:
            other = tl.dot(weight.load([outputs + first, at]), tl.trans(values), other)
    element = out.dtype.element_ty
    if BIAS:
        acc += tl.load(bias + row, mask=inside, other=0.0).to(tl.float32)[:, None]
    if GATED:
        if BIAS:
            other += tl.load(bias + outputs + row, mask=inside, other=0.0).to(tl.float32)[:, None]
        # Both are rounded as separate kernels would store them.
        gate = acc.to(element).to(tl.float32)
        acc = gate / (1.0 + tl.exp(-gate)) * other.to(element).to(tl.float32)
    target = out + token.to(tl.int64)[:, None] * out_stride + row[None, :]
    tl.store(target, tl.trans(acc.to(element)), mask=(token < tokens)[:, None] & inside[None, :])
