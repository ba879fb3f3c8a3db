"""Matrix product with an optional bias; several projections of one input are one product."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quire_kernels.activation import silu_and_mul
from quire_kernels.linear import gated_linear, skinny_linear
from quire_runtime.model.layers.weights import Weights

ONEDNN_FROM = 1 << 19
"""Multiplications from which oneDNN's larger cost per call is worth it."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out: Tensor | None = None) -> Tensor:
    """x [T, inputs] -> x @ weight.T + bias [T, outputs], written to `out` if given.

    In fp32 on a CPU torch asks MKL, which on AMD processors leaves half of the machine unused: there oneDNN takes
    1.5 (T = 4) to 2.3 (T = 256) times less, measured on an EPYC with weights of 256 x 1536 and 256 x 2048.
    """
    if (
        x.dtype is torch.float32
        and out is None
        and x.shape[0] > 1
        and x.shape[0] * weight.numel() >= ONEDNN_FROM
        and x.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
    ):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return skinny_linear(x, weight, bias, out)


Product = Callable[..., Tensor]
"""(x, weight, bias=None, out=None) as `linear` takes them."""


@dataclass(frozen=True, slots=True)
class Linear:
    """x [T, inputs] -> [T, outputs] with weight [outputs, inputs], bias [outputs] or None."""

    weight: Tensor
    bias: Tensor | None
    product: Product = linear

    @classmethod
    def stacked(
        cls, weights: Weights, outputs: dict[str, int], inputs: int, bias: bool, product: Product = linear
    ) -> "Linear":
        """The projections named by `outputs` (name in the checkpoint -> rows), side by side in that order."""
        weight = weights.stacked({f"{name}.weight": rows for name, rows in outputs.items()}, inputs)
        if not bias:
            return cls(weight, None, product)
        return cls(weight, weights.stacked({f"{name}.bias": rows for name, rows in outputs.items()}), product)

    def __call__(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)

    def gated(self, x: Tensor) -> Tensor:
        """silu(first) * second of the two halves of the outputs -> [T, outputs / 2]"""
        if self.product is linear and x.is_cuda:
            return gated_linear(x, self.weight, self.bias)
        return silu_and_mul(self(x))
