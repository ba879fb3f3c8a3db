"""Matrix products of few rows."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.nn import functional

from quire_kernels import tuning
from quire_kernels.activation import silu_and_mul, silu_and_mul_reference
from quire_kernels.norm import rms_norm_reference

LT_ROWS = range(17, 113)
"""Rows for which cuBLASLt's own choice takes less time than cuBLAS's: on an H200, of the output and down projections of
an 8B model, 8 to 20 % at 32 to 112 rows; at 8 it takes more, and from 128 on more for some matrices."""
LT_SMALL_ROWS = range(113, 385)
LT_SMALL = 4096 * 4096
"""Elements of a matrix for which it does so at LT_SMALL_ROWS too: 6 to 21 % at 144 to 224 rows, 8 and 12 % at 288 and
384, nothing at 320. With all matrices a step of 256 rows takes as long (11.91 and 11.93 ms, twice each)."""

MOST_FEW = 128
"""Rows up to which a product may be faster in Triton: on an H200, with what is between, it takes 6 to 12 % from decode
steps of 8 to 32 rows, 3 to 7 % at 64, 2 % at 128 rows of an 8B model."""
NEW_KERNELS = (16, 32, 112)
"""Rows of a decode step above which it has other kernels than below."""


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x [T, K] @ weight [N, K].T + bias [N] -> [T, N], or fills `out`; all contiguous in the last dimension.

    One row on a CUDA device takes a Triton kernel, a few rows another one where it is faster, anything else torch:
    cuBLASLt where that is faster.
    """
    if x.is_cuda and x.shape[0] == 1:
        from quire_kernels import linear_triton

        return linear_triton.one_row(x, weight, bias, out)
    few = _few_rows(x, weight, bias, out, is_gated=False)
    if few is not None:
        return few
    if x.is_cuda and torch.version.hip is None and _prefers_lt(x.shape[0], weight):
        return lt_linear(x, weight, bias, out)
    return _torch_linear(x, weight, bias, out)


def lt_linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    """The same by cuBLASLt's choice of a kernel, which splits K less often than cuBLAS's; on NVIDIA's GPUs."""
    with _cublas_lt():
        return _torch_linear(x, weight, bias, out)


def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """The same by the Triton kernel for few rows, which never splits K, also where others are faster.

    Leaves `out` as it is where that kernel has no tile: for more rows, and for K that is no multiple of 128.
    """
    from quire_kernels import few_rows_triton

    if tile := few_rows_triton.any_tile_for(x.shape[0], *weight.shape):
        few_rows_triton.launch(x, weight, bias, out, tile)


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """silu_and_mul of x [T, K] @ weight [N, K].T + bias [N] -> [T, N / 2]: the first half of the outputs are gates."""
    few = _few_rows(x, weight, bias, None, is_gated=True)
    return silu_and_mul(skinny_linear(x, weight, bias)) if few is None else few


def _few_rows(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None, *, is_gated: bool) -> Tensor | None:
    """The product by the Triton kernel for few rows; None where another one is faster."""
    if not x.is_cuda or x.shape[0] > MOST_FEW or x.dtype.itemsize != 2 or tuning.architecture() != "cuda:90":
        return None
    from quire_kernels import few_rows_triton

    outputs, inputs = weight.shape
    tile = few_rows_triton.tile_for(x.shape[0], outputs, inputs, is_gated)
    if tile is None:
        return None
    out = x.new_empty(x.shape[0], outputs // 2 if is_gated else outputs) if out is None else out
    few_rows_triton.launch(x, weight, bias, out, tile, is_gated)
    return out


def _prefers_lt(rows: int, weight: Tensor) -> bool:
    return rows in LT_ROWS or (rows in LT_SMALL_ROWS and weight.numel() <= LT_SMALL)


def _torch_linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None) -> Tensor:
    if out is None:
        return functional.linear(x, weight, bias)
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)


@contextmanager
def _cublas_lt() -> Iterator[None]:
    before = torch.backends.cuda.preferred_blas_library()
    torch.backends.cuda.preferred_blas_library("cublaslt")
    try:
        yield
    finally:
        torch.backends.cuda.preferred_blas_library(before)


def takes_one_row(x: Tensor) -> bool:
    """Are the products below faster for x [T, K] than their parts? So for one row on a CUDA device."""
    return x.is_cuda and x.shape[0] == 1


def normed_row(x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rms_norm(x [1, K], norm [K], eps) @ weight [N, K].T + bias [N] -> [1, N]"""
    if x.is_cuda:
        from quire_kernels import linear_triton

        return linear_triton.one_row(x, weight, bias, None, norm, eps)
    return functional.linear(rms_norm_reference(x, norm, eps), weight, bias)


def gated_row(x: Tensor, norm: Tensor, eps: float, weight: Tensor, bias: Tensor | None) -> Tensor:
    """silu_and_mul of the same product -> [1, N / 2]: the first half of the outputs are gates."""
    if x.is_cuda:
        from quire_kernels import linear_triton

        return linear_triton.one_row(x, weight, bias, None, norm, eps, is_gated=True)
    return silu_and_mul_reference(normed_row(x, norm, eps, weight, bias))


def add_row(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor) -> None:
    """residual [1, N] += x [1, K] @ weight [N, K].T + bias [N]"""
    if x.is_cuda:
        from quire_kernels import linear_triton

        linear_triton.one_row(x, weight, bias, residual, adds=True)
    else:
        residual += functional.linear(x, weight, bias)
