"""HTTP/1.1 as uvicorn speaks it, with refusals that OpenAI clients can read."""

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from quire_api.openai_responses import error_object

MAX_HEAD_BYTES = 64 * 1024
LINGER_S = 2.0


class HeadTooLarge(Exception):
    """Raised out of the parser, which then refuses the request."""


class Http(HttpToolsProtocol):
    """What is no HTTP, or has a head beyond MAX_HEAD_BYTES, is answered by an OpenAI error object."""

    _is_refused = False

    def data_received(self, data: bytes) -> None:
        if not self._is_refused:
            super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def send_400_response(self, msg: str) -> None:
        status, code = 400, "malformed_http"
        message = "The request is not valid HTTP/1.1. Check the client or its proxy."
        if self.headers is not None and self._head_bytes > MAX_HEAD_BYTES:
            status, code = 431, "headers_too_large"
            message = f"The request's headers exceed {MAX_HEAD_BYTES} bytes. Send fewer or shorter."
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
