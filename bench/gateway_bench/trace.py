"""Why a policy is ahead: the choices of one load, one by one, beside what every engine's cache held at that moment.

A prompt's full blocks that its replica had not cached are `away` if another replica held them when the choice was made,
`gone` if none did: new, or evicted. Time to the first token is that until the engine admits the request (it waits for
blocks, or for prompts before it) and that of its prefill, the steps of others included.
"""

import statistics
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field

from gateway_bench import progress, quality
from gateway_bench.engine import BLOCK_SIZE, Job
from gateway_bench.fleet import SimulatedFleet
from gateway_bench.traffic import WORKLOADS
from gateway_bench.virtual import VirtualLoop


@dataclass(frozen=True, slots=True)
class Trace:
    """Of the measured seconds; means over requests, or over those seconds where it says `mean`.

    sent_away: requests that went past a replica that held more of the prompt. Their in-flight counts: at the replica
    that they went to, and at the one with most of the prompt. copies: replicas that hold a block of any prompt of the
    run, where one does, at the end of those seconds.
    """

    workload: str
    load: float
    policy: str
    seed: int
    requests: int
    ttft_ms: float
    admission_ms: float
    prefill_ms: float
    away_tokens: float
    gone_tokens: float
    sent_away: int
    sent_away_to: float
    sent_away_from: float
    in_flight_most: float
    in_flight_least: float
    waiting_most: float
    waiting_least: float
    copies: float
    preemptions: int
    reasons: dict[str, int]


@dataclass
class Watcher:
    """Follows one run."""

    fleet: SimulatedFleet | None = None
    jobs: list[Job] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    away: list[int] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)
    past: list[tuple[int, int]] = field(default_factory=list)
    """In-flight counts of requests sent away: where they went, and where most of the prompt was."""
    in_flight: list[list[int]] = field(default_factory=list)
    waiting: list[list[int]] = field(default_factory=list)
    copies: float = 0.0
    _keys: set[bytes] = field(default_factory=set)

    def watch(self, loop: VirtualLoop, fleet: SimulatedFleet, begin_s: float, end_s: float) -> None:
        """`quality.Watch`."""
        self.fleet = fleet

        def chosen(job: Job, reason: str) -> None:
            self._keys.update(job.keys)
            if begin_s <= loop.time() < end_s:
                self._chosen(job, reason)

        def look() -> None:
            self.in_flight.append(self._in_flight())
            self.waiting.append([len(engine.waiting) for engine in fleet.engines])
            if loop.time() + 1.0 < end_s:
                loop.call_later(1.0, look)
            else:
                held = Counter(key for engine in fleet.engines for key in engine.cache.findable & self._keys)
                self.copies = statistics.fmean(held.values()) if held else 0.0

        fleet.on_choice = chosen
        loop.call_at(begin_s, look)

    def _in_flight(self) -> list[int]:
        assert self.fleet is not None
        return [replica.in_flight for replica in self.fleet.deployment.replicas.values()]

    def _chosen(self, job: Job, reason: str) -> None:
        assert self.fleet is not None
        full = (len(job.tokens) - 1) // BLOCK_SIZE
        depths = [engine.cache.match(job.keys, full) for engine in self.fleet.engines]
        warmest = max(range(len(depths)), key=depths.__getitem__)
        self.jobs.append(job)
        self.reasons.append(reason)
        self.away.append(BLOCK_SIZE * (depths[warmest] - depths[job.replica]))
        self.gone.append(BLOCK_SIZE * (full - depths[warmest]))
        if depths[warmest] > depths[job.replica]:
            in_flight = self._in_flight()
            self.past.append((in_flight[job.replica] - 1, in_flight[warmest]))


def trace(name: str, load: float, policy: str, seconds: float, seed: int) -> Trace:
    """The run of `quality` with these settings."""
    workload = next(each for each in WORKLOADS if each.name == name)
    scripts = workload.scripts(load, workload.warm_s(load) + seconds, seed)
    seen = Watcher()
    run = quality.simulate(workload, load, policy, scripts, seconds, seen.watch)

    def mean(values: Sequence[float], digits: int = 1) -> float:
        return round(statistics.fmean(values), digits) if values else 0.0

    return Trace(
        workload=name,
        load=load,
        policy=policy,
        seed=seed,
        requests=len(seen.jobs),
        ttft_ms=mean([1e3 * (job.first_s - job.arrived_s) for job in seen.jobs]),
        admission_ms=mean([1e3 * (job.admitted_s - job.arrived_s) for job in seen.jobs]),
        prefill_ms=mean([1e3 * (job.first_s - job.admitted_s) for job in seen.jobs]),
        away_tokens=mean(seen.away),
        gone_tokens=mean(seen.gone),
        sent_away=len(seen.past),
        sent_away_to=mean([to for to, _ in seen.past]),
        sent_away_from=mean([there for _, there in seen.past]),
        in_flight_most=mean([max(each) for each in seen.in_flight]),
        in_flight_least=mean([min(each) for each in seen.in_flight]),
        waiting_most=mean([max(each) for each in seen.waiting]),
        waiting_least=mean([min(each) for each in seen.waiting]),
        copies=round(seen.copies, 3),
        preemptions=run.preemptions,
        reasons=dict(Counter(seen.reasons).most_common()),
    )


def traces(
    points: Sequence[tuple[str, float, str]], seconds: float, seed: int, processes: int = 2
) -> list[dict[str, object]]:
    """Of (workload, load, policy) each."""
    with ProcessPoolExecutor(processes) as pool:
        pending = [pool.submit(trace, name, load, policy, seconds, seed) for name, load, policy in points]
        return [asdict(traced) for traced in progress.results("trace", pending)]


@dataclass(frozen=True, slots=True)
class Gap:
    """By what share ours is above `policy` in `field`, each seed's requests the same for both: the mean over seeds, and
    twice its standard error."""

    workload: str
    load: float
    policy: str
    field: str
    seeds: int
    mean: float
    twice_error: float


def gap(field: str, own: Sequence[quality.Run], theirs: Sequence[quality.Run]) -> Gap:
    """Of runs of one load, a pair for each of at least two seeds."""
    shares = [getattr(mine, field) / getattr(other, field) - 1 for mine, other in zip(own, theirs, strict=True)]
    error = 2 * statistics.stdev(shares) / len(shares) ** 0.5
    other = theirs[0]
    mean = round(statistics.fmean(shares), 4)
    return Gap(other.workload, other.load, other.policy, field, len(shares), mean, round(error, 4))


def gaps(
    points: Sequence[tuple[str, float, str]], ours: str, seconds: float, seeds: Sequence[int], processes: int = 2
) -> list[dict[str, object]]:
    """TTFT and TPOT of `ours` beside each (workload, load, policy)."""
    found = []
    with ProcessPoolExecutor(processes) as pool:
        pending = [
            pool.submit(quality.compare, name, load, (ours, policy), seconds, seed)
            for name, load, policy in points
            for seed in seeds
        ]
        pairs = progress.results("trace, other seeds", pending)
        for first in range(0, len(pairs), len(seeds)):
            own, theirs = zip(*pairs[first : first + len(seeds)], strict=True)
            found += [asdict(gap(field, own, theirs)) for field in ("ttft_mean_s", "ttft_p90_s", "tpot_mean_ms")]
    return found
