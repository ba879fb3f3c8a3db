"""Which replicas know blocks by the same keys, and whether this gateway can compute them. Pure."""

from typing import NamedTuple

from quire_api.blocks import FORMAT_VERSION, root_key
from quire_api.wire import ModelInfo


class BlockSpace(NamedTuple):
    """What replicas must have in common to know blocks by the same keys."""

    model_revision: str
    block_size: int
    adapter: str

    def root(self, salt: str) -> bytes:
        """The parent of a prompt's first block."""
        return root_key(*self, salt)


def space_of(info: ModelInfo) -> BlockSpace | None:
    """Of an engine with these facts; None: its keys cannot be computed here, `why_unknown` says why."""
    return None if why_unknown(info) else BlockSpace(info.model_revision, info.block_size, info.adapter)


def why_unknown(info: ModelInfo) -> str:
    """Why what an engine caches cannot be known here, so that it is chosen by load alone; empty: it can."""
    if info.block_format != FORMAT_VERSION:
        return f"its block format {info.block_format} is not this gateway's ({FORMAT_VERSION})"
    return "" if info.block_size > 0 else f"its block size is {info.block_size}"
