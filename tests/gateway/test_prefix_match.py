"""What a choice is not told of the index because it cannot matter, against one that is told everything."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from quire_gateway.choose import Matched
from quire_gateway.cost import ALIKE_DIVISOR, LONG_IDLE_PICKS, Candidates, Known, LoadBound, costs_of, pick_lowest_cost
from quire_gateway.index import PrefixIndex
from quire_gateway.sessions import keep_session

CHAIN = [b"%d" % number for number in range(600)]
NAMES = tuple(f"r{number}" for number in range(40))


def index_of(depths, doubtful=()):
    """Replicas that hold so much of the chain; `doubtful` ones may hold it with gaps, as far as the index knows."""
    index = PrefixIndex()
    for number, depth in enumerate(depths):
        index.begin(NAMES[number], len(CHAIN))
        index.store(NAMES[number], CHAIN[:depth])
        index.finish(NAMES[number])
        if number in doubtful:
            index.lose(NAMES[number])
    return index


def counted_match(depths):
    """Of the whole chain; `Counted.looks` counts from here on."""
    index = index_of(depths)
    Counted.looks = 0
    return Matched(index.match([Counted(key) for key in CHAIN], NAMES), 16)


def lawful(prompt, candidates):
    """Replica and reason by the law's words: every cost is looked at."""
    names, in_flight, last_used = candidates.replicas, candidates.in_flight, candidates.last_used
    costs, cached = costs_of(prompt, candidates), candidates.settled_tokens()
    numbers = range(len(names))
    within = [number for number in numbers if in_flight[number] + 1 <= LoadBound().limit(candidates)]
    best = min(costs[number] for number in within or numbers)
    alike = [number for number in within or numbers if costs[number] <= best + best // ALIKE_DIVISOR]
    chosen = min(alike, key=lambda number: last_used[number])
    idle = [number for number in numbers if not in_flight[number]]
    longest = min(idle, key=lambda number: last_used[number], default=chosen)
    if len(names) == 1:
        return names[chosen], "only-replica"
    if in_flight[chosen] and max(last_used) - last_used[longest] > LONG_IDLE_PICKS * len(names) and idle:
        return names[longest], "long-idle"
    if best > min(costs):
        return names[chosen], "load-bound"
    if cached[chosen] > min(cached):
        return names[chosen], "prefix-hit"
    return names[chosen], "least-recent" if len(alike) > 1 else "lowest-cost"


some_depths = st.lists(st.integers(0, len(CHAIN)), min_size=1, max_size=len(NAMES))
some_numbers = st.sets(st.integers(0, len(NAMES) - 1))


@given(some_depths, some_numbers, some_numbers, st.integers(1, len(CHAIN)))
def test_lengths_are_bounded_before_they_are_settled_and_right_afterwards(depths, doubtful, settled, asked):
    match = index_of(depths, doubtful).match(CHAIN[:asked], NAMES[: len(depths)])
    held = [min(depth, asked) for depth in depths]
    assert all(most >= length for most, length in zip(match.at_most(), held, strict=True))
    settled = {number for number in settled if number < len(depths)}
    match.settle(settled)
    bounds = match.at_most()
    assert all(bounds[number] == held[number] for number in settled)
    assert all(most >= length for most, length in zip(bounds, held, strict=True))
    assert not match.settle(settled)
    assert list(match) == held


@given(some_depths, some_numbers, some_numbers, st.integers(0, len(CHAIN)))
def test_whether_any_holds_less_or_more_is_known_without_settling(depths, doubtful, settled, length):
    match = index_of(depths, doubtful).match(CHAIN, NAMES[: len(depths)])
    match.settle(number for number in settled if number < len(depths))
    assert match.is_any_below(length) == any(depth < length for depth in depths)
    assert match.is_any_beyond(length) == any(depth > length for depth in depths)
    # At the lengths themselves, where a place more or less matters.
    for depth in set(depths):
        assert match.is_any_below(depth) == (min(depths) < depth)
        assert match.is_any_beyond(depth) == (max(depths) > depth)


loads = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3000)), min_size=len(NAMES), max_size=len(NAMES))


@settings(max_examples=300)
@given(some_depths, some_numbers, loads, st.booleans(), st.integers(0, 3), st.randoms(use_true_random=False))
def test_the_choice_is_that_of_one_that_is_told_every_length(depths, doubtful, loads, is_balanced, extra, rng):
    """16 tokens a block. Balanced loads are such that the costs are nearly alike, so that all lengths matter."""
    names = NAMES[: len(depths)]
    prompt = 16 * len(CHAIN) + extra
    in_flight = [count for count, _ in loads[: len(depths)]]
    queued = [tokens for _, tokens in loads[: len(depths)]]
    if is_balanced:
        in_flight = [10] * len(depths)
        queued = [depth * 16 * 18 // 8 + rng.randrange(3) for depth in depths]
    last_used = rng.sample(range(1000), len(depths))

    def candidates(cached):
        return Candidates(names, in_flight, queued, cached, last_used)

    told = pick_lowest_cost(prompt, candidates(Known(16 * depth for depth in depths)), LoadBound())
    match = index_of(depths, doubtful).match(CHAIN, names)
    pick = pick_lowest_cost(prompt, candidates(Matched(match, 16)), LoadBound())
    assert (pick.replica, pick.reason, pick.cached_tokens) == (told.replica, told.reason, told.cached_tokens)
    kept, told_kept = keep_session(pick, b"session"), keep_session(told, b"session")
    assert (kept.replica, kept.reason) == (told_kept.replica, told_kept.reason)
    assert pick.scores == told.scores
    assert (pick.replica, pick.reason) == lawful(prompt, told.candidates)


def test_a_choice_looks_into_the_index_a_few_times_where_each_replica_holds_another_part():
    rng = random.Random(0)
    depths = [rng.randrange(len(CHAIN)) for _ in NAMES]
    match = counted_match(depths)
    in_flight = [rng.randrange(20) for _ in NAMES]
    candidates = Candidates(NAMES, in_flight, [0] * len(NAMES), match, [0] * len(NAMES))
    pick = pick_lowest_cost(16 * len(CHAIN), candidates, LoadBound())
    assert pick.cached_tokens == 16 * depths[NAMES.index(pick.replica)]
    assert Counted.looks < 80  # Of 600 blocks; each of 40 replicas by bisection: 400.


def test_a_choice_looks_into_the_index_a_few_times_where_each_replica_costs_as_much():
    rng = random.Random(0)
    depths = [rng.randrange(len(CHAIN)) for _ in NAMES]
    match = counted_match(depths)
    queued = [depth * 16 * 18 // 8 for depth in depths]
    last_used = rng.sample(range(40), len(depths))
    pick = pick_lowest_cost(16 * len(CHAIN), Candidates(NAMES, [10] * 40, queued, match, last_used), LoadBound())
    assert pick.replica == NAMES[last_used.index(0)]
    assert Counted.looks < 100  # Of 600 blocks.


def test_a_choice_among_many_that_cost_nearly_alike_is_that_of_one_who_knows_what_each_holds():
    """16 tokens a block; each may be the cheapest until it is known how much it holds."""
    rng = random.Random(1)
    for extra in range(0, 6000, 20):
        depths = [rng.randrange(len(CHAIN)) if rng.random() < 0.9 else rng.choice((0, 8, 600)) for _ in NAMES]
        doubtful = {number for number in range(len(NAMES)) if extra % 100 == 0 and rng.random() < 0.3}
        # Costs differ by up to `extra` tokens before the first one; alike are 671.
        queued = [depth * 16 * 18 // 8 + rng.randrange(extra + 1) for depth in depths]
        in_flight = [rng.choice((9, 10, 40)) if extra % 120 == 0 else 10 for _ in depths]
        last_used = rng.sample(range(1000), len(depths))

        def picked(cached, loads=(in_flight, queued), last_used=last_used):
            return pick_lowest_cost(16 * len(CHAIN), Candidates(NAMES, *loads, cached, last_used), LoadBound())

        pick = picked(Matched(index_of(depths, doubtful).match(CHAIN, NAMES), 16))
        told = picked(Known(16 * depth for depth in depths))
        assert (pick.replica, pick.reason, pick.cached_tokens) == (told.replica, told.reason, told.cached_tokens)
        assert pick.scores == told.scores
        assert (pick.replica, pick.reason) == lawful(16 * len(CHAIN), told.candidates)


class Counted(bytes):
    """A key that counts how often any of its kind is looked up."""

    looks = 0

    def __hash__(self):
        Counted.looks += 1
        return super().__hash__()
