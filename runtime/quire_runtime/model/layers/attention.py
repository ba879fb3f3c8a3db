"""Self-attention over the paged cache."""

from dataclasses import dataclass

from torch import Tensor

from quire_kernels.attention import paged_attention
from quire_kernels.batch import AttentionBatch
from quire_kernels.invariant_attention import invariant_attention
from quire_kernels.linear import add_row, normed_row
from quire_kernels.rope import rope_and_store
from quire_runtime.model.layers.linear import Linear


@dataclass(frozen=True, slots=True)
class Attention:
    """Grouped-query attention: one fused projection, rotation and store in one, then the paged kernel.

    window: tokens that a query sees, its own included; None: all. q_norm, k_norm: RMSNorm weights [head_dim] or None.
    split: of the batch-invariant kernel, where that one is to be used.
    """

    qkv: Linear
    output: Linear
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    eps: float
    split: int | None = None

    def __call__(self, x: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, cos_sin: Tensor) -> Tensor:
        """x [T, hidden] -> [T, hidden]; writes the tokens' keys and values to the caches."""
        return self.output(self._attend(self.qkv(x), k_cache, v_cache, batch, cos_sin))

    def add_one(
        self, residual: Tensor, norm: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, cos_sin: Tensor
    ) -> None:
        """residual [1, hidden] += the same of rms_norm(residual, norm)."""
        heads = normed_row(residual, norm, self.eps, self.qkv.weight, self.qkv.bias)
        attended = self._attend(heads, k_cache, v_cache, batch, cos_sin)
        add_row(attended, self.output.weight, self.output.bias, residual)

    def _attend(
        self, heads: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, cos_sin: Tensor
    ) -> Tensor:
        """heads [T, (Hq + 2 Hkv) D] -> [T, Hq D]"""
        q, k, v = self.store(heads, k_cache, v_cache, batch, cos_sin)
        scale = self.head_dim**-0.5
        if self.split is not None:
            attended = invariant_attention(q, k_cache, v_cache, batch, scale, self.window, self.split)
        else:
            attended = paged_attention(q, k_cache, v_cache, batch, scale, self.window, k=k, v=v)
        return attended.flatten(1)

    def store(
        self, heads: Tensor, k_cache: Tensor, v_cache: Tensor, batch: AttentionBatch, cos_sin: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """heads [T, (Hq + 2 Hkv) D] -> rotated queries [T, Hq, D]; keys and values [T, Hkv, D] as stored."""
        heads = heads.view(-1, self.num_heads + 2 * self.num_kv_heads, self.head_dim)
        q, k, v = heads.split_with_sizes([self.num_heads, self.num_kv_heads, self.num_kv_heads], 1)
        rope_and_store(
            q,
            k,
            v,
            batch.positions,
            cos_sin,
            k_cache,
            v_cache,
            batch.slots,
            q_norm=self.q_norm,
            k_norm=self.k_norm,
            eps=self.eps,
        )
        return q, k, v
