"""The facts about a model, read from its directory."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quire_runtime.model.errors import MalformedModel, UnsupportedArchitecture
from quire_runtime.model.fields import Fields
from quire_runtime.model.rope import RopeConfig

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What generation_config.json advises for requests that do not say; None where it is silent."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    max_new_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape and meaning of a decoder-only model, independent of where it runs.

    `dtype` is the checkpoint's. `sliding_window[i]` is layer i's window in tokens, the own one included; None: all.
    `attention_bias` is on q, k and v, `output_bias` on the attention's output, `mlp_bias` on all three of the MLP.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope: RopeConfig
    sliding_window: tuple[int | None, ...]
    tie_word_embeddings: bool
    dtype: str
    attention_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    sampling_defaults: SamplingDefaults = field(default_factory=SamplingDefaults)

    @classmethod
    def from_directory(cls, directory: str | Path) -> "ModelConfig":
        """Read config.json, as Transformers 4 or 5 writes it, and generation_config.json if there is one.

        Raises:
            MalformedModel: no such directory, no config.json, or values that make no sense.
            UnsupportedArchitecture: a model, or a feature of it, that this release cannot run.
        """
        directory = Path(directory)
        if not directory.is_dir():
            state = "is not a directory" if directory.exists() else "does not exist"
            raise MalformedModel(f"The model directory {directory} {state}. Name a directory that holds config.json.")
        if not (directory / "config.json").is_file():
            raise MalformedModel(f"{directory} holds no config.json, so it is not a Hugging Face model directory.")
        fields = Fields.from_file(directory / "config.json")
        generation = Fields({}, "")
        if (directory / "generation_config.json").is_file():
            generation = Fields.from_file(directory / "generation_config.json")
        return _read(fields, generation)

    @property
    def qkv_size(self) -> int:
        """Rows of the fused query, key and value projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


def _read(fields: Fields, generation: Fields) -> ModelConfig:
    architecture = _architecture(fields)
    hidden, layers, heads = (
        fields.whole("hidden_size", high=2**20),
        fields.whole("num_hidden_layers", high=4096),
        fields.whole("num_attention_heads", high=65536),
    )
    kv_heads = fields.whole("num_key_value_heads", heads)
    if heads % kv_heads:
        raise MalformedModel(
            f"{fields.where}: num_attention_heads ({heads}) must be a multiple of num_key_value_heads ({kv_heads})."
        )
    if not fields.has("head_dim") and hidden % heads:
        raise MalformedModel(
            f"{fields.where}: hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads})."
        )
    head_dim = fields.whole("head_dim", DEFAULT_HEAD_DIM.get(architecture, hidden // heads), high=4096)
    positions = fields.whole("max_position_embeddings")
    family = FAMILIES[architecture](fields, layers)
    if fields.text("hidden_act", "silu") not in ("silu", "swish"):
        raise UnsupportedArchitecture(f"{fields.where}: hidden_act {fields.text('hidden_act')!r} is not silu.")
    eos_source = generation if generation.has("eos_token_id") else fields
    bos = fields.token_ids("bos_token_id")
    return ModelConfig(
        architecture=architecture,
        hidden_size=hidden,
        intermediate_size=fields.whole("intermediate_size", high=2**22),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=fields.whole("vocab_size", high=2**24),
        max_position_embeddings=positions,
        rms_norm_eps=fields.real("rms_norm_eps", DEFAULT_EPS.get(architecture, 1e-6)),
        rope=RopeConfig.from_fields(fields, head_dim, positions),
        tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        dtype=_dtype(fields),
        bos_token_id=bos[0] if bos else None,
        eos_token_ids=eos_source.token_ids("eos_token_id"),
        sampling_defaults=_sampling_defaults(generation),
        **family,
    )


def _llama(fields: Fields, layers: int) -> dict[str, Any]:
    bias = fields.flag("attention_bias", False)
    return {
        "attention_bias": bias,
        "output_bias": bias,
        "mlp_bias": fields.flag("mlp_bias", False),
        "sliding_window": (None,) * layers,
    }


def _mistral(fields: Fields, layers: int) -> dict[str, Any]:
    return {"sliding_window": (_window(fields),) * layers}


def _qwen2(fields: Fields, layers: int) -> dict[str, Any]:
    return {"attention_bias": True, "sliding_window": _windows_by_layer(fields, layers)}


def _qwen3(fields: Fields, layers: int) -> dict[str, Any]:
    bias = fields.flag("attention_bias", False)
    return {
        "attention_bias": bias,
        "output_bias": bias,
        "qk_norm": True,
        "sliding_window": _windows_by_layer(fields, layers),
    }


FAMILIES: dict[str, Callable[[Fields, int], dict[str, Any]]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
    "Phi3ForCausalLM": _mistral,
}
BY_MODEL_TYPE = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}
# What Transformers assumes where config.json is silent and the common rule does not hold.
DEFAULT_HEAD_DIM = {"Qwen3ForCausalLM": 128}
DEFAULT_EPS = {"Phi3ForCausalLM": 1e-5}


def _architecture(fields: Fields) -> str:
    if fields.has("architectures"):
        names = fields.texts("architectures")
    else:
        kind = fields.text("model_type")
        names = (BY_MODEL_TYPE.get(kind, kind),)
    for name in names:
        if name in FAMILIES:
            break
    else:
        raise UnsupportedArchitecture(
            f"{fields.where}: {', '.join(names) or 'no architecture'} is not supported. "
            f"This release runs {', '.join(sorted(FAMILIES))}."
        )
    if fields.has("quantization_config"):
        method = fields.object("quantization_config").text("quant_method", "unknown method")
        raise UnsupportedArchitecture(
            f"{fields.where}: the weights are quantised ({method}), which this release cannot run. "
            "Use the model's bfloat16 or float16 variant."
        )
    return name


def _window(fields: Fields) -> int | None:
    return fields.whole("sliding_window") if fields.has("sliding_window") else None


def _windows_by_layer(fields: Fields, layers: int) -> tuple[int | None, ...]:
    is_used = fields.flag("use_sliding_window", False) and fields.values.get("sliding_window", 4096) is not None
    window = fields.whole("sliding_window", 4096) if is_used else None
    if not fields.has("layer_types"):
        first = fields.whole("max_window_layers", 28, low=0)
        return tuple(window if layer >= first else None for layer in range(layers))
    kinds = fields.texts("layer_types")
    if len(kinds) != layers:
        raise MalformedModel(f"{fields.where}: layer_types must name {layers} layers; it names {len(kinds)}.")
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UnsupportedArchitecture(f"{fields.where}: layers of type {', '.join(unknown)} are not supported.")
    if window is None and "sliding_attention" in kinds:
        raise MalformedModel(f"{fields.where}: layer_types names sliding_attention, but no sliding window is in use.")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _dtype(fields: Fields) -> str:
    dtype = fields.text("dtype", fields.text("torch_dtype", "float32")).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UnsupportedArchitecture(f"{fields.where}: dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    return dtype


def _sampling_defaults(generation: Fields) -> SamplingDefaults:
    def real(name: str) -> float | None:
        return generation.real(name, above=-1e-9) if generation.has(name) else None

    def whole(name: str) -> int | None:
        return generation.whole(name, low=-1) if generation.has(name) else None

    return SamplingDefaults(
        temperature=real("temperature"),
        top_p=real("top_p"),
        top_k=whole("top_k"),
        min_p=real("min_p"),
        repetition_penalty=real("repetition_penalty"),
        max_new_tokens=whole("max_new_tokens"),
    )
