"""How far the start of an engine is while it goes on, and the seconds of each of its phases in the end."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

TOLD_EVERY_S = 1.0
GiB = 2**30

Tell = Callable[[str, int | None], None]
"""Called with a phase and how many percent of it are done (None: it has just begun), one call at a time."""


def _nobody(phase: str, percent: int | None) -> None:
    pass


class StartProgress:
    """Seconds by phase, and word of each to whoever listens; a phase within another counts for itself alone."""

    def __init__(self, tell: Tell = _nobody, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: dict[str, float] = {}
        self.current = ""
        """The phase under way; after an error, the one that it ended."""
        self._tell = tell
        self._clock = clock
        self._within = 0.0
        self._begun = self._told = clock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        outer, before = self.current, self._within
        self.current, self._within = name, 0.0
        self._begun = self._told = started = self._clock()
        self._tell(name, None)
        yield
        spent = self._clock() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + spent - self._within
        self.current, self._within = outer, before + spent

    def read(self, done: int, total: int) -> None:
        """`done` of `total` bytes of the phase under way are in place; told once a second."""
        now = self._clock()
        if now - self._told < TOLD_EVERY_S:
            return
        self._told = now
        percent, rate = 100 * done // max(total, 1), done / max(now - self._begun, 1e-3)
        log.info("%s: %.2f of %.2f GiB (%d %%), %.2f GiB/s", self.current, done / GiB, total / GiB, percent, rate / GiB)
        self._tell(self.current, percent)
