"""Qwen3: each query and key head is normalised before the rotation; head_dim is independent of hidden_size."""

from torch import Tensor

from quire_runtime.model.llama import Llama


class Qwen3(Llama):
    """Llama's tensors plus `q_norm` and `k_norm`."""

    def head_norms(self, prefix: str) -> tuple[Tensor, Tensor]:
        head_dim = self.config.head_dim
        return self.weights.one(f"{prefix}.q_norm.weight", head_dim), self.weights.one(
            f"{prefix}.k_norm.weight", head_dim
        )
