"""From the prompts of requests to token ids."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from quire_api.openai import InvalidRequest
from quire_text.chat import encode_chat
from quire_text.tokenizer import Tokenizer

INLINE_CHARACTERS = 4096
"""Below it, encoding takes less than handing it to a thread."""


async def chat_prompt(
    tokenizer: Tokenizer, body: Mapping[str, Any], defaults: Mapping[str, Any], window: int | None
) -> list[int]:
    """Token ids of a chat request's messages; `window` as for Tokenizer.encode.

    Raises:
        ChatTemplateError, BadText, TextTooLong
    """
    size = sum(_size(message.get("content")) for message in body["messages"])
    if size < INLINE_CHARACTERS:
        return encode_chat(tokenizer, body, defaults, window=window)
    return await asyncio.to_thread(encode_chat, tokenizer, body, defaults, window=window)


async def text_prompt(tokenizer: Tokenizer, text: str, add_special_tokens: bool, window: int | None) -> list[int]:
    """
    Raises:
        BadText, TextTooLong
    """
    if len(text) < INLINE_CHARACTERS:
        return tokenizer.encode(text, add_special_tokens, window=window)
    return await asyncio.to_thread(tokenizer.encode, text, add_special_tokens, window=window)


def checked(ids: list[int], tokenizer: Tokenizer, truncate: int | None, max_model_len: int) -> list[int]:
    """The prompt as the engine gets it.

    truncate: keep only so many tokens at its end; -1: as many as leave room for one more in the window.

    Raises:
        InvalidRequest: no token, or one that the vocabulary does not have.
    """
    if not ids:
        raise InvalidRequest("The prompt has no tokens. Send some text.", "prompt")
    require_known(ids, tokenizer, "prompt")
    if truncate is not None:
        ids = ids[-(max_model_len - 1 if truncate == -1 else truncate) :]
    return ids


def require_known(ids: Sequence[int], tokenizer: Tokenizer, param: str) -> None:
    """
    Raises:
        InvalidRequest: an id lies outside the vocabulary.
    """
    if ids and (min(ids) < 0 or max(ids) >= tokenizer.vocab_size):
        raise InvalidRequest(
            f"{param} names a token outside the vocabulary; ids go from 0 to {tokenizer.vocab_size - 1}.", param
        )


def _size(content: Any) -> int:
    if isinstance(content, str):
        return len(content)
    return sum(len(part) if isinstance(part, str) else len(part["text"]) for part in content or ())
