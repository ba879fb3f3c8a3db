"""The choice of a replica: arithmetic, bounds, ties."""

import random
from collections import Counter
from math import ceil
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_api.v1alpha1 import RoutingSpec
from quire_gateway.cost import Candidate, Candidates, LoadBound, pick_lowest_cost
from quire_gateway.policies import POLICIES, ConsistentHash, Random


def candidate(replica, in_flight=0, queued=0, cached=0, last_used=0):
    return Candidate(replica, in_flight, queued, cached, last_used)


def choose(prompt, *candidates, bound=None):
    return pick_lowest_cost(prompt, Candidates.of(candidates), bound or LoadBound())


def test_the_cost_is_eight_times_what_the_first_token_waits_for_and_what_delays_others_times_in_flight():
    pick = choose(100, candidate("a", in_flight=3, queued=50, cached=64), candidate("b", in_flight=1, queued=10))
    costs = {score.replica: score.cost for score in pick.scores}
    assert costs == {"a": 8 * (50 + 36) + (36 + 25) * 3, "b": 8 * (10 + 100) + (100 + 25) * 1}  # 871 and 1,005
    assert (pick.replica, pick.reason) == ("a", "prefix-hit")


def test_a_warm_replica_wins_until_its_load_outweighs_the_prefix():
    cold = candidate("cold", in_flight=0)
    few = candidate("warm", in_flight=7, cached=600)
    assert choose(1000, few, cold).replica == "warm"  # 8 x 400 + (400 + 250) x 7 = 7,750 < 8 x 1,000
    more = candidate("warm", in_flight=8, cached=600)
    assert choose(1000, more, cold).replica == "cold"  # 8,400


def test_a_hot_system_prompt_is_computed_where_it_is_not_rather_than_all_be_sent_to_where_it_is():
    # 4,000 tokens for everybody, 300 own: 8 x 300 + (300 + 1,075) x in-flight beside 8 x 4,300 = 34,400
    assert choose(4300, candidate("warm", in_flight=23, cached=4000), candidate("cold")).replica == "warm"  # 34,025
    assert choose(4300, candidate("warm", in_flight=25, cached=4000), candidate("cold")).replica == "cold"  # 36,775


def test_a_queue_at_the_warm_replica_does_not_scatter_its_prefix_while_requests_run():
    # A group of 6,000 shared tokens, 1,200 own, forty requests running on each replica, four such prompts queued.
    warm, cold = candidate("warm", in_flight=40, queued=4800, cached=6000), candidate("cold", in_flight=40)
    assert choose(7200, warm, cold).replica == "warm"  # 8 x 6000 + 3000 x 40 = 168,000 < 417,600
    idle = candidate("cold", in_flight=4)
    assert choose(7200, warm, idle).replica == "cold"  # 8 x 7200 + 9000 x 4 = 93,600


def test_a_prompt_waits_for_its_twin_on_its_way_where_computing_it_again_takes_as_long():
    warm, cold = candidate("warm", in_flight=3, queued=6000, cached=7200), candidate("cold", in_flight=3)
    assert choose(7200, warm, cold).replica == "warm"  # 8 x 6001 + 1801 x 3 = 53,411 < 84,600


def test_of_two_that_are_alike_the_shorter_queue_is_taken():
    assert choose(10, candidate("a", in_flight=1, queued=1), candidate("b", in_flight=1, last_used=1)).replica == "b"


def test_a_prefix_hit_says_so():
    pick = choose(1000, candidate("warm", cached=800), candidate("cold"))
    assert (pick.reason, pick.cached_tokens, pick.uncached_tokens) == ("prefix-hit", 800, 200)


def test_a_whole_prompt_in_the_cache_still_costs_one_token():
    busy, idle = candidate("busy", in_flight=2, cached=64), candidate("idle", cached=64)
    pick = choose(64, busy, idle)
    assert pick.replica == "idle"
    assert {score.cost for score in pick.scores} == {8 + 17 * 2, 8}


def test_far_busier_than_the_mean_is_no_candidate_however_warm():
    # mean (30 + 0 + 0 + 1) / 3 = 10.3, bound 8 + 1.25 x 10.3 + 2 x 3.2 = 27.3 < 31
    pick = choose(100_000, candidate("warm", in_flight=30, cached=99_999), candidate("b"), candidate("c", last_used=1))
    assert (pick.replica, pick.reason) == ("b", "load-bound")
    assert [score.is_over_bound for score in pick.scores] == [True, False, False]


def test_a_few_requests_more_than_others_are_within_the_bound():
    pick = choose(10_000, candidate("warm", in_flight=7, cached=9_990), candidate("b"))  # 8 <= 8 + 5 + 4
    assert (pick.replica, pick.reason) == ("warm", "prefix-hit")


def test_a_replica_busier_than_the_mean_by_chance_keeps_what_it_has_cached():
    # mean (16 + 0 + 5 + 5 + 5 + 6 + 9 + 10 + 1) / 8 = 7.1, bound 8 + 1.25 x 7.1 + 2 x 2.67 = 22.2
    others = [candidate(f"cold{number}", in_flight=count) for number, count in enumerate((1, 4, 5, 5, 6, 9, 10))]
    pick = choose(7200, candidate("warm", in_flight=16, cached=6000), *others)
    assert (pick.replica, pick.reason) == ("warm", "prefix-hit")  # 8 x 1200 + 3000 x 16 = 57,600 < 66,600


def test_ties_go_to_the_least_recently_used():
    pick = choose(10, candidate("a", last_used=3), candidate("b", last_used=1), candidate("c", last_used=2))
    assert (pick.replica, pick.reason) == ("b", "least-recent")


def test_costs_within_a_thirty_second_are_alike_and_go_to_the_least_recently_used():
    # 8 x 300 + (300 + 1,075) x 100 = 139,900; one request more is 1,375, four are 5,500 > 139,900 / 32 = 4,371.
    busy = [candidate(name, 100 + more, 0, 4000, used) for name, more, used in (("a", 0, 4), ("b", 1, 3), ("c", 3, 2))]
    assert choose(4300, *busy).replica == "c"
    assert choose(4300, *busy, candidate("d", 104, 0, 4000, last_used=1)).replica == "c"
    # While few run, one more is far more than that.
    few = candidate("a", 7, 0, 4000, last_used=2), candidate("b", 8, 0, 4000, last_used=1)
    assert choose(4300, *few).replica == "a"  # 8 x 300 + 1,375 x 7 = 12,025; 13,400 is a tenth more


def test_a_replica_that_has_long_been_idle_takes_a_request_that_would_share_another_with_others():
    # 16 picks for each of two replicas: 32 after its own the idle one is passed by once more, then it is not.
    def at(pick, in_flight=1):
        return choose(4300, candidate("warm", in_flight, 0, 4000, last_used=pick), candidate("idle", last_used=8))

    assert (at(40).replica, at(40).reason) == ("warm", "prefix-hit")
    assert (at(41).replica, at(41).reason, at(41).uncached_tokens) == ("idle", "long-idle", 4300)
    # Where nobody has to share there is nothing to gain, however long it has been.
    assert at(1000, in_flight=0).replica == "warm"


def test_one_replica_is_the_only_choice():
    assert choose(10, candidate("a", in_flight=1000)).reason == "only-replica"


some_candidates = st.lists(
    st.builds(
        Candidate,
        replica=st.uuids().map(str),
        in_flight=st.integers(0, 500),
        queued_tokens=st.integers(0, 100_000),
        cached_tokens=st.integers(0, 5_000),
        last_used=st.integers(0, 100),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda each: each.replica,
)


@given(st.integers(0, 10_000), some_candidates, st.floats(1.0, 4.0), st.integers(1, 32))
def test_the_pick_is_as_cheap_as_the_cheapest_within_the_bound_and_never_over_it(prompt, candidates, factor, spare):
    bound = LoadBound(factor, spare)
    pick = pick_lowest_cost(prompt, Candidates.of(candidates), bound)
    scores = {score.replica: score for score in pick.scores}
    assert scores.keys() == {each.replica for each in candidates}
    within = [score for score in pick.scores if not score.is_over_bound]
    if within and pick.reason != "long-idle":
        assert not scores[pick.replica].is_over_bound
        assert scores[pick.replica].cost <= min(score.cost for score in within) * 33 / 32
    assert pick.reason != "long-idle" or scores[pick.replica].in_flight == 0
    assert all(score.cost >= 1 for score in pick.scores)


@given(st.integers(1, 10_000), some_candidates)
def test_the_same_numbers_give_the_same_pick_in_any_order(prompt, candidates):
    distinct = [
        Candidate(each.replica, each.in_flight, each.queued_tokens, each.cached_tokens, last_used)
        for last_used, each in enumerate(candidates)
    ]
    picks = {choose(prompt, *order).replica for order in (distinct, distinct[::-1])}
    assert len(picks) == 1


@pytest.mark.parametrize("name", POLICIES)
@given(prompt=st.integers(1, 100), candidates=some_candidates)
def test_every_policy_picks_a_candidate_and_shows_its_numbers(name, prompt, candidates):
    pick = POLICIES[name]().pick(prompt, Candidates.of(candidates), b"key")
    chosen = next(each for each in candidates if each.replica == pick.replica)
    assert pick.cached_tokens == chosen.cached_tokens
    assert len(pick.scores) == len(candidates)


@given(st.integers(0, 10_000), some_candidates)
def test_the_pick_is_that_of_the_scores_it_shows(prompt, candidates):
    """The choice passes over lists; the scores are what people are shown: both say the same."""
    pick = choose(prompt, *candidates)
    last_used = {each.replica: each.last_used for each in candidates}
    within = [score for score in pick.scores if not score.is_over_bound] or list(pick.scores)
    least = min(score.cost for score in within)
    alike = {score.replica for score in within if score.cost <= least + least // 32}
    (chosen,) = (score for score in pick.scores if score.replica == pick.replica)
    if pick.reason == "long-idle":
        alike = {score.replica for score in pick.scores if not score.in_flight}
    assert chosen.replica in alike
    assert last_used[chosen.replica] == min(last_used[replica] for replica in alike)
    assert (chosen.cached_tokens, chosen.uncached_tokens) == (pick.cached_tokens, pick.uncached_tokens)
    assert [each.replica for each in pick.candidates] == [each.replica for each in candidates]


def test_policies_by_name():
    busy = candidate("busy", in_flight=4, cached=900, last_used=1)
    idle = candidate("idle", in_flight=0, last_used=2)
    both = Candidates.of([busy, idle])
    picked = {name: POLICIES[name]().pick(1000, both).replica for name in ("prefixCost", "leastLoad", "roundRobin")}
    assert picked == {"prefixCost": "busy", "leastLoad": "idle", "roundRobin": "busy"}
    rng = Random(random.Random(0))
    assert {rng.pick(1, both).replica for _ in range(20)} == {"busy", "idle"}


def test_what_a_resource_may_name_is_what_there_is():
    assert set(get_args(RoutingSpec.model_fields["policy"].annotation)) == set(POLICIES)


KEYS = [b"key%d" % number for number in range(400)]


def homes(replicas):
    idle = Candidates.of(candidate(name) for name in replicas)
    return {key: ConsistentHash().pick(10, idle, key).replica for key in KEYS}


def test_prompts_that_begin_alike_meet_and_others_spread():
    spread = Counter(homes("abcd").values())
    assert set(spread) == set("abcd")
    assert max(spread.values()) < 2 * len(KEYS) / 4


def test_a_replica_that_goes_moves_only_its_own_prompts():
    before, after = homes("abcd"), homes("abd")
    assert all(after[key] == before[key] for key in KEYS if before[key] != "c")


def test_a_hot_beginning_runs_over_to_the_next_replica_of_its_order():
    home = homes("ab")[KEYS[0]]
    other = "b" if home == "a" else "a"
    both = Candidates.of([candidate(home, in_flight=7), candidate(other, in_flight=2)])
    pick = ConsistentHash().pick(10, both, KEYS[0])
    assert (pick.replica, pick.reason) == (other, "load-bound")  # 7 + 1 > 7 = 1.25 x 10 / 2, rounded up


@given(some_candidates)
def test_a_hashed_pick_is_within_the_bound(candidates):
    pick = ConsistentHash().pick(10, Candidates.of(candidates), b"key")
    chosen = next(each for each in candidates if each.replica == pick.replica)
    assert chosen.in_flight + 1 <= ceil(1.25 * (sum(each.in_flight for each in candidates) + 1) / len(candidates))
