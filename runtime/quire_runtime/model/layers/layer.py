"""One layer of a pre-norm decoder."""

from dataclasses import dataclass

from torch import Tensor

from quire_runtime.model.layers.attention import Attention
from quire_runtime.model.layers.mlp import MLP


@dataclass(frozen=True, slots=True)
class Layer:
    """Norms: RMSNorm weights [hidden], each of what comes into the part of its name."""

    attention: Attention
    mlp: MLP
    attention_norm: Tensor
    mlp_norm: Tensor
