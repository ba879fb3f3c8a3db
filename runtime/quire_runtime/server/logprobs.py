"""Logprobs in the shapes of the OpenAI API."""

from collections.abc import Iterable, Sequence

from quire_api.openai_responses import (
    ChatLogprobs,
    ChatTokenLogprob,
    ChatTopLogprob,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
)
from quire_runtime.engine.messages import TokenLogprobs
from quire_text.tokenizer import Tokenizer

LOWEST = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


class TokenNames:
    """How tokens are written in logprobs.

    as_ids: `token_id:N`, which names every token, also those that are a part of a character.
    """

    def __init__(self, tokenizer: Tokenizer, as_ids: bool = False) -> None:
        self._tokenizer = tokenizer
        self._as_ids = as_ids

    def text(self, token: int) -> str:
        return f"token_id:{token}" if self._as_ids else self._tokenizer.token_text(token)

    def key(self, token: int) -> str:
        """Like `text`, but a part of a character is written as its bytes, so that keys of a mapping differ."""
        if self._as_ids:
            return f"token_id:{token}"
        data = self._tokenizer.token_bytes(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def lengths(self, tokens: Iterable[int]) -> int:
        """Characters of the tokens' own texts, which is how `text_offset` counts."""
        return sum(len(self._tokenizer.token_text(token)) for token in tokens)

    def bytes(self, token: int) -> list[int]:
        return list(self._tokenizer.token_bytes(token))


def chat_logprobs(positions: Iterable[TokenLogprobs], names: TokenNames) -> ChatLogprobs:
    return ChatLogprobs([_chat_position(position, names) for position in positions])


def completion_logprobs(
    positions: Sequence[TokenLogprobs | None], names: TokenNames, offset: int, first_token: int | None = None
) -> CompletionLogprobs:
    """offset: characters of the tokens before these. first_token: the token of a position without logprobs, which only
    a prompt's first can be.

    `text_offset` adds up the texts of single tokens, in which each part of a character is one: so it does not depend
    on how the tokens lay in events.
    """
    offsets: list[int] = []
    tokens: list[str] = []
    chosen: list[float | None] = []
    tops: list[dict[str, float] | None] = []
    for position in positions:
        token = first_token if position is None else position.token_ids[0]
        offsets.append(offset)
        tokens.append("" if token is None else names.key(token))
        offset += 0 if token is None else names.lengths([token])
        chosen.append(None if position is None else finite(position.logprobs[0]))
        tops.append(None if position is None else _by_name(position, names))
    return CompletionLogprobs(offsets, chosen, tokens, tops)


def prompt_logprobs(positions: Sequence[TokenLogprobs | None], names: TokenNames) -> PromptLogprobs:
    """The token of the prompt first, then the likeliest ones, by token id."""
    return [None if position is None else _by_id(position, names) for position in positions]


def finite(value: float) -> float:
    return max(value, LOWEST)


def _chat_position(position: TokenLogprobs, names: TokenNames) -> ChatTokenLogprob:
    entries = [
        ChatTopLogprob(names.text(token), finite(logprob), names.bytes(token))
        for token, logprob in zip(position.token_ids, position.logprobs, strict=True)
    ]
    chosen = entries[0]
    return ChatTokenLogprob(chosen.token, chosen.logprob, chosen.bytes, entries[1:])


def _by_name(position: TokenLogprobs, names: TokenNames) -> dict[str, float]:
    return {
        names.key(token): finite(logprob) for token, logprob in zip(position.token_ids, position.logprobs, strict=True)
    }


def _by_id(position: TokenLogprobs, names: TokenNames) -> dict[str, PromptLogprob]:
    ranks = [position.rank, *range(1, len(position.token_ids))]
    entries: dict[str, PromptLogprob] = {}
    for token, logprob, rank in zip(position.token_ids, position.logprobs, ranks, strict=True):
        entries.setdefault(str(token), PromptLogprob(finite(logprob), rank, names.text(token)))
    return entries
