"""Which files of a store make up a model: config, tokenizer and weights of its top folder."""

import fnmatch
from collections.abc import Iterable

from quire_runtime.agent.errors import WeightsNotFound

DESCRIPTION_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
)
SAFETENSORS = ("model*.safetensors", "model.safetensors.index.json")
PICKLES = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


def weight_bytes(sizes: Iterable[tuple[str, int]]) -> int:
    """Bytes of those files, by name, that hold weights."""
    return sum(size for name, size in sizes if name.endswith((".safetensors", ".bin")))


def wanted_files(names: Iterable[str], source: object, *, allow_pickle: bool = False) -> list[str]:
    """Those of `names` that a model is loaded from.

    Raises:
        WeightsNotFound: there are no weights, or only pickles that nobody allowed.
    """
    top = [name for name in names if "/" not in name]

    def matching(patterns: tuple[str, ...]) -> list[str]:
        return [name for name in top if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]

    weights = matching(SAFETENSORS) or (matching(PICKLES) if allow_pickle else [])
    if not any(not name.endswith(".json") for name in weights):
        raise WeightsNotFound(f"{source} holds no safetensors weights. Name a model in Hugging Face format.")
    return matching(DESCRIPTION_FILES) + weights
