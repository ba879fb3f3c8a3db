"""How far a fetch is: bytes, rate, time left; and the one place where it can be told to stop."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from quire_api.wire import ModelShape

log = logging.getLogger(__name__)

RATE_WINDOW_S = 10.0
TOLD_EVERY_S = 5.0


class Phase(StrEnum):
    STARTING = "starting"
    WAITING = "waiting"
    """Another process fetches into the same directory."""
    FETCHING = "fetching"
    COMPLETE = "complete"
    FAILED = "failed"
    STOPPED = "stopped"


class Stopped(Exception):
    """The fetch was told to stop; what it has so far stays."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One moment, as GET /progress gives it."""

    phase: Phase
    source: str
    destination: str
    bytes_done: int
    """Of the model, those of earlier runs included."""
    bytes_total: int
    """0 until the store has listed the model."""
    bytes_per_second: float
    """Over the last seconds."""
    eta_seconds: float | None
    elapsed_seconds: float
    reason: str
    message: str
    shape: ModelShape | None = None
    """None until config.json is here, or where it cannot be understood."""

    @property
    def sentence(self) -> str:
        """For people."""
        if self.phase in (Phase.FAILED, Phase.WAITING) or not self.bytes_total:
            return self.message or str(self.phase)
        share = f"{self.bytes_done / 1e9:.2f} of {self.bytes_total / 1e9:.2f} GB"
        if self.phase is not Phase.FETCHING:
            return f"{self.phase}: {share} in {self.elapsed_seconds:.0f} s"
        left = "" if self.eta_seconds is None else f", {self.eta_seconds:.0f} s left"
        return f"fetching: {share}, {self.bytes_per_second / 1e6:.0f} MB/s{left}"


class Meter:
    """Takes in progress from any thread, and ends the fetch by raising Stopped in its threads once told to."""

    def __init__(self, source: str, destination: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._destination = destination
        self._clock = clock
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._begun = clock()
        self._ended: float | None = None
        self._phase = Phase.STARTING
        self._reason = self._message = ""
        self._shape: ModelShape | None = None
        self._done = self._total = self._fetched = 0
        self._samples: deque[tuple[float, int]] = deque()

    def report(self, done: int, total: int) -> None:
        """`done` of `total` bytes are here.

        Raises:
            Stopped
        """
        now = self._clock()
        with self._lock:
            is_begun = self._phase is Phase.FETCHING
            if self._phase in (Phase.STARTING, Phase.WAITING) or (is_begun and done > self._done):
                self._phase, self._reason, self._message = Phase.FETCHING, "", ""
            self._fetched += max(done - self._done, 0) if self._samples else 0
            self._done, self._total = done, total
            self._samples.append((now, done))
            while len(self._samples) > 2 and now - self._samples[0][0] > RATE_WINDOW_S:
                self._samples.popleft()
        if self._stop.is_set():
            raise Stopped

    def pause(self, seconds: float) -> None:
        """Wait.

        Raises:
            Stopped: told to stop before that.
        """
        if self._stop.wait(seconds):
            raise Stopped

    def stop(self) -> None:
        self._stop.set()

    def wait_for_stop(self) -> None:
        self._stop.wait()

    def waits(self) -> None:
        with self._lock:
            self._phase = Phase.WAITING
            self._message = f"another process fetches into {self._destination}"

    def fails(self, error: Exception) -> None:
        """A try has failed, and there will be another; the next bytes wipe it out."""
        with self._lock:
            self._reason, self._message = type(error).__name__, str(error)

    def describe(self, shape: ModelShape | None) -> None:
        with self._lock:
            self._shape = shape

    def ended(self, phase: Phase, reason: str = "", message: str = "") -> None:
        """Nothing more will come."""
        with self._lock:
            self._phase, self._reason, self._message = phase, reason, message
            self._ended = self._clock()

    @property
    def fetched_bytes(self) -> int:
        """What came over the network since the start."""
        return self._fetched

    def standing(self) -> Standing:
        with self._lock:
            now = self._ended or self._clock()
            rate = self._rate(now) if self._phase is Phase.FETCHING else 0.0
            return Standing(
                phase=self._phase,
                source=self._source,
                destination=self._destination,
                bytes_done=self._done,
                bytes_total=self._total,
                bytes_per_second=round(rate, 1),
                eta_seconds=round((self._total - self._done) / rate, 1) if rate > 0 else None,
                elapsed_seconds=round(now - self._begun, 1),
                reason=self._reason,
                message=self._message,
                shape=self._shape,
            )

    def _rate(self, now: float) -> float:
        recent = [sample for sample in self._samples if now - sample[0] <= RATE_WINDOW_S]
        if not recent:
            return 0.0
        (since, before), (_, done) = recent[0], recent[-1]
        return max(done - before, 0) / max(now - since, 0.1)


def logged(source: str, clock: Callable[[], float] = time.monotonic) -> Callable[[int, int], None]:
    """Progress as a line in the log every few seconds, for whoever has no page for it."""
    meter = Meter(source, "", clock)
    told = clock()

    def report(done: int, total: int) -> None:
        nonlocal told
        meter.report(done, total)
        if clock() - told >= TOLD_EVERY_S:
            told = clock()
            log.info("%s %s", source, meter.standing().sentence)

    return report
