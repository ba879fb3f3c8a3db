"""Who is served next when requests have to wait: priorities, and within one priority fairness between keys.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024, arXiv 2401.00588,
algorithm 2): every key has a counter of the service it got (prompt tokens, and output tokens at twice their price);
the waiting key with the least goes next; a key that comes back from idleness is lifted to the least of those who wait,
so that being idle saves up nothing. Between two keys that both wait all the time, service differs by no more than
2 x max(longest prompt, 2 x output tokens in flight), whatever they send. A key's weight divides what it is charged.

Pure: no clock, no I/O.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

OUTPUT_PRICE = 2.0
AGING_EVERY = 16
"""Every so many turns one goes to the priority whose oldest request has waited longest: none waits for ever."""

T = TypeVar("T")


class QueueFull(Exception):
    """No place, and nobody who has more of the queue than the one who asks."""


@dataclass(eq=False, slots=True)
class Place(Generic[T]):
    """One who waits. Lower priorities go first, as in vLLM; within a key lower ranks do."""

    item: T
    flow: str
    weight: float
    tokens: int
    priority: int
    rank: int
    number: int


@dataclass(slots=True)
class _Flow(Generic[T]):
    places: deque[Place[T]] = field(default_factory=deque)


class FairQueue(Generic[T]):
    """At most `capacity` places; `flow` is the key's name.

    Every operation is O(keys that wait), but for a request that brings a rank, O(its key's places).
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._bands: dict[int, dict[str, _Flow[T]]] = {}
        self._counters: dict[str, float] = {}
        self._waiting: dict[str, int] = {}
        self._len = 0
        self._arrivals = 0
        self._turns = 0
        self._floor = 0.0

    def __len__(self) -> int:
        return self._len

    def counter(self, flow: str) -> float:
        """Service that the key has got, in prompt tokens of weight 1."""
        return self._counters.get(flow, 0.0)

    def push(
        self, item: T, flow: str, tokens: int, *, weight: float = 1.0, priority: int = 0, rank: int = 0
    ) -> tuple[Place[T], Place[T] | None]:
        """Take a place; with it the one, if any, who lost theirs: the newest of the key that has the most of them.

        Raises:
            QueueFull: nobody has more places than `flow`, or all who have go before it.
        """
        evicted = self._evict_for(flow, priority) if self._len >= self.capacity else None
        if flow not in self._waiting:
            active = [self._counters[name] for name in self._waiting]
            self._counters[flow] = max(self.counter(flow), min(active, default=self._floor))
        self._arrivals += 1
        place = Place(item, flow, weight, tokens, priority, rank, self._arrivals)
        places = self._bands.setdefault(priority, {}).setdefault(flow, _Flow()).places
        at = len(places)
        while at and places[at - 1].rank > rank:
            at -= 1
        places.insert(at, place)
        self._waiting[flow] = self._waiting.get(flow, 0) + 1
        self._len += 1
        return place, evicted

    def pass_by(self, flow: str, tokens: int, *, weight: float = 1.0) -> None:
        """Serve one who need not wait, because nobody does."""
        self._floor = self._counters[flow] = max(self.counter(flow), self._floor)
        self.charge(flow, tokens, weight)

    def pop(self) -> Place[T] | None:
        """The next to be served, charged with its prompt; None if nobody waits."""
        if not self._len:
            return None
        self._turns += 1
        best = self._longest_waiting() if self._turns % AGING_EVERY == 0 else min(self._bands)
        heads = (flow.places[0] for flow in self._bands[best].values())
        place = min(heads, key=lambda head: (self._counters[head.flow], head.number))
        self._floor = max(self._floor, self._counters[place.flow])
        self.remove(place)
        self.charge(place.flow, place.tokens, place.weight)
        return place

    def remove(self, place: Place[T]) -> bool:
        """Give up a place that was not served; False if it was, or was lost."""
        band = self._bands.get(place.priority, {})
        flow = band.get(place.flow)
        if flow is None or place not in flow.places:
            return False
        flow.places.remove(place)
        if not flow.places:
            del band[place.flow]
            if not band:
                del self._bands[place.priority]
        self._waiting[place.flow] -= 1
        if not self._waiting[place.flow]:
            del self._waiting[place.flow]
        self._len -= 1
        return True

    def charge(self, flow: str, tokens: float, weight: float = 1.0) -> None:
        """Service that the key has got beside the prompts: its output, times `OUTPUT_PRICE`."""
        self._counters[flow] = self.counter(flow) + tokens / weight

    def retain(self, flows: Iterable[str]) -> None:
        """Forget the service of all keys but `flows` and those that wait; one that comes back begins like a new one."""
        kept = {*flows, *self._waiting}
        for flow in self._counters.keys() - kept:
            del self._counters[flow]

    def places_of(self, flow: str) -> int:
        return self._waiting.get(flow, 0)

    def _longest_waiting(self) -> int:
        """The priority of the place that was taken first."""
        return min(
            self._bands,
            key=lambda priority: min(place.number for flow in self._bands[priority].values() for place in flow.places),
        )

    def _evict_for(self, flow: str, priority: int) -> Place[T]:
        """Take the last place of the last band from its greediest key, unless `flow` would be no better."""
        last = max(self._bands, default=priority)
        if not self._len or last < priority:
            raise QueueFull
        greediest = max(self._bands[last], key=lambda name: len(self._bands[last][name].places))
        if last == priority and self.places_of(greediest) <= self.places_of(flow) + 1:
            raise QueueFull
        place = self._bands[last][greediest].places[-1]
        self.remove(place)
        return place
