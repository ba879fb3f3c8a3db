"""Logits equal Transformers' in fp32, for every family, however a sequence is cut into steps."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "short_factor": [1.0, 1.1, 1.3, 1.6],
    "long_factor": [1.0, 1.5, 2.5, 4.0],
}
# name -> family, config, longest sequence served (None: the model's own)
VARIANTS: dict[str, tuple[str, dict[str, Any], int | None]] = {
    "llama": ("llama", {}, None),
    "llama-tied-biases": (
        "llama",
        {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "rope_parameters": PLAIN_ROPE},
        None,
    ),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1, "rope_parameters": PLAIN_ROPE}, None),
    "llama-linear": ("llama", {"rope_parameters": {**PLAIN_ROPE, "rope_type": "linear", "factor": 4.0}}, None),
    "llama-dynamic": ("llama", {"rope_parameters": {**PLAIN_ROPE, "rope_type": "dynamic", "factor": 4.0}}, None),
    "llama-sharded": ("llama", {"max_shard_size": "60KB"}, None),
    "mistral-window": ("mistral", {}, None),
    "mistral-full": ("mistral", {"sliding_window": None}, None),
    "qwen2-upper-window": ("qwen2", {}, None),
    "qwen2-tied": ("qwen2", {"use_sliding_window": False, "tie_word_embeddings": True}, None),
    "qwen3-tied": ("qwen3", {}, None),
    "qwen3-untied": ("qwen3", {"tie_word_embeddings": False, "attention_bias": True}, None),
    "qwen3-yarn": (
        "qwen3",
        {
            "rope_parameters": {
                **PLAIN_ROPE,
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 128,
            }
        },
        None,
    ),
    "phi3-partial": ("phi3", {}, None),
    "phi3-window": ("phi3", {"sliding_window": 24}, None),
    "phi3-longrope-short": (
        "phi3",
        {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256},
        256,
    ),
    "phi3-longrope-long": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}, None),
}
PROMPT = [random.Random(1).randrange(3, 320) for _ in range(70)]


def assert_equal(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("chunks", [[70], [33, 1, 30, 6], [1] * 70], ids=["prefill", "chunked", "decode"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_sequence(tiny_model_dir: Any, paged_model: Any, expected_logits: Any, variant: str, chunks: list[int]):
    check_one_sequence(tiny_model_dir, paged_model, expected_logits, variant, chunks, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("chunks", [[70], [33, 1, 30, 6], [1] * 70], ids=["prefill", "chunked", "decode"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_one_sequence_on_a_gpu(
    tiny_model_dir: Any, paged_model: Any, expected_logits: Any, variant: str, chunks: list[int]
):
    check_one_sequence(tiny_model_dir, paged_model, expected_logits, variant, chunks, "cuda")


def check_one_sequence(
    tiny_model_dir: Any, paged_model: Any, expected_logits: Any, variant: str, chunks: list[int], device: str
) -> None:
    family, config, max_model_len = VARIANTS[variant]
    directory = tiny_model_dir(family, **config)
    model = paged_model(directory, max_model_len=max_model_len, device=device)
    ours, start = [], 0
    for chunk in chunks:
        ours.append(model.step({0: PROMPT[start : start + chunk]})[0])
        start += chunk
    assert_equal(torch.cat(ours), expected_logits(directory, PROMPT))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_a_mixed_batch_of_prefills_and_decodes(
    tiny_model_dir: Any, paged_model: Any, expected_logits: Any, family: str
):
    directory = tiny_model_dir(family)
    model = paged_model(directory, sequences=3)
    texts = {0: PROMPT[:50], 1: PROMPT[10:70], 2: PROMPT[5:36]}
    parts: dict[int, list[Tensor]] = {0: [], 1: [], 2: []}
    for step in ({0: 40, 1: 7}, {0: 1, 1: 20, 2: 1}, {0: 1, 1: 1, 2: 1}, {0: 8, 1: 32, 2: 28}, {2: 1}):
        tokens = {s: texts[s][model.lengths[s] : model.lengths[s] + count] for s, count in step.items()}
        for sequence, logits in model.step(tokens).items():
            parts[sequence].append(logits)
    for sequence, text in texts.items():
        assert_equal(torch.cat(parts[sequence]), expected_logits(directory, text))
