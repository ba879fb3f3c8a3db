"""The decoder that all supported families share; a family says how its checkpoint maps onto it."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional

from quire_kernels.batch import AttentionBatch
from quire_kernels.equal_products import EqualProducts, has_equal_products
from quire_kernels.invariant_attention import split_for
from quire_kernels.invariant_linear import rehearse
from quire_kernels.linear import takes_one_row
from quire_kernels.norm import add_rms_norm, rms_norm
from quire_runtime.model.apart import forward_apart
from quire_runtime.model.config import ModelConfig
from quire_runtime.model.layers.attention import Attention
from quire_runtime.model.layers.layer import Layer
from quire_runtime.model.layers.linear import Linear, linear
from quire_runtime.model.layers.mlp import MLP
from quire_runtime.model.layers.rotary import cos_sin_table
from quire_runtime.model.layers.weights import Weights

KVCache = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [num_blocks, num_kv_heads, block_size, head_dim]."""


class Decoder(ABC):
    """Pre-norm transformer decoder with rotary positions and grouped-query attention.

    The tensors are allocated but hold nothing until `load_weights` has filled them. Neither `forward` nor
    `compute_logits` waits for the device, and both may be captured in a CUDA graph.

    is_deterministic: hidden states and logits of a token are bitwise the same whatever else is in the batch. A GPU
    takes kernels that hold it, a CPU computes each token apart.
    """

    def __init__(
        self,
        config: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        max_model_len: int,
        is_deterministic: bool = False,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self.is_deterministic = is_deterministic
        self._equal = EqualProducts() if is_deterministic else None
        self._product = self._equal or linear
        self._split = split_for(max_model_len) if is_deterministic and device.type == "cuda" else None
        self.weights = weights = Weights(dtype, device)
        self.embedding = weights.one("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        self.layers = [self._layer(index) for index in range(config.num_layers)]
        self.final_norm = weights.one("model.norm.weight", config.hidden_size)
        self._norms_after = [layer.attention_norm for layer in self.layers[1:]] + [self.final_norm]
        if config.tie_word_embeddings:
            self.lm_head = self.embedding
            weights.ignored.add("lm_head.weight")
        else:
            self.lm_head = weights.one("lm_head.weight", config.vocab_size, config.hidden_size)
        weights.ignored.update(f"model.layers.{i}.self_attn.rotary_emb.inv_freq" for i in range(config.num_layers))
        self.cos_sin = cos_sin_table(config.rope, max_model_len, device)

    @abstractmethod
    def qkv_outputs(self, prefix: str) -> dict[str, int]:
        """Names in the checkpoint of the tensors that make up the q, k, v projection, in that order -> rows."""

    @abstractmethod
    def gate_up_outputs(self, prefix: str) -> dict[str, int]:
        """The same for the MLP's gate and up projection."""

    def head_norms(self, prefix: str) -> tuple[Tensor, Tensor] | None:
        """RMSNorm weights [head_dim] of each query and key head, if the family has them."""
        return None

    def forward(self, token_ids: Tensor, kv: list[KVCache], batch: AttentionBatch) -> Tensor:
        """token_ids int64 [T] -> hidden states [T, hidden_size] after the final norm; fills `kv` at `batch.slots`."""
        if self.is_deterministic and self.device.type == "cpu":
            return forward_apart(self, token_ids, kv, batch)
        eps = self.config.rms_norm_eps
        residual = functional.embedding(token_ids, self.embedding)
        if takes_one_row(residual) and not self.is_deterministic:
            for layer, (k_cache, v_cache) in zip(self.layers, kv, strict=True):
                layer.attention.add_one(residual, layer.attention_norm, k_cache, v_cache, batch, self.cos_sin)
                layer.mlp.add_one(residual, layer.mlp_norm, eps)
            return rms_norm(residual, self.final_norm, eps)
        x = rms_norm(residual, self.layers[0].attention_norm, eps)
        for layer, (k_cache, v_cache), next_norm in zip(self.layers, kv, self._norms_after, strict=True):
            x = layer.attention(x, k_cache, v_cache, batch, self.cos_sin)
            add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = layer.mlp(x)
            add_rms_norm(x, residual, next_norm, eps)
        return x

    def compute_logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """hidden [n, hidden_size] -> logits [n, vocab_size] in the model's dtype, written to `out` if given."""
        return self._product(hidden, self.lm_head, out=out)

    def learn_products(self, max_num_batched_tokens: int, max_num_seqs: int) -> None:
        """Of a deterministic model with its weights: find the fastest products that keep its bits."""
        if self._equal is None or not has_equal_products(self.lm_head):
            return
        from quire_kernels.together import compiled_together

        with compiled_together(self.device):
            self.rehearse_products()
            for weight, bias in self.products():
                self._equal.rehearse(weight, bias)
        for weight, bias in self.products():
            most = max_num_seqs if weight is self.lm_head else max_num_batched_tokens
            self._equal.learn(weight, bias, most)

    def rehearse_products(self) -> None:
        """Of a deterministic model on a GPU: launch each kernel that a batch of some size may need."""
        for weight, bias in self.products():
            rehearse(weight, bias)

    def products(self) -> list[tuple[Tensor, Tensor | None]]:
        """Weight [N, K] and bias [N] of each kind of matrix."""
        first = self.layers[0]
        parts = (first.attention.qkv, first.attention.output, first.mlp.gate_up, first.mlp.down)
        return [*((part.weight, part.bias) for part in parts), (self.lm_head, None)]

    def _layer(self, index: int) -> Layer:
        config, weights, prefix = self.config, self.weights, f"model.layers.{index}"
        attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
        hidden, inner, product = config.hidden_size, config.intermediate_size, self._product
        q_norm, k_norm = self.head_norms(attention) or (None, None)
        return Layer(
            attention=Attention(
                qkv=Linear.stacked(weights, self.qkv_outputs(attention), hidden, config.attention_bias, product),
                output=Linear.stacked(
                    weights,
                    {f"{attention}.o_proj": hidden},
                    config.num_heads * config.head_dim,
                    config.output_bias,
                    product,
                ),
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                head_dim=config.head_dim,
                window=config.sliding_window[index],
                q_norm=q_norm,
                k_norm=k_norm,
                eps=config.rms_norm_eps,
                split=self._split,
            ),
            mlp=MLP(
                gate_up=Linear.stacked(weights, self.gate_up_outputs(mlp), hidden, config.mlp_bias, product),
                down=Linear.stacked(weights, {f"{mlp}.down_proj": hidden}, inner, config.mlp_bias, product),
            ),
            attention_norm=weights.one(f"{prefix}.input_layernorm.weight", hidden),
            mlp_norm=weights.one(f"{prefix}.post_attention_layernorm.weight", hidden),
        )
