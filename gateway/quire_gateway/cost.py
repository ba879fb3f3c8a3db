"""Which replica can answer soonest: pure, so that `explain` re-runs the very function of the data plane.

    cost = (queued + own uncached prefill tokens) x (in-flight + 1)

Both factors are counted at the gateway itself: tokens that its requests still have to prefill there, and requests that
have not ended. The product needs no tuned weights: with nothing cached it is least-load, with everything cached it is
affinity bounded by load (arXiv 2603.15202, here with queued prefill added). A replica far busier than the mean is no
candidate however warm, so that one hot prefix cannot pile up on one replica.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Candidate:
    """One routable replica at the moment of choice."""

    replica: str
    in_flight: int
    queued_tokens: int
    """Prompt tokens of requests sent there whose first byte is still to come, less what was cached of them."""
    cached_tokens: int
    """How much of this prompt the replica is believed to hold, from its first token on."""
    last_used: int
    """Number of the pick that chose it last; 0 for never."""


@dataclass(frozen=True, slots=True)
class LoadBound:
    """A replica may take a request while in-flight + 1 <= max(floor, factor x mean); the mean counts the request."""

    factor: float = 1.5
    floor: int = 8

    def limit(self, candidates: Sequence[Candidate]) -> float:
        """The largest in-flight count, the new request included, that any of `candidates` may reach."""
        mean = (sum(candidate.in_flight for candidate in candidates) + 1) / len(candidates)
        return max(self.floor, self.factor * mean)


@dataclass(frozen=True, slots=True)
class Score:
    """What the choice saw of one replica."""

    replica: str
    cost: float
    in_flight: int
    queued_tokens: int
    cached_tokens: int
    uncached_tokens: int
    is_over_bound: bool


@dataclass(frozen=True, slots=True)
class Pick:
    """The chosen replica, why, and the numbers behind it.

    `reason` is one of `only-replica`, `prefix-hit` (it holds most of the prompt), `load-bound` (a warmer one was too
    busy), `lowest-cost`, `least-recent` (a tie), or a policy's own word.
    """

    replica: str
    reason: str
    cached_tokens: int
    uncached_tokens: int
    scores: tuple[Score, ...]


def score(prompt_tokens: int, candidate: Candidate, limit: float) -> Score:
    """The cost of sending a prompt of `prompt_tokens` to `candidate`."""
    # An engine computes at least the last prompt token, however much it has cached.
    uncached = max(1, prompt_tokens - candidate.cached_tokens)
    return Score(
        replica=candidate.replica,
        cost=float((candidate.queued_tokens + uncached) * (candidate.in_flight + 1)),
        in_flight=candidate.in_flight,
        queued_tokens=candidate.queued_tokens,
        cached_tokens=candidate.cached_tokens,
        uncached_tokens=uncached,
        is_over_bound=candidate.in_flight + 1 > limit,
    )


def pick_lowest_cost(prompt_tokens: int, candidates: Sequence[Candidate], bound: LoadBound) -> Pick:
    """The cheapest of `candidates` (at least one) within the bound; ties go to the least recently used."""
    limit = bound.limit(candidates)
    scores = tuple(score(prompt_tokens, candidate, limit) for candidate in candidates)
    ranked = sorted(zip(scores, candidates, strict=True), key=lambda pair: (pair[0].cost, pair[1].last_used))
    within = [pair[0] for pair in ranked if not pair[0].is_over_bound] or [pair[0] for pair in ranked]
    chosen = within[0]
    if len(candidates) == 1:
        reason = "only-replica"
    elif ranked[0][0] is not chosen:
        reason = "load-bound"
    elif chosen.cached_tokens > min(each.cached_tokens for each in scores):
        reason = "prefix-hit"
    elif len(within) > 1 and within[1].cost == chosen.cost:
        reason = "least-recent"
    else:
        reason = "lowest-cost"
    return Pick(chosen.replica, reason, chosen.cached_tokens, chosen.uncached_tokens, scores)
