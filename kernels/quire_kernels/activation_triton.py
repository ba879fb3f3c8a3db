"""The gated activation on the GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels import tuning
from quire_kernels.overlap_triton import dependents_may_start, wait_for_inputs

BLOCK = 1024


def silu_and_mul(x: Tensor) -> Tensor:
    """As quire_kernels.activation.silu_and_mul."""
    tokens, width = x.shape[0], x.shape[1] // 2
    out = torch.empty(tokens, width, dtype=x.dtype, device=x.device)
    _silu_and_mul_kernel[(tokens, triton.cdiv(width, BLOCK))](
        x, out, width, x.stride(0), BLOCK=BLOCK, **tuning.overlapping(tokens)
    )
    return out


@triton.jit
def _silu_and_mul_kernel(x, out, width, stride, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    if OVERLAP:
        dependents_may_start()
        wait_for_inputs()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    gate = tl.load(x + row * stride + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(x + row * stride + width + columns, mask=inside, other=0.0).to(tl.float32)
    active = gate / (1.0 + tl.exp(-gate))
    tl.store(out + row * width + columns, (active * up).to(out.dtype.element_ty), mask=inside)
