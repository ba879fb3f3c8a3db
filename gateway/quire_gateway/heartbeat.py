"""Whether a worker's loop still turns: it counts its beats in memory that it shares with its supervisor, which listens.

Silence is counted in turns of the listener: while the machine sleeps, or the supervisor is stopped, nobody is silent.
"""

import asyncio
import mmap
from dataclasses import dataclass

BEAT_S = 0.5
TURN_S = 1.0


class Heartbeats:
    """One counter for each of `count` workers; made before they are forked, and theirs together."""

    def __init__(self, count: int) -> None:
        self._beats = memoryview(mmap.mmap(-1, 8 * count)).cast("Q")

    def __getitem__(self, number: int) -> int:
        return self._beats[number]

    def beat(self, number: int) -> None:
        """Only worker `number` calls this."""
        self._beats[number] += 1


async def keep_beating(beats: Heartbeats, number: int) -> None:
    """Beat for worker `number` while the loop turns."""
    while True:
        beats.beat(number)
        await asyncio.sleep(BEAT_S)


@dataclass(slots=True)
class Silence:
    """For how long a worker has not beaten, in seconds of the listener's turns."""

    beats: int
    seconds: float = 0.0

    def turn(self, beats: int, elapsed_s: float) -> None:
        """`elapsed_s` have passed since the turn before, in part of which the listener may have stood still."""
        self.seconds = 0.0 if beats != self.beats else self.seconds + min(elapsed_s, 2 * TURN_S)
        self.beats = beats
