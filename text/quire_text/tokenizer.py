"""From text to token ids and back, from a model's own files and without Transformers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import tokenizers

from quire_text import bundle as files
from quire_text.bundle import TokenizerBundle
from quire_text.errors import BadText, MalformedTokenizer, TextTooLong

_LONG_CHARACTERS = 4096
_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class Tokenizer:
    """A model's tokenizer: the same ids as Transformers' AutoTokenizer gives. Safe to use from several threads.

    What surrounds a text (a beginning-of-text token, say) is as tokenizer.json's post-processor has it; add_bos_token
    in tokenizer_config.json is not read, as in Transformers 5.

    bundle: the files it was made of.
    special_tokens: the named special tokens ("bos_token" -> "<s>"), which chat templates see as variables.
    chat_template: the default template, or None.
    named_templates: all templates by name ("default", "tool_use", ...).
    """

    def __init__(self, backend: tokenizers.Tokenizer, bundle: TokenizerBundle, config: Mapping[str, Any]) -> None:
        self.backend = backend
        self.bundle = bundle
        self.special_tokens = _special_tokens(bundle, config)
        self.named_templates = _templates(bundle, config)
        self._prepare(config)
        added = backend.get_added_tokens_decoder()
        self._special_ids = frozenset(token for token, entry in added.items() if entry.special)
        self._added = {token: entry.content for token, entry in added.items()}
        decoder = json.loads(backend.to_str())["decoder"]
        self._spelling = _Spelling(decoder)
        is_byte_level = decoder is not None and decoder["type"] == "ByteLevel"
        self._whole = {skip: WholeTexts(backend, skip) for skip in (False, True)} if is_byte_level else None
        self._longest_piece = _longest_piece(backend)
        self._token_bytes = lru_cache(maxsize=1 << 16)(self._spell)

    @classmethod
    def from_directory(cls, path: str | Path) -> "Tokenizer":
        """Read a Hugging Face model directory.

        Raises:
            MalformedTokenizer
        """
        return cls.from_bundle(TokenizerBundle.from_directory(path))

    @classmethod
    def from_bundle(cls, bundle: TokenizerBundle) -> "Tokenizer":
        """
        Raises:
            MalformedTokenizer
        """
        if files.TOKENIZER not in bundle.files:
            raise MalformedTokenizer(f"This tokenizer bundle has no {files.TOKENIZER}.")
        config = _json_object(bundle, files.TOKENIZER_CONFIG)
        try:
            backend = tokenizers.Tokenizer.from_str(bundle.files[files.TOKENIZER].decode())
            return cls(backend, bundle, config)
        except MalformedTokenizer:
            raise
        except Exception as error:
            raise MalformedTokenizer(
                f"The model's {files.TOKENIZER} cannot be used: {error}. Download it again, or save it with a "
                "current version of Transformers."
            ) from error

    def encode(self, text: str, add_special_tokens: bool = True, *, window: int | None = None) -> list[int]:
        """
        window: how many tokens are of use. A text that must have more is refused unread: reading tens of megabytes
        takes minutes.

        Raises:
            TextTooLong
            BadText: `text` holds half of a surrogate pair.
        """
        if window is not None and (least := self.least_tokens(text)) > window:
            raise TextTooLong(
                f"The prompt has at least {least} tokens, but prompt and answer together may have at most {window}. "
                "Shorten the prompt."
            )
        try:
            if len(text) < _LONG_CHARACTERS:
                return self.backend.encode(text, add_special_tokens=add_special_tokens).ids
            # Unlike `encode` it lets other threads run meanwhile.
            return self.backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except TypeError:
            raise BadText(
                "The text holds half of a surrogate pair, which is no character. Send valid Unicode."
            ) from None

    def least_tokens(self, text: str) -> int:
        """So many tokens `text` has at least, without encoding it; 0 where the vocabulary does not tell."""
        return 0 if self._longest_piece is None else len(text) // self._longest_piece

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`; ids outside the vocabulary are left out."""
        return self.backend.decode(ids, skip_special_tokens=skip_special_tokens)

    @property
    def bos_token_id(self) -> int | None:
        return self._named_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._named_id("eos_token")

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def chat_template(self) -> str | None:
        return self.named_templates.get("default")

    def is_special(self, token: int) -> bool:
        return token in self._special_ids

    def whole_texts(self, skip_special_tokens: bool = True) -> "WholeTexts | None":
        """None: in this vocabulary a token's text depends on what stands beside it."""
        return None if self._whole is None else self._whole[skip_special_tokens]

    def token_bytes(self, token: int) -> bytes:
        """What the token adds to the text, as UTF-8 bytes; it may be a part of a character."""
        return self._token_bytes(token)

    def token_text(self, token: int) -> str:
        """What the token adds to the text; a part of a character shows as U+FFFD."""
        return self._token_bytes(token).decode(errors="replace")

    def _named_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.backend.token_to_id(token)

    def _spell(self, token: int) -> bytes:
        if (content := self._added.get(token)) is not None:
            return content.encode()
        piece = self.backend.id_to_token(token)
        if piece is None:
            return b""
        spelled = self._spelling.to_bytes(piece)
        return self.decode([token], skip_special_tokens=False).encode() if spelled is None else spelled

    def _prepare(self, config: Mapping[str, Any]) -> None:
        self.backend.no_truncation()
        self.backend.no_padding()
        known = {entry.content for entry in self.backend.get_added_tokens_decoder().values()}
        missing = [
            _added_token(entry)
            for _, entry in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
            if _content(entry) not in known
        ]
        known |= {entry.content for entry in missing}
        missing += [
            tokenizers.AddedToken(token, special=True, normalized=False)
            for token in dict.fromkeys(self.special_tokens.values())
            if token not in known
        ]
        if missing:
            self.backend.add_tokens(missing)


class WholeTexts(dict[int, str | None]):
    """The text of a token that is made of whole characters, by id; None where it has parts of some.

    Of byte-level vocabularies, whose text is the bytes of its tokens one after the other: the text of such a token is
    the same everywhere. Filled as tokens are asked for.
    """

    def __init__(self, backend: tokenizers.Tokenizer, skip_special_tokens: bool) -> None:
        super().__init__()
        self._backend = backend
        self._skip_special_tokens = skip_special_tokens

    def __missing__(self, token: int) -> str | None:
        text = self._backend.decode([token], skip_special_tokens=self._skip_special_tokens)
        self[token] = whole = None if "\N{REPLACEMENT CHARACTER}" in text else text
        return whole


def _longest_piece(backend: tokenizers.Tokenizer) -> int | None:
    """Characters that one token can stand for at most; None where unknown characters may be dropped or run together."""
    vocabulary = backend.get_vocab(with_added_tokens=True)
    has_every_byte = vocabulary.keys() >= _byte_level_alphabet().keys() or getattr(
        backend.model, "byte_fallback", False
    )
    return max(map(len, vocabulary)) if has_every_byte else None


class _Spelling:
    """How a vocabulary writes the bytes of its pieces, read from the tokenizer's decoder."""

    def __init__(self, decoder: Mapping[str, Any] | None) -> None:
        steps = _flatten(decoder)
        kinds = {step["type"] for step in steps}
        self._byte_level = _byte_level_alphabet() if "ByteLevel" in kinds else None
        self._byte_fallback = "ByteFallback" in kinds
        self._space = "▁" if self._byte_fallback or "Metaspace" in kinds else None

    def to_bytes(self, piece: str) -> bytes | None:
        """None: this kind of vocabulary has no spelling of its own."""
        if self._byte_level is not None:
            if all(char in self._byte_level for char in piece):
                return bytes(self._byte_level[char] for char in piece)
            return piece.encode()
        if self._byte_fallback and len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            return bytes([int(piece[3:5], 16)])
        if self._space is not None:
            return piece.replace(self._space, " ").encode()
        return None


def _flatten(decoder: Mapping[str, Any] | None) -> Iterable[Mapping[str, Any]]:
    if decoder is None:
        return []
    if decoder["type"] == "Sequence":
        return [step for part in decoder["decoders"] for step in _flatten(part)]
    return [decoder]


@lru_cache(maxsize=1)
def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in of every byte: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    rest = [byte for byte in range(256) if byte not in set(printable)]
    return alphabet | {chr(0x100 + rank): byte for rank, byte in enumerate(rest)}


def _json_object(bundle: TokenizerBundle, name: str) -> dict[str, Any]:
    if name not in bundle.files:
        return {}
    try:
        value = json.loads(bundle.files[name])
    except ValueError as error:
        raise MalformedTokenizer(f"The model's {name} is not JSON: {error}. Download it again.") from error
    if not isinstance(value, dict):
        raise MalformedTokenizer(f"The model's {name} must hold a JSON object. Download it again.")
    return value


def _content(entry: Any) -> str | None:
    """Special tokens are written as strings or as {"content": ...}."""
    content = entry.get("content") if isinstance(entry, dict) else entry
    return content if isinstance(content, str) else None


def _added_token(entry: Mapping[str, Any]) -> tokenizers.AddedToken:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return tokenizers.AddedToken(entry["content"], **{flag: entry[flag] for flag in flags if flag in entry})


def _special_tokens(bundle: TokenizerBundle, config: Mapping[str, Any]) -> dict[str, str]:
    sources = (config, _json_object(bundle, files.SPECIAL_TOKENS))
    named = {name: _content(source[name]) for source in reversed(sources) for name in _NAMED if name in source}
    return {name: content for name, content in named.items() if content is not None}


def _templates(bundle: TokenizerBundle, config: Mapping[str, Any]) -> dict[str, str]:
    configured = config.get("chat_template")
    if isinstance(configured, str):
        configured = [{"name": "default", "template": configured}]
    templates = {entry["name"]: entry["template"] for entry in configured or []}
    for name, content in bundle.files.items():
        if name == files.CHAT_TEMPLATE:
            templates["default"] = content.decode()
        elif name.startswith(files.NAMED_TEMPLATES):
            templates[Path(name).stem] = content.decode()
    return templates
