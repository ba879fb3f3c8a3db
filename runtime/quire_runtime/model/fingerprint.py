"""One short name for the exact model in a directory."""

import hashlib
import struct
from pathlib import Path

from quire_runtime.model.checkpoint import weight_files
from quire_runtime.model.errors import MalformedModel, PickleRefused

WHOLE_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
SAMPLES = 16
SAMPLE_BYTES = 4096
MAX_HEADER_BYTES = 100 << 20


def model_revision(directory: str | Path) -> str:
    """32 hex digits that are equal wherever the same model lies, and differ between models.

    Covers config.json and the tokenizer's files whole, and of each weight file its size, its safetensors header and 16
    samples of 4 KiB, so that a fine-tune of equal shape has its own name and a large model is named in milliseconds.
    """
    directory = Path(directory)
    digest = hashlib.sha256(b"quire model revision 1\0")
    for name in WHOLE_FILES:
        path = directory / name
        if path.is_file():
            _add(digest, name, path.read_bytes())
    try:
        files = weight_files(directory)
    except PickleRefused:
        files = weight_files(directory, "pt")
    except MalformedModel:
        files = []
    for path in files:
        _add(digest, path.name, _outline(path))
    return digest.hexdigest()[:32]


def _add(digest: "hashlib._Hash", name: str, content: bytes) -> None:
    digest.update(f"{name}\0{len(content)}\0".encode())
    digest.update(content)


def _outline(path: Path) -> bytes:
    size = path.stat().st_size
    parts = [struct.pack("<Q", size)]
    with path.open("rb") as file:
        if path.suffix == ".safetensors":
            (header_bytes,) = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))
            parts.append(file.read(min(header_bytes, MAX_HEADER_BYTES)))
        for sample in range(SAMPLES):
            file.seek(max(0, (size - SAMPLE_BYTES) * sample // (SAMPLES - 1)))
            parts.append(file.read(SAMPLE_BYTES))
    return b"".join(parts)
