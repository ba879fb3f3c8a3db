"""Which replica can answer soonest: pure, so that `explain` re-runs the very function of the data plane.

    cost = 8 x (queued + uncached) + (uncached + prompt / 4) x in-flight

All are tokens but for in-flight, and the gateway's own counts: what its requests still have to prefill there, what of
this prompt is not cached there, and requests that have not ended. Queued and uncached tokens delay this request's first
token, and a wait for that is felt more than a pause between later ones: as much as eight of those. An uncached token
also delays each request that runs there, and so does each token of the prompt, cached or not, when it is read for each
token of the answer: over 110 of those as much as a quarter of a prefill token does (bench/results/step-cost.json).
Without that quarter the few replicas that held a hot system prompt kept all its requests, while others were idle.

The product (queued + uncached) x (in-flight + 1) of LMetric (arXiv 2603.15202) charges a queue for every request that
runs beside it. Under load it left the warm replica for a cold one whenever a few prompts queued there; each such miss
was a longer queue and somebody else's prefix evicted, so that one miss made the next: 6.2 s to the first token in the
mean, with such a sum 0.08 s (the ladder at 73 % cache pressure and 35 requests/s, before the simulation filled its
caches; not run since).

Costs that differ by less than 1/32 are alike, and of those the replica takes the request that was chosen longest ago:
to heed each smaller difference sends the next few requests together to whichever has just ended some, where they are
computed in one step and end in one again.

Two rules stand beside the cost. A replica far busier than the mean is no candidate however warm, so that one hot prefix
cannot pile up on one replica. And one that has nothing to do, and had none of the last 16 requests for each replica,
takes the next request that would share a replica with others: while few requests run, sharing a step costs less than to
compute a hot prompt once more, so that a prompt that everybody has would never come to half of the replicas.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import msgspec

FIRST_TOKEN_WEIGHT = 8
"""4 to 16 are alike in the simulations; 1 lengthens the queues of prompts that share nothing, by a tenth near
saturation."""
DECODE_DIVISOR = 4
ALIKE_DIVISOR = 32
"""Costs are alike within this part of the least."""
LONG_IDLE_PICKS = 16
"""For each replica. By chance one in ten million is passed by so often; more than one prompt in 16 is never computed
for it."""

_FEW = 24
"""Of more replicas than that it takes less time to compute all costs in one pass."""
_MOST_TRIES = 6
"""To find the least recently used of those that cost alike, before all that they hold is looked up."""


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


class CachedTokens(Protocol):
    """`Candidate.cached_tokens` of each candidate, found as closely as is asked, for to find them takes its time."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> int:
        """Of candidate `number`."""
        ...

    def at_most(self) -> list[int]:
        """Of each a number that it does not exceed."""
        ...

    def settle(self, numbers: Iterable[int]) -> bool:
        """Find those of the candidates of these numbers, each given once: from now on they are their own `at_most`.

        False: they have been already.
        """
        ...

    def is_any_below(self, tokens: int) -> bool:
        """Whether any candidate has less."""
        ...


class Known(list[int]):
    """Cached tokens that are at hand."""

    def at_most(self) -> list[int]:
        return self

    def settle(self, numbers: Iterable[int]) -> bool:
        return False

    def is_any_below(self, tokens: int) -> bool:
        return min(self) < tokens


class Candidates(msgspec.Struct, frozen=True):
    """The routable replicas, field by field: number i of every list is of one replica.

    So a choice among a hundred is a few passes over lists and makes no object for each.
    """

    replicas: Sequence[str]
    in_flight: list[int]
    queued_tokens: list[int]
    cached_tokens: CachedTokens
    last_used: list[int]

    @classmethod
    def of(cls, rows: Iterable[Candidate]) -> "Candidates":
        """From replica by replica."""
        rows = list(rows)
        return cls(
            [row.replica for row in rows],
            [row.in_flight for row in rows],
            [row.queued_tokens for row in rows],
            Known(row.cached_tokens for row in rows),
            [row.last_used for row in rows],
        )

    def __len__(self) -> int:
        return len(self.replicas)

    def __iter__(self) -> Iterator[Candidate]:
        fields = (self.replicas, self.in_flight, self.queued_tokens, self.settled_tokens(), self.last_used)
        return map(Candidate, *fields)

    def settled_tokens(self) -> list[int]:
        """`cached_tokens` of all."""
        self.cached_tokens.settle(range(len(self)))
        return self.cached_tokens.at_most()


@dataclass(frozen=True, slots=True)
class LoadBound:
    """A replica may take a request while in-flight + 1 <= spare + factor x mean + deviations x root of the mean.

    The mean counts the request. Counts differ by chance, by the root of their mean and more where prompts have homes,
    and a bound that they pass so sends warm prompts away: of the shared-prefix ladder at 8 requests/s 4 of 100 went to
    a cold replica for it with 1.5 x mean, and with max(8, 1.25 x mean + 3 x root) 4 of 1,000, a tenth of the mean TTFT.
    """

    factor: float = 1.25
    spare: int = 8
    deviations: float = 2.0

    def limit(self, candidates: Candidates) -> float:
        """The largest in-flight count, the new request included, that any of `candidates` may reach."""
        mean = (sum(candidates.in_flight) + 1) / len(candidates)
        return self.spare + self.factor * mean + self.deviations * sqrt(mean)


class Score(msgspec.Struct, frozen=True, gc=False):
    """What the choice saw of one replica."""

    replica: str
    cost: float
    in_flight: int
    queued_tokens: int
    cached_tokens: int
    uncached_tokens: int
    is_over_bound: bool


class Pick(msgspec.Struct, frozen=True):
    """The chosen replica, why, and the numbers behind it.

    `reason` is one of `only-replica`, `prefix-hit` (it holds most of the prompt), `load-bound` (a warmer one was too
    busy), `session` (its home), `lowest-cost`, `least-recent` (others cost as much), `long-idle`, or a policy's own
    word.
    """

    replica: str
    reason: str
    cached_tokens: int
    uncached_tokens: int
    prompt_tokens: int
    candidates: Candidates
    limit: float
    """In-flight requests, this one included, beyond which a replica was too busy."""

    @property
    def scores(self) -> tuple[Score, ...]:
        """What the choice saw of each candidate; made anew at each asking."""
        costs = costs_of(self.prompt_tokens, self.candidates)
        return tuple(
            Score(
                candidate.replica,
                float(cost),
                candidate.in_flight,
                candidate.queued_tokens,
                candidate.cached_tokens,
                _uncached(self.prompt_tokens, candidate.cached_tokens),
                candidate.in_flight + 1 > self.limit,
            )
            for candidate, cost in zip(self.candidates, costs, strict=True)
        )


def costs_of(prompt_tokens: int, candidates: Candidates) -> list[int]:
    """The cost of sending a prompt of `prompt_tokens` to each candidate."""
    return _costs(prompt_tokens, candidates, candidates.settled_tokens())


def cost_of(prompt_tokens: int, candidates: Candidates, number: int) -> int:
    """The cost of sending it to candidate `number`."""
    uncached = _uncached(prompt_tokens, candidates.cached_tokens[number])
    queued, in_flight = candidates.queued_tokens[number], candidates.in_flight[number]
    return FIRST_TOKEN_WEIGHT * (queued + uncached) + (uncached + prompt_tokens // DECODE_DIVISOR) * in_flight


def _costs(prompt_tokens: int, candidates: Candidates, cached_tokens: list[int]) -> list[int]:
    # As `cost_of`, with fewer operations: 8 (q + u) + (u + d) f = 8 q + (u + d) (f + 8) - 8 d.
    weight, decode = FIRST_TOKEN_WEIGHT, prompt_tokens // DECODE_DIVISOR
    last, whole, least, same = prompt_tokens - 1, prompt_tokens + decode, 1 + decode, weight * decode
    return [
        weight * queued + (whole - cached if cached < last else least) * (in_flight + weight) - same
        for queued, cached, in_flight in zip(candidates.queued_tokens, cached_tokens, candidates.in_flight, strict=True)
    ]


def pick_lowest_cost(prompt_tokens: int, candidates: Candidates, bound: LoadBound) -> Pick:
    """The cheapest of `candidates` (at least one) within the bound; of those that cost alike, the least recently used.

    How much is cached is looked up for those only that may be the cheapest.
    """
    in_flight, cached_tokens = candidates.in_flight, candidates.cached_tokens
    limit = bound.limit(candidates)
    most = limit - 1
    costs = _costs(prompt_tokens, candidates, cached_tokens.at_most())
    first = costs.index(min(costs))
    if in_flight[first] > most:
        within = [number for number, count in enumerate(in_flight) if count <= most]
        # If all are over the bound, it tells none from another.
        first = min(within, key=costs.__getitem__, default=first)
    # What is cached costs less, so these are the least costs that may be: who is above this one is not the cheapest.
    costs[first] = cost_of(prompt_tokens, candidates, first)
    ceiling = _alike(costs[first])
    rivals = [number for number, cost in enumerate(costs) if cost <= ceiling]
    allowed = [number for number in rivals if in_flight[number] <= most] or rivals
    reason, chosen = "prefix-hit", None
    if len(allowed) == len(rivals) >= _FEW:
        chosen = _least_recent_alike(prompt_tokens, candidates, rivals, costs, costs[first])
    if chosen is None:
        chosen, reason = _settled_choice(prompt_tokens, candidates, rivals, allowed, costs)
    if in_flight[chosen] and (idle := _long_idle(candidates)) is not None:
        chosen, reason = idle, "long-idle"
    return pick_of(chosen, reason, prompt_tokens, candidates, limit)


def _settled_choice(
    prompt_tokens: int, candidates: Candidates, rivals: list[int], allowed: list[int], costs: list[int]
) -> tuple[int, str]:
    """The choice among `allowed`, and why, when all is known of what `rivals` hold.

    costs: what each costs at least, and what it costs where that is known.
    """
    cached_tokens = candidates.cached_tokens
    if len(rivals) > 1 and cached_tokens.settle(rivals):
        if len(rivals) < _FEW:
            for number in rivals:
                costs[number] = cost_of(prompt_tokens, candidates, number)
        else:
            costs = _costs(prompt_tokens, candidates, cached_tokens.at_most())
    best = min([costs[number] for number in allowed])
    alike = _alike(best)
    equal = [number for number in allowed if costs[number] <= alike]
    chosen = equal[0] if len(equal) == 1 else min(equal, key=candidates.last_used.__getitem__)
    if len(costs) == 1:
        return chosen, "only-replica"
    if best > min([costs[number] for number in rivals]):
        return chosen, "load-bound"
    if _is_hit(cached_tokens, chosen):
        return chosen, "prefix-hit"
    return chosen, "least-recent" if len(equal) > 1 else "lowest-cost"


def _least_recent_alike(
    prompt_tokens: int, candidates: Candidates, rivals: list[int], costs: list[int], best: int
) -> int | None:
    """Who of those that cost alike the least was chosen longest ago, if that is a prefix hit.

    No more is looked up than tells so much: it is enough that nobody else can cost so little that this one's cost is
    not alike. costs: what each costs at least; what is found is entered. best: what one of `rivals` costs. None: it is
    no hit, or a few looks do not tell.
    """
    cached_tokens, last_used = candidates.cached_tokens, candidates.last_used
    for _ in range(_MOST_TRIES):
        oldest = min(rivals, key=last_used.__getitem__)
        cost = costs[oldest] = cost_of(prompt_tokens, candidates, oldest)
        best = min(best, cost)
        if cost <= _alike(best):
            floor = _least_alike(cost)
            doubtful = [number for number in rivals if costs[number] < floor]
            if doubtful:
                cached_tokens.settle(doubtful)
                for number in doubtful:
                    costs[number] = cost_of(prompt_tokens, candidates, number)
                best = min(best, min([costs[number] for number in doubtful]))
            if best >= floor:
                return oldest if _is_hit(cached_tokens, oldest) else None
        ceiling = _alike(best)
        rivals = [number for number in rivals if costs[number] <= ceiling]
    return None


def _is_hit(cached_tokens: CachedTokens, chosen: int) -> bool:
    """Whether it holds a part of the prompt, and more of it than another."""
    held = cached_tokens[chosen]
    return held > 0 and cached_tokens.is_any_below(held)


def _least_alike(cost: int) -> int:
    """The least cost beside which `cost` is alike: the least `best` with `cost <= _alike(best)`."""
    return cost - cost // (ALIKE_DIVISOR + 1)


def _alike(cost: int) -> int:
    """The largest cost that is no more than `cost`, as far as a choice may rest on it."""
    return cost + cost // ALIKE_DIVISOR


def _long_idle(candidates: Candidates) -> int | None:
    """The replica with nothing in flight that was chosen longest ago, if that is long ago; None: there is none."""
    in_flight, last_used = candidates.in_flight, candidates.last_used
    if 0 not in in_flight:
        return None
    idle = min([number for number, count in enumerate(in_flight) if not count], key=last_used.__getitem__)
    return idle if max(last_used) - last_used[idle] > LONG_IDLE_PICKS * len(candidates) else None


def pick_of(chosen: int, reason: str, prompt_tokens: int, candidates: Candidates, limit: float = float("inf")) -> Pick:
    """The pick of candidate number `chosen`."""
    cached = candidates.cached_tokens[chosen]
    uncached = _uncached(prompt_tokens, cached)
    return Pick(candidates.replicas[chosen], reason, cached, uncached, prompt_tokens, candidates, limit)


def _uncached(prompt_tokens: int, cached_tokens: int) -> int:
    # An engine computes at least the last prompt token, however much it has cached.
    return max(1, prompt_tokens - cached_tokens)
