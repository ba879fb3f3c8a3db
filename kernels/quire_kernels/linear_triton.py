"""One row times a matrix on the GPU: as fast as the weights can be read, which cuBLAS is not for one row.

What surrounds the product in a decoder may be part of it: the norm before, the gated activation or the residual sum
after. Alone each of them costs a launch that at one row takes longer than its work.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels import tuning
from quire_kernels.overlap_triton import dependents_may_start, wait_for_inputs

STAGES = 3


def one_row(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor | None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    is_gated: bool = False,
    adds: bool = False,
) -> Tensor:
    """x [1, K] @ weight [N, K].T + bias [N] -> [1, N]; summed in fp32.

    norm [K]: of rms_norm(x, norm, eps) instead of x, which is not rounded in between. is_gated: the first half of the
    outputs are gates, silu(first) * second -> [1, N / 2]. adds: `out` is added to, not overwritten.
    """
    outputs, inputs = weight.shape[0] // 2 if is_gated else weight.shape[0], weight.shape[1]
    out = torch.empty(1, outputs, dtype=x.dtype, device=x.device) if out is None else out
    rows, block, warps = _shape(inputs, x.dtype.itemsize, is_gated)
    _one_row_kernel[(triton.cdiv(outputs, rows),)](
        x, weight, weight if bias is None else bias, weight if norm is None else norm, out, eps, outputs,
        weight.stride(0), INPUTS=inputs, ROWS=rows, BLOCK=block, BIAS=bias is not None, NORM=norm is not None,
        GATED=is_gated, ADDS=adds, EVEN=outputs % rows == 0, num_warps=warps, num_stages=STAGES,
        **tuning.overlapping(1),
    )  # fmt: skip
    return out


def _shape(inputs: int, itemsize: int, is_gated: bool) -> tuple[int, int, int]:
    """Outputs of a program, inputs that it reads at once (BLOCK), warps; as measured on an H200.

    The inputs are a power of two that leaves no rest, unless that were less than a quarter of what is possible.
    """
    most = (8192 if is_gated else 4096) // itemsize
    block = min(inputs & -inputs, most)
    if 4 * block < min(most, inputs):
        block = min(most, triton.next_power_of_2(inputs))
    warps = 8 if block == 4096 or (block < inputs and not is_gated) else 4
    return 2 if block == 4096 or (block == 1024 and warps == 8) else 4, block, warps


@triton.jit
def _add_pairs(a, b, c, d):
    return a + c, b + d


@triton.jit
def _one_row_kernel(
    x, weight, bias, norm, out, eps, outputs, stride,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr, NORM: tl.constexpr,
    GATED: tl.constexpr, ADDS: tl.constexpr, EVEN: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """One program a few outputs."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    held = rows < outputs
    at = weight + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    beside = at + outputs.to(tl.int64) * stride
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    second = tl.zeros([ROWS, BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    begin = 0
    before = tl.zeros([ROWS], tl.float32)
    if BIAS:
        before += tl.load(bias + rows, mask=held, other=0.0).to(tl.float32)
    if OVERLAP:
        dependents_may_start()
        # Weights do not depend on the kernel before: the first of them arrive while it ends.
        if EVEN and INPUTS % BLOCK == 0:
            weights = tl.load(at)
            if GATED:
                others = tl.load(beside)
            if NORM:
                factors = tl.load(norm + columns).to(tl.float32)
            wait_for_inputs()
            values = tl.load(x + columns).to(tl.float32)
            if NORM:
                squares += values * values
                values = values * factors
            acc += weights.to(tl.float32) * values[None, :]
            if GATED:
                second += others.to(tl.float32) * values[None, :]
            begin = BLOCK
        else:
            wait_for_inputs()
    if ADDS:
        # Read before the products, for afterwards the program would wait for it alone.
        before += tl.load(out + rows, mask=held, other=0.0).to(tl.float32)
    for start in range(begin, INPUTS, BLOCK):
        if EVEN and INPUTS % BLOCK == 0:
            weights = tl.load(at + start)
            values = tl.load(x + start + columns).to(tl.float32)
        elif INPUTS % BLOCK == 0:
            weights = tl.load(at + start, mask=held[:, None], other=0.0)
            values = tl.load(x + start + columns).to(tl.float32)
        else:
            inside = start + columns < INPUTS
            weights = tl.load(at + start, mask=held[:, None] & inside[None, :], other=0.0)
            values = tl.load(x + start + columns, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            squares += values * values
            values = values * tl.load(norm + start + columns, mask=start + columns < INPUTS, other=0.0).to(tl.float32)
        acc += weights.to(tl.float32) * values[None, :]
        if GATED:
            others = tl.load(beside + start, mask=held[:, None] & (start + columns < INPUTS)[None, :], other=0.0)
            second += others.to(tl.float32) * values[None, :]
    element = out.dtype.element_ty
    if GATED:
        result, other = tl.reduce((acc, second), 1, _add_pairs)
    else:
        result = tl.sum(acc, axis=1)
    if NORM:
        scale = tl.rsqrt(tl.sum(squares, axis=0) / INPUTS + eps)
        result *= scale
        if GATED:
            other *= scale
    result += before
    if GATED:
        if BIAS:
            other += tl.load(bias + outputs + rows, mask=held, other=0.0).to(tl.float32)
        # Both are rounded as separate kernels would store them.
        gate = result.to(element).to(tl.float32)
        result = gate / (1.0 + tl.exp(-gate)) * other.to(element).to(tl.float32)
    tl.store(out + rows, result.to(element), mask=held)
