"""From an architecture's name to the class that runs it."""

import torch

from quire_runtime.model.config import ModelConfig
from quire_runtime.model.decoder import Decoder
from quire_runtime.model.llama import Llama
from quire_runtime.model.phi3 import Phi3
from quire_runtime.model.qwen2 import Qwen2
from quire_runtime.model.qwen3 import Qwen3

Model = Decoder

MODELS: dict[str, type[Decoder]] = {
    "LlamaForCausalLM": Llama,
    "MistralForCausalLM": Llama,
    "Qwen2ForCausalLM": Qwen2,
    "Qwen3ForCausalLM": Qwen3,
    "Phi3ForCausalLM": Phi3,
}


def build_model(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device | str,
    max_model_len: int | None = None,
    is_deterministic: bool = False,
) -> Model:
    """The model with its tensors allocated on `device`, not yet loaded; on "meta" nothing is allocated.

    max_model_len: longest sequence that will be served, at most (and by default) config.max_position_embeddings.
    is_deterministic: what a token is does not depend on what is computed beside it.
    """
    length = min(max_model_len or config.max_position_embeddings, config.max_position_embeddings)
    return MODELS[config.architecture](config, dtype, torch.device(device), length, is_deterministic)


def weights_nbytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes that the model's weights will take, without allocating them."""
    return MODELS[config.architecture](config, dtype, torch.device("meta"), 1).weights.nbytes
