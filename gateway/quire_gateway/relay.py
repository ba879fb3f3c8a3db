"""One attempt's answer on its way from the replica to the client."""

import asyncio
from collections.abc import Callable
from enum import Enum, auto

import msgspec

from quire_api.replay import HEADER_REPLAY, REPLAY_VERSION
from quire_gateway.errors import error_event
from quire_gateway.load import Pace
from quire_gateway.output import OutputCount
from quire_gateway.pulse import Pulse
from quire_gateway.replay import Record
from quire_gateway.reply import Reply
from quire_gateway.request import Headers, end_to_end
from quire_gateway.upstream import UpstreamConnection, UpstreamFailure

RETRIABLE = frozenset({502, 503})

_EVENT_ENDS = (b"\n\n", b"\r\n\r\n")
_LONGEST_HELD_EVENT = 1 << 20
_LONGEST_HELD_ANSWER = 1 << 20
_HEADER = HEADER_REPLAY.encode()
_VERSION = str(REPLAY_VERSION).encode()


class End(Enum):
    """How an attempt stands."""

    COMPLETE = auto()
    FAILED = auto()
    """The replica failed and the client has seen nothing: another may try."""
    TURNED_AWAY = auto()
    """The replica answered 502 or 503: `accept` passes that on, or another may try."""
    BROKEN = auto()
    """The replica failed in mid-answer: another may go on, or `break_off` tells the client."""


class Outcome(msgspec.Struct, frozen=True):
    end: End
    failure: UpstreamFailure | None = None


class Relay:
    """Passes an answer's bytes on without looking into them; the sink of one upstream connection.

    The client's answer starts with the replica's first body byte, not with its headers: until then a failure can be
    retried. An answer of known and moderate length starts when it is whole. Server-sent events pass as whole events, so
    that a broken stream can be continued, or ended with an error event.

    record: takes the comment lines out of a stream whose replica writes them; `is_recorded` says that it does.
    goes_on: the client has the beginning of this stream; an answer that is not its continuation is a failure.
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
        pulse: Pulse,
        record: Record | None = None,
        goes_on: bool = False,
    ) -> None:
        self._reply = reply
        self._pulse = pulse
        self._goes_on = goes_on
        self._is_held_whole = False
        self.record = record
        self.is_recorded = False
        self._connection = connection
        self._extra_headers = extra_headers
        self._on_first_byte = on_first_byte
        self._pace = pace
        self._output = OutputCount(on_written)
        self._loop = asyncio.get_running_loop()
        self._headers: Headers = []
        self._is_accepted = False
        self._is_whole = False
        self._failure: UpstreamFailure | None = None
        self._is_events = False
        self._held = b""
        self._has_heard = False
        self._silence_s = silence_s
        self._timer = self._loop.call_later(silence_s, self._check_silence)
        self.status = 0
        self.settled: asyncio.Future[Outcome] = self._loop.create_future()

    def accept(self) -> None:
        """Pass on the answer that turned the request away; `settled` then tells of its end.

        If the replica has failed since, nothing is passed on: the client has seen nothing.
        """
        self.settled = self._loop.create_future()
        if self._failure is not None:
            self._settle(End.FAILED, self._failure)
            return
        self._start()
        self._reply.write(self._held)
        self._held = b""
        if self._is_whole:
            self.on_end()

    def drop(self) -> None:
        """Close the replica's connection, unless the answer is whole: it stops working on the request."""
        self._timer.cancel()
        self._connection.leave(self)
        self._output.tell()

    def fail(self, failure: UpstreamFailure) -> None:
        """Drop the connection and whatever may still come over it: the replica counts as lost."""
        if not self.settled.done():
            self._connection.leave(self)
            self.on_failure(failure)

    # Source

    def pause(self) -> None:
        """The client reads more slowly than the replica writes."""
        if self._connection.serves(self):
            self._connection.pause()

    def resume(self) -> None:
        """The client has caught up."""
        if self._connection.serves(self):
            self._connection.resume()

    # Sink

    def on_head(self, status: int, headers: Headers) -> None:
        self.status = status
        self._headers = headers
        self._has_heard = True
        if status in RETRIABLE and not self._goes_on:
            self._settle(End.TURNED_AWAY)
            return
        told = dict(headers)
        self._is_events = told.get(b"content-type", b"").startswith(b"text/event-stream")
        self.is_recorded = (
            self.record is not None and self._is_events and status == 200 and told.get(_HEADER) == _VERSION
        )
        if self._goes_on and not self.is_recorded:
            self._connection.leave(self)
            self.on_failure(UpstreamFailure("resume_refused", f"it answered {status} to a stream that was to go on"))
        elif not self._is_events:
            length = told.get(b"content-length", b"")
            self._is_held_whole = length.isdigit() and int(length) <= _LONGEST_HELD_ANSWER

    def on_body(self, data: bytes) -> None:
        self._has_heard = True
        self._pulse.has_beaten = True
        if self._is_held_whole:
            self._held += data
            self._output.saw_body(data)
            return
        if self._is_events:
            if self._held:
                data = self._held + data
                self._held = b""
            if not data.endswith(_EVENT_ENDS) and (len(data) < _LONGEST_HELD_EVENT or self.is_recorded):
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
            if self.is_recorded and self.record is not None:
                data = self.record.strip(data)
                self._output.saw_tokens(self.record.take_tokens())
            else:
                self._output.saw_events(data)
            if self.record is not None and self.record.failure:
                self._say_failed(data)
                return
        else:
            self._output.saw_body(data)
        if not self._is_accepted:
            if self.status in RETRIABLE:
                self._held += data
                return
            self._start()
        self._reply.write(data)

    def on_end(self) -> None:
        if self.is_recorded and self.record is not None and not self.record.is_done:
            self.on_failure(UpstreamFailure("cut", "the replica ended its stream before it was whole"))
            return
        self._is_whole = True
        if not self._is_accepted:
            if self.status in RETRIABLE:
                return
            self._start()
        self._reply.write(self._held)
        self._finish()

    def on_failure(self, failure: UpstreamFailure) -> None:
        if self.is_recorded and self.record is not None and self.record.is_done:
            self._finish()  # the client has all of it
            return
        self._failure = failure
        self._settle(End.BROKEN if self._is_accepted else End.FAILED, failure)

    def break_off(self, message: str) -> None:
        """Tell the client that its answer, which has begun, will not be whole."""
        # What was to go on is a stream, whether or not this replica has said a word.
        if self._is_events or self._goes_on:
            self._reply.write(error_event("replica_failed", message))
            self._reply.end()
        else:
            self._reply.abort()

    def _say_failed(self, data: bytes) -> None:
        """The replica says that it failed, after the events `data`."""
        if data:
            if not self._is_accepted:
                self._start()
            self._reply.write(data)
        self._connection.leave(self)
        assert self.record is not None
        self.on_failure(UpstreamFailure(self.record.failure, f"the replica said {self.record.failure}"))

    def _finish(self) -> None:
        self._pace.end(self._loop.time())
        self._reply.end()
        self._settle(End.COMPLETE)

    def _start(self) -> None:
        self._is_accepted = True
        self._on_first_byte()
        if not self._goes_on:
            own = {_HEADER, *(name for name, _ in self._extra_headers)}
            headers = [header for header in end_to_end(self._headers) if header[0] not in own]
            self._reply.start(self.status, headers + self._extra_headers)
        self._reply.follow(self)

    def _settle(self, end: End, failure: UpstreamFailure | None = None) -> None:
        if end is not End.TURNED_AWAY:
            self._timer.cancel()
            self._output.end(is_stream=self._is_events)
        if not self.settled.done():
            self.settled.set_result(Outcome(end, failure))

    def _check_silence(self) -> None:
        if not self._has_heard and not self._connection.is_paused:
            self._connection.leave(self)
            self.on_failure(UpstreamFailure("timeout", f"it sent nothing for {self._silence_s:g} s"))
            return
        self._has_heard = False
        self._timer = self._loop.call_later(self._silence_s, self._check_silence)
