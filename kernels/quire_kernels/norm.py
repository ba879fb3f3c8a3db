"""Root-mean-square norms (arXiv 1910.07467)."""

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight over the last dimension, computed in fp32.

    x: [..., N], contiguous in the last dimension; weight: [N]. Returns a new contiguous tensor.
    CPU tensors take the torch reference, CUDA tensors the Triton kernel.
    """
    if x.is_cuda:
        from quire_kernels import norm_triton

        return norm_triton.rms_norm(x, weight, eps)
    return rms_norm_reference(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
    """In place: residual += x, then x = rms_norm(residual). x, residual: [T, N], contiguous in the last dimension.

    The sum is rounded to the residual's dtype before it is normed.
    """
    if x.is_cuda:
        from quire_kernels import norm_triton

        norm_triton.add_rms_norm(x, residual, weight, eps)
    else:
        add_rms_norm_reference(x, residual, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `rms_norm`."""
    if x.dtype == torch.float32:
        return functional.rms_norm(x, (x.shape[-1],), weight, eps)
    return functional.rms_norm(x.float(), (x.shape[-1],), weight.float(), eps).to(x.dtype)


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> None:
    """As `add_rms_norm`."""
    residual += x
    x.copy_(rms_norm_reference(residual, weight, eps))
