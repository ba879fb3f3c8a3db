"""An event loop whose clock jumps to the next timer: code written for asyncio runs in virtual time."""

import asyncio
import selectors
from collections.abc import Callable


class _NoSockets(selectors.SelectSelector):
    """Nothing ever becomes readable; waiting moves the clock."""

    def __init__(self, wait: Callable[[float], None]) -> None:
        super().__init__()
        self._wait = wait

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nothing will ever happen: no timer is set, and there are no sockets")
        self._wait(max(0.0, timeout))
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time` starts at 0 and stands still while code runs; with nothing to run it is that of the next timer."""

    def __init__(self) -> None:
        self._now = 0.0
        super().__init__(_NoSockets(self._advance))

    def time(self) -> float:
        return self._now

    def _advance(self, seconds: float) -> None:
        self._now += seconds
