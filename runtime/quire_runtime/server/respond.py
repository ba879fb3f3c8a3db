"""How a generation becomes a response: streamed as it grows, or whole at its end."""

from collections.abc import Mapping
from typing import Protocol

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from quire_runtime.server.body import unless_gone
from quire_runtime.server.events import AnswerEvents
from quire_runtime.server.generation import Generation
from quire_runtime.server.stream import EventStream


class Answer(Protocol):
    """How the answer to one request is written."""

    def whole(self, generation: Generation) -> msgspec.Struct: ...

    def events(self, generation: Generation) -> AnswerEvents: ...


async def respond(
    request: Request, generation: Generation, answer: Answer, headers: Mapping[str, str], *, stream: bool
) -> Response:
    """The response of a generation that has begun.

    A stream's headers wait for its first token, so that a refusal keeps its status; a client that hangs up ends the
    generation.
    """
    if stream:
        try:
            await unless_gone(request.receive, generation.start())
        except BaseException:
            generation.close()
            raise
        return EventStream(generation, answer.events(generation), {**headers, **generation.replay.headers()})
    with generation:
        await unless_gone(request.receive, generation.finish())
        return Response(msgspec.json.encode(answer.whole(generation)), 200, headers, "application/json")
