"""The simulated engine does what the real scheduler does, step for step where nothing is simplified."""

import random
from array import array
from collections import deque
from itertools import pairwise

import numpy as np
import pytest

from gateway_bench.engine import BLOCK_SIZE, EngineLimits, Job, SimulatedEngine
from gateway_bench.fleet import REVISION
from gateway_bench.step_cost import StepCost, fit, load, pairs, samples
from gateway_bench.traffic import Texts
from gateway_bench.virtual import VirtualLoop
from quire_api.sampling import SamplingParams
from quire_runtime.scheduler.config import SchedulerConfig
from quire_runtime.scheduler.request import Request
from quire_runtime.scheduler.scheduler import Scheduler

COST = StepCost(weights_s=0.004, sequence_s=1e-5, token_s=2e-5, context_s=5e-8, pair_s=8e-10)


def simulated(arrivals: list[tuple[float, Job]], limits: EngineLimits) -> tuple[list[Job], SimulatedEngine]:
    loop = VirtualLoop()
    engine = SimulatedEngine(loop, COST, limits)
    done = loop.create_future()
    left = len(arrivals)

    def end() -> None:
        nonlocal left
        left -= 1
        if not left:
            done.set_result(None)

    def add(job: Job) -> None:
        job.arrived_s = loop.time()
        job.on_end = end
        engine.add(job)

    for at, job in arrivals:
        loop.call_at(at, add, job)
    loop.run_until_complete(done)
    loop.close()
    return [job for _, job in arrivals], engine


def real(arrivals: list[tuple[float, Job]], limits: EngineLimits) -> tuple[list[tuple[float, float, int]], int]:
    """First token, end and cached tokens of each by the real scheduler, one step at a time; and its preemptions."""
    config = SchedulerConfig(limits.max_num_seqs, limits.max_num_batched_tokens, 32768, BLOCK_SIZE, limits.blocks + 1)
    scheduler = Scheduler(config, REVISION)
    waiting = deque(enumerate(arrivals))
    now = 0.0
    firsts: dict[int, float] = {}
    ends: dict[int, float] = {}
    cached: dict[int, int] = {}
    while waiting or scheduler.has_work:
        while waiting and (waiting[0][1][0] <= now or not scheduler.has_work):
            handle, (at, job) = waiting.popleft()
            now = max(now, at)
            params = SamplingParams(max_tokens=job.output_tokens, temperature=0.0)
            ids = [token & 0x7FFFFFFF for token in job.tokens]
            scheduler.add(Request(handle, ids, params, seed=0, max_tokens=job.output_tokens))
        plan = scheduler.plan()
        assert plan is not None
        prefills = plan.query_lens > 1
        work = sum(map(pairs, plan.context_lens[prefills].tolist(), plan.query_lens[prefills].tolist()))
        now += COST.step_s(int(plan.query_lens.sum()), int(plan.context_lens[~prefills].sum()), work)
        # A token that repeats nothing, as the made-up answers.
        outputs = scheduler.update(plan, np.arange(len(plan.rows), dtype=np.int32))
        for handle, finish, hit in zip(outputs.handles, outputs.finish, outputs.cached, strict=True):
            firsts.setdefault(int(handle), now)
            cached.setdefault(int(handle), int(hit))
            if finish:
                ends[int(handle)] = now
    stats = scheduler.stats()
    return [(firsts[n], ends[n], cached[n]) for n in range(len(arrivals))], stats.num_preemptions


def arrivals(seed: int, count: int, load: float) -> list[tuple[float, Job]]:
    texts = Texts(seed)
    shared = [texts.tokens(640) for _ in range(3)]
    at, made = 0.0, []
    for _ in range(count):
        at += texts.rng.expovariate(load)
        parts = [
            texts.rng.choice(shared)[: BLOCK_SIZE * texts.rng.randint(0, 40)],
            texts.tokens(texts.rng.randint(2, 900)),
        ]
        masked = [array("I", [token & 0x7FFFFFFF for token in part]) for part in parts]
        made.append((at, texts.job(masked, [], texts.rng.randint(1, 120), b"")))
    return made


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("load", [5.0, 60.0])
def test_with_room_for_all_it_is_the_scheduler_to_the_step(seed, load):
    limits = EngineLimits(blocks=100_000, max_num_seqs=32, max_num_batched_tokens=1024)
    jobs, _ = simulated(arrivals(seed, 60, load), limits)
    told, _ = real(arrivals(seed, 60, load), limits)
    for job, (first, end, cached) in zip(jobs, told, strict=True):
        assert job.cached_tokens == cached
        assert job.first_s == pytest.approx(first, rel=1e-6)
        assert job.ended_s == pytest.approx(end, rel=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_where_blocks_are_short_it_stays_close(seed):
    limits = EngineLimits(blocks=400, max_num_seqs=32, max_num_batched_tokens=1024)
    jobs, engine = simulated(arrivals(seed, 80, 40.0), limits)
    told, preemptions = real(arrivals(seed, 80, 40.0), limits)
    mean = sum(end - job.arrived_s for job, (_, end, _) in zip(jobs, told, strict=True)) / len(jobs)
    ours = sum(job.ended_s - job.arrived_s for job in jobs) / len(jobs)
    hits = sum(cached for _, _, cached in told)
    assert ours == pytest.approx(mean, rel=0.1)
    assert sum(job.cached_tokens for job in jobs) == pytest.approx(hits, rel=0.15)
    assert (engine.preemptions > 0) == (preemptions > 0)


@pytest.mark.parametrize("seed", range(5))
def test_no_block_is_lost_and_events_tell_what_is_findable(seed):
    rng = random.Random(seed)
    loop = VirtualLoop()
    findable: set[bytes] = set()

    def tell(stored: list[bytes], removed: list[bytes]) -> None:
        assert not findable & set(stored)
        findable.update(stored)
        assert findable >= set(removed)
        findable.difference_update(removed)

    engine = SimulatedEngine(loop, COST, EngineLimits(blocks=rng.randint(150, 400), max_num_seqs=16), tell)
    jobs = arrivals(seed, 80, 40.0)
    for at, job in jobs:
        loop.call_at(at, engine.add, job)
    loop.run_until_complete(_later(loop, 600.0))
    loop.close()
    assert all(job.ended_s for _, job in jobs)
    assert engine.cache.used == 0
    assert engine.running == 0
    assert engine.cache.findable == findable
    assert len(findable) <= engine.cache.blocks


async def _later(loop: VirtualLoop, seconds: float) -> None:
    done = loop.create_future()
    loop.call_later(seconds, done.set_result, None)
    await done


def test_the_committed_cost_is_what_the_fit_gives_and_near_each_sample():
    rows = [
        {"workload": "w2_summary", "tpot_ms": 4.0},
        *(
            {"workload": f"w5_{batch}", "step_ms": 4.0 + batch * 0.03, "first_s": batch * 0.0115}
            for batch in (1, 8, 32, 64)
        ),
        {"workload": "w3_8192x1", "wall_s": 0.21},
    ]
    found = fit(samples(rows))
    for each in samples(rows):
        assert found.step_s(each.queries, int(each.context), each.pairs) == pytest.approx(each.seconds, rel=0.1)
    committed = load()
    steps = [committed.step_s(queries, 600 * queries, 0.0) for queries in (1, 8, 64, 256)]
    assert all(before < after for before, after in pairwise(steps))
