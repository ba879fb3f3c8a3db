"""The front end's side of the KV events: one engine's frames to every gateway that listens."""

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable

from quire_runtime.engine.messages import KVFrames

MOST_BEHIND_BYTES = 64 << 20
"""A listener that leaves so much unread is dropped; it may come back for a snapshot."""


class _Listener:
    """frames: None ends them."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.bytes_behind = 0
        self.has_snapshot = False

    def put(self, data: bytes) -> None:
        self.bytes_behind += len(data)
        self.frames.put_nowait(data)

    async def get(self) -> bytes | None:
        data = await self.frames.get()
        if data is not None:
            self.bytes_behind -= len(data)
        return data


class KVFanOut:
    """Belongs to one event loop.

    watch: has the engine send a snapshot that bears a number, and from there on every change; 0: stop.
    """

    def __init__(self, watch: Callable[[int], None]) -> None:
        self._watch = watch
        self._listeners: set[_Listener] = set()
        self._numbers = itertools.count(1)
        self._awaited = 0
        self._is_closed = False

    async def listen(self) -> AsyncGenerator[bytes, None]:
        """A snapshot, then every change, as bytes of whole frames; ends with the engine, or when too far behind."""
        if self._is_closed:
            return
        listener = _Listener()
        self._listeners.add(listener)
        if not self._awaited:
            self._awaited = next(self._numbers)
            self._watch(self._awaited)
        try:
            while (data := await listener.get()) is not None:
                yield data
        finally:
            self._listeners.discard(listener)
            if not self._listeners and not self._is_closed:
                self._awaited = 0
                self._watch(0)

    def publish(self, frames: KVFrames) -> None:
        is_snapshot = frames.number > 0
        if is_snapshot:
            # Between a snapshot asked for by listeners that have left and one asked for since, changes are missing.
            if frames.number != self._awaited:
                return
            self._awaited = 0
        for listener in list(self._listeners):
            if listener.has_snapshot == is_snapshot:
                continue
            listener.has_snapshot = True
            listener.put(frames.frames)
            if listener.bytes_behind > MOST_BEHIND_BYTES:
                self._listeners.discard(listener)
                listener.frames = asyncio.Queue()
                listener.frames.put_nowait(None)

    def close(self) -> None:
        """The engine has ended."""
        self._is_closed = True
        for listener in self._listeners:
            listener.frames.put_nowait(None)
