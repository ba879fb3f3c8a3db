"""Text from tokens that arrive one by one."""

import codecs
from collections.abc import Callable, Sequence

from tokenizers.decoders import DecodeStream

from quire_text.tokenizer import Tokenizer, WholeTexts

_PRIMING_TOKENS = 6
_MOST_HELD = 64
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Releases text as soon as its characters are complete; the pieces together are the text of all tokens.

    A model may repeat a part of a character for ever: its text goes on, and a token costs the same however many came.

    prompt_ids: with them the text continues the prompt's, so that a first word keeps its leading space.
    push(ids): text that `ids` complete; "" while a character is incomplete.
    finish(): what is still held: bytes that never became a character, as U+FFFD.
    """

    __slots__ = ("finish", "push")

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool = True, prompt_ids: Sequence[int] | None = None
    ) -> None:
        whole = tokenizer.whole_texts(skip_special_tokens)
        text: _Bytes | _Pieces = (
            _Pieces(tokenizer, skip_special_tokens, prompt_ids or ()) if whole is None else _Bytes(tokenizer, whole)
        )
        self.push: Callable[[Sequence[int]], str] = text.push
        self.finish: Callable[[], str] = text.finish


class _Bytes:
    """Of vocabularies whose text is the bytes of their tokens, one after the other."""

    __slots__ = ("_decoder", "_is_inside", "_tokenizer", "_whole")

    def __init__(self, tokenizer: Tokenizer, whole: WholeTexts) -> None:
        self._tokenizer = tokenizer
        self._whole = whole
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._is_inside = False

    def push(self, ids: Sequence[int]) -> str:
        text = ""
        for token in ids:
            piece = self._whole[token]
            if piece is None:
                text += self._decoder.decode(self._tokenizer.token_bytes(token))
                self._is_inside = bool(self._decoder.getstate()[0])
            elif self._is_inside and piece:
                text += self.finish() + piece
            else:
                text += piece
        return text

    def finish(self) -> str:
        self._is_inside = False
        return self._decoder.decode(b"", True)


class _Pieces:
    """Of all others: a token's text depends on those beside it."""

    __slots__ = ("_backend", "_context", "_held", "_skip_special_tokens", "_stream", "_tokenizer")

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool, prompt_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend
        self._skip_special_tokens = skip_special_tokens
        self._context = self._usable(list(prompt_ids[-_PRIMING_TOKENS:]))
        self._held: list[int] = []
        self._stream = DecodeStream(ids=self._context or None, skip_special_tokens=skip_special_tokens)

    def push(self, ids: Sequence[int]) -> str:
        text = ""
        for token in ids:
            self._held.append(token)
            try:
                piece = self._stream.step(self._backend, token)
            except Exception:
                # A vocabulary with byte fallback re-reads a run of bytes that a later byte made invalid.
                text += self._restart()
                continue
            if piece is not None:
                text += piece
                self._context, self._held = self._held, []
            elif len(self._held) == _MOST_HELD:
                text += self._restart()
        return text

    def finish(self) -> str:
        if not self._held:
            return ""
        before = self._decode(self._context)
        text = self._decode(self._context + self._held)
        self._context, self._held = self._held, []
        return text[len(before) :]

    def _restart(self) -> str:
        """Text from here on does not depend on what came before."""
        text = self._decode(self._held)
        self._stream = DecodeStream(skip_special_tokens=self._skip_special_tokens)
        self._context, self._held = [], []
        return text

    def _usable(self, ids: list[int]) -> list[int]:
        text = self._decode(ids)
        return ids if text and not text.endswith(_INCOMPLETE) else []

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, self._skip_special_tokens)
