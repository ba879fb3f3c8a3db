"""How a replica is chosen: one small protocol, the policies behind it, and their names."""

import random
from collections.abc import Callable
from hashlib import blake2b
from math import ceil
from typing import Protocol

from quire_gateway.cost import Candidates, LoadBound, Pick, pick_lowest_cost, pick_of


class Policy(Protocol):
    """Chooses among routable replicas; at least one is given.

    beginning: the key of the prompt's first block; empty for a prompt of no full block, or of unknown tokens.
    """

    def pick(self, prompt_tokens: int, candidates: Candidates, beginning: bytes = b"") -> Pick: ...


class PrefixCost:
    """Cached prefix against load, see `cost`."""

    def __init__(self, bound: LoadBound | None = None) -> None:
        self._bound = bound or LoadBound()

    def pick(self, prompt_tokens: int, candidates: Candidates, beginning: bytes = b"") -> Pick:
        return pick_lowest_cost(prompt_tokens, candidates, self._bound)


class LeastLoad:
    """Fewest requests in flight; ties go to the least recently used."""

    def pick(self, prompt_tokens: int, candidates: Candidates, beginning: bytes = b"") -> Pick:
        ranks = list(zip(candidates.in_flight, candidates.last_used, strict=True))
        return pick_of(ranks.index(min(ranks)), "least-load", prompt_tokens, candidates)


class RoundRobin:
    """Each in turn."""

    def pick(self, prompt_tokens: int, candidates: Candidates, beginning: bytes = b"") -> Pick:
        last_used = candidates.last_used
        return pick_of(last_used.index(min(last_used)), "round-robin", prompt_tokens, candidates)


class Random:
    """Any, uniformly."""

    def __init__(self, rng: random.Random | None = None) -> None:
        self._rng = rng or random.Random()

    def pick(self, prompt_tokens: int, candidates: Candidates, beginning: bytes = b"") -> Pick:
        return pick_of(self._rng.randrange(len(candidates)), "random", prompt_tokens, candidates)


class ConsistentHash:
    """Prompts that begin alike go to one replica, within a load bound; the next replica in their order takes the rest.

    Highest random weight (Thaler and Ravishankar 1998) gives each beginning an order of the replicas that others'
    coming and going does not change; the bound is that of consistent hashing with bounded loads (Mirrokni et al. 2016).
    """

    def __init__(self, bound: LoadBound | None = None) -> None:
        self._bound = bound or LoadBound(factor=1.25, spare=0, deviations=0)

    def pick(self, prompt_tokens: int, candidates: Candidates, beginning: bytes = b"") -> Pick:
        limit = ceil(self._bound.limit(candidates))
        weights = [weight(beginning, replica) for replica in candidates.replicas]
        ordered = sorted(range(len(weights)), key=weights.__getitem__, reverse=True)
        # The least busy one is always within, for the bound is the mean or more, this request counted, rounded up.
        chosen = next(number for number in ordered if candidates.in_flight[number] < limit)
        reason = "consistent-hash" if chosen == ordered[0] else "load-bound"
        return pick_of(chosen, reason, prompt_tokens, candidates)


POLICIES: dict[str, Callable[[], Policy]] = {
    "prefixCost": PrefixCost,
    "leastLoad": LeastLoad,
    "roundRobin": RoundRobin,
    "random": Random,
    "consistentHash": ConsistentHash,
}
"""Every policy under the name that a deployment gives."""


def weight(beginning: bytes, replica: str) -> bytes:
    """Of the replica in the order of those for `beginning`; the first 64 bytes of that count."""
    return blake2b(replica.encode(), digest_size=8, key=beginning[:64]).digest()
