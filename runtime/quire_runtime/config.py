"""The engine's configuration: names and meanings as `vllm serve` where they are the same."""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from quire_api.blocks import DEFAULT_BLOCK_SIZE
from quire_api.errors import UserError

BINARY = {"": 1, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
SECRET = frozenset({"api_key", "internal_key"})
LENGTHS = {"": 1, "k": 1000, "K": 1024, "m": 10**6, "M": 2**20}


class InvalidConfig(UserError):
    """A setting is unknown or out of range."""


def parse_bytes(value: Any) -> Any:
    """`8Gi`, `8GiB`, `500M` or a number of bytes -> bytes."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]i?)?b?\s*", value.lower())
    if not match:
        raise ValueError("write a number of bytes, or a size such as 8Gi or 500M")
    unit = match[2] or ""
    return int(float(match[1]) * (BINARY.get(unit) or DECIMAL[unit]))


def parse_length(value: Any) -> Any:
    """`32k` -> 32000, `32K` -> 32768 (as vLLM reads them), `auto` and -1 -> "auto"."""
    if value in (-1, "-1"):
        return "auto"
    if not isinstance(value, str) or value == "auto":
        return value
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKmM]?)\s*", value)
    if not match:
        raise ValueError("write a number of tokens, such as 2048, 2k or 32K, or auto")
    return int(float(match[1]) * LENGTHS[match[2]])


Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Length = Annotated[Annotated[int, Field(ge=1)] | Literal["auto"], BeforeValidator(parse_length)]


class EngineConfig(BaseModel):
    """Everything one engine needs to know; `EngineConfig.of(**values)` turns bad values into a UserError."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(description="Directory, file:// or hf:// source of the model.")
    tokenizer: str | None = Field(None, description="Directory of the tokenizer; by default the model's own.")
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    download_dir: str | None = Field(None, description="Where models from the Hub are kept.")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU if there is one; one that is there and cannot be used is an error."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: as the weights say; float32 weights run as float32 on a CPU, bfloat16 on a GPU."
    )
    max_model_len: Length = Field(
        "auto", description="Longest prompt + output, in tokens, as 2048 or 32K; auto: what model and memory allow."
    )
    block_size: int = Field(
        DEFAULT_BLOCK_SIZE,
        ge=1,
        le=256,
        description="Tokens in one block of the KV cache, 1 to 256. An LLMDeployment takes 16, 32 and 64 only: engines "
        "of different sizes share no prefixes, so few are better than many.",
    )
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1, description="Share of the GPU's memory the engine may use.")
    kv_cache_memory: Bytes | None = Field(None, gt=0, description="Memory of the KV cache, for example 8Gi.")
    num_gpu_blocks_override: int | None = Field(None, ge=2, description="Exact number of KV-cache blocks.")
    max_num_seqs: int = Field(256, ge=1, le=16384, description="Most sequences in one step.")
    max_num_batched_tokens: int = Field(8192, ge=1, description="Most tokens in one step.")
    max_num_queued_reqs: int = Field(
        2048, ge=1, description="Most requests that wait for their first step; more are refused with status 429."
    )
    long_prefill_token_threshold: int = Field(0, ge=0, description="Longest prompt chunk in one step; 0: no bound.")
    mixed_step_tokens: int = Field(
        512,
        ge=0,
        description="Tokens of a step in which prompts join running decodes, where few prompts wait; 0: no bound.",
    )
    enable_prefix_caching: bool = Field(True, description="Reuse the KV cache of prompts that begin alike.")
    enforce_eager: bool = Field(False, description="Run without CUDA graphs.")
    deterministic: bool = Field(
        False,
        description="Give a request bitwise the same tokens and logprobs alone, in any batch, in chunks and after a "
        "prefix hit.",
    )
    async_scheduling: bool | None = Field(
        None, description="Plan and launch a step before the one before it is read; by default on a GPU only."
    )
    seed: int = Field(0, description="Seed of requests that bring none.")
    load_format: Literal["auto", "dummy", "safetensors", "pt"] = Field(
        "auto",
        description="auto: safetensors; dummy: random weights; pt: pickled ones (tensors only).",
    )
    kernel_cache: str | None = Field(
        None,
        description="Where compiled kernels are kept, in a folder for each set of versions and GPU; by default where "
        "Triton keeps them: TRITON_CACHE_DIR, or ~/.triton/cache.",
    )
    generation_config: Literal["auto", "vllm"] = Field(
        "auto", description="auto: default sampling parameters from the model's generation_config.json."
    )
    skip_tokenizer_init: bool = Field(False, description="Offline only: prompts and answers are token ids.")

    @classmethod
    def of(cls, **values: Any) -> "EngineConfig":
        """
        Raises:
            InvalidConfig: names every setting that does not fit, and why.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise invalid(error) from None


def invalid(error: ValidationError) -> InvalidConfig:
    """One sentence for each setting that does not fit. What keys are is not said."""
    first_of_each = {problem["loc"][:1]: problem for problem in reversed(error.errors())}
    return InvalidConfig(" ".join(_sentence(problem) for problem in reversed(first_of_each.values())))


def _sentence(problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"][:1]) or "configuration"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"The engine has no setting {name!r}."
    if problem["type"] == "missing":
        return f"{name} is required."
    if name in SECRET:
        return f"{name}: {message}."
    return f"{name} = {problem['input']!r}: {message.replace('Input should be', 'must be')}."
