"""The client's side: HTTP/1.1 on asyncio transports, one request at a time per connection.

Requests are read whole (they are needed whole to be routed) within the limits; pipelined ones wait in order. What a
strict reader and a lenient one could frame differently is refused, never guessed at: both a content-length and a
transfer-encoding, two hosts, any coding but `chunked`.
"""

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, cast

import httptools

from quire_gateway.body_budget import BodyBudget, Share
from quire_gateway.errors import JSON, Refusal
from quire_gateway.reply import Reply
from quire_gateway.request import Headers, Request

Handler = Callable[[Request, Reply], Awaitable[None]]
OnRefused = Callable[[Refusal, str, str, str], None]
"""Hears of requests that no handler has seen: why, the client's address, method and path, as far as they are known."""

_MAX_PIPELINED = 8
_PIECES = 8
"""In which a head of the largest size is read: one may be larger by such a part before it is refused."""
_LINGER_S = 2.0
_LONGEST_TOLD_PATH = 256
_TICK_S = 0.001
"""uvloop's timers fire as much too early."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client connection may use, and all together; bytes and seconds."""

    header_bytes: int = 64 * 1024
    body_bytes: int = 32 * 1024 * 1024
    bodies_bytes: int = 256 * 1024 * 1024
    """Of all connections together; at least `body_bytes`."""
    header_timeout_s: float = 30.0
    body_timeout_s: float = 300.0
    keep_alive_s: float = 75.0
    stall_s: float = 300.0
    """How long a client may leave its answer unread before it is cut off."""


@dataclass(slots=True)
class _Incoming:
    request: Request
    is_old: bool
    keeps_alive: bool
    share: Share | None
    """Of its body; None for an empty one."""


class ClientConnection(asyncio.Protocol):
    """One client's connection: parses, queues, hands one request at a time to the handler."""

    def __init__(self, handler: Handler, limits: Limits, server: "Server") -> None:
        self._handler = handler
        self._limits = limits
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[_Incoming] = deque()
        self._task: asyncio.Task[None] | None = None
        self._reply: Reply | None = None
        self._refusal: Refusal | None = None
        self._deadline: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._fires_at = 0.0
        self._stall: asyncio.TimerHandle | None = None
        self._peer = ""
        self._fresh_bytes = 0
        self._is_lingering = False
        self._is_write_paused = False
        self._is_read_paused = False
        self._is_last = False
        self._owes_continue = False
        self._expects_continue = False
        self._headers: Headers = []
        self._body: bytes | bytearray = b""
        self._share: Share | None = None
        self._reset()

    @property
    def is_idle(self) -> bool:
        """No request is being answered, waits, or is half read."""
        return self._task is None and not self._queue and not self._is_reading

    def close_when_idle(self) -> None:
        """Answer what has been received, then close."""
        self._is_last = True
        if self.is_idle:
            self._transport.close()

    def abort(self) -> None:
        """Cut the connection; a request in flight is cancelled."""
        self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._peer = peer[0] if isinstance(peer, tuple) else ""
        self._server.opened(self)
        self._allow(self._limits.header_timeout_s)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.closed(self)
        for incoming in self._queue:
            if incoming.share is not None:
                incoming.share.release()
        self._queue.clear()
        self._drop_body()
        self._disarm()
        if self._stall is not None:
            self._stall.cancel()
        if self._task is not None:
            self._task.cancel()
        if self._reply is not None:
            self._reply.abort()
        # All of these know this connection: without the circles its memory is given back now, not by a collection that
        # every other request waits for.
        self._task = self._reply = None
        del self._parser

    def data_received(self, data: bytes) -> None:
        # Of a piece in whose midst a request begins nothing is counted as that one's head.
        piece = max(self._limits.header_bytes // _PIECES, 1)
        for start in range(0, len(data), piece):
            if self._is_lingering:
                return
            self._receive(data[start : start + piece])

    def _receive(self, data: bytes) -> None:
        self._raw_bytes += len(data)
        # All of it is the next request's, unless another one ends in it.
        self._fresh_bytes = 0 if self._is_reading else len(data)
        try:
            self._feed(data)
        except httptools.HttpParserError as error:
            refusal = self._refusal or Refusal(
                400, "malformed_http", f"The request is not valid HTTP/1.1: {error}. Check the client or its proxy."
            )
            self._refuse(refusal)
            return
        allowed = self._limits.header_bytes
        if self._is_body:
            # One byte per chunk is the worst honest framing; chunk extensions and trailers pay from the header's limit.
            allowed += self._head_bytes + 8 * self._body_size
        if self._is_reading and self._raw_bytes > allowed:
            self._refuse(self._too_large_head())
        else:
            self._arm()

    def eof_received(self) -> bool:
        """The client sends no more: it has gone, or waits for its answers; only writing to it would tell which.

        An engine must not work for nobody, so whoever would have to wait is taken to be gone.
        """
        if self._transport.get_extra_info("sslcontext") is not None:
            return False  # TLS closes both ways
        self._loop.call_soon(self._close_unless_answering, self._task)
        return True

    def _close_unless_answering(self, before: asyncio.Task[None] | None) -> None:
        """Close, unless answers have been written since `before` was the task; then look once more."""
        if self._task is None or self._task is before:
            self._transport.close()
        else:
            self._loop.call_soon(self._close_unless_answering, self._task)

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._stall = self._loop.call_later(self._limits.stall_s, self._transport.abort)
        if self._reply is not None:
            self._reply.pause()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        if self._stall is not None:
            self._stall.cancel()
        if self._reply is not None:
            self._reply.resume()

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._reset()
        self._raw_bytes, self._fresh_bytes = self._fresh_bytes, 0
        self._is_reading = True
        self._allow(self._limits.header_timeout_s)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._is_body:
            return  # a trailer
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes + len(self._url) > self._limits.header_bytes:
            self._fail(self._too_large_head())
        self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        self._is_upgrade = self._parser.should_upgrade()
        if self._is_upgrade:
            return
        self._is_body = True
        self._check_framing()
        self._allow(self._limits.body_timeout_s)
        if self._expects_continue:
            if self._task is None and not self._queue:
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            else:
                self._owes_continue = True

    def on_body(self, body: bytes) -> None:
        self._body_size += len(body)
        if self._body_size > self._limits.body_bytes:
            self._fail(self._too_large_body())
        now = self._loop.time()
        if self._share is None:
            self._share = self._server.bodies.begin(self._give_way, now)
        if not self._share.grow(len(body), now):
            self._fail(self._too_much_together())
        if not self._body:
            self._body = body
            return
        if isinstance(self._body, bytes):
            # Not a list of pieces: each is an object of its own, and a slow sender's hold a few bytes.
            self._body = bytearray(self._body)
        self._body += body

    def on_message_complete(self) -> None:
        if self._is_upgrade:
            return
        self._is_reading = False
        self._owes_continue = False
        self._deadline = None
        path, _, query = _origin_form(self._url).partition(b"?")
        request = Request(
            method=self._parser.get_method().decode("ascii"),
            path=path.decode("latin-1"),
            headers=self._headers,
            body=bytes(self._body),
            peer=self._peer,
            arrived_at=self._loop.time(),
            query=query,
        )
        is_old = self._parser.get_http_version() == "1.0"
        if self._share is not None:
            self._share.complete()
        self._queue.append(_Incoming(request, is_old, self._parser.should_keep_alive(), self._share))
        self._body, self._share = b"", None
        if self._task is None:
            self._start_next()
        elif len(self._queue) >= _MAX_PIPELINED and not self._is_read_paused:
            self._is_read_paused = True
            self._transport.pause_reading()

    # One request after the other

    def _start_next(self) -> None:
        incoming = self._queue.popleft()
        if self._is_read_paused and len(self._queue) < _MAX_PIPELINED:
            self._is_read_paused = False
            self._transport.resume_reading()
        reply = Reply(
            self._transport,
            is_old=incoming.is_old,
            is_head=incoming.request.method == "HEAD",
            keeps_alive=incoming.keeps_alive and not self._is_last and not self._server.is_leaving,
            is_paused=self._is_write_paused,
            on_end=self._answered,
        )
        self._reply = reply
        self._task = self._loop.create_task(self._run(incoming, reply))

    async def _run(self, incoming: _Incoming, reply: Reply) -> None:
        try:
            await self._handler(incoming.request, reply)
        except Exception as error:
            self._loop.call_exception_handler({"message": "a request's handler failed", "exception": error})
        finally:
            if incoming.share is not None:
                incoming.share.release()
        if not reply.is_ended:
            if reply.is_started:
                reply.abort()
            else:
                broken = Refusal(500, "internal_error", "The gateway failed on this request; its log says why.")
                reply.send(500, [(b"content-type", JSON)], broken.body())

    def _answered(self) -> None:
        keeps_alive = self._reply is not None and self._reply.keeps_alive
        self._reply = None
        self._task = None
        if self._transport.is_closing():
            return
        if not keeps_alive:
            self._transport.close()
        elif self._queue:
            self._start_next()
        elif self._refusal is not None:
            self._refuse(self._refusal)
        elif self._is_last and not self._is_reading:
            self._transport.close()
        elif self._owes_continue:
            self._owes_continue = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif not self._is_reading:
            self._allow(self._limits.keep_alive_s)
            self._arm()

    # Parsing

    def _reset(self) -> None:
        self._url = b""
        self._headers = []
        self._body_size = 0
        self._head_bytes = 0
        self._raw_bytes = 0
        self._is_reading = False
        self._is_body = False
        self._is_upgrade = False
        self._expects_continue = False

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # A server may ignore an upgrade (RFC 9110, 7.8); the parser cannot, so it sees the request without it.
            if self._parser.get_method() == b"CONNECT":
                self._fail(Refusal(405, "method_not_allowed", "This is a gateway for models, not a forward proxy."))
            method, version = self._parser.get_method(), self._parser.get_http_version().encode()
            lines = [b"%b %b HTTP/%b\r\n" % (method, self._url, version)]
            lines += [
                b"%b: %b\r\n" % header for header in self._headers if header[0] not in (b"upgrade", b"http2-settings")
            ]
            self._parser = httptools.HttpRequestParser(self)
            self._feed(b"".join([*lines, b"\r\n", data[upgrade.args[0] :]]))

    def _check_framing(self) -> None:
        hosts = 0
        codings = []
        length = None
        for name, value in self._headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding":
                codings.append(value.strip().lower())
            elif name == b"content-length":
                length = int(value)
            elif name == b"expect":
                self._expects_continue = value.strip().lower() == b"100-continue"
        is_old = self._parser.get_http_version() != "1.1"
        if hosts > 1 or (hosts == 0 and not is_old):
            self._fail(Refusal(400, "malformed_http", "A request needs exactly one Host header."))
        if codings and (codings != [b"chunked"] or length is not None or is_old):
            message = "A request body is framed by content-length or by `transfer-encoding: chunked`, never by both."
            self._fail(Refusal(400, "malformed_http", message))
        if length is not None and length > self._limits.body_bytes:
            self._fail(self._too_large_body())

    def _fail(self, refusal: Refusal) -> None:
        """Leave the parser; `data_received` answers with `refusal`."""
        self._refusal = refusal
        raise httptools.HttpParserError(refusal.message)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer with `refusal` behind the requests before it, and read no more."""
        self._refusal = refusal
        self._is_lingering = True
        self._drop_body()
        self._disarm()
        if self._task is not None or self._transport.is_closing():
            return
        reply = Reply(
            self._transport, is_old=False, is_head=False, keeps_alive=False, is_paused=False, on_end=lambda: None
        )
        reply.send(refusal.status, [(b"content-type", JSON), *refusal.headers()], refusal.body())
        method = path = ""
        if self._is_reading and self._url:
            method = self._parser.get_method().decode("ascii")
            path = self._url.partition(b"?")[0][:_LONGEST_TOLD_PATH].decode("latin-1")
        self._server.on_refused(refusal, self._peer, method, path)
        # Closing with unread input would reset the connection before the client has read why.
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._timer = self._loop.call_later(_LINGER_S, self._transport.abort)

    def _drop_body(self) -> None:
        self._body = b""
        if self._share is not None:
            self._share.release()
            self._share = None

    def _give_way(self) -> None:
        """The body that is arriving has lost its memory to others."""
        self._refuse(self._too_much_together())

    def _too_much_together(self) -> Refusal:
        limit = self._server.bodies.limit
        message = f"The gateway holds {limit} bytes of request bodies, all that it may. Send the request again."
        return Refusal(503, "too_much_buffered", message, retry_after_s=1)

    def _too_large_head(self) -> Refusal:
        limit = self._limits.header_bytes
        return Refusal(431, "headers_too_large", f"The request's headers exceed {limit} bytes. Send fewer or shorter.")

    def _too_large_body(self) -> Refusal:
        limit = self._limits.body_bytes
        return Refusal(413, "body_too_large", f"The request's body exceeds {limit} bytes. Send a shorter prompt.")

    def _allow(self, seconds: float) -> None:
        self._deadline = self._loop.time() + seconds

    def _arm(self) -> None:
        """See to it that the timer fires by the deadline.

        One that fires too early is set again, so a connection whose requests come whole needs none for each of them.
        """
        if self._deadline is None or self._transport.is_closing():
            return
        if self._timer is not None:
            if self._fires_at <= self._deadline:
                return
            self._timer.cancel()
        self._fires_at = self._deadline
        self._timer = self._loop.call_at(self._deadline, self._timer_fired)

    def _disarm(self) -> None:
        self._deadline = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _timer_fired(self) -> None:
        self._timer = None
        if self._deadline is not None and self._loop.time() >= self._deadline - _TICK_S:
            self._timed_out()
        else:
            self._arm()

    def _timed_out(self) -> None:
        if self._is_reading:
            self._refuse(Refusal(408, "request_timeout", "The request did not arrive in time. Send it again."))
        elif self._task is None:
            self._transport.close()


def _origin_form(target: bytes) -> bytes:
    """`target` without scheme and authority, which clients of a proxy write (RFC 9112, 3.2.2)."""
    scheme, found, rest = target.partition(b"://")
    if not found or scheme.lower() not in (b"http", b"https"):
        return target
    return rest[min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest)) :] or b"/"


class Server:
    """Listens, and knows its connections."""

    def __init__(self, handler: Handler, limits: Limits, on_refused: OnRefused = lambda *_: None) -> None:
        self._handler = handler
        self.on_refused = on_refused
        self._limits = limits
        self._connections: set[ClientConnection] = set()
        self._listeners: list[asyncio.Server] = []
        self._has_none = asyncio.Event()
        self._has_none.set()
        self.is_leaving = False
        self.bodies = BodyBudget(max(limits.bodies_bytes, limits.body_bytes))

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen on `host:port` and return the port (0 takes a free one); once more for another address.

        Raises:
            OSError: the address cannot be bound.
        """
        return await self._listen(tls, host=host, port=port)

    async def adopt(self, door: socket.socket, tls: ssl.SSLContext | None = None) -> int:
        """Accept at `door`, which listens already, and return its port."""
        return await self._listen(tls, sock=door)

    async def _listen(self, tls: ssl.SSLContext | None, **where: Any) -> int:
        listener = await asyncio.get_running_loop().create_server(
            lambda: ClientConnection(self._handler, self._limits, self),
            **where,
            backlog=2048,
            ssl=tls,
            ssl_handshake_timeout=self._limits.header_timeout_s if tls else None,
        )
        self._listeners.append(listener)
        return int(listener.sockets[0].getsockname()[1])

    def opened(self, connection: ClientConnection) -> None:
        """A client has connected."""
        self._connections.add(connection)
        self._has_none.clear()

    def closed(self, connection: ClientConnection) -> None:
        """A connection is gone."""
        self._connections.discard(connection)
        if not self._connections:
            self._has_none.set()

    async def wait_closed(self) -> None:
        """Return when no connection is open."""
        await self._has_none.wait()

    def leave(self) -> None:
        """Close each connection behind its next answer, which says so: its client is to look for another server."""
        self.is_leaving = True

    def close_when_idle(self) -> None:
        """Accept no more; each connection closes behind the answer it is giving."""
        for listener in self._listeners:
            listener.close()
        self.close_idle()

    def close_idle(self) -> None:
        """Close each connection that is open now, behind the answers that it is giving."""
        for connection in list(self._connections):
            connection.close_when_idle()

    def abort(self) -> None:
        """Cut what is still open."""
        for connection in list(self._connections):
            connection.abort()
