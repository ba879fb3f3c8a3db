"""The block-hash chain, held to vectors that any other implementation can be held to as well."""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from quire_api.blocks import FORMAT_VERSION, KEY_BYTES, block_key, chain, root_key

VECTORS: dict[str, Any] = json.loads(Path(__file__).with_name("block_hash_vectors.json").read_text())


def test_the_vectors_are_of_this_format() -> None:
    assert (VECTORS["format_version"], VECTORS["key_bytes"]) == (FORMAT_VERSION, KEY_BYTES)


@pytest.mark.parametrize("vector", VECTORS["vectors"], ids=lambda vector: vector["name"])
def test_vector(vector: dict[str, Any]) -> None:
    root = root_key(vector["model_revision"], vector["block_size"], vector["adapter"], vector["salt"])
    assert root.hex() == vector["root"]
    assert [key.hex() for key in chain(root, vector["tokens"], vector["block_size"])] == vector["keys"]


def test_the_vectors_follow_from_the_definition_written_out() -> None:
    """SHA-256 over the bytes that the module's docstring names, cut to 16 bytes: nothing of ours is called."""
    for vector in VECTORS["vectors"]:
        size = vector["block_size"]
        message = b"quire-blocks" + struct.pack("<II", 1, size)
        for text in (vector["model_revision"], vector["adapter"], vector["salt"]):
            message += struct.pack("<I", len(text.encode("utf-8"))) + text.encode("utf-8")
        parent = hashlib.sha256(message).digest()[:16]
        assert parent.hex() == vector["root"]
        for i, key in enumerate(vector["keys"]):
            block = vector["tokens"][i * size : (i + 1) * size]
            parent = hashlib.sha256(parent + struct.pack(f"<{size}I", *block)).digest()[:16]
            assert parent.hex() == key
        assert len(vector["keys"]) == len(vector["tokens"]) // size


def test_every_field_of_the_root_matters() -> None:
    roots = {
        root_key("m", 16),
        root_key("m2", 16),
        root_key("m", 32),
        root_key("m", 16, adapter="a"),
        root_key("m", 16, salt="a"),
        root_key("ma", 16),
        root_key("", 16, adapter="m"),
    }
    assert len(roots) == 7


def test_keys_are_computed_as_they_are_asked_for() -> None:
    root = root_key("m", 2)
    keys = chain(root, [1, 2, 2**32, 0], 2)
    assert next(keys) == block_key(root, [1, 2])
    with pytest.raises(OverflowError):
        next(keys)


@pytest.mark.parametrize("token", [-1, 2**32])
def test_a_token_beyond_32_bits_is_refused(token: int) -> None:
    with pytest.raises(OverflowError):
        block_key(root_key("m", 1), [token])
