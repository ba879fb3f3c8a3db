"""Qwen2 and Qwen2.5: Llama's tensors plus biases on q, k and v; upper layers may have a sliding window."""

from quire_runtime.model.llama import Llama


class Qwen2(Llama):
    """Biases and windows come from the config; the tensors are named as Llama's."""
