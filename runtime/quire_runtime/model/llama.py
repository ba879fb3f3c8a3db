"""Llama 2 and 3, and Mistral, which differs in its sliding window only."""

from quire_runtime.model.decoder import Decoder


class Llama(Decoder):
    """Checkpoints hold q, k, v and gate, up apart."""

    def qkv_outputs(self, prefix: str) -> dict[str, int]:
        q, kv = self.config.num_heads * self.config.head_dim, self.config.num_kv_heads * self.config.head_dim
        return {f"{prefix}.q_proj": q, f"{prefix}.k_proj": kv, f"{prefix}.v_proj": kv}

    def gate_up_outputs(self, prefix: str) -> dict[str, int]:
        inner = self.config.intermediate_size
        return {f"{prefix}.gate_proj": inner, f"{prefix}.up_proj": inner}
