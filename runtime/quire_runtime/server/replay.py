"""The engine's part in continuing a stream that broke elsewhere; quire_api.replay is the contract."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.requests import Request

from quire_api import replay
from quire_api.openai import InvalidRequest
from quire_runtime.server.auth import caller_of
from quire_runtime.server.choices import Choice

SEED_STEP = 0x9E3779B97F4A7C15
"""Prompts of one request differ in their seeds by multiples of it; 2^64 over the golden ratio."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What the gateway asked for. is_on: events have comment lines before them."""

    terms: replay.Terms | None = None
    so_far: replay.Resume = field(default_factory=replay.Resume)

    @property
    def is_on(self) -> bool:
        return self.terms is not None

    @property
    def is_resumed(self) -> bool:
        return self.terms is not None and self.terms.resumes

    def headers(self) -> dict[str, str]:
        """What tells the gateway that it is honoured."""
        return {replay.HEADER_REPLAY: str(replay.REPLAY_VERSION)} if self.is_on else {}

    def seed_of(self, prompt: int) -> int | None:
        """The seed of a prompt whose request brings none; None: the engine's own choice."""
        return None if self.terms is None else (self.terms.seed + prompt * SEED_STEP) % 2**63

    def before(self, index: int) -> replay.ChoiceSoFar:
        """What the client has of a choice."""
        choices = self.so_far.choices
        return choices[index] if index < len(choices) else replay.ChoiceSoFar()


def read_replay(request: Request, body: Any) -> Replay:
    """What the gateway asks for, of whom the field in `body` is taken out; nothing for other callers.

    Raises:
        InvalidRequest: it cannot be read, or is of another version.
    """
    given = request.headers.get(replay.HEADER_REPLAY)
    if given is None or not caller_of(request.scope).is_internal:
        return Replay()
    if not isinstance(body, dict) or body.get("stream") is not True:
        return Replay()
    try:
        terms = msgspec.json.decode(given.encode(), type=replay.Terms)
        if terms.version != replay.REPLAY_VERSION:
            raise ValueError(f"version {terms.version} is not {replay.REPLAY_VERSION}, which is spoken here")
        if not terms.resumes:
            return Replay(terms)
        return Replay(terms, msgspec.convert(body.pop(replay.RESUME_FIELD, None), replay.Resume))
    except ValueError as error:
        message = f"The header {replay.HEADER_REPLAY} or the field {replay.RESUME_FIELD} cannot be used: {error}."
        raise InvalidRequest(message) from None


class Comments:
    """The comment lines of one stream, in order; is_on: somebody asks for them."""

    def __init__(self, asked: Replay, choices: Sequence[Choice]) -> None:
        self.is_on = asked.is_on
        self._sequence = asked.so_far.sequence
        self._unseen = {choice.index for choice in choices if not asked.before(choice.index).has_begun}

    def of(self, choice: Choice, token_ids: Sequence[int], cached_tokens: int) -> bytes:
        """Before an event of `choice` that brings `token_ids`, where they are asked for."""
        self._sequence += 1
        ends = choice.finish_reason is not None
        if choice.index in self._unseen:
            self._unseen.remove(choice.index)
            return replay.token_comment(self._sequence, choice.index, token_ids, ends=ends, cached_tokens=cached_tokens)
        return replay.token_comment(self._sequence, choice.index, token_ids, ends=ends)

    def usage(self) -> bytes:
        if not self.is_on:
            return b""
        self._sequence += 1
        return replay.usage_comment(self._sequence)

    def failure(self, code: str) -> bytes:
        return replay.failure_comment(code) if self.is_on else b""
