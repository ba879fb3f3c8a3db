"""Whether a loop that has not turned for a while is at work: who speaks for it must know. Pure, on two given clocks.

A step may take seconds on a CPU, and a kernel that is compiled for the first time too; then the loop's thread computes,
or waits for the device by asking it again and again. One that waits for a lock, or for a call that never returns, does
neither.
"""

STILL_S = 0.5
"""Time since its last turn after which a thread that does not compute stands still."""
WORK_SHARE = 0.01
"""Of the time, that a thread at work must have computed: others may hold the cores for the most part."""


class Liveness:
    """One loop. Times are seconds of a wall clock and of the CPU clock of the loop's thread."""

    __slots__ = ("_asked", "_turned")

    def __init__(self, now: float, cpu_s: float) -> None:
        self._turned = now, cpu_s
        self._asked = self._turned

    def turned(self, now: float, cpu_s: float) -> None:
        """The loop has come round; called on its thread."""
        self._turned = now, cpu_s

    def is_alive(self, now: float, cpu_s: float) -> bool:
        """Whether it has turned lately, or has computed since its last turn and since this was last asked."""
        turned = self._turned
        then, cpu_then = max(turned, self._asked)
        self._asked = now, cpu_s
        return now - turned[0] <= STILL_S or cpu_s - cpu_then > WORK_SHARE * (now - then)
