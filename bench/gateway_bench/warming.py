"""What warming does for a new replica: one joins four that are busy, cold or warmed first, in virtual time.

The same requests both times. The replica joins at START_S; warmed, it first computes what the sibling is asked for
whose cache has saved most (`quire_runtime.kv.hot.hottest` on the prompts that found a block there), one prefix after
the other, and gets requests when it is done or after the gateway's ten seconds. What is simpler than the real thing:
asking the sibling takes no time, and its counts are never halved (they would be every 4,096 finds).

ladder, chats, hot: see `traffic`. personas: 60 system prompts of 3,000 tokens, the n-th asked for 1 / n as often as the
first, 300 own, 200 out.
"""

import statistics
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil

import numpy as np

from gateway_bench import progress, step_cost
from gateway_bench.conversations import Conversations
from gateway_bench.engine import BLOCK_SIZE, EngineLimits, Job
from gateway_bench.fleet import SimulatedFleet
from gateway_bench.traffic import H200_BLOCKS, Script, Texts, Turn, Workload, chats, extend, head, hot, ladder, poisson
from gateway_bench.virtual import VirtualLoop
from quire_gateway.warm import MOST_PREFIXES, WarmRules, siblings_of
from quire_runtime.kv.hot import HitBlocks, hottest

REPLICAS = 4
START_S, WINDOW_S = 30.0, 30.0
"""When the replica joins, and for how long requests count from then on."""
SEED = 11
_PERSONAS, _PERSONA_TOKENS = 60, 3000


def personas(load: float, seconds: float, seed: int) -> list[Script]:
    texts = Texts(seed)
    prompts = [texts.tokens(_PERSONA_TOKENS) for _ in range(_PERSONAS)]
    known = [extend([], prompt) for prompt in prompts]
    weights = [1 / (rank + 1) for rank in range(_PERSONAS)]
    scripts = []
    for at in poisson(texts.rng, load, seconds):
        (number,) = texts.rng.choices(range(_PERSONAS), weights)
        job = texts.job([prompts[number], texts.tokens(300)], known[number], 200, head(prompts[number]))
        scripts.append(Script(at, [Turn(job)]))
    return scripts


WORKLOADS = (
    Workload("ladder", "shared-prefix ladder", H200_BLOCKS, (10, 20), ladder),
    Workload("personas", "60 system prompts, some far more used", H200_BLOCKS, (40, 80), personas),
    Workload("chats", "multi-turn chats", H200_BLOCKS, (6, 12), chats),
    Workload("hot", "one hot system prompt", H200_BLOCKS, (40, 80), hot),
)


@dataclass(frozen=True, slots=True)
class Joining:
    """How a replica joined. new_*: of requests that it got in the window; the others: of all that came in it.

    warming_s: how long it was kept back. Hit rates: cached of all prompt tokens.
    """

    workload: str
    load: float
    is_warmed: bool
    warming_s: float
    prefixes: int
    tokens: int
    new_requests: int
    new_hit_rate: float
    new_ttft_mean_s: float
    new_ttft_p90_s: float
    hit_rate: float
    ttft_mean_s: float
    ttft_p90_s: float


class HitCounter:
    """Prompts that found a block of each replica, as an engine counts them."""

    def __init__(self) -> None:
        self._hits: dict[int, Counter[bytes]] = {}
        self._blocks: dict[bytes, tuple[int, int, bytes]] = {}
        """Identity, its parent's (-1: none) and tokens of each block that was ever found."""

    def found(self, job: Job) -> None:
        """`job` has begun; what it found is known."""
        keys = job.keys[: job.cached_tokens // BLOCK_SIZE]
        self._hits.setdefault(job.replica, Counter()).update(keys)
        data, size, parent = memoryview(job.tokens[:]).cast("B"), 4 * BLOCK_SIZE, -1
        for depth, key in enumerate(keys):
            if key not in self._blocks:
                self._blocks[key] = len(self._blocks), parent, bytes(data[depth * size : (depth + 1) * size])
            parent = self._blocks[key][0]

    def hottest(self, replica: int, findable: set[bytes], max_tokens: int) -> list["array[int]"]:
        """Token ids of the prefixes that `replica` is asked for most, of those that it holds."""
        hits = {key: count for key, count in self._hits.get(replica, {}).items() if key in findable}
        known = [self._blocks[key] for key in hits]
        seen = HitBlocks(
            np.array(list(hits.values()), np.int32),
            np.array([identity for identity, _, _ in known], np.int64),
            np.array([parent for _, parent, _ in known], np.int64),
            np.frombuffer(b"".join(data for _, _, data in known), np.int32).reshape(-1, BLOCK_SIZE),
            {},
        )
        return [array("I", prefix.token_ids.tobytes()) for prefix in hottest(seen, MOST_PREFIXES, max_tokens)]


def simulate(workload: Workload, load: float, scripts: Sequence[Script], is_warmed: bool) -> Joining:
    loop = VirtualLoop()
    try:
        return loop.run_until_complete(_simulate(loop, workload, load, scripts, is_warmed))
    finally:
        loop.close()


async def _simulate(
    loop: VirtualLoop, workload: Workload, load: float, scripts: Sequence[Script], is_warmed: bool
) -> Joining:
    fleet = SimulatedFleet(loop, "prefixCost", REPLICAS, step_cost.load(), EngineLimits(workload.blocks))
    counter, rules = HitCounter(), WarmRules()
    computed: list[Job] = []
    opened_s = 0.0

    def count(job: Job) -> None:
        counted = job.on_first
        assert counted is not None

        def first() -> None:
            counter.found(job)
            counted()

        job.on_first = first

    def join() -> None:
        replica = fleet.start_replica()
        engine = fleet.engines[-1]
        hot_prefixes: list[array[int]] = []
        if is_warmed:
            info = fleet.deployment.candidates(set())[0].info
            assert info is not None
            sibling = int(siblings_of(replica, info, loop.time())[0].id[1:])
            findable = fleet.engines[sibling].cache.findable
            hot_prefixes = counter.hottest(sibling, findable, min(rules.tokens, info.kv_capacity_tokens // 2))

        def compute_next() -> None:
            nonlocal opened_s
            if len(computed) < len(hot_prefixes) and loop.time() < START_S + rules.timeout_s:
                tokens = hot_prefixes[len(computed)]
                job = Job(tokens, extend([], tokens), output_tokens=1, on_end=compute_next)
                computed.append(job)
                engine.add(job)
                return
            opened_s = loop.time()
            fleet.open(replica)

        compute_next()

    conversations = Conversations(loop, fleet, scripts, START_S + WINDOW_S, count)
    loop.call_at(START_S, join)
    await conversations.over
    window = [job for job in conversations.sent if START_S <= job.arrived_s < START_S + WINDOW_S]
    new = [job for job in window if job.replica == REPLICAS]
    return Joining(
        workload=workload.name,
        load=load,
        is_warmed=is_warmed,
        warming_s=round(opened_s - START_S, 3),
        prefixes=len(computed),
        tokens=sum(len(job.tokens) for job in computed),
        new_requests=len(new),
        new_hit_rate=hit_rate(new),
        new_ttft_mean_s=mean_ttft_s(new),
        new_ttft_p90_s=p90_ttft_s(new),
        hit_rate=hit_rate(window),
        ttft_mean_s=mean_ttft_s(window),
        ttft_p90_s=p90_ttft_s(window),
    )


def hit_rate(jobs: Sequence[Job]) -> float:
    return round(sum(job.cached_tokens for job in jobs) / sum(len(job.tokens) for job in jobs), 4)


def mean_ttft_s(jobs: Sequence[Job]) -> float:
    return round(statistics.fmean(job.first_s - job.arrived_s for job in jobs), 4)


def p90_ttft_s(jobs: Sequence[Job]) -> float:
    ordered = sorted(job.first_s - job.arrived_s for job in jobs)
    return round(ordered[ceil(0.9 * len(ordered)) - 1], 4)


def sweep() -> list[dict[str, object]]:
    """Every load of every workload, cold and warmed."""
    rows = []
    for workload in progress.each("warming", WORKLOADS):
        for load in workload.loads:
            scripts = workload.scripts(load, START_S + WINDOW_S, SEED)
            rows += [asdict(simulate(workload, load, scripts, is_warmed)) for is_warmed in (False, True)]
    return rows
