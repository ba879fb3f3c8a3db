"""How a replica is chosen: one small protocol, the policies behind it, and their names."""

import random
from collections.abc import Callable, Sequence
from typing import Protocol

from quire_gateway.cost import Candidate, LoadBound, Pick, pick_lowest_cost, score


class Policy(Protocol):
    """Chooses among routable replicas; at least one is given."""

    def pick(self, prompt_tokens: int, candidates: Sequence[Candidate]) -> Pick: ...


class PrefixCost:
    """Cached prefix against load, see `cost`."""

    def __init__(self, bound: LoadBound | None = None) -> None:
        self._bound = bound or LoadBound()

    def pick(self, prompt_tokens: int, candidates: Sequence[Candidate]) -> Pick:
        return pick_lowest_cost(prompt_tokens, candidates, self._bound)


class LeastLoad:
    """Fewest requests in flight; ties go to the least recently used."""

    def pick(self, prompt_tokens: int, candidates: Sequence[Candidate]) -> Pick:
        chosen = min(candidates, key=lambda candidate: (candidate.in_flight, candidate.last_used))
        return _pick(chosen, "least-load", prompt_tokens, candidates)


class RoundRobin:
    """Each in turn."""

    def pick(self, prompt_tokens: int, candidates: Sequence[Candidate]) -> Pick:
        chosen = min(candidates, key=lambda candidate: candidate.last_used)
        return _pick(chosen, "round-robin", prompt_tokens, candidates)


class Random:
    """Any, uniformly."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()

    def pick(self, prompt_tokens: int, candidates: Sequence[Candidate]) -> Pick:
        return _pick(self._rng.choice(candidates), "random", prompt_tokens, candidates)


POLICIES: dict[str, Callable[[], Policy]] = {
    "prefixCost": PrefixCost,
    "leastLoad": LeastLoad,
    "roundRobin": RoundRobin,
    "random": Random,
}
"""Every policy under the name that a deployment gives."""


def _pick(chosen: Candidate, reason: str, prompt_tokens: int, candidates: Sequence[Candidate]) -> Pick:
    scores = tuple(score(prompt_tokens, candidate, float("inf")) for candidate in candidates)
    uncached = max(1, prompt_tokens - chosen.cached_tokens)
    return Pick(chosen.replica, reason, chosen.cached_tokens, uncached, scores)
