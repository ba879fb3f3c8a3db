"""Text from tokens that arrive one by one."""

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from quire_text.tokenizer import Tokenizer

_PRIMING_TOKENS = 6
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Releases text as soon as its characters are complete; the pieces together are the text of all tokens.

    prompt_ids: with them the text continues the prompt's, so that a first word keeps its leading space.
    """

    __slots__ = ("_backend", "_context", "_held", "_skip_special_tokens", "_stream", "_tokenizer", "_whole")

    def __init__(
        self, tokenizer: Tokenizer, skip_special_tokens: bool = True, prompt_ids: Sequence[int] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._backend = tokenizer.backend
        self._skip_special_tokens = skip_special_tokens
        self._whole = tokenizer.whole_texts(skip_special_tokens)
        primes = list(prompt_ids[-_PRIMING_TOKENS:]) if prompt_ids and self._whole is None else []
        self._context = self._usable(primes)
        self._held: list[int] = []
        self._stream = DecodeStream(ids=self._context or None, skip_special_tokens=skip_special_tokens)

    def push(self, ids: Sequence[int]) -> str:
        """Text that `ids` complete; "" while a character is incomplete."""
        text = ""
        for token in ids:
            if self._whole is not None and not self._held:
                if (piece := self._whole[token]) is not None:
                    text += piece
                    continue
                self._begin()
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
        return text

    def finish(self) -> str:
        """What is still held: bytes that never became a character, as U+FFFD."""
        if not self._held:
            return ""
        before = self._decode(self._context)
        text = self._decode(self._context + self._held)
        self._context, self._held = self._held, []
        return text[len(before) :]

    def _restart(self) -> str:
        text = self._decode(self._held)
        self._begin()
        return text

    def _begin(self) -> None:
        """Text from here on does not depend on what came before."""
        self._stream = DecodeStream(skip_special_tokens=self._skip_special_tokens)
        self._context, self._held = [], []

    def _usable(self, ids: list[int]) -> list[int]:
        text = self._decode(ids)
        return ids if text and not text.endswith(_INCOMPLETE) else []

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, self._skip_special_tokens)
