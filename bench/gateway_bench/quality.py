"""Routing quality: every policy on every workload and load, on 8 simulated replicas in virtual time.

A run warms up until caches are full (`Workload.warm_s`), then measures.
"""

import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from math import ceil

from gateway_bench import progress, step_cost
from gateway_bench.conversations import Conversations
from gateway_bench.engine import EngineLimits
from gateway_bench.fleet import POLICIES, SimulatedFleet
from gateway_bench.traffic import REPLICAS, WORKLOADS, Script, Workload
from gateway_bench.virtual import VirtualLoop

SECONDS = 120.0
"""For which requests that come are counted, after the warm-up."""
SEED = 7


@dataclass(frozen=True, slots=True)
class Run:
    """What one policy made of one load. hit_rate: cached of all prompt tokens. spread: busiest replica's requests over
    the mean. Throughput counts output tokens made in the measured seconds. cache_fill: of the replica in the middle,
    when those begin."""

    workload: str
    load: float
    policy: str
    requests: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    tpot_mean_ms: float
    output_tok_s: float
    hit_rate: float
    spread: float
    preemptions: int
    cache_fill: float


Watch = Callable[[VirtualLoop, SimulatedFleet, float, float], None]
"""Told of a run before it begins: its loop, its fleet, when the measured seconds begin, and when they end."""


def simulate(
    workload: Workload,
    load: float,
    policy: str,
    scripts: Sequence[Script],
    seconds: float,
    watch: Watch = lambda loop, fleet, begin_s, end_s: None,
) -> Run:
    """One run to its end; `scripts` of the warm-up and of `seconds` after it."""
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(_simulate(loop, workload, load, policy, scripts, seconds, watch))
    finally:
        loop.close()


async def _simulate(
    loop: VirtualLoop,
    workload: Workload,
    load: float,
    policy: str,
    scripts: Sequence[Script],
    seconds: float,
    watch: Watch,
) -> Run:
    fleet = SimulatedFleet(loop, policy, REPLICAS, step_cost.load(), EngineLimits(workload.blocks))
    watch(loop, fleet, workload.warm_s(load), workload.warm_s(load) + seconds)
    warm_s = workload.warm_s(load)
    end_s = warm_s + seconds
    conversations = Conversations(loop, fleet, scripts, end_s)
    made: list[int] = []
    fills: list[float] = []

    def note() -> None:
        made.append(sum(engine.output_tokens for engine in fleet.engines))
        fills.append(statistics.median(engine.cache.fill for engine in fleet.engines))

    loop.call_at(warm_s, note)
    loop.call_at(end_s, note)
    await conversations.over
    counted = [job for job in conversations.sent if job.arrived_s >= warm_s]
    ttft = sorted(job.first_s - job.arrived_s for job in counted)
    tpot = [(job.ended_s - job.first_s) / (job.output_tokens - 1) for job in counted if job.output_tokens > 1]
    per_replica = [sum(job.replica == number for job in counted) for number in range(REPLICAS)]
    return Run(
        workload=workload.name,
        load=load,
        policy=policy,
        requests=len(counted),
        ttft_mean_s=round(statistics.fmean(ttft), 4),
        ttft_p50_s=round(ttft[len(ttft) // 2], 4),
        ttft_p90_s=round(ttft[ceil(0.9 * len(ttft)) - 1], 4),
        tpot_mean_ms=round(statistics.fmean(tpot) * 1e3, 2),
        output_tok_s=round((made[1] - made[0]) / seconds),
        hit_rate=round(sum(job.cached_tokens for job in counted) / sum(len(job.tokens) for job in counted), 4),
        spread=round(max(per_replica) * REPLICAS / len(counted), 2),
        preemptions=sum(engine.preemptions for engine in fleet.engines),
        cache_fill=round(fills[0], 3),
    )


def compare(name: str, load: float, policies: Sequence[str], seconds: float, seed: int) -> list[Run]:
    """All `policies` on the very same requests."""
    workload = next(each for each in WORKLOADS if each.name == name)
    scripts = workload.scripts(load, workload.warm_s(load) + seconds, seed)
    return [simulate(workload, load, policy, scripts, seconds) for policy in policies]


def sweep(
    workloads: Sequence[str],
    policies: Sequence[str] = POLICIES,
    seconds: float = SECONDS,
    every: int = 1,
    processes: int = 2,
) -> list[dict]:
    """Every load of every workload, the dearest first."""
    points = [(each.name, load) for each in WORKLOADS if each.name in workloads for load in each.loads[::every]]
    points.sort(key=lambda point: -point[1])
    with ProcessPoolExecutor(processes) as pool:
        pending = [pool.submit(compare, name, load, policies, seconds, SEED) for name, load in points]
        runs = [run for compared in progress.results("quality", pending) for run in compared]
    order = [each.name for each in WORKLOADS]
    runs.sort(key=lambda run: (order.index(run.workload), run.load, POLICIES.index(run.policy)))
    return [asdict(run) for run in runs]
