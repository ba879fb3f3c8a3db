"""Gated feed-forward network."""

from dataclasses import dataclass

from torch import Tensor

from quire_kernels.linear import add_row, gated_row
from quire_runtime.model.layers.linear import Linear


@dataclass(frozen=True, slots=True)
class MLP:
    """down(silu(gate(x)) * up(x)) with gate and up as one product."""

    gate_up: Linear
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        return self.down(self.gate_up.gated(x))

    def add_one(self, residual: Tensor, norm: Tensor, eps: float) -> None:
        """residual [1, hidden] += the same of rms_norm(residual, norm, eps)."""
        active = gated_row(residual, norm, eps, self.gate_up.weight, self.gate_up.bias)
        add_row(active, self.down.weight, self.down.bias, residual)
