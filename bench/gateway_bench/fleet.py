"""Simulated replicas behind the gateway's own state: the functions of the data plane choose, on its own counts."""

import random
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count

from gateway_bench import rivals
from gateway_bench.engine import BLOCK_SIZE, EngineLimits, Job, SimulatedEngine
from gateway_bench.step_cost import StepCost
from gateway_bench.virtual import VirtualLoop
from quire_api import blocks, wire
from quire_api.kv_events import Batch, FrameReader, Operation, Removed, Stored, join_keys, pack_snapshot
from quire_gateway.block_space import BlockSpace
from quire_gateway.choose import Chain, Choice
from quire_gateway.fleet import DeploymentState, ReplicaState, Ticket
from quire_gateway.index import INDEX_KEY_BYTES
from quire_gateway.models import Prompt
from quire_gateway.upstream import UpstreamPool

REVISION = "simulated"
SPACE = BlockSpace(REVISION, BLOCK_SIZE, "")
ROOT = SPACE.root("")
EVENT_DELAY_S = 0.001
"""From an engine's step to the gateway's index."""
POLICIES = ("prefixCost", "prefixCost-fallback", "leastLoad", "roundRobin", "chwbl", "llm-d")


class Hashed(Chain):
    """A chain whose keys are known: hashing is the same for every policy, and no part of virtual time."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        super().__init__(ROOT, (), BLOCK_SIZE)
        self._known = [key[:INDEX_KEY_BYTES] for key in keys]
        self._length = len(keys)


class SimulatedFleet:
    """`replicas` engines and one gateway. `send` routes a job by `policy` and gives it to an engine.

    prefixCost: exact events. prefixCost-fallback: the same without any event. leastLoad, roundRobin: ours too.
    chwbl: KubeAI's; llm-d: its default; see `rivals`.
    """

    def __init__(self, loop: VirtualLoop, policy: str, replicas: int, cost: StepCost, limits: EngineLimits) -> None:
        self._loop = loop
        self._policy = policy
        ours = policy.removesuffix("-fallback") if policy not in ("chwbl", "llm-d") else "roundRobin"
        entry = wire.Deployment(name="d", namespace="n", served_names=["m"], replicas=[], policy=ours)
        self.deployment = DeploymentState(entry)
        self.engines: list[SimulatedEngine] = []
        self._cost, self._limits = cost, limits
        for _ in range(replicas):
            self.add_replica()
        self._ring = rivals.BoundedRing(replicas)
        self._prefixes = rivals.ApproximatePrefixes(replicas, limits.blocks)
        self._scraped = [rivals.Scraped()] * replicas
        self._scraped_at = -1.0
        self._rng = random.Random(1)
        self.on_choice: Callable[[Job, str], None] = _unwatched
        """Called with each job that has got its replica, before the engine has it, and the reason, ours only."""

    def add_replica(self) -> ReplicaState:
        """One more, routable at once."""
        replica = self.start_replica()
        self.open(replica)
        return replica

    def open(self, replica: ReplicaState) -> None:
        """It gets requests from now on."""
        limits = self._limits
        replica.became_routable(
            wire.ModelInfo(
                served_names=["m"],
                model_revision=REVISION,
                block_size=BLOCK_SIZE,
                block_format=blocks.FORMAT_VERSION,
                max_model_len=131072,
                tokenizer_digest="",
                kv_capacity_tokens=limits.blocks * BLOCK_SIZE,
                max_num_seqs=limits.max_num_seqs,
                engine_epoch="1",
            )
        )

    def start_replica(self) -> ReplicaState:
        """One more, whose engine runs; it gets no requests before `open`."""
        limits, number = self._limits, len(self.engines)
        name, tells = f"r{number}", self._policy == "prefixCost"
        url = f"http://{name}:1"
        replica = ReplicaState(name, url, self.deployment, UpstreamPool(url))
        self.deployment.replicas[name] = replica
        on_way: deque[Batch] = deque()

        sequence = count(1)

        def tell(stored: list[bytes], removed: list[bytes]) -> None:
            operations: list[Operation] = []
            if removed:
                operations.append(Removed(join_keys(removed)))
            if stored:
                operations.append(Stored(b"", join_keys(stored)))
            on_way.append(Batch("1", next(sequence), operations))
            # Timers of one moment have no order; batches have.
            self._loop.call_later(EVENT_DELAY_S, lambda: self._apply(replica, on_way.popleft()))

        if tells:
            replica.feed.opened(self._loop.time())
            for frame in FrameReader().read(pack_snapshot("1", 0, BLOCK_SIZE, limits.blocks, [])):
                replica.feed.apply(frame, self._loop.time())
        self.engines.append(SimulatedEngine(self._loop, self._cost, limits, tell if tells else _silent))
        return replica

    def _apply(self, replica: ReplicaState, batch: Batch) -> None:
        replica.feed.apply(batch, self._loop.time())

    def send(self, job: Job, on_end: Callable[[], None] = lambda: None) -> None:
        """Route `job` now; its moments and its replica are recorded in it."""
        job.arrived_s = sent_s = self._loop.time()
        ticket, reason = self._route(job)
        job.replica = int(ticket.replica.id[1:])
        self.on_choice(job, reason)
        meter = self.deployment.load

        def first() -> None:
            ticket.first_byte()
            meter.ttft.add(job.first_s - job.arrived_s, job.first_s)

        def ended() -> None:
            ticket.release()
            meter.service.add(job.ended_s - sent_s, job.ended_s)
            if job.output_tokens > 1:
                meter.itl.add((job.ended_s - job.first_s) / (job.output_tokens - 1), job.ended_s)
            on_end()

        job.on_first = first

        job.on_end = ended
        self.engines[job.replica].add(job)

    def _route(self, job: Job) -> tuple[Ticket, str]:
        deployment = self.deployment
        replicas = deployment.candidates(set())
        if self._policy == "chwbl":
            chosen = self._ring.pick(job.affinity, [replica.in_flight for replica in replicas])
            return deployment.take(replicas[chosen], len(job.tokens)), ""
        if self._policy == "llm-d":
            self._scrape()
            chosen = rivals.pick_llm_d(self._prefixes.scores(job.keys), self._scraped, self._rng)
            self._prefixes.add(chosen, job.keys)
            return deployment.take(replicas[chosen], len(job.tokens)), ""
        tokens = job.tokens if job.keys else []
        choice = Choice(deployment, Prompt(tokens, len(job.tokens)), {SPACE: Hashed(job.keys)})
        pick = choice.pick(replicas)
        replica = deployment.replicas[pick.replica]
        replica.saved_tokens.add(pick.cached_tokens, self._loop.time())
        ticket = deployment.take(replica, pick.uncached_tokens)
        ticket.expectation = choice.expect(replica)
        return ticket, pick.reason

    def _scrape(self) -> None:
        now = self._loop.time()
        if now - self._scraped_at >= rivals.SCRAPE_S:
            self._scraped_at = now
            self._scraped = [
                rivals.Scraped(len(engine.waiting), engine.cache.used / engine.cache.blocks) for engine in self.engines
            ]


def _silent(stored: list[bytes], removed: list[bytes]) -> None:
    pass


def _unwatched(job: Job, reason: str) -> None:
    pass
