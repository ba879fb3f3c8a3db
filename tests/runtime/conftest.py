"""Tiny random models of every family, written by Transformers itself, tokenizer and chat template included."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

TinyModels = Callable[..., Path]

SHAPE = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3_ROPE},
    "mistral": {"sliding_window": 24},
    "qwen2": {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "phi3": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRAINING_TEXT = [
    "The scheduler gives every running request its tokens first, then admits those that wait.",
    "A block holds sixteen tokens of keys and values; sequences with a common prefix share their blocks.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 1 2 3 4 5 6 7 8 9 10",
]


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    """`tiny_model_dir(family, max_shard_size=None, **config)` -> a random fp32 model, made once per session.

    Families: llama, mistral, qwen2, qwen3, phi3. Further arguments override that family's Transformers config.
    The weights are spread widely, so that the best two logits differ by far more than rounding does.
    """
    root = tmp_path_factory.mktemp("models")
    made: dict[str, Path] = {}

    def make(family: str, max_shard_size: str | None = None, **config: Any) -> Path:
        key = repr((family, max_shard_size, sorted(config.items())))
        if key not in made:
            directory = root / f"{family}-{len(made)}"
            save_model(family, directory, max_shard_size, config)
            save_tokenizer(directory)
            made[key] = directory
        return made[key]

    return make


def save_model(family: str, directory: Path, max_shard_size: str | None, overrides: dict[str, Any]) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **{**SHAPE, **FAMILIES[family], **overrides})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(sum(family.encode()))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                spread = 1.0 if "embed" in name and not config.tie_word_embeddings else 1.5 * parameter.shape[1] ** -0.5
                parameter.copy_(noise * spread)
            else:
                parameter.copy_(0.3 * noise + (1.0 if "norm" in name else 0.0))
    model.save_pretrained(directory, **({"max_shard_size": max_shard_size} if max_shard_size else {}))


def save_tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=["<|endoftext|>", "<|bos|>", "<|im_end|>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TRAINING_TEXT, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|endoftext|>", bos_token="<|bos|>", eos_token="<|im_end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(directory)
