"""Server-sent events: an answer as it grows, one event a token, fewer when the client is slower than the engine."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import orjson
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from quire_api.openai_responses import ChatLogprobs, CompletionLogprobs, Usage
from quire_runtime.engine.errors import EngineDied
from quire_runtime.server.body import hang_up
from quire_runtime.server.errors import RequestFailed
from quire_runtime.server.generation import Generation
from quire_runtime.server.protocol import Body, body_of

if TYPE_CHECKING:
    from quire_runtime.server.events import AnswerEvents

DONE = b"data: [DONE]\n\n"


class EventWriter:
    """Renders the events of one stream; what stays the same is rendered once.

    text_open, text_close: the JSON around a text, for example `"delta":{"content":` and `}`.
    first_open: its variant in the first event of a choice.
    has_usage: every event says `usage`, null unless given.
    begun: choices whose first event the client has.
    """

    def __init__(
        self,
        facts: Mapping[str, Any],
        num_choices: int,
        *,
        first_open: bytes,
        text_open: bytes,
        text_close: bytes,
        has_usage: bool,
        begun: Collection[int] = (),
    ) -> None:
        self._facts = b"data: " + orjson.dumps(facts)[:-1]
        heads = [b'%s,"choices":[{"index":%d,' % (self._facts, index) for index in range(num_choices)]
        self._later = [head + text_open for head in heads]
        self._heads = [head + first_open for head in heads]
        for index in begun:
            self._heads[index] = self._later[index]
        self._close = text_close
        self._no_usage = b',"usage":null' if has_usage else b""
        self._plain = text_close + b',"logprobs":null,"finish_reason":null}]' + self._no_usage + b"}\n\n"

    def plain(self, index: int, text: str) -> bytes:
        """The event of nearly every token: text and nothing else."""
        head = self._heads[index]
        self._heads[index] = self._later[index]
        return head + orjson.dumps(text) + self._plain

    def around(self, index: int) -> tuple[bytes, bytes]:
        """What `plain` puts before and after the JSON of a text that is not the first of its choice."""
        return self._later[index], self._plain

    def full(
        self,
        index: int,
        text: str,
        *,
        logprobs: ChatLogprobs | CompletionLogprobs | None = None,
        finish_reason: str | None = None,
        stop_reason: str | int | None = None,
        token_ids: Sequence[int] | None = None,
        usage: Usage | None = None,
    ) -> bytes:
        head = self._heads[index]
        self._heads[index] = self._later[index]
        parts = [head, orjson.dumps(text), self._close, b',"logprobs":', msgspec.json.encode(logprobs)]
        parts += [b',"finish_reason":', orjson.dumps(finish_reason)]
        if finish_reason is not None:
            parts += [b',"stop_reason":', orjson.dumps(stop_reason)]
        if token_ids is not None:
            parts += [b',"token_ids":', orjson.dumps(token_ids)]
        parts += [b"}]", self._no_usage if usage is None else b',"usage":' + msgspec.json.encode(usage), b"}\n\n"]
        return b"".join(parts)

    def usage(self, usage: Usage) -> bytes:
        """The last event of a stream that asked for usage."""
        return self._facts + b',"choices":[],"usage":' + msgspec.json.encode(usage) + b"}\n\n"


def error_event(body: Mapping[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(body) + b"\n\n"


class EventStream(Response):
    """Sends the events of a generation, which it closes: also when the client hangs up, and then at once.

    Where the server offers a `Body`, events are written to it where their tokens came in, while the client keeps up: no
    task is woken and no middleware called for a token, and most are a TokenWriter's. The first and the last ones go the
    way of all answers, and so does what comes while the client does not keep up.
    """

    def __init__(self, generation: Generation, events: "AnswerEvents", headers: Mapping[str, str]) -> None:
        super().__init__(headers={"cache-control": "no-cache", **headers}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._generation = generation
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send_all(send, body_of(scope)))
        watch = asyncio.ensure_future(hang_up(receive))
        try:
            await asyncio.wait((sending, watch), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            watch.cancel()
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            self._generation.close()

    async def _send_all(self, send: Send, body: Body | None) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await self._send_steps(send, body)
            end = self._events.end()
        except (RequestFailed, EngineDied) as error:
            end = self._events.failure(error)
        await send({"type": "http.response.body", "body": end, "more_body": False})

    async def _send_steps(self, send: Send, body: Body | None) -> None:
        """
        Raises:
            RequestFailed, EngineDied
        """
        generation = self._generation
        changed = generation.first
        write: Callable[[], bool] | None = None
        while True:
            if events := self._events.of(changed):
                await send({"type": "http.response.body", "body": events, "more_body": True})
                if body is not None and write is None:
                    write = partial(self._write, body)
                    self._events.write_tokens(body)
            if generation.is_over:
                return
            if not generation.has_news:
                await generation.news(write)
            changed = generation.advance()

    def _write(self, body: Body) -> bool:
        """Write what has come; False if some of it is left to the task, and with it the end."""
        generation = self._generation
        while body.is_ready and not generation.is_over:
            if events := self._events.of(generation.advance()):
                body.write(events)
            if not generation.has_news:
                return not generation.is_over
        return False
