"""Matrix product with an optional bias; several projections of one input are one product."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from quire_runtime.model.layers.weights import Weights


@dataclass(frozen=True, slots=True)
class Linear:
    """x [T, inputs] -> [T, outputs] with weight [outputs, inputs], bias [outputs] or None."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def stacked(cls, weights: Weights, outputs: dict[str, int], inputs: int, bias: bool) -> "Linear":
        """The projections named by `outputs` (name in the checkpoint -> rows), side by side in that order."""
        weight = weights.stacked({f"{name}.weight": rows for name, rows in outputs.items()}, inputs)
        if not bias:
            return cls(weight, None)
        return cls(weight, weights.stacked({f"{name}.bias": rows for name, rows in outputs.items()}))

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)
