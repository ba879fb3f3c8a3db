"""Autoscaling on shaped traffic: our law beside KubeAI's and fixed fleets, in virtual time.

Requests of 2,000 tokens in and 1,000 out, nothing shared, to simulated M-8B replicas that take STARTUP_S from the
decision to the first request. Laws see what the gateway counts (`quire_gateway.fleet.load_of`): ours each second,
KubeAI's each 10 s. A replica that goes is drained first. Nobody's request is refused: without a replica it is
held, and it counts.

ramp           1 to 30 requests/s in 10 minutes, 3 minutes there, back in 5
spike          4 requests/s, and for 90 s 25
day            24 hours in one: a night of 1, two peaks of 22 and 29 requests/s
bursts         4 requests/s, and every 3 minutes for 30 s 25: shorter than it takes to serve what piles up at the first
zero-to-burst  nothing, then 15 requests/s for 2 minutes; again after 10 minutes of nothing; minReplicas 0
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from math import ceil, exp, floor

from gateway_bench import kubeai, progress, step_cost
from gateway_bench.engine import EngineLimits, Job
from gateway_bench.fleet import SimulatedFleet
from gateway_bench.traffic import H200_BLOCKS
from gateway_bench.virtual import VirtualLoop
from quire_gateway.fleet import ReplicaState, load_of
from quire_operator.autoscale import History, Load, ScalingLaw, desired_replicas

STARTUP_S = 20.0
"""Our engine needs 6 to 14 s on an H200 (h200.jsonl, `startup`); the rest is the pod's."""
TARGET = 32
MOST = 12
TTFT_SLO_S, TPOT_SLO_S = 0.5, 0.015
IDLE_TIMEOUT_S = 120.0
PROMPT, OUTPUT = 2000, 1000


@dataclass(frozen=True, slots=True)
class Shape:
    """rate(t): requests a second; at most `peak`."""

    name: str
    seconds: float
    peak: float
    rate: Callable[[float], float]
    min_replicas: int = 1


def _ramp(t: float) -> float:
    if t < 600:
        return 1 + 29 * t / 600
    return 30.0 if t < 780 else max(1.0, 30 - 29 * (t - 780) / 300)


def _spike(t: float) -> float:
    return 25.0 if 300 <= t < 390 else 4.0


def _day(t: float) -> float:
    hour = t / 150
    return 1 + 21 * exp(-(((hour - 10.5) / 2.2) ** 2)) + 28 * exp(-(((hour - 19) / 2.5) ** 2))


def _burst(t: float) -> float:
    return 15.0 if 60 <= t < 180 or 780 <= t < 900 else 0.0


def _bursts(t: float) -> float:
    return 25.0 if t >= 120 and (t - 120) % 180 < 30 else 4.0


SHAPES = (
    Shape("ramp", 1200, 30, _ramp),
    Shape("spike", 900, 25, _spike),
    Shape("bursts", 1200, 25, _bursts),
    Shape("day", 3600, 30, _day),
    Shape("zero-to-burst", 1200, 15, _burst, min_replicas=0),
)

Decide = Callable[[Load, int, float], int | None]
"""(what is seen, replicas wanted so far, now) -> replicas from now on; None: no decision now."""


def ours(shape: Shape) -> Decide:
    law = ScalingLaw(
        in_flight_per_replica=TARGET,
        min_replicas=shape.min_replicas,
        max_replicas=MOST,
        ttft_s=TTFT_SLO_S,
        itl_s=TPOT_SLO_S,
        idle_timeout_s=IDLE_TIMEOUT_S,
    )
    past = History.empty()

    def decide(seen: Load, wanted: int, now: float) -> int:
        nonlocal past
        decision = desired_replicas(seen, law, past, now)
        past = decision.history
        return decision.replicas

    return decide


def kubeai_law(shape: Shape, target: int) -> Decide:
    law = kubeai.KubeAILaw(target, shape.min_replicas, MOST)
    ticks = 0

    def decide(seen: Load, wanted: int, now: float) -> int | None:
        nonlocal ticks
        ticks += 1
        # From zero its proxy sets the first replica itself; without endpoints the autoscaler skips the model.
        if not wanted:
            return 1 if seen.requests else None
        if ticks % round(kubeai.INTERVAL_S) or not seen.ready:
            return None
        return law.decide(seen.requests, wanted)

    return decide


def fixed(replicas: int) -> Decide:
    return lambda seen, wanted, now: replicas


@dataclass(frozen=True, slots=True)
class Outcome:
    """slo: share of requests within both targets. replica_hours: from a replica's start to its end."""

    shape: str
    law: str
    requests: int
    slo: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    replica_hours: float
    most_replicas: int
    changes: int
    replicas: Sequence[int]
    """Wanted, each 10 s."""


class ScaledFleet:
    """A fleet whose size follows `decide`; requests are held while no replica is routable."""

    def __init__(self, loop: VirtualLoop, decide: Decide, first: int) -> None:
        self._loop = loop
        self._decide = decide
        limits = EngineLimits(H200_BLOCKS)
        self.fleet = SimulatedFleet(loop, "prefixCost-fallback", first, step_cost.load(), limits)
        self.held: deque[Job] = deque()
        self.wanted = first
        self.most = first
        self.changes = 0
        self.replica_s = 0.0
        self.history: list[int] = []
        self._starting: list[object] = []
        self._going: list[ReplicaState] = []

    def send(self, job: Job, on_end: Callable[[], None]) -> None:
        """Route it, or hold it."""
        job.on_end = on_end
        deployment = self.fleet.deployment
        job.arrived_s = self._loop.time()
        self.held.append(job)
        deployment.is_waking |= not deployment.candidates(set())
        self._let_go()

    def _let_go(self) -> None:
        """As `Turns` does: in the order of their coming, as far as there is room."""
        deployment = self.fleet.deployment
        while self.held and deployment.candidates(set()) and (not deployment.is_waking or deployment.has_room(0)):
            self._pass_on(self.held.popleft())
        deployment.held = len(self.held)

    def _pass_on(self, job: Job) -> None:
        on_end, arrived_s = job.on_end, job.arrived_s
        assert on_end is not None
        self.fleet.send(job, on_end)
        job.arrived_s = arrived_s
        counted = job.on_first
        assert counted is not None

        def first() -> None:
            counted()
            self._let_go()

        job.on_first = first

    def tick(self) -> None:
        """One second has passed: look, decide, start, drain."""
        now, deployment = self._loop.time(), self.fleet.deployment
        self.replica_s += len(deployment.replicas) + len(self._starting)
        for replica in [each for each in self._going if not each.in_flight]:
            self._going.remove(replica)
            del deployment.replicas[replica.id]
            deployment.index.remove_replica(replica.id)
        told = load_of(deployment, now)
        seen = Load(
            in_flight=told.in_flight,
            held=told.held,
            ready=len(deployment.candidates(set())),
            starting=len(self._starting),
            wanted=self.wanted,
            ttft_s=told.ttft_p90_s,
            itl_s=told.itl_p90_s,
            arrivals_per_s=told.arrivals_per_s,
            service_s=told.service_s,
            idle_s=told.idle_s,
        )
        decided = self._decide(seen, self.wanted, now)
        if decided is not None and decided != self.wanted:
            self.changes += 1
            self._become(decided)
        self.most = max(self.most, self.wanted)
        if round(now) % 10 == 0:
            self.history.append(self.wanted)

    def _become(self, replicas: int) -> None:
        for _ in range(self.wanted, replicas):
            token = object()
            self._starting.append(token)
            self._loop.call_later(STARTUP_S, self._started, token)
        for _ in range(replicas, self.wanted):
            if self._starting:
                self._starting.pop()
                continue
            # The coldest would go; nothing is shared here, so the least busy does.
            leaving = min(self.fleet.deployment.candidates(set()), key=lambda each: each.in_flight)
            leaving.is_draining = True
            self._going.append(leaving)
        self.wanted = replicas

    def _started(self, token: object) -> None:
        if token not in self._starting:
            return
        self._starting.remove(token)
        self.fleet.add_replica()
        self._let_go()


def simulate(shape: Shape, law: str, decide: Decide, first: int, seed: int = 3) -> Outcome:
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(_simulate(loop, shape, law, decide, first, seed))
    finally:
        loop.close()


async def _simulate(loop: VirtualLoop, shape: Shape, law: str, decide: Decide, first: int, seed: int) -> Outcome:
    scaled = ScaledFleet(loop, decide, first)
    meter = scaled.fleet.deployment.load
    rng = random.Random(seed)
    done = loop.create_future()
    jobs: list[Job] = []
    ended = 0

    def end() -> None:
        nonlocal ended
        ended += 1
        meter.ended(loop.time())

    def arrive() -> None:
        # Thinning: a Poisson process of the peak's rate, of which the shape keeps its share.
        if rng.random() < shape.rate(loop.time()) / shape.peak:
            job = Job(range(PROMPT), [], OUTPUT)
            jobs.append(job)
            meter.began(loop.time())
            scaled.send(job, end)
        gap = rng.expovariate(shape.peak)
        if loop.time() + gap < shape.seconds:
            loop.call_later(gap, arrive)

    def tick() -> None:
        scaled.tick()
        if loop.time() < shape.seconds or ended < len(jobs):
            loop.call_later(1.0, tick)
        else:
            done.set_result(None)

    arrive()
    loop.call_later(1.0, tick)
    await done
    ttft = sorted(job.first_s - job.arrived_s for job in jobs)
    good = sum(
        job.first_s - job.arrived_s <= TTFT_SLO_S and (job.ended_s - job.first_s) / (OUTPUT - 1) <= TPOT_SLO_S
        for job in jobs
    )

    def at(share: float) -> float:
        return round(ttft[ceil(share * len(ttft)) - 1], 3)

    return Outcome(
        shape=shape.name,
        law=law,
        requests=len(jobs),
        slo=round(good / len(jobs), 4),
        ttft_p50_s=at(0.5),
        ttft_p90_s=at(0.9),
        ttft_p99_s=at(0.99),
        replica_hours=round(scaled.replica_s / 3600, 3),
        most_replicas=scaled.most,
        changes=scaled.changes,
        replicas=scaled.history,
    )


LAWS = (
    "quire",
    "kubeai, target 32",
    "kubeai, target 100",
    "fixed, fewer hours",
    "fixed, more hours",
    "fixed for the peak",
)
"""Of the fixed fleets the first two are those next to our law in replica-hours: the largest that takes no more, and the
smallest that takes as many or more."""
PER_REPLICA = 4.0
"""Requests a second that keep one replica at about TARGET in flight."""


def run(shape_name: str, law: str, hours: float = 0.0) -> Outcome:
    """hours: replica-hours of our law, for the fleets that are as large."""
    shape = next(each for each in SHAPES if each.name == shape_name)
    first = shape.min_replicas
    if law == "quire":
        decide = ours(shape)
    elif law.startswith("kubeai"):
        decide = kubeai_law(shape, int(law.rpartition(" ")[2]))
    else:
        as_many = 3600 * hours / shape.seconds
        first = {
            "fixed, fewer hours": floor(as_many),
            "fixed, more hours": ceil(as_many),
            "fixed for the peak": ceil(shape.peak / PER_REPLICA),
        }[law]
        decide = fixed(first)
    return simulate(shape, law, decide, first)


def compare(shape: str, laws: Sequence[str]) -> list[Outcome]:
    """All `laws` on the very same requests."""
    own = run(shape, "quire")
    return [own if law == "quire" else run(shape, law, own.replica_hours) for law in laws]


def sweep(shapes: Sequence[str], laws: Sequence[str] = LAWS, processes: int = 2) -> list[dict[str, object]]:
    chosen = [shape.name for shape in SHAPES if shape.name in shapes]
    with ProcessPoolExecutor(processes) as pool:
        pending = [pool.submit(compare, shape, laws) for shape in chosen]
        return [asdict(outcome) for compared in progress.results("scaling", pending) for outcome in compared]
