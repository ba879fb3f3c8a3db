"""Quire serves large language models. `from quire import LLM, SamplingParams` runs one in this process."""

from typing import TYPE_CHECKING, Any

from quire_api.version import __version__

if TYPE_CHECKING:
    from quire.llm import LLM
    from quire_api.sampling import SamplingParams

__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    """Import on first use: the command line starts without torch."""
    if name == "LLM":
        from quire.llm import LLM

        return LLM
    if name == "SamplingParams":
        from quire_api.sampling import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'quire' has no attribute {name!r}")
