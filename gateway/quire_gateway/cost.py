"""Which replica can answer soonest: pure, so that `explain` re-runs the very function of the data plane.

    cost = 8 x queued + own uncached prefill tokens x (in-flight + 1)

Both counts are the gateway's own: tokens that its requests still have to prefill there, and requests that have not
ended. An uncached token delays this request and each one that runs there; a queued one delays this request alone, but
its first token, which is felt more than a pause between later ones: as much as eight of those.

The product (queued + uncached) x (in-flight + 1) of LMetric (arXiv 2603.15202) charges a queue for every request that
runs beside it. Under load it left the warm replica for a cold one whenever a few prompts queued there; each such miss
was a longer queue and somebody else's prefix evicted, so that one miss made the next: at 73 % cache pressure and 35
requests/s it answered after 6.2 s in the mean, this sum after 0.08 s (bench/gateway_bench/quality.py).

A replica far busier than the mean is no candidate however warm, so that one hot prefix cannot pile up on one replica.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

QUEUE_WEIGHT = 8
"""4 to 16 are alike in the simulations; 1 lengthens the queues of prompts that share nothing, by a tenth near
saturation."""


class Candidate(msgspec.Struct, frozen=True, gc=False):
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


class Score(msgspec.Struct, frozen=True, gc=False):
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
    beside = candidate.in_flight + 1
    return Score(
        candidate.replica,
        float(QUEUE_WEIGHT * candidate.queued_tokens + uncached * beside),
        candidate.in_flight,
        candidate.queued_tokens,
        candidate.cached_tokens,
        uncached,
        beside > limit,
    )


def pick_lowest_cost(prompt_tokens: int, candidates: Sequence[Candidate], bound: LoadBound) -> Pick:
    """The cheapest of `candidates` (at least one) within the bound; ties go to the least recently used."""
    limit = bound.limit(candidates)
    scores = tuple([score(prompt_tokens, candidate, limit) for candidate in candidates])
    ranks = [
        (each.is_over_bound, each.cost, candidate.last_used) for each, candidate in zip(scores, candidates, strict=True)
    ]
    best = min(ranks)
    chosen = scores[ranks.index(best)]
    if len(candidates) == 1:
        reason = "only-replica"
    elif max(ranks)[0] and min([rank[1:] for rank in ranks]) < best[1:]:
        reason = "load-bound"
    elif chosen.cached_tokens > min([each.cached_tokens for each in scores]):
        reason = "prefix-hit"
    elif [rank[1] for rank in ranks if rank[0] is best[0]].count(best[1]) > 1:
        reason = "least-recent"
    else:
        reason = "lowest-cost"
    return Pick(chosen.replica, reason, chosen.cached_tokens, chosen.uncached_tokens, scores)
