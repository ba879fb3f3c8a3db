"""The replica's side: pooled HTTP/1.1 connections whose answers flow into a sink as bytes.

Per token there is no task switch: the transport calls the connection, the connection calls the sink, the sink writes to
the client.
"""

import asyncio
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from quire_api.errors import UserError
from quire_gateway.patience import within
from quire_gateway.request import Headers


class UpstreamFailure(Exception):
    """A replica could not be asked, or did not finish its answer.

    `cause` is one of `refused` (no connection), `reset` (the connection broke), `timeout`, `malformed`.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class BadReplicaUrl(UserError):
    """A replica's address cannot be used."""


class Sink(Protocol):
    """What an answer flows into: `on_head`, any number of `on_body`, then `on_end` or `on_failure`."""

    def on_head(self, status: int, headers: Headers) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_failure(self, failure: UpstreamFailure) -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """One connection to one replica; busy while it has a sink.

    pool: where it waits for the next request after a whole answer; without one it closes then.
    """

    def __init__(self, pool: "UpstreamPool | None") -> None:
        self._pool = pool
        self._sink: Sink | None = None
        self._pieces: list[bytes] = []
        self.is_paused = False
        self.is_reused = False
        self.has_spoken = False
        """A byte has come since it was asked last."""

    def ask(self, data: bytes, sink: Sink) -> None:
        """Send a whole request; its answer goes to `sink`."""
        self._sink = sink
        self.has_spoken = False
        self._parser = httptools.HttpResponseParser(self)
        self._headers: Headers = []
        self._is_head_complete = False
        self._is_framed = False
        self._is_complete = False
        self._keeps_alive = False
        self._transport.write(data)

    def close(self) -> None:
        """Drop the connection and whatever answer is on it; its sink hears nothing more."""
        self._sink = None
        self._transport.abort()

    def serves(self, sink: Sink) -> bool:
        """Whether it works for `sink`: after a whole answer it may already serve another."""
        return self._sink is sink

    def leave(self, sink: Sink) -> None:
        """Close the connection if it still works for `sink`."""
        if self.serves(sink):
            self.close()

    def pause(self) -> None:
        """Read no more from the replica until `resume`: the client is slower."""
        if not self.is_paused and self._sink is not None and not self._transport.is_closing():
            self.is_paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Go on reading."""
        if self.is_paused and not self._transport.is_closing():
            self.is_paused = False
            self._transport.resume_reading()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._sink is None:
            self._transport.abort()  # an idle connection has nothing to say
            return
        self.has_spoken = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(UpstreamFailure("malformed", f"the replica's answer is not valid HTTP/1.1: {error}"))
            return
        if self._pieces and self._sink is not None:
            body = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces = []
            self._sink.on_body(body)
        if self._is_complete:
            self._finish()

    def eof_received(self) -> None:
        if self._sink is not None and self._is_head_complete and not self._is_framed:
            self._finish()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._pool is not None:
            self._pool.forget(self)
        if self._sink is not None:
            self._fail(UpstreamFailure("reset", "the replica closed the connection before its answer was whole"))

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_head_complete:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:
            return
        self._is_head_complete = True
        self._is_framed = status in (204, 304) or any(
            name in (b"content-length", b"transfer-encoding") for name, _ in self._headers
        )
        if self._sink is not None:
            self._sink.on_head(status, self._headers)

    def on_body(self, data: bytes) -> None:
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._is_head_complete:
            self._is_complete = True
            self._keeps_alive = self._parser.should_keep_alive()  # known only until the parser moves on

    def _finish(self) -> None:
        sink, self._sink = self._sink, None
        if self._keeps_alive and self._pool is not None:
            self.resume()
            self._pool.put_back(self)
        else:
            self._transport.close()
        if sink is not None:
            sink.on_end()

    def _fail(self, failure: UpstreamFailure) -> None:
        sink, self._sink = self._sink, None
        self._transport.abort()
        if sink is not None:
            sink.on_failure(failure)

    @property
    def is_usable(self) -> bool:
        return not self._transport.is_closing()


class UpstreamPool:
    """Connections to one replica, most recently used first."""

    def __init__(self, url: str, *, connect_timeout_s: float = 2.0, idle_s: float = 30.0, max_idle: int = 256) -> None:
        """`url` is http://host[:port]. `idle_s` stays below the keep-alive time of the engines' servers (75 s).

        Raises:
            BadReplicaUrl: `url` has another form.
        """
        parts = urlsplit(url)
        try:
            port = parts.port or 80
        except ValueError:
            port = 0
        if parts.scheme != "http" or not parts.hostname or not port or parts.path not in ("", "/"):
            raise BadReplicaUrl(f"Replica address {url!r} must have the form http://host:port.")
        self.host = parts.hostname
        self.port = port
        self.authority = parts.netloc.rpartition("@")[2].encode()
        self._connect_timeout_s = connect_timeout_s
        self._idle_s = idle_s
        self._max_idle = max_idle
        self._idle: dict[UpstreamConnection, float] = {}

    async def acquire(self, *, is_fresh: bool = False) -> UpstreamConnection:
        """An idle connection, or a new one (always with `is_fresh`).

        Raises:
            UpstreamFailure: nobody answers at the address.
        """
        loop = asyncio.get_running_loop()
        while self._idle and not is_fresh:
            connection, since = self._idle.popitem()
            if connection.is_usable and loop.time() - since < self._idle_s:
                connection.is_reused = True
                return connection
            connection.close()
        return await self._connect(self)

    async def open(self) -> UpstreamConnection:
        """A new connection that never serves another request than its opener's, who closes it.

        Raises:
            UpstreamFailure: nobody answers at the address.
        """
        return await self._connect(None)

    async def _connect(self, pool: "UpstreamPool | None") -> UpstreamConnection:
        loop = asyncio.get_running_loop()
        try:
            connecting = loop.create_connection(lambda: UpstreamConnection(pool), self.host, self.port)
            _, connection = await within(self._connect_timeout_s, connecting)
        except TimeoutError:
            message = f"{self.host}:{self.port} did not accept a connection within {self._connect_timeout_s:g} s"
            raise UpstreamFailure("refused", message) from None
        except OSError as error:
            raise UpstreamFailure("refused", f"{self.host}:{self.port}: {error.strerror or error}") from None
        if not connection.is_usable:
            raise UpstreamFailure("refused", f"{self.host}:{self.port} closed the connection at once")
        return connection

    def put_back(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose answer is whole for the next request."""
        if len(self._idle) >= self._max_idle:
            connection.close()
            return
        self._idle[connection] = asyncio.get_running_loop().time()

    def forget(self, connection: UpstreamConnection) -> None:
        """The connection is gone."""
        self._idle.pop(connection, None)

    def close(self) -> None:
        """Drop idle connections; busy ones finish."""
        self._max_idle = 0
        for connection in list(self._idle):
            connection.close()
        self._idle.clear()

    async def fetch(
        self, method: str, path: str, *, headers: Headers, body: bytes = b"", timeout_s: float, max_bytes: int
    ) -> tuple[int, bytes]:
        """Status and whole body of one small exchange, on a connection of its own.

        Raises:
            UpstreamFailure: no whole answer within `timeout_s` and `max_bytes`.
        """
        connection = await self.open()
        buffer = _Buffer(max_bytes)
        try:
            connection.ask(request_bytes(method, path, self.authority, headers, body), buffer)
            return await within(timeout_s, buffer.whole)
        except TimeoutError:
            raise UpstreamFailure("timeout", f"{path} gave no answer within {timeout_s:g} s") from None
        finally:
            connection.close()


class _Buffer:
    """Gathers one answer."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._status = 0
        self._body = bytearray()
        self.whole: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()

    def on_head(self, status: int, headers: Headers) -> None:
        self._status = status

    def on_body(self, data: bytes) -> None:
        self._body += data
        if len(self._body) > self._max_bytes:
            self.on_failure(UpstreamFailure("malformed", f"the answer exceeds {self._max_bytes} bytes"))

    def on_end(self) -> None:
        if not self.whole.done():
            self.whole.set_result((self._status, bytes(self._body)))

    def on_failure(self, failure: UpstreamFailure) -> None:
        if not self.whole.done():
            self.whole.set_exception(failure)


def request_bytes(method: str, path: str, authority: bytes, headers: Headers, body: bytes) -> bytes:
    """A request as it goes over the wire, its body framed by content-length."""
    lines = [b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method.encode(), path.encode("latin-1"), authority)]
    lines += [b"%b: %b\r\n" % header for header in headers]
    lines.append(b"content-length: %d\r\n\r\n" % len(body) if body or method == "POST" else b"\r\n")
    lines.append(body)
    return b"".join(lines)
