"""Matrix products of few rows."""

import torch
from torch import Tensor
from torch.nn import functional


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x [T, K] @ weight [N, K].T + bias [N] -> [T, N], or fills `out`; all contiguous in the last dimension.

    One row on a CUDA device takes the Triton kernel, anything else torch.
    """
    if x.is_cuda and x.shape[0] == 1:
        from quire_kernels import linear_triton

        return linear_triton.one_row(x, weight, bias, out)
    if out is None:
        return functional.linear(x, weight, bias)
    if bias is None:
        return torch.mm(x, weight.t(), out=out)
    return torch.addmm(bias, x, weight.t(), out=out)
