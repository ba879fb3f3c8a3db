"""One attempt's answer on its way from the replica to the client."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from quire_gateway.errors import error_event
from quire_gateway.load import Pace
from quire_gateway.output import OutputCount
from quire_gateway.reply import Reply
from quire_gateway.request import Headers, end_to_end
from quire_gateway.upstream import UpstreamConnection, UpstreamFailure

RETRIABLE = frozenset({502, 503})

_EVENT_ENDS = (b"\n\n", b"\r\n\r\n")
_LONGEST_HELD_EVENT = 1 << 20


class End(Enum):
    """How an attempt stands."""

    COMPLETE = auto()
    FAILED = auto()
    """The replica failed and the client has seen nothing: another may try."""
    TURNED_AWAY = auto()
    """The replica answered 502 or 503: `accept` passes that on, or another may try."""
    BROKEN = auto()
    """The replica failed in mid-answer; the client has been told."""


@dataclass(frozen=True, slots=True)
class Outcome:
    end: End
    failure: UpstreamFailure | None = None


class Relay:
    """Passes an answer's bytes on without looking into them; the sink of one upstream connection.

    The client's answer starts with the replica's first body byte, not with its headers: until then a failure can be
    retried. Server-sent events pass as whole events, so that a broken stream can be ended with an error event.
    """

    def __init__(
        self,
        reply: Reply,
        connection: UpstreamConnection,
        *,
        extra_headers: Headers,
        on_first_byte: Callable[[], None],
        pace: Pace,
        on_written: Callable[[int], None],
        silence_s: float,
    ) -> None:
        self._reply = reply
        self._connection = connection
        self._extra_headers = extra_headers
        self._on_first_byte = on_first_byte
        self._pace = pace
        self._output = OutputCount(on_written)
        self._loop = asyncio.get_running_loop()
        self._headers: Headers = []
        self._is_accepted = False
        self._is_whole = False
        self._is_events = False
        self._held = b""
        self._has_heard = False
        self._silence_s = silence_s
        self._timer = self._loop.call_later(silence_s, self._check_silence)
        self.status = 0
        self.settled: asyncio.Future[Outcome] = self._loop.create_future()

    def accept(self) -> None:
        """Pass on the answer that turned the request away; `settled` then tells of its end."""
        self.settled = self._loop.create_future()
        self._start()
        self._reply.write(self._held)
        self._held = b""
        if self._is_whole:
            self.on_end()

    def drop(self) -> None:
        """Close the replica's connection: it stops working on the request."""
        self._timer.cancel()
        self._connection.close()
        self._output.tell()

    # Sink

    def on_head(self, status: int, headers: Headers) -> None:
        self.status = status
        self._headers = headers
        self._has_heard = True
        if status in RETRIABLE:
            self._settle(End.TURNED_AWAY)
        else:
            self._is_events = any(
                name == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers
            )

    def on_body(self, data: bytes) -> None:
        self._has_heard = True
        if self._is_events:
            if self._held:
                data = self._held + data
                self._held = b""
            if not data.endswith(_EVENT_ENDS) and len(data) < _LONGEST_HELD_EVENT:
                cut = max(data.rfind(b"\n\n") + 2, data.rfind(b"\r\n\r\n") + 4)
                if cut < 4:
                    cut = 0
                self._held = data[cut:]
                data = data[:cut]
                if not data:
                    return
            if self._connection.is_paused:
                self._pace.pause()
            else:
                self._pace.saw(data, self._loop.time())
            self._output.saw_events(data)
        else:
            self._output.saw_body(data)
        if not self._is_accepted:
            if self.status in RETRIABLE:
                self._held += data
                return
            self._start()
        self._reply.write(data)

    def on_end(self) -> None:
        self._is_whole = True
        if not self._is_accepted:
            if self.status in RETRIABLE:
                return
            self._start()
        self._pace.end(self._loop.time())
        self._reply.write(self._held)
        self._reply.end()
        self._settle(End.COMPLETE)

    def on_failure(self, failure: UpstreamFailure) -> None:
        if not self._is_accepted:
            self._settle(End.FAILED, failure)
            return
        if self._is_events:
            message = f"The replica failed while it was answering ({failure}). Send the request again."
            self._reply.write(error_event("replica_failed", message))
            self._reply.end()
        else:
            self._reply.abort()
        self._settle(End.BROKEN, failure)

    def _start(self) -> None:
        self._is_accepted = True
        self._on_first_byte()
        own = {name for name, _ in self._extra_headers}
        headers = [header for header in end_to_end(self._headers) if header[0] not in own]
        self._reply.start(self.status, headers + self._extra_headers)
        self._reply.follow(self._connection)

    def _settle(self, end: End, failure: UpstreamFailure | None = None) -> None:
        if end is not End.TURNED_AWAY:
            self._timer.cancel()
            self._output.end(is_stream=self._is_events)
        if not self.settled.done():
            self.settled.set_result(Outcome(end, failure))

    def _check_silence(self) -> None:
        if not self._has_heard and not self._connection.is_paused:
            self._connection.close()
            self.on_failure(UpstreamFailure("timeout", f"it sent nothing for {self._silence_s:g} s"))
            return
        self._has_heard = False
        self._timer = self._loop.call_later(self._silence_s, self._check_silence)
