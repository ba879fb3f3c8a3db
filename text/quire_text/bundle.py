"""The files that make a tokenizer, as one content-addressed value that an engine can hand to a gateway."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from struct import pack

import msgspec

from quire_text.errors import MalformedTokenizer

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS = "special_tokens_map.json"
CHAT_TEMPLATE = "chat_template.jinja"
GENERATION_CONFIG = "generation_config.json"
NAMED_TEMPLATES = "additional_chat_templates"

_FILES = (TOKENIZER, TOKENIZER_CONFIG, SPECIAL_TOKENS, CHAT_TEMPLATE, GENERATION_CONFIG)


@dataclass(frozen=True)
class TokenizerBundle:
    """File name -> content. Equal content has an equal digest, wherever it was read."""

    files: Mapping[str, bytes]

    @classmethod
    def from_directory(cls, path: str | Path) -> "TokenizerBundle":
        """Read a Hugging Face model directory.

        Raises:
            MalformedTokenizer: the directory or its tokenizer.json is missing.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise MalformedTokenizer(f"{directory} is not a directory. Name a directory that holds {TOKENIZER}.")
        named = directory / NAMED_TEMPLATES
        found = [directory / name for name in _FILES] + (sorted(named.glob("*.jinja")) if named.is_dir() else [])
        try:
            files = {file.relative_to(directory).as_posix(): file.read_bytes() for file in found if file.is_file()}
        except OSError as error:
            raise MalformedTokenizer(f"The tokenizer in {directory} cannot be read: {error}.") from error
        if TOKENIZER not in files:
            raise MalformedTokenizer(
                f"{directory} has no {TOKENIZER}. Save one there with Transformers: "
                "AutoTokenizer.from_pretrained(...).save_pretrained(...)."
            )
        return cls(files)

    def with_chat_template(self, template: str) -> "TokenizerBundle":
        """The same bundle with another default chat template."""
        return TokenizerBundle({**self.files, CHAT_TEMPLATE: template.encode()})

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over names and contents in order of name."""
        total = sha256(b"quire-tokenizer-1")
        for name, content in sorted(self.files.items()):
            encoded = name.encode()
            total.update(pack("<II", len(encoded), len(content)) + encoded + content)
        return total.hexdigest()

    def pack(self) -> bytes:
        return msgspec.msgpack.encode(dict(sorted(self.files.items())))

    @classmethod
    def unpack(cls, packed: bytes) -> "TokenizerBundle":
        """Read what `pack` wrote.

        Raises:
            MalformedTokenizer
        """
        try:
            return cls(msgspec.msgpack.decode(packed, type=dict[str, bytes]))
        except msgspec.MsgspecError as error:
            raise MalformedTokenizer(f"This is not a packed tokenizer: {error}.") from error
