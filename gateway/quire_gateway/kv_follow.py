"""Keeps one replica's stream of KV events open for as long as the replica is in the table."""

import asyncio
import logging

from quire_api.kv_events import KV_EVENTS_PATH, FrameReader, MalformedEvents
from quire_gateway.fleet import ReplicaState
from quire_gateway.health import internal_headers
from quire_gateway.index import OutOfStep
from quire_gateway.kv_feed import SILENCE_S
from quire_gateway.request import Headers
from quire_gateway.upstream import UpstreamConnection, UpstreamFailure, request_bytes

log = logging.getLogger(__name__)

_FIRST_DELAY_S = 0.1
_LONGEST_DELAY_S = 2.0
_NOT_HERE_DELAY_S = 30.0
_WATCH_S = 0.5


class _Stream:
    """The sink of one stream's connection: bytes to frames to the feed, without a task switch."""

    def __init__(self, replica: ReplicaState) -> None:
        self._replica = replica
        self.is_understood = not replica.has_foreign_blocks
        """Else only its signs of life count."""
        self._feed = replica.feed
        self._pulse = replica.pulse
        self._reader = FrameReader()
        self._loop = asyncio.get_running_loop()
        self.status = 0
        self.heard_at = self._loop.time()
        self.ended: asyncio.Future[tuple[str, str]] = self._loop.create_future()
        """Cause and sentence."""

    def on_head(self, status: int, headers: Headers) -> None:
        self.status = status
        self._pulse.has_beaten = True
        # Who tells nothing will be silent for other reasons than death.
        self._pulse.is_expected = status == 200 or status >= 500
        if status == 200:
            self.heard_at = self._loop.time()
            if self.is_understood:
                self._feed.opened(self.heard_at)
        else:
            self._end("cut", f"{KV_EVENTS_PATH} answered {status}")

    def on_body(self, data: bytes) -> None:
        # Once it has left the table, its id may be another's.
        if self.ended.done() or self._replica.is_removed:
            return
        self.heard_at = self._loop.time()
        self._pulse.has_beaten = True
        if not self.is_understood:
            return
        try:
            for frame in self._reader.read(data):
                self._feed.apply(frame, self.heard_at)
        except OutOfStep as error:
            self._end("gap", str(error))
        except MalformedEvents as error:
            self._end("malformed", str(error))

    def on_end(self) -> None:
        self._end("cut", "the engine ended the stream")

    def on_failure(self, failure: UpstreamFailure) -> None:
        self._end("cut", str(failure))

    def _end(self, cause: str, why: str) -> None:
        if not self.ended.done():
            self.ended.set_result((cause, why))


async def follow_events(replica: ReplicaState) -> None:
    """Apply what `replica` tells, over one connection after another, until it leaves the table."""
    try:
        await _follow(replica)
    except Exception:
        if not replica.is_removed:
            replica.feed.lost(asyncio.get_running_loop().time(), "cut", "the gateway failed to follow it")
        raise


async def _follow(replica: ReplicaState) -> None:
    loop = asyncio.get_running_loop()
    delay_s = _FIRST_DELAY_S
    while not replica.is_removed:
        try:
            connection = await replica.pool.open()
        except UpstreamFailure as failure:
            if not replica.is_removed:
                replica.feed.lost(loop.time(), "cut", str(failure))
        else:
            status = await _read(replica, connection)
            if status == 200:
                delay_s = _FIRST_DELAY_S
            elif status == 404:
                # An engine of a version that tells nothing; it may be replaced under the same name.
                delay_s = _NOT_HERE_DELAY_S
        await asyncio.sleep(delay_s)
        delay_s = min(delay_s * 2, _LONGEST_DELAY_S)


async def _read(replica: ReplicaState, connection: UpstreamConnection) -> int:
    """Follow one stream to its end; the status it began with, 0 for none."""
    loop = asyncio.get_running_loop()
    stream = _Stream(replica)
    headers = internal_headers(replica.deployment.table.internal_key)
    try:
        connection.ask(request_bytes("GET", KV_EVENTS_PATH, replica.pool.authority, headers, b""), stream)
        while not replica.is_removed:
            await asyncio.wait({stream.ended}, timeout=_WATCH_S)
            if stream.ended.done():
                cause, why = stream.ended.result()
                break
            if loop.time() - stream.heard_at > SILENCE_S:
                cause, why = "silent", f"nothing came for {SILENCE_S:g} s"
                break
            if not (stream.is_understood or replica.has_foreign_blocks):
                break
        else:
            return stream.status
    finally:
        connection.close()
    if replica.is_removed or not stream.is_understood:
        return stream.status
    if stream.status in (0, 200):
        log.log(logging.INFO if cause == "cut" else logging.WARNING, "KV events of %s: %s", replica.id, why)
        replica.feed.lost(loop.time(), cause, why)
    else:
        replica.feed.refused(why)
    return stream.status
