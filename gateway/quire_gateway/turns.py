"""Whose turn it is: requests wait here, in fair order, while a deployment's replicas have all they can work on.

What waits at the door can still be ordered, and goes to whichever replica is free first; what waits in an engine is
bound to it.
"""

import asyncio
from collections.abc import Callable, Iterable

from quire_gateway.errors import Refusal
from quire_gateway.fair import OUTPUT_PRICE, FairQueue, QueueFull
from quire_gateway.keys import Caller
from quire_gateway.wait import Wait


class Turns:
    """One deployment's queue. `has_room`: whether a replica may be given one more, turns not yet used not counted."""

    def __init__(self, has_room: Callable[[int], bool], most: int) -> None:
        self._has_room = has_room
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue(most)
        self._promised = 0

    def __len__(self) -> int:
        return len(self._queue)

    async def wait(self, caller: Caller, tokens: int, rank: int, wait: Wait, name: str) -> None:
        """Return when it is the request's turn; it must then be counted at a replica before anything is awaited.

        tokens: of its prompt. rank: orders the caller's own requests, lower first.

        Raises:
            Refusal: 429, there is no place to wait; 503, the turn did not come in time.
        """
        key = caller.key
        if not self._queue and self._has_room(self._promised):
            self._queue.pass_by(caller.name, tokens, weight=key.weight)
            return
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        try:
            place, lost = self._queue.push(
                turn, caller.name, tokens, weight=key.weight, priority=key.priority, rank=rank
            )
        except QueueFull:
            raise _full(name, self._queue.capacity) from None
        if lost is not None and not lost.item.done():
            lost.item.set_exception(_full(name, self._queue.capacity))
        began = loop.time()
        wait.position = wait.position or len(self._queue)
        self.pump()
        has_come = False
        try:
            async with asyncio.timeout_at(wait.deadline):
                await turn
            has_come = True
        except TimeoutError:
            wait.seconds += loop.time() - began
            message = f"{name} is busy, and it was not this request's turn in time. Try again later."
            raise Refusal(503, "queue_timeout", message, retry_after_s=5, extra_headers=wait.headers()) from None
        finally:
            is_granted = turn.done() and not turn.cancelled() and turn.exception() is None
            if not self._queue.remove(place) and is_granted:
                self._promised -= 1
                if not has_come:
                    self.pump()
        wait.seconds += loop.time() - began

    def pump(self) -> None:
        """Room may have come: give turns as far as there is."""
        while self._queue and self._has_room(self._promised):
            place = self._queue.pop()
            if place is None:
                return
            if not place.item.done():
                self._promised += 1
                place.item.set_result(None)

    def retain(self, names: Iterable[str]) -> None:
        """Forget what callers got that are none of `names`."""
        self._queue.retain(names)

    def wrote(self, caller: Caller, tokens: int) -> None:
        """The caller's answers have grown by so many tokens."""
        self._queue.charge(caller.name, OUTPUT_PRICE * tokens, caller.key.weight)

    def heard(self, caller: Caller, input_tokens: int, output_tokens: int) -> None:
        """Other gateways have served the caller."""
        self._queue.charge(caller.name, input_tokens + OUTPUT_PRICE * output_tokens, caller.key.weight)


def _full(name: str, places: int) -> Refusal:
    message = f"{name} is busy, and {places} requests wait for their turn already. Try again in a moment."
    return Refusal(429, "queue_full", message, retry_after_s=1)
