"""How much there was in the last minute: exact enough that no minute ever holds more than was allowed."""

SLOTS = 61


class Minute:
    """A sliding sum over 60 s in slots of one second; O(1) in memory, amortised O(1) in time.

    A slot is dropped once its youngest moment is 60 s old. So what happened in the last 60 s is always in `total`, and
    whoever keeps `total` within a limit keeps every window of 60 s within it; room comes back at most 1 s late.
    Times are seconds on any one clock that does not go back.
    """

    __slots__ = ("_newest", "_slots", "_sum")

    def __init__(self) -> None:
        self._slots = [0] * SLOTS
        self._newest = 0
        self._sum = 0

    def add(self, amount: int, now: float) -> int:
        """Count `amount` now; the second it went to, for `take_back`."""
        self._advance(now)
        self._slots[self._newest % SLOTS] += amount
        self._sum += amount
        return self._newest

    def take_back(self, amount: int, second: int) -> None:
        """Undo `add` of that second, unless it has gone by itself."""
        if second > self._newest - SLOTS:
            self._slots[second % SLOTS] -= amount
            self._sum -= amount

    def total(self, now: float) -> int:
        self._advance(now)
        return self._sum

    def room_in(self, room: int, limit: int, now: float) -> float:
        """Seconds until `room` more fit under `limit` if nothing is added: 0 now, infinite for what never fits."""
        if room > limit:
            return float("inf")
        excess = self.total(now) + room - limit
        if excess <= 0:
            return 0.0
        for second in range(self._newest - SLOTS + 1, self._newest + 1):
            excess -= self._slots[second % SLOTS]
            if excess <= 0:
                return second + SLOTS - now
        return 0.0

    def _advance(self, now: float) -> None:
        second = int(now)
        if second <= self._newest:
            return
        for gone in range(max(self._newest + 1, second - SLOTS + 1), second + 1):
            self._sum -= self._slots[gone % SLOTS]
            self._slots[gone % SLOTS] = 0
        self._newest = second
