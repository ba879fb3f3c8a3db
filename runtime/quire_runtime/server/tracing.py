"""A span for each request of the API, in the caller's trace."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire_api.tracing import Tracing
from quire_runtime.server.ids import request_id_of

_PREFIX = "/v1/"


class Traces:
    """ASGI middleware, inside of `RequestIds`: a span with the moment of the answer's first byte, and its end."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith(_PREFIX):
            await self._app(scope, receive, send)
            return
        span = self._tracing.begin(f"engine POST {scope['path']}", scope["headers"])
        status, has_begun = 0, False

        async def watched(message: Message) -> None:
            nonlocal status, has_begun
            if message["type"] == "http.response.start":
                status = message["status"]
            elif not has_begun and message.get("body"):
                has_begun = True
                span.event("first byte")
            await send(message)

        error = "cancelled"
        try:
            await self._app(scope, receive, watched)
            error = f"status {status}" if status >= 500 else ""
        finally:
            span.end(error, http__response__status_code=status, quire__request_id=request_id_of(scope))
