"""A client's session keeps its replica where that costs little. Pure.

Every session has a home among the replicas, by highest random weight (see `policies`): no gateway has to remember it,
all gateways and workers agree on it, and replicas that come and go move only their own. What the caches hold counts
more: a home that would answer much later than the replica chosen otherwise is passed by, this time.
"""

from quire_gateway.cost import FIRST_TOKEN_WEIGHT, LoadBound, Pick, cost_of, pick_of
from quire_gateway.policies import weight

MOST_EXTRA_SHARE = 0.25
MOST_EXTRA_COST = 1024 * FIRST_TOKEN_WEIGHT
"""As much as 1,024 more prompt tokens before the first token."""
_BOUND = LoadBound()


def keep_session(pick: Pick, session: bytes) -> Pick:
    """`pick`, or that of the session's home if it costs at most a quarter, or MOST_EXTRA_COST, more and may take it."""
    candidates = pick.candidates
    weights = [weight(session, replica) for replica in candidates.replicas]
    home = weights.index(max(weights))
    if candidates.replicas[home] == pick.replica or candidates.in_flight[home] + 1 > _BOUND.limit(candidates):
        return pick
    best = cost_of(pick.prompt_tokens, candidates, candidates.replicas.index(pick.replica))
    if cost_of(pick.prompt_tokens, candidates, home) > best + max(MOST_EXTRA_SHARE * best, MOST_EXTRA_COST):
        return pick
    return pick_of(home, "session", pick.prompt_tokens, candidates, pick.limit)
