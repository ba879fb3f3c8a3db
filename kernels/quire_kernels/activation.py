"""SiLU-gated linear unit."""

import torch
from torch import Tensor
from torch.nn import functional


def silu_and_mul(x: Tensor) -> Tensor:
    """out[t, i] = silu(x[t, i]) * x[t, n + i], computed in fp32.

    x: [T, 2 n], contiguous in the last dimension; returns [T, n] of x's dtype.
    CPU tensors take the torch reference, CUDA tensors the Triton kernel.
    """
    if x.is_cuda:
        from quire_kernels import activation_triton

        return activation_triton.silu_and_mul(x)
    return silu_and_mul_reference(x)


def silu_and_mul_reference(x: Tensor) -> Tensor:
    """As `silu_and_mul`."""
    gate, up = x.chunk(2, dim=-1)
    if x.dtype == torch.float32:
        return functional.silu(gate).mul_(up)
    return functional.silu(gate.float()).mul_(up).to(x.dtype)
