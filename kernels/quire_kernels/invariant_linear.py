"""Matrix products whose rows do not depend on the rows beside them, down to the last bit."""

import torch
from torch import Tensor
from torch.nn import functional


def invariant_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x [T, K] @ weight [N, K].T + bias [N] -> [T, N], or fills `out`; all contiguous in the last dimension.

    A row of the result is bitwise the same whatever T is and wherever in x its input stands. Libraries choose another
    kernel, and with it another order of the sum over K, for another T (thinkingmachines.ai, Defeating Nondeterminism in
    LLM Inference). CPU tensors are multiplied row by row, CUDA tensors by the Triton kernel.
    """
    out = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device) if out is None else out
    if x.is_cuda:
        from quire_kernels import invariant_linear_triton

        invariant_linear_triton.product(x, weight, bias, out)
        return out
    for row in range(x.shape[0]):
        # A copy is aligned as every copy; BLAS may sum rows that are not in another order.
        out[row] = functional.linear(x[row : row + 1].clone(), weight, bias)[0]
    return out


def rehearse(weight: Tensor, bias: Tensor | None = None) -> None:
    """Launch the kernel for a matrix on a CUDA device with each of its tiles, so that none is compiled later."""
    from quire_kernels.invariant_linear_triton import launch, tiles

    x = torch.zeros(1, weight.shape[1], dtype=weight.dtype, device=weight.device)
    out = torch.empty(1, weight.shape[0], dtype=weight.dtype, device=weight.device)
    for tile in tiles(x.dtype.itemsize):
        launch(x, weight, bias, out, tile)
