"""Whether replicas are still there: one that has given no sign of life for too long is lost, whatever it says later.

A sign of life is any byte of an answer or of its event stream, into which an engine writes a heartbeat twice a second,
during a long step too. Silence is counted in turns of the own loop: while the gateway stands still, nobody is silent.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

LOST_AFTER_S = 2.0
TURN_S = 0.25


class Pulse:
    """One replica's signs of life.

    is_expected: it has sent heartbeats, so that silence means something. has_beaten: since the last turn.
    """

    __slots__ = ("has_beaten", "is_expected", "silent_s")

    def __init__(self) -> None:
        self.has_beaten = False
        self.is_expected = False
        self.silent_s = 0.0

    def turn(self, elapsed_s: float) -> None:
        """`elapsed_s` have passed since the turn before, in part of which the gateway may have stood still."""
        self.silent_s = 0.0 if self.has_beaten else self.silent_s + min(elapsed_s, 2 * TURN_S)
        self.has_beaten = False

    @property
    def is_lost(self) -> bool:
        return self.is_expected and self.silent_s >= LOST_AFTER_S


class Watched(Protocol):
    """A replica, as far as this is concerned."""

    pulse: Pulse


W = TypeVar("W", bound=Watched)


async def watch_pulses(replicas: Callable[[], Iterable[W]], lose: Callable[[W], None]) -> None:
    """Call `lose` for every lost replica, again at each turn while it stays silent."""
    loop = asyncio.get_running_loop()
    before = loop.time()
    while True:
        await asyncio.sleep(TURN_S)
        now = loop.time()
        for replica in list(replicas()):
            replica.pulse.turn(now - before)
            if replica.pulse.is_lost:
                lose(replica)
        before = now
