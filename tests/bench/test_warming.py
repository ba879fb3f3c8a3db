"""A new replica is warmed with what its siblings are asked for, and finds it there."""

from array import array

from gateway_bench.engine import BLOCK_SIZE, Job
from gateway_bench.traffic import H200_BLOCKS, Texts, Workload, extend
from gateway_bench.warming import HitCounter, personas, simulate


def found(tokens: "array[int]", blocks: int, replica: int = 0) -> Job:
    """A prompt of which `blocks` blocks were found at `replica`."""
    job = Job(tokens, extend([], tokens), 1)
    job.cached_tokens, job.replica = blocks * BLOCK_SIZE, replica
    return job


def test_the_hottest_are_those_most_often_found_of_what_the_replica_still_holds():
    texts, counter = Texts(1), HitCounter()
    warm, hot, elsewhere = (texts.tokens(4 * BLOCK_SIZE) for _ in range(3))
    for tokens, times, blocks in ((hot, 3, 4), (warm, 2, 2)):
        for _ in range(times):
            counter.found(found(tokens, blocks))
    counter.found(found(elsewhere, 4, replica=1))
    held = {*extend([], hot), *extend([], warm), *extend([], elsewhere)}
    assert counter.hottest(0, held, 1 << 16) == [hot, warm[: 2 * BLOCK_SIZE]]
    assert counter.hottest(0, held, 5 * BLOCK_SIZE) == [hot, warm[:BLOCK_SIZE]]
    halved = held - set(extend([], hot)[2:])
    assert counter.hottest(0, halved, 1 << 16) == [hot[: 2 * BLOCK_SIZE], warm[: 2 * BLOCK_SIZE]]
    assert counter.hottest(2, held, 1 << 16) == []


def test_a_warmed_replica_is_kept_back_and_then_finds_more_than_a_cold_one():
    workload = Workload("personas", "", H200_BLOCKS, (), personas)
    scripts = personas(8.0, 60.0, 3)
    cold, warmed = (simulate(workload, 8.0, scripts, is_warmed) for is_warmed in (False, True))
    assert (cold.prefixes, cold.tokens, cold.warming_s) == (0, 0, 0.0)
    assert warmed.prefixes > 1
    assert warmed.warming_s > 0
    # 3,000 tokens are 187 full blocks.
    assert warmed.tokens <= 65536
    assert warmed.new_requests > 0
    assert warmed.new_hit_rate > cold.new_hit_rate
