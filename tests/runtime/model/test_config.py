import json
from pathlib import Path
from typing import Any

import pytest

from quire_runtime.model.config import FAMILIES, ModelConfig
from quire_runtime.model.errors import MalformedModel, UnsupportedArchitecture
from quire_runtime.model.registry import MODELS

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "torch_dtype": "bfloat16",
}


def written(directory: Path, config: Any, generation: Any = None) -> Path:
    (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return directory


def test_every_architecture_that_is_read_can_be_built():
    assert set(FAMILIES) == set(MODELS)


def test_the_layouts_of_transformers_4_and_5_mean_the_same(tmp_path: Path):
    fourth = ModelConfig.from_directory(written(tmp_path, LLAMA))
    fifth = {name: value for name, value in LLAMA.items() if name not in ("rope_theta", "rope_scaling", "torch_dtype")}
    fifth |= {"dtype": "bfloat16", "rope_parameters": {**LLAMA["rope_scaling"], "rope_theta": 500000.0}}
    assert ModelConfig.from_directory(written(tmp_path, fifth)) == fourth
    assert fourth.dtype == "bfloat16"
    assert fourth.head_dim == 128
    assert (fourth.rope.kind, fourth.rope.theta, fourth.rope.original_max_positions) == ("llama3", 500000.0, 8192)
    assert fourth.sliding_window == (None,) * 32
    assert not fourth.tie_word_embeddings


def test_generation_config_decides_when_to_end_and_how_to_sample(tmp_path: Path):
    generation = {"eos_token_id": [128001, 128009], "temperature": 0.6, "top_p": 0.9, "do_sample": True}
    config = ModelConfig.from_directory(written(tmp_path, LLAMA, generation))
    assert config.eos_token_ids == (128001, 128009)
    assert (config.sampling_defaults.temperature, config.sampling_defaults.top_p) == (0.6, 0.9)
    assert config.sampling_defaults.top_k is None


def test_without_generation_config_the_model_s_own_end_counts(tmp_path: Path):
    assert ModelConfig.from_directory(written(tmp_path, LLAMA)).eos_token_ids == (128001,)


def test_windows_of_qwen2_start_at_max_window_layers(tmp_path: Path):
    qwen = {**LLAMA, "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 4, "rope_scaling": None}
    off = ModelConfig.from_directory(written(tmp_path, {**qwen, "sliding_window": 128, "max_window_layers": 2}))
    assert off.sliding_window == (None, None, None, None)
    on = {**qwen, "use_sliding_window": True, "sliding_window": 128, "max_window_layers": 2}
    assert ModelConfig.from_directory(written(tmp_path, on)).sliding_window == (None, None, 128, 128)


def test_phi3_reads_longrope_under_its_old_name(tmp_path: Path):
    factors = [1.0] * 24
    phi = {
        **LLAMA,
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_size": 3072,
        "num_key_value_heads": 32,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "partial_rotary_factor": 0.5,
        "rope_scaling": {"type": "su", "short_factor": factors, "long_factor": factors},
    }
    rope = ModelConfig.from_directory(written(tmp_path, phi)).rope
    assert (rope.kind, rope.rotary_dim, rope.original_max_positions, rope.factor) == ("longrope", 48, 4096, 32.0)


@pytest.mark.parametrize(
    ("change", "error", "hint"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, UnsupportedArchitecture, "GPT2LMHeadModel.*LlamaForCausalLM"),
        ({"architectures": [], "model_type": "t5"}, UnsupportedArchitecture, "This release runs"),
        ({"architectures": None, "model_type": "t5"}, UnsupportedArchitecture, "t5"),
        ({"architectures": None, "model_type": None}, MalformedModel, "lacks model_type"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedArchitecture, "gptq"),
        ({"rope_scaling": {"rope_type": "magic"}}, UnsupportedArchitecture, "magic"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, UnsupportedArchitecture, "layer to layer"),
        ({"torch_dtype": "float8_e4m3fn"}, UnsupportedArchitecture, "float8_e4m3fn"),
        ({"hidden_act": "gelu"}, UnsupportedArchitecture, "gelu"),
        ({"hidden_size": None}, MalformedModel, "lacks hidden_size"),
        ({"hidden_size": "4096"}, MalformedModel, "hidden_size must be a whole number"),
        ({"hidden_size": 0}, MalformedModel, "hidden_size must be from 1"),
        ({"hidden_size": 4097}, MalformedModel, "multiple of num_attention_heads"),
        ({"num_hidden_layers": 10**6}, MalformedModel, "num_hidden_layers must be from 1 to 4096"),
        ({"num_hidden_layers": True}, MalformedModel, "whole number"),
        ({"num_key_value_heads": 5}, MalformedModel, "multiple of num_key_value_heads"),
        ({"vocab_size": -1}, MalformedModel, "vocab_size"),
        ({"vocab_size": 10**12}, MalformedModel, "vocab_size must be from 1 to 16777216"),
        ({"rms_norm_eps": 0}, MalformedModel, "rms_norm_eps"),
        ({"rope_theta": float("nan")}, MalformedModel, "rope_theta"),
        ({"rope_scaling": {"rope_type": "llama3"}}, MalformedModel, "low_freq_factor"),
        ({"rope_scaling": {"rope_type": "linear"}}, MalformedModel, "lacks factor"),
        ({"partial_rotary_factor": 0.01}, MalformedModel, "partial_rotary_factor"),
        ({"eos_token_id": "x"}, MalformedModel, "eos_token_id"),
        ({"tie_word_embeddings": "yes"}, MalformedModel, "true or false"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"]},
            MalformedModel,
            "must name 32 layers",
        ),
        (
            {"architectures": ["Qwen3ForCausalLM"], "layer_types": ["linear_attention"] * 32},
            UnsupportedArchitecture,
            "linear_attention",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(tmp_path: Path, change: dict[str, Any], error: Any, hint: str):
    with pytest.raises(error, match=hint) as raised:
        ModelConfig.from_directory(written(tmp_path, {**LLAMA, **change}))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "null"])
def test_a_config_that_is_no_json_object_is_refused(tmp_path: Path, text: str):
    with pytest.raises(MalformedModel, match=r"config\.json"):
        ModelConfig.from_directory(written(tmp_path, text))


def test_a_config_that_is_no_text_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(MalformedModel, match="cannot be read as JSON"):
        ModelConfig.from_directory(tmp_path)


def test_a_directory_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(MalformedModel, match="does not exist"):
        ModelConfig.from_directory(tmp_path / "absent")
    with pytest.raises(MalformedModel, match=r"holds no config\.json"):
        ModelConfig.from_directory(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(MalformedModel, match="is not a directory"):
        ModelConfig.from_directory(tmp_path / "file")
