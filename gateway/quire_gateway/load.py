"""What one deployment has to do and how fast it is done: counts and recent latencies, for autoscaling and for people.

Everything is O(1) a request and bounded in memory; times are seconds on the loop's clock.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from math import ceil

WINDOW_S = 30.0
_MOST_SAMPLES = 2048
_PACE_EVERY_S = 1.0
_ARRIVALS_S = 10
_HALF_LIFE_S = 600.0


class Window:
    """The samples of the latest `WINDOW_S` seconds, at most the newest 2,048."""

    __slots__ = ("_samples",)

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=_MOST_SAMPLES)

    def add(self, value: float, now: float) -> None:
        self._samples.append((now, value))

    def quantiles(self, shares: Iterable[float], now: float) -> list[float | None]:
        """For each share the smallest sample that so much of the window does not exceed; None in an empty window."""
        return quantiles(self._alive(now), shares)

    def mean(self, now: float) -> float | None:
        """None in an empty window."""
        values = self._alive(now)
        return sum(values) / len(values) if values else None

    def _alive(self, now: float) -> list[float]:
        while self._samples and now - self._samples[0][0] > WINDOW_S:
            self._samples.popleft()
        return [value for _, value in self._samples]


class Arrivals:
    """How many came a second, over the latest ten whole ones."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: deque[list[int]] = deque(maxlen=_ARRIVALS_S + 1)
        """Seconds in which any came, and how many; the running one last."""

    def add(self, now: float) -> None:
        second = int(now)
        if self._counts and self._counts[-1][0] == second:
            self._counts[-1][1] += 1
        else:
            self._counts.append([second, 1])

    def per_second(self, now: float) -> float:
        running = int(now)
        return sum(count for second, count in self._counts if 0 < running - second <= _ARRIVALS_S) / _ARRIVALS_S


def quantiles(values: Sequence[float], shares: Iterable[float]) -> list[float | None]:
    """Nearest-rank quantiles of `values`; None where there are none."""
    ranked = sorted(values)
    if not ranked:
        return [None for _ in shares]
    return [ranked[max(ceil(share * len(ranked)) - 1, 0)] for share in shares]


class Fading:
    """A sum whose parts lose half their weight every ten minutes."""

    __slots__ = ("_at", "_sum")

    def __init__(self) -> None:
        self._sum = 0.0
        self._at = 0.0

    def add(self, amount: float, now: float) -> None:
        self._sum = self.value(now) + amount
        self._at = now

    def value(self, now: float) -> float:
        return float(self._sum * 0.5 ** ((now - self._at) / _HALF_LIFE_S))


class LoadMeter:
    """What is measured of one deployment, beside the counts that its replicas carry."""

    __slots__ = ("_active", "_last_active_at", "arrivals", "itl", "requests", "service", "ttft")

    def __init__(self, now: float) -> None:
        self.requests = 0
        self.ttft = Window()
        """From the choice of a replica to the first byte of a stream: what a request waited for a replica to exist is
        no sign that more are needed beside it."""
        self.itl = Window()
        self.arrivals = Arrivals()
        self.service = Window()
        """From a request's sending to a replica to its end there."""
        self._active = 0
        self._last_active_at = now

    def began(self, now: float) -> None:
        """A request was admitted."""
        self.requests += 1
        self.arrivals.add(now)
        self._active += 1
        self._last_active_at = now

    def ended(self, now: float) -> None:
        """It is over, in whatever way."""
        self._active -= 1
        self._last_active_at = now

    def idle_s(self, now: float) -> float:
        """Time since the last request ended; 0 while there is one."""
        return 0.0 if self._active else now - self._last_active_at


class Pace:
    """Mean time between the events of one stream, told about once a second and at its end."""

    __slots__ = ("_events", "_since", "_tell")

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self._since: float | None = None
        self._events = 0

    def saw(self, data: bytes, now: float) -> None:
        """`data` is whole events."""
        if self._since is None:
            self._since = now
            return
        self._events += data.count(b"\n\n")
        if now - self._since >= _PACE_EVERY_S:
            self.end(now)

    def pause(self) -> None:
        """The client holds the stream up: what comes next says nothing of the replica."""
        self._since, self._events = None, 0

    def end(self, now: float) -> None:
        if self._since is not None and self._events:
            self._tell((now - self._since) / self._events)
            self._since, self._events = now, 0
