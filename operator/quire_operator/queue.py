"""Which deployments want a reconcile: each once, however often woken, and never two at a time for the same one.

Those whose last one failed wait in a line of their own, for workers of their own: a call that fails may take its whole
deadline, behind a webhook that hangs, and must not keep the others waiting.
"""

import asyncio
from collections.abc import Hashable
from typing import Generic, TypeVar

from quire_operator.metrics import QUEUE_DEPTH

K = TypeVar("K", bound=Hashable)


class WakeQueue(Generic[K]):
    """A key that is woken while it is worked on comes again afterwards."""

    def __init__(self) -> None:
        self._lines: dict[bool, asyncio.Queue[K]] = {False: asyncio.Queue(), True: asyncio.Queue()}
        """By whether what waits there has failed."""
        self._failed: set[K] = set()
        self._waiting: set[K] = set()
        self._working: set[K] = set()
        self._again: set[K] = set()
        self._alarms: dict[K, asyncio.TimerHandle] = {}

    def wake(self, key: K) -> None:
        """As soon as a worker is free."""
        if key in self._working:
            self._again.add(key)
        elif key not in self._waiting:
            self._waiting.add(key)
            self._lines[key in self._failed].put_nowait(key)
            QUEUE_DEPTH.set(len(self._waiting))

    def wake_in(self, key: K, delay_s: float) -> None:
        """Later; of several alarms for one key the newest counts: whoever set it has looked last."""
        if (known := self._alarms.get(key)) is not None:
            known.cancel()
        self._alarms[key] = asyncio.get_running_loop().call_later(delay_s, self._ring, key)

    async def take(self, *, failed: bool = False) -> K:
        """The next key that has not failed last, or that has; give it back with `done`."""
        key = await self._lines[failed].get()
        self._waiting.discard(key)
        self._working.add(key)
        QUEUE_DEPTH.set(len(self._waiting))
        return key

    def done(self, key: K, *, failed: bool = False) -> None:
        self._working.discard(key)
        if failed:
            self._failed.add(key)
        else:
            self._failed.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.wake(key)

    def _ring(self, key: K) -> None:
        self._alarms.pop(key, None)
        self.wake(key)
