"""One row times a matrix on the GPU: as fast as the weights can be read, which cuBLAS is not for one row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 2
BLOCK = 2048
WARPS = 4
STAGES = 3


def one_row(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    """x [1, K] @ weight [N, K].T + bias [N] -> [1, N]; summed in fp32."""
    outputs, inputs = weight.shape
    out = torch.empty(1, outputs, dtype=x.dtype, device=x.device) if out is None else out
    _one_row_kernel[(triton.cdiv(outputs, ROWS),)](
        x, weight, weight if bias is None else bias, out, outputs, weight.stride(0),
        INPUTS=inputs, ROWS=ROWS, BLOCK=min(BLOCK, triton.next_power_of_2(inputs)), BIAS=bias is not None,
        EVEN=outputs % ROWS == 0, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return out


@triton.jit
def _one_row_kernel(
    x, weight, bias, out, outputs, stride,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, BIAS: tl.constexpr,
    EVEN: tl.constexpr,
):  # fmt: skip
    """One program a few outputs."""
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)
    at = weight + rows.to(tl.int64)[:, None] * stride + columns[None, :]
    acc = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, INPUTS, BLOCK):
        if EVEN and INPUTS % BLOCK == 0:
            weights = tl.load(at + start)
            values = tl.load(x + start + columns)
        elif INPUTS % BLOCK == 0:
            weights = tl.load(at + start, mask=(rows < outputs)[:, None], other=0.0)
            values = tl.load(x + start + columns)
        else:
            inside = start + columns < INPUTS
            weights = tl.load(at + start, mask=(rows < outputs)[:, None] & inside[None, :], other=0.0)
            values = tl.load(x + start + columns, mask=inside, other=0.0)
        acc += weights.to(tl.float32) * values.to(tl.float32)[None, :]
    result = tl.sum(acc, axis=1)
    if BIAS:
        result += tl.load(bias + rows, mask=rows < outputs, other=0.0).to(tl.float32)
    tl.store(out + rows, result.to(out.dtype.element_ty), mask=rows < outputs)
