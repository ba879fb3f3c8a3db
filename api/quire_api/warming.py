"""How the prefixes that one engine is asked for most come to another: what crosses the wire, packed as msgpack.

A gateway takes `HotPrefixes` from one engine (GET) and gives them, as they came, to one that has just started (POST).
The contract: docs/gateway.md, "A new replica is warmed".
"""

import msgspec

HOT_PREFIXES_PATH = "/internal/v1/hot-prefixes"
WARM_PATH = "/internal/v1/warm"
WARMING_MEDIA_TYPE = "application/msgpack"
MOST_BYTES = 65 << 20
"""Of packed `HotPrefixes`: 64 prefixes of 2**18 tokens, and what stands around them."""
TOKEN_BYTES = 4


class HotPrefix(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One cached prefix of whole blocks.

    hits: how often a prompt found the first of its blocks that no prefix before it has, older finds counting less.
    token_ids: little-endian uint32. cache_salt: it can be found under this one only.
    """

    hits: int
    token_ids: bytes
    cache_salt: str = ""


class HotPrefixes(msgspec.Struct, kw_only=True):
    """The hottest first; none is the beginning of another. Tokens of these blocks serve a like engine only."""

    model_revision: str
    block_size: int
    block_format: int
    prefixes: list[HotPrefix] = []


class Warmed(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a new engine has computed of the prefixes it was given, as JSON."""

    prefixes: int = 0
    tokens: int = 0
    """Of these prefixes, each as often as it begins one."""
    skipped: str = ""
    """Why it took none: `warmed` (it is or has been), `in_use` (it has a cache of its own); empty where it did."""
    is_cut: bool = False
    """The time was over before the last prefix."""
