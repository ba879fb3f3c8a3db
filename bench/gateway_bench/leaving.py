"""What it is worth that scale-down takes the coldest replica: one of five leaves four that go on, in virtual time.

Four serve from the start, a fifth joins at JOIN_S, unwarmed, and one of the five leaves at LEAVE_S: the one whose cache
has saved least of late, as the operator has it (`quire_operator.decide`; the gateway tells each replica's saved tokens
as `warmth`), or, for comparison, the one that has saved most, or the one with the fewest requests. It is drained: what
runs there ends there. The same requests each time; those of WINDOW_S from then on count.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from gateway_bench import progress, step_cost
from gateway_bench.conversations import Conversations
from gateway_bench.engine import EngineLimits
from gateway_bench.fleet import SimulatedFleet
from gateway_bench.traffic import Script, Workload
from gateway_bench.virtual import VirtualLoop
from gateway_bench.warming import REPLICAS, SEED, WORKLOADS, hit_rate, mean_ttft_s, p90_ttft_s
from quire_gateway.fleet import ReplicaState

JOIN_S, LEAVE_S, WINDOW_S = 30.0, 60.0, 30.0

Order = Callable[[ReplicaState, float], float]
"""(replica, now) -> a number; the replica with the least leaves."""
LEAVERS: dict[str, Order] = {
    "coldest": lambda replica, now: replica.saved_tokens.value(now),
    "least busy": lambda replica, now: replica.in_flight,
    "warmest": lambda replica, now: -replica.saved_tokens.value(now),
}


@dataclass(frozen=True, slots=True)
class Leaving:
    """left_saved: share of all saved tokens, as they fade, that the leaving replica had saved."""

    workload: str
    load: float
    left: str
    left_saved: float
    requests: int
    hit_rate: float
    ttft_mean_s: float
    ttft_p90_s: float


def simulate(workload: Workload, load: float, scripts: Sequence[Script], left: str) -> Leaving:
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(_simulate(loop, workload, load, scripts, left))
    finally:
        loop.close()


async def _simulate(
    loop: VirtualLoop, workload: Workload, load: float, scripts: Sequence[Script], left: str
) -> Leaving:
    fleet = SimulatedFleet(loop, "prefixCost", REPLICAS, step_cost.load(), EngineLimits(workload.blocks))
    saved = 0.0

    def leave() -> None:
        nonlocal saved
        now, replicas = loop.time(), fleet.deployment.candidates(set())
        leaving = min(replicas, key=lambda replica: LEAVERS[left](replica, now))
        saved = leaving.saved_tokens.value(now) / sum(replica.saved_tokens.value(now) for replica in replicas)
        leaving.is_draining = True

    conversations = Conversations(loop, fleet, scripts, LEAVE_S + WINDOW_S)
    loop.call_at(JOIN_S, fleet.add_replica)
    loop.call_at(LEAVE_S, leave)
    await conversations.over
    window = [job for job in conversations.sent if LEAVE_S <= job.arrived_s < LEAVE_S + WINDOW_S]
    return Leaving(
        workload=workload.name,
        load=load,
        left=left,
        left_saved=round(saved, 3),
        requests=len(window),
        hit_rate=hit_rate(window),
        ttft_mean_s=mean_ttft_s(window),
        ttft_p90_s=p90_ttft_s(window),
    )


def sweep() -> list[dict[str, object]]:
    """The lighter load of every workload; at the others four are too few, whoever leaves."""
    rows = []
    for workload in progress.each("leaving", WORKLOADS):
        load = workload.loads[0]
        scripts = workload.scripts(load, LEAVE_S + WINDOW_S, SEED)
        rows += [asdict(simulate(workload, load, scripts, left)) for left in LEAVERS]
    return rows
