"""Every request's id and time of arrival."""

import re
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from quire_api.wire import HEADER_REQUEST_ID

_REQUEST_ID = "quire.request_id"
_ARRIVED = "quire.arrived"
_USABLE_ID = re.compile(rb"[!-~]{1,128}")


class RequestIds:
    """ASGI middleware: every request has an id, the client's own where it sent one, and every answer says it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(HEADER_REQUEST_ID.encode(), b"")
        request_id = given if _USABLE_ID.fullmatch(given) else uuid.uuid4().hex.encode()
        scope[_REQUEST_ID] = request_id.decode()
        scope[_ARRIVED] = time.monotonic()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (HEADER_REQUEST_ID.encode(), request_id)]
            await send(message)

        await self._app(scope, receive, send_with_id)


def request_id_of(scope: Scope) -> str:
    request_id: str = scope[_REQUEST_ID]
    return request_id


def arrived_at(scope: Scope) -> float:
    """Monotonic seconds."""
    arrived: float = scope[_ARRIVED]
    return arrived
