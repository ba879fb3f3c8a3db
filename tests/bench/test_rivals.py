"""The rivals' rules, held to what their sources say."""

import random
from collections import Counter

import pytest

from gateway_bench.kubeai import KubeAILaw
from gateway_bench.rivals import ApproximatePrefixes, BoundedRing, Scraped, pick_llm_d, queue_scores


def blocks(name: str, count: int) -> list[bytes]:
    return [f"{name}{number}".encode() for number in range(count)]


def test_a_key_goes_to_the_same_replica_and_keys_spread():
    ring = BoundedRing(8)
    idle = [0] * 8
    assert len({ring.pick(b"one", idle) for _ in range(10)}) == 1
    spread = Counter(ring.pick(b"key%d" % number, idle) for number in range(8000))
    assert set(spread) == set(range(8))
    assert max(spread.values()) < 2 * min(spread.values())


def test_a_full_replica_is_passed_by_and_others_keep_their_keys():
    ring = BoundedRing(4)
    home = ring.pick(b"hot", [0] * 4)
    # (10 + 1) / 4 x 1.25 = 3.4: three and the request fit, four do not.
    load = [2] * 4
    load[home] = 4
    assert ring.pick(b"hot", load) != home
    load = [3, 3, 3, 3]
    load[home] = 1
    assert ring.pick(b"hot", load) == home


def test_the_first_request_of_all_is_taken_anywhere():
    # (0 + 1) / 8 x 1.25 is less than the one request.
    assert BoundedRing(8).pick(b"x", [0] * 8) in range(8)


@pytest.mark.parametrize(
    ("queues", "scores"),
    [([0, 0, 0], [1, 1, 1]), ([5, 5], [1, 1]), ([0, 1, 2], [1, 0.5, 0]), ([0, 1000], [1, 0]), ([0, 1], [1, 0])],
)
def test_the_queue_scorer_knows_no_scale(queues, scores):
    assert queue_scores(queues) == scores


def test_llm_d_adds_the_weighted_scores():
    idle, busy = Scraped(0, 0.0), Scraped(3, 0.5)
    rng = random.Random(0)
    # 2 x 1 + 2 x 1 + 3 x 0 = 4 against 2 x 0 + 2 x 0.5 + 3 x 1 = 4: a tie; a little less of a match loses.
    assert pick_llm_d([0.0, 0.9], [idle, busy], rng) == 0
    assert {pick_llm_d([0.0, 1.0], [idle, busy], rng) for _ in range(50)} == {0, 1}
    assert pick_llm_d([0.0, 0.5], [idle, Scraped(0, 0.5)], rng) == 1


def test_prefixes_are_counted_to_256_blocks_and_with_gaps():
    prefixes = ApproximatePrefixes(2, 1000)
    keys = blocks("a", 300)
    prefixes.add(0, keys)
    assert prefixes.scores(keys) == [1.0, 0.0]
    prefixes.add(1, keys[128:])
    # Replica 1 holds blocks 128 to 255 of 256 and is credited them, for replica 0 bridges the gap.
    assert prefixes.scores(keys) == [1.0, 0.5]
    assert prefixes.scores(blocks("b", 4)) == [0.0, 0.0]
    assert prefixes.scores([]) == [0.0, 0.0]


def test_prefixes_are_forgotten_least_recently_used_first():
    prefixes = ApproximatePrefixes(1, 4)
    prefixes.add(0, blocks("a", 2))
    prefixes.add(0, blocks("b", 2))
    prefixes.add(0, blocks("a", 2))
    prefixes.add(0, blocks("c", 2))
    assert prefixes.scores(blocks("a", 2)) == [1.0]
    assert prefixes.scores(blocks("b", 2)) == [0.0]


def test_kubeai_follows_the_mean_of_ten_minutes():
    law = KubeAILaw(target_requests=10, min_replicas=1, max_replicas=100)
    decisions = [law.decide(100, 1) for _ in range(60)]
    # After n of 60 values of 100: 100 n / 60 / 10, rounded up.
    assert decisions[:12] == [1] * 6 + [2] * 6
    assert decisions[-1] == 10


def test_kubeai_goes_down_after_the_delay_and_up_at_once():
    law = KubeAILaw(target_requests=1, min_replicas=0, max_replicas=100, scale_down_delay_s=30)
    assert [law.decide(0, 5) for _ in range(5)] == [5, 5, 5, 0, 0]
    assert law.decide(600, 5) == 10
