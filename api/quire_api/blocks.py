"""The block-hash chain: the one place where tokens become prefix keys, for engine and gateway alike.

    h_0 = H("quire-blocks", format version, block size, model revision, adapter, salt)
    h_i = H(h_{i-1}, the block's tokens as little-endian uint32)

H is SHA-256 cut to its first 16 bytes. Integers of the root are little-endian uint32; strings are UTF-8 behind their
byte length. Only full blocks have a key. Test vectors: tests/api/block_hash_vectors.json.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from hashlib import sha256
from sys import byteorder

FORMAT_VERSION = 1
KEY_BYTES = 16
DEFAULT_BLOCK_SIZE = 16
_TOKEN_BYTES = 4


def root_key(model_revision: str, block_size: int, adapter: str = "", salt: str = "") -> bytes:
    """The parent of every first block: prefixes meet only where all four arguments are equal."""
    parts = [b"quire-blocks", struct.pack("<II", FORMAT_VERSION, block_size)]
    for text in (model_revision, adapter, salt):
        encoded = text.encode()
        parts += [struct.pack("<I", len(encoded)), encoded]
    return sha256(b"".join(parts)).digest()[:KEY_BYTES]


def caller_salt(key_digest: bytes, asked: str) -> str:
    """The salt of a caller with an API key: callers with different keys never meet, nor one's own salts. 32 hex digits.

    key_digest: SHA-256 of the key. asked: the request's own cache_salt, "" for none.
    """
    return sha256(key_digest + asked.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def block_key(parent: bytes, tokens: Sequence[int]) -> bytes:
    """The key of the block that holds `tokens` behind the block `parent`.

    Raises:
        OverflowError: a token id is negative or needs more than 32 bits.
    """
    return packed_block_key(parent, _little_endian(tokens))


def packed_block_key(parent: bytes, packed: bytes) -> bytes:
    """The same of tokens that are little-endian uint32 already."""
    return sha256(parent + packed).digest()[:KEY_BYTES]


def chain(root: bytes, tokens: Sequence[int], block_size: int) -> Iterator[bytes]:
    """Keys of the full blocks of `tokens`, first block first, computed as they are asked for.

    Raises:
        OverflowError: a token id is negative or needs more than 32 bits.
    """
    parent = root
    try:
        packed, step = _little_endian(tokens), _TOKEN_BYTES * block_size
    except OverflowError:
        # The blocks before the bad token have keys all the same.
        for start in range(0, len(tokens) - block_size + 1, block_size):
            parent = block_key(parent, tokens[start : start + block_size])
            yield parent
        return
    for start in range(0, len(packed) - step + 1, step):
        parent = packed_block_key(parent, packed[start : start + step])
        yield parent


def _little_endian(tokens: Sequence[int]) -> bytes:
    packed = array("I", tokens)
    if byteorder == "big":
        packed.byteswap()
    return packed.tobytes()
