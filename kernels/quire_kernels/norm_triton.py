"""Root-mean-square norms on the GPU: one program a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from quire_kernels import tuning
from quire_kernels.overlap_triton import dependents_may_start, wait_for_inputs


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As quire_kernels.norm.rms_norm."""
    rows = x.reshape(-1, x.shape[-1])
    out = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    _launch(rows, rows, out, weight, eps, add=False)
    return out.view(x.shape)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
    """As quire_kernels.norm.add_rms_norm."""
    _launch(x, residual, x, weight, eps, add=True)


def _launch(x: Tensor, residual: Tensor, out: Tensor, weight: Tensor, eps: float, *, add: bool) -> None:
    tokens, width = x.shape
    _rms_norm_kernel[(tokens,)](
        x, residual, out, weight, x.stride(0), residual.stride(0), out.stride(0), eps, width,
        BLOCK=triton.next_power_of_2(width), ADD=add, num_warps=min(16, max(1, triton.next_power_of_2(width) // 1024)),
        **tuning.overlapping(tokens),
    )  # fmt: skip


@triton.jit
def _rms_norm_kernel(
    x, residual, out, weight, x_stride, residual_stride, out_stride, eps, width, BLOCK: tl.constexpr, ADD: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    weights = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
    if OVERLAP:
        dependents_may_start()
        wait_for_inputs()
    values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0)
    wide = values.to(tl.float32)
    if ADD:
        wide += tl.load(residual + row * residual_stride + columns, mask=inside, other=0.0).to(tl.float32)
        values = wide.to(values.dtype)
        tl.store(residual + row * residual_stride + columns, values, mask=inside)
        wide = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=0) / width + eps)
    tl.store(out + row * out_stride + columns, (wide * scale * weights).to(values.dtype), mask=inside)
