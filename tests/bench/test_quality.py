"""What the routing comparison measures: full caches, the same requests for every policy."""

from array import array
from dataclasses import replace

import pytest

from gateway_bench.quality import Run, simulate
from gateway_bench.trace import Watcher, gap
from gateway_bench.traffic import BLOCK_SIZE, REPLICAS, WORKLOADS, Joined, Workload, chats, hot


def test_tokens_in_parts_read_as_one_sequence():
    tokens = Joined([array("I", [1, 2, 3]), array("I", [4]), array("I", [5, 6])])
    assert len(tokens) == 6
    assert list(tokens) == [1, 2, 3, 4, 5, 6]
    assert [tokens[:2].tolist(), tokens[:5].tolist(), tokens[2:].tolist()] == [[1, 2], [1, 2, 3, 4, 5], [3, 4, 5, 6]]


def test_caches_are_full_when_the_measured_seconds_begin():
    # 8 x 600 blocks hold 76,800 tokens; 4,000 are common, and 40 requests a second bring 500 new ones each.
    workload = Workload("small", "", 600, (), hot, 4000, 500)
    assert workload.warm_s(40.0) == (76_800 - 4000) / (40 * 500) + 60
    scripts = workload.scripts(40.0, workload.warm_s(40.0) + 10.0, 1)
    run = simulate(workload, 40.0, "roundRobin", scripts, 10.0)
    assert run.cache_fill > 0.98
    assert run.requests == sum(script.at_s >= workload.warm_s(40.0) for script in scripts)


def test_ladders_press_on_the_cache_as_they_say():
    pressure = {}
    for workload in WORKLOADS[:2]:
        scripts = workload.scripts(200.0, 60.0, 1)
        prompts = {key for script in scripts for key in script.turns[0].job.keys}
        pressure[workload.name] = len(prompts) / (REPLICAS * workload.blocks)
    # 150 x (6,000 + 5 x 1,200) tokens are 112,500 blocks.
    assert len(prompts) * BLOCK_SIZE == 1_800_000
    assert {name: round(share, 2) for name, share in pressure.items()} == {"ladder-37": 0.37, "ladder-73": 0.73}


def test_a_trace_tells_what_another_replica_held_from_what_none_did():
    workload = Workload("small", "", 2000, (), chats, 600, 6.5 * (220 + 275))
    scripts = workload.scripts(4.0, workload.warm_s(4.0) + 10.0, 1)
    away = {}
    for policy in ("prefixCost", "roundRobin"):
        seen = Watcher()
        run = simulate(workload, 4.0, policy, scripts, 10.0, seen.watch)
        assert len(seen.jobs) == run.requests
        full = [(len(job.tokens) - 1) // BLOCK_SIZE * BLOCK_SIZE for job in seen.jobs]
        held = [tokens - past - none for tokens, past, none in zip(full, seen.away, seen.gone, strict=True)]
        assert min(held) >= 0
        # Until the engine admits a request little comes or goes.
        assert abs(sum(held) - sum(job.cached_tokens for job in seen.jobs)) < 0.02 * sum(full)
        assert len(seen.past) == sum(tokens > 0 for tokens in seen.away)
        away[policy] = sum(seen.away)
    assert away["roundRobin"] > 5 * away["prefixCost"]


def test_a_gap_over_seeds_has_its_error():
    run = Run("w", 1.0, "other", 1, 0.010, 0.0, 0.0, 0.0, 0, 0.0, 0.0, 0, 0.0)
    own = [replace(run, policy="own", ttft_mean_s=mean) for mean in (0.011, 0.013)]
    told = gap("ttft_mean_s", own, [run, run])
    # +10 % and +30 %: deviation 14.1 %, the error of two 10 %.
    assert (told.policy, told.seeds, told.mean, told.twice_error) == (
        "other",
        2,
        pytest.approx(0.2),
        pytest.approx(0.2),
    )
