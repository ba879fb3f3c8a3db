"""The answer to one request, written to the client's connection as it comes."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Protocol

from quire_gateway.request import Headers

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_BODILESS = frozenset({204, 304})


class Source(Protocol):
    """Where an answer's bytes come from; told to wait while the client reads more slowly than they come."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Reply:
    """Written once and in order: `start`, any number of `write`, `end`; or `send` for all three.

    Without a content-length the body is chunked (HTTP/1.1) or ends with the connection (HTTP/1.0). Writing after the
    client has gone does nothing.
    """

    __slots__ = (
        "_head",
        "_is_chunked",
        "_is_old",
        "_is_paused",
        "_is_silent",
        "_on_end",
        "_source",
        "_transport",
        "bytes_sent",
        "is_ended",
        "is_started",
        "keeps_alive",
        "status",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        is_old: bool,
        is_head: bool,
        keeps_alive: bool,
        is_paused: bool,
        on_end: Callable[[], None],
    ) -> None:
        self._transport = transport
        self._is_old = is_old
        self._is_silent = is_head
        self._is_chunked = False
        self._is_paused = is_paused
        self._on_end = on_end
        self._head = b""
        self._source: Source | None = None
        self.keeps_alive = keeps_alive
        self.is_started = False
        self.is_ended = False
        self.bytes_sent = 0
        self.status = 0

    def start(self, status: int, headers: Headers) -> None:
        """Status line and headers, sent with the first bytes of the body; a content-length among them frames it."""
        self.is_started = True
        self.status = status
        has_length = any(name == b"content-length" for name, _ in headers)
        lines = [b"HTTP/1.1 %d %b\r\n" % (status, _REASONS.get(status, b"Unknown"))]
        lines += [b"%b: %b\r\n" % header for header in headers]
        if status in _BODILESS:
            self._is_silent = True
        elif not has_length:
            self._is_chunked = not self._is_old
            self.keeps_alive = self.keeps_alive and self._is_chunked
            if self._is_chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
        if not self.keeps_alive:
            lines.append(b"connection: close\r\n")
        elif self._is_old:
            lines.append(b"connection: keep-alive\r\n")
        lines.append(b"\r\n")
        self._head = b"".join(lines)

    def write(self, data: bytes) -> None:
        """Write the next bytes of the body."""
        if not data or self._is_silent:
            return
        self.bytes_sent += len(data)
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self._head:
            data, self._head = self._head + data, b""
        self._send(data)

    def end(self) -> None:
        """Finish the answer; the connection goes on to its next request or closes."""
        if self.is_ended:
            return
        self.is_ended = True
        self._source = None
        last = b"0\r\n\r\n" if self._is_chunked and not self._is_silent else b""
        if self._head or last:
            self._send(self._head + last)
        self._head = b""
        self._on_end()

    def send(self, status: int, headers: Headers, body: bytes) -> None:
        """A whole answer at once."""
        self.start(status, [*headers, (b"content-length", str(len(body)).encode())])
        self.write(body)
        self.end()

    def _send(self, data: bytes) -> None:
        # uvloop's transport raises once it is closed, and its owner is told only on the loop's next turn.
        if not self._transport.is_closing():
            self._transport.write(data)

    def abort(self) -> None:
        """Cut the connection, so that the client sees that the answer is not whole."""
        self.is_ended = True
        self._source = None
        self._transport.abort()

    def follow(self, source: Source) -> None:
        """Let the client's reading speed pace `source` until the answer ends."""
        self._source = source
        if self._is_paused:
            source.pause()

    def pause(self) -> None:
        """Called by the connection: the client reads too slowly."""
        self._is_paused = True
        if self._source is not None:
            self._source.pause()

    def resume(self) -> None:
        """Called by the connection: the client has caught up."""
        self._is_paused = False
        if self._source is not None:
            self._source.resume()
