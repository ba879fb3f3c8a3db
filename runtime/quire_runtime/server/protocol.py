"""HTTP/1.1 as uvicorn speaks it, with refusals that OpenAI clients can read, and an end to waiting for requests."""

import asyncio

import orjson
from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from quire_api.openai_responses import error_object

MAX_HEAD_BYTES = 64 * 1024
HEAD_TIMEOUT_S = 30.0
BODY_TIMEOUT_S = 300.0
LINGER_S = 2.0
_BODY = "quire.body"


class Body:
    """The body of a chunked answer whose first chunk has been sent, to go on with where nothing can be awaited.

    One for all answers of a connection. is_ready: the client is there and reads.
    """

    __slots__ = ("_write", "is_ready")

    def __init__(self, transport: asyncio.Transport) -> None:
        self.is_ready = True
        self._write = transport.write

    def write(self, chunk: bytes) -> None:
        """Not empty, and only while `is_ready`."""
        self._write(b"%x\r\n%b\r\n" % (len(chunk), chunk))


def body_of(scope: Scope) -> Body | None:
    """That of the answer to this request, for its one writer; None under another HTTP server than `Http`."""
    return scope.pop(_BODY, None)


class HeadTooLarge(Exception):
    """Raised out of the parser, which then refuses the request."""


class Http(HttpToolsProtocol):
    """What is no HTTP, has a head beyond MAX_HEAD_BYTES or comes too slowly, is answered by an OpenAI error object.

    A timer runs from the connection's or a request's first byte until the request is complete; between requests
    uvicorn's own timeout counts.
    """

    _is_refused = False
    _timer: asyncio.TimerHandle | None = None
    _is_in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._body = Body(transport)
        self._wait(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._body.is_ready = False
        self._wait(None)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._body.is_ready = False

    def resume_writing(self) -> None:
        super().resume_writing()
        self._body.is_ready = True

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        if self._timer is None:
            self._wait(HEAD_TIMEOUT_S)
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0
        if self._timer is None:
            self._wait(HEAD_TIMEOUT_S)

    def on_headers_complete(self) -> None:
        self._is_in_body = True
        self._wait(BODY_TIMEOUT_S)
        super().on_headers_complete()
        self.scope[_BODY] = self._body  # type: ignore[typeddict-unknown-key]

    def on_message_complete(self) -> None:
        self._is_in_body = False
        self._wait(None)
        super().on_message_complete()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def send_400_response(self, msg: str) -> None:
        if self.headers is not None and self._head_bytes > MAX_HEAD_BYTES:
            message = f"The request's headers exceed {MAX_HEAD_BYTES} bytes. Send fewer or shorter."
            self._refuse(431, "headers_too_large", message)
        else:
            self._refuse(400, "malformed_http", "The request is not valid HTTP/1.1. Check the client or its proxy.")

    def _wait(self, seconds: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._timed_out)

    def _timed_out(self) -> None:
        self._timer = None
        if self._is_refused or self.transport.is_closing():
            return
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            is_awaited = self._is_in_body and not cycle.response_started and not self.pipeline
            if not is_awaited:  # an answer is under way, and an error in its middle would spoil it
                self._wait(HEAD_TIMEOUT_S)
                return
        self._refuse(408, "request_timeout", "The request did not arrive in time. Send it again.")

    def _refuse(self, status: int, code: str, message: str) -> None:
        self._wait(None)
        body = orjson.dumps(error_object(message, "invalid_request_error", None, code))
        head = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + head + body)
        if not self.transport.can_write_eof():
            self.transport.close()
            return
        # Closing with unread input would reset the connection before the client has read why.
        self._is_refused = True
        self.transport.write_eof()
        self.loop.call_later(LINGER_S, self.transport.abort)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            raise HeadTooLarge
