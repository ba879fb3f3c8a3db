"""The engine loop's part in telling gateways what its prefix cache holds: one batch a step, packed elsewhere."""

import time
from collections.abc import Callable
from functools import partial

from quire_api import kv_events
from quire_runtime.engine.messages import FromEngine, KVFrames
from quire_runtime.kv.events import EventLog

Source = Callable[[], list[bytes]]
"""Every key that is findable now."""


class KVPublisher:
    """While watched, posts a snapshot and then every change; nothing is recorded while nobody watches.

    post: takes functions that make a message, to be called in order on another thread.
    """

    def __init__(
        self,
        log: EventLog,
        keys: Source,
        *,
        epoch: str,
        block_size: int,
        capacity: int,
        post: Callable[[Callable[[], FromEngine]], None],
        heartbeat_s: float = kv_events.HEARTBEAT_S,
    ) -> None:
        self._log = log
        self._keys = keys
        self._epoch = epoch
        self._block_size = block_size
        self._capacity = capacity
        self._post = post
        self._heartbeat_s = heartbeat_s
        self._sequence = 0
        self._posted_at = 0.0
        self._packed_sequence: int | None = None

    def pulse(self) -> KVFrames | None:
        """A heartbeat in the name of a loop that is busy; called on the packing thread.

        It states the sequence of what was packed last, which is what a reader has: the loop may be ahead.
        """
        if not self._log.is_on or self._packed_sequence is None:
            return None
        return KVFrames(kv_events.pack(kv_events.Heartbeat(self._epoch, self._packed_sequence)), is_pulse=True)

    def watch(self, number: int) -> None:
        """Somebody (else) wants a snapshot, known to him by `number`, and what follows it; 0: nobody wants anything."""
        self.turn()
        self._log.is_on = number > 0
        if number:
            keys = tuple(self._keys())
            self._send(partial(_snapshot, number, self._epoch, self._sequence, self._block_size, self._capacity, keys))

    def turn(self) -> None:
        """Called once a turn of the loop."""
        if not self._log.is_on:
            return
        operations = self._log.take()
        if operations:
            self._sequence += 1
            self._send(partial(self._pack, kv_events.Batch(self._epoch, self._sequence, operations)))
        elif time.monotonic() - self._posted_at >= self._heartbeat_s:
            self._send(partial(self._pack, kv_events.Heartbeat(self._epoch, self._sequence)))

    @property
    def due_in_s(self) -> float:
        """Time until the loop must turn again, so that a heartbeat is not late."""
        if not self._log.is_on:
            return self._heartbeat_s
        return min(max(self._posted_at + self._heartbeat_s - time.monotonic(), 0.0), self._heartbeat_s)

    def _pack(self, frame: kv_events.Batch | kv_events.Heartbeat) -> KVFrames:
        """Called on the packing thread, as all functions that are posted."""
        self._packed_sequence = frame.sequence
        return KVFrames(kv_events.pack(frame))

    def _send(self, make: Callable[[], FromEngine]) -> None:
        self._posted_at = time.monotonic()
        self._post(make)


def _snapshot(
    number: int, epoch: str, sequence: int, block_size: int, capacity: int, keys: tuple[bytes, ...]
) -> KVFrames:
    return KVFrames(kv_events.pack_snapshot(epoch, sequence, block_size, capacity, keys), number)
