"""Phi-3: part of each head is rotated, with longrope's factors for long windows."""

from quire_runtime.model.decoder import Decoder


class Phi3(Decoder):
    """Checkpoints hold q, k, v in one tensor and gate, up in another, just as the decoder does."""

    def qkv_outputs(self, prefix: str) -> dict[str, int]:
        return {f"{prefix}.qkv_proj": self.config.qkv_size}

    def gate_up_outputs(self, prefix: str) -> dict[str, int]:
        return {f"{prefix}.gate_up_proj": 2 * self.config.intermediate_size}
