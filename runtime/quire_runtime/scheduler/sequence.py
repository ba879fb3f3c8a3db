"""A request's choices while they are alive."""

import numpy as np

from quire_runtime.kv.prefix import PrefixChain
from quire_runtime.scheduler.plan import Ints
from quire_runtime.scheduler.request import Request

MAX_PRIORITY = 2**20
CHOICE_BITS = 7
ARRIVAL_BITS = 35


class Sequence:
    """One choice of a request: waiting, running in `row`, or (siblings of a prompt not yet planned) neither.

    rank orders service: priority, then arrival, then choice; the lowest is served first and preempted last.
    tokens int32: the prompt, and after a preemption the output so far. While it runs, its row has the tokens.
    first_step: the number of the step that gave it its row. pending: while it waits, the tokens it is to compute.
    """

    __slots__ = ("chain", "choice", "family", "first_step", "is_waiting", "pending", "rank", "row", "tokens")

    def __init__(self, family: "Family", choice: int, rank: int, tokens: Ints, chain: PrefixChain) -> None:
        self.family = family
        self.choice = choice
        self.rank = rank
        self.tokens = tokens
        self.chain = chain
        self.row = -1
        self.first_step = -1
        self.is_waiting = False
        self.pending = 0


class Family:
    """A live request: its choices that have not ended.

    is_queued: no choice has run yet.  is_spawned: siblings of choice 0 are on their way by themselves.
    cached_tokens: prompt tokens found in the prefix cache when the request first ran.
    end: tokens, prompt included, at which a choice is complete.
    """

    __slots__ = ("cached_tokens", "end", "is_queued", "is_spawned", "prompt_len", "request", "sequences")

    def __init__(self, request: Request, end: int) -> None:
        self.request = request
        self.prompt_len = len(request.token_ids)
        self.end = end
        self.cached_tokens = 0
        self.is_queued = True
        self.is_spawned = request.params.n == 1
        self.sequences: dict[int, Sequence] = {}


def first_rank(priority: int, arrival: int) -> int:
    """Rank of choice 0; those of the other choices follow without a gap. Priorities are clipped to +-2^20."""
    clipped = int(np.clip(priority, -MAX_PRIORITY, MAX_PRIORITY))
    return (clipped << (ARRIVAL_BITS + CHOICE_BITS)) + (arrival << CHOICE_BITS)
