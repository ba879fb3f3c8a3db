"""What an engine process has said of one request, on its way to the request's one reader."""

import asyncio
from collections.abc import Callable
from typing import Self

import msgspec

from quire_runtime.engine.messages import RequestTimes, TokenLogprobs
from quire_runtime.scheduler.request import FinishReason


class ChoiceDelta(msgspec.Struct, gc=False):
    """What one engine step added to one choice.

    finish: NONE while the choice runs. error: why it ended with ERROR. cached_tokens: on its first delta only.
    logprobs: parallel to token_ids, where asked. prompt_logprobs: one entry a prompt token (None at position 0), with
    the first delta of the request, where asked. times: with the request's first token.
    """

    choice: int
    token_ids: list[int]
    finish: FinishReason = FinishReason.NONE
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    cached_tokens: int | None = None
    error: str | None = None
    times: RequestTimes | None = None


class Stream:
    """The deltas of one request, until every choice has ended or something failed.

    Its reader either waits for them, as an asynchronous iterator, or is called when there are some (`call_on_news`) and
    takes them: no task has to be woken for a token then. A reader slower than the engine gets the deltas of several
    steps at once.

    running: choices that the engine has not ended. prompt_logprobs: those that the next delta will bring. tell: to be
    called when there is something, tells the reader.
    """

    __slots__ = ("_deltas", "_failure", "_is_closed", "_on_close", "_waiter", "prompt_logprobs", "running", "tell")

    def __init__(self, running: int, on_close: Callable[[Self], None]) -> None:
        """on_close: called once, by `close`."""
        self.running = running
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self._deltas: list[ChoiceDelta] = []
        self._failure: Exception | None = None
        self._is_closed = False
        self._on_close = on_close
        self.tell: Callable[[], None] = self._wake
        self._waiter: asyncio.Future[None] | None = None

    @property
    def has_failed(self) -> bool:
        return self._failure is not None

    def call_on_news(self, call: Callable[[], None]) -> None:
        """Have `call` called whenever there is something to take, for the first time soon if there is already.

        Not after `close`: there is nobody to be told, and a call that knows this stream would keep all in a circle.
        """
        if self._is_closed:
            return
        self.tell = call
        if self._deltas or self._failure is not None:
            asyncio.get_running_loop().call_soon(lambda: self.tell())

    def add(self, delta: ChoiceDelta) -> bool:
        """Keep it for the reader, who is not told yet; True if nothing was there before it."""
        if delta.finish:
            self.running -= 1
        self._deltas.append(delta)
        return len(self._deltas) == 1

    def fail(self, failure: Exception) -> None:
        """Raise this out of `take` when what came before has been taken."""
        self._failure = self._failure or failure
        self.tell()

    def take(self) -> list[ChoiceDelta]:
        """All that has come since the last call; nothing if nothing has.

        Raises:
            RequestRefused: instead of the first delta.
            EngineDied: the engine process ended.
        """
        deltas = self._deltas
        if deltas:
            self._deltas = []
        elif self._failure is not None:
            raise self._failure
        return deltas

    def take_token(self) -> ChoiceDelta | None:
        """What has come, if that is one step of the first choice, which goes on; else None, and nothing is taken."""
        deltas = self._deltas
        if len(deltas) != 1 or deltas[0].finish or deltas[0].choice or self._failure is not None:
            return None
        return deltas.pop()

    def close(self) -> None:
        """Nothing more is wanted: what still runs is aborted."""
        if not self._is_closed:
            self._is_closed = True
            self.tell = _nobody
            self._on_close(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[ChoiceDelta]:
        while not (deltas := self.take()):
            if not self.running:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return deltas

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _nobody() -> None:
    """Is told nothing."""
