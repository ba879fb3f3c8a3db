"""The deployments and replicas that exist now, with what is counted of each."""

import asyncio
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Protocol

from quire_api import wire
from quire_gateway.block_space import BlockSpace, space_of, why_unknown
from quire_gateway.cost import CachedTokens, Candidates
from quire_gateway.health import Health
from quire_gateway.index import Expectation, PrefixIndex
from quire_gateway.keys import Callers, digest_of
from quire_gateway.kv_feed import Feed, FeedCounts
from quire_gateway.load import WINDOW_S, Fading, LoadMeter
from quire_gateway.misses import Beginnings
from quire_gateway.outliers import Ejection, Observed, OutlierRules, find_outliers
from quire_gateway.pacing import paced_room
from quire_gateway.policies import POLICIES, Policy
from quire_gateway.pulse import Pulse
from quire_gateway.retries import RetryBudget
from quire_gateway.turns import Turns
from quire_gateway.upstream import UpstreamFailure, UpstreamPool

_EVENTS_COME_WITHIN_S = 1.0

Excluded = set[tuple["ReplicaState", int]]
"""Replicas, each with the generation of its health, that a request has failed on. Not by their ids: one that comes back
at another address counts its generations anew."""


class Answer(Protocol):
    """One attempt's answer, on its way."""

    def fail(self, failure: UpstreamFailure) -> None:
        """Hear no more of the replica."""
        ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one deployment may have in the gateway at a time; counts and seconds.

    saturation: requests that a replica may have for each sequence that it can work on at a time, so that it never waits
    for the next; the others wait at the gateway. retry_ratio: charged retries for each request, in the long run.
    """

    in_flight_per_replica: int = 512
    held: int = 1024
    hold_timeout_s: float = 60.0
    saturation: float = 1.25
    retry_ratio: float = 0.2


class Ticket:
    """One request's share in its replica's counts; `release` returns it, once."""

    __slots__ = ("_queued", "expectation", "is_released", "replica", "sent_at", "work_tokens")

    def __init__(self, replica: "ReplicaState", uncached_tokens: int) -> None:
        self.replica = replica
        self.expectation: Expectation | None = None
        """Blocks that its prefill will make the replica store."""
        self._queued = uncached_tokens
        self.is_released = False
        self.sent_at = 0.0
        """Time of the loop's clock."""
        self.work_tokens = replica.queued_tokens + uncached_tokens
        """Prompt tokens that the replica has to prefill before this request's first token."""
        replica.in_flight += 1
        replica.queued_tokens += uncached_tokens

    def first_byte(self) -> None:
        """The prefill is done: its tokens no longer queue, and the engine will have told what it stored."""
        self.replica.queued_tokens -= self._queued
        self._queued = 0
        if self.expectation is not None:
            index = self.replica.deployment.index
            asyncio.get_running_loop().call_later(_EVENTS_COME_WITHIN_S, index.settle, self.expectation)
            self.expectation = None
        self.replica.deployment.prefilled()

    def release(self) -> None:
        """The request has ended, in whatever way."""
        if not self.is_released:
            self.is_released = True
            self.first_byte()
            self.replica.in_flight -= 1
            self.replica.deployment.turns.pump()


@dataclass(eq=False, slots=True)
class ReplicaState:
    """One replica as this gateway sees it."""

    id: str
    url: str
    deployment: "DeploymentState"
    pool: UpstreamPool
    is_draining: bool = False
    is_removed: bool = False
    in_flight: int = 0
    queued_tokens: int = 0
    last_used: int = 0
    saved_tokens: Fading = field(default_factory=Fading)
    """Prompt tokens that its cache was believed to hold when they were sent."""
    health: Health = field(default_factory=Health)
    info: wire.ModelInfo | None = None
    block_space: BlockSpace | None = None
    """Replicas of one know blocks by the same keys; None: it is chosen by load alone."""
    pulse: Pulse = field(default_factory=Pulse)
    observed: Observed = field(default_factory=Observed)
    answers: set[Answer] = field(default_factory=set)
    """Those that are awaited of it."""
    feed: Feed = field(init=False)
    warmed_epoch: str = ""
    """The start of its engine whose cache has been warmed, or was tried to be."""
    is_watched: bool = False
    """It is probed, or has been."""
    is_followed: bool = False
    """Its KV events are being followed."""

    def __post_init__(self) -> None:
        self.feed = Feed(self.deployment.index, self.id, self.deployment.feed_counts)

    @property
    def index_mode(self) -> wire.IndexMode:
        return self.feed.mode(asyncio.get_running_loop().time())

    @property
    def has_foreign_blocks(self) -> bool:
        """What it caches cannot be known, see `block_space.why_unknown`."""
        return self.info is not None and self.block_space is None

    @property
    def is_candidate(self) -> bool:
        return self.health.is_routable and not self.is_draining and not self.is_removed

    @property
    def reason(self) -> str:
        """Why it gets no requests; empty while it does."""
        return "Draining" if self.is_draining else self.health.reason

    def slots(self, bounds: Bounds) -> int:
        """Requests that it may have before others wait at the gateway."""
        most = bounds.in_flight_per_replica
        return most if self.info is None else min(most, ceil(bounds.saturation * self.info.max_num_seqs) or most)

    def became_routable(self, info: wire.ModelInfo | None) -> None:
        """One token came out of it; `info` are its facts now."""
        index = self.deployment.index
        space = None if info is None else space_of(info)
        if info is not None and space is not None:
            is_other = self.info is not None and self.info.engine_epoch != info.engine_epoch
            if is_other and self.feed.epoch != info.engine_epoch:
                index.clear_replica(self.id)
            index.add_replica(self.id, info.kv_capacity_tokens // space.block_size)
        elif info is not None:
            self.feed.refused(why_unknown(info))
            index.remove_replica(self.id)
        self.info = info
        self.block_space = space
        self.deployment.roster = None
        self.health.probe_succeeded()
        self.deployment.notify()

    def lose(self, why: str, now: float) -> bool:
        """It gives no sign of life. What it was answering fails, if others are there to go on with it.

        True if this ejected it.
        """
        is_ejected = self.health.request_failed(now, why, is_lost=True)
        if self.answers and self.deployment.candidates(set()):
            failure = UpstreamFailure("silent", why)
            for answer in list(self.answers):
                answer.fail(failure)
        return is_ejected


class DeploymentState:
    """One deployment: its replicas, its index, its policy."""

    def __init__(
        self,
        table: wire.Deployment,
        bounds: Bounds | None = None,
        others: dict[str, tuple[int, int]] | None = None,
    ) -> None:
        """others: of each replica, by its id, requests in flight and tokens queued that other gateways have there."""
        self.others = {} if others is None else others
        self.bounds = bounds = bounds or Bounds()
        self.callers = Callers()
        self.turns = Turns(self.has_room, bounds.held)
        self.serve(table)
        self.replicas: dict[str, ReplicaState] = {}
        self.index = PrefixIndex()
        self.feed_counts = FeedCounts()
        self.retries = RetryBudget(bounds.retry_ratio)
        self.beginnings = Beginnings()
        self.policy: Policy = POLICIES[table.policy]()
        self.load = LoadMeter(asyncio.get_running_loop().time())
        self.held = 0
        """Requests for which there is no replica."""
        self.is_waking = False
        """There was none, and what was held for it has not all been let go: it is paced."""
        self.woken = 0
        """Requests that were held for a replica, and have not had their turn yet."""
        self.picks = 0
        self.roster: Roster | None = None
        """Of the latest choice; nobody's once a replica in it has become another model's."""
        self._changed = asyncio.Event()
        self._put_off: list[Callable[[], None]] = []

    @property
    def key(self) -> tuple[str, str]:
        return self.table.namespace, self.table.name

    def others_at(self, replica: str) -> tuple[int, int]:
        """Requests in flight and tokens queued there by other gateways."""
        return self.others.get(replica, (0, 0))

    def serve(self, table: wire.Deployment) -> None:
        """Take over names, keys and limits."""
        self.table = table
        self.callers.apply(table)
        self.turns.retain(caller.name for caller in self.callers.everyone())

    def has_room(self, promised: int) -> bool:
        """Whether a replica may be given one more request, beside `promised` ones that are on their way."""
        room = -promised
        for replica in self.replicas.values():
            if replica.is_candidate:
                others = self.others_at(replica.id)
                in_flight = replica.in_flight + others[0]
                free = replica.slots(self.bounds) - in_flight
                room += paced_room(free, in_flight, replica.queued_tokens + others[1]) if self.is_waking else free
        return room > 0

    def prefilled(self) -> None:
        """A request's first byte has come: its replica may be given more."""
        if self.is_waking:
            self.is_waking = bool(self.held or self.woken or len(self.turns))
            self.turns.pump()

    @property
    def in_flight(self) -> int:
        return sum(replica.in_flight for replica in self.replicas.values())

    def candidates(self, excluded: Excluded) -> list[ReplicaState]:
        """Routable replicas that a request may still try."""
        # The property `is_candidate` written out: this runs for every request and replica.
        found = [
            replica
            for replica in self.replicas.values()
            if replica.health.is_routable and not replica.is_draining and not replica.is_removed
        ]
        if not excluded:
            return found
        return [replica for replica in found if (replica, replica.health.generation) not in excluded]

    def roster_of(self, replicas: list[ReplicaState]) -> "Roster":
        """Choices are mostly among the same ones."""
        roster = self.roster
        if roster is None or roster.replicas != replicas:
            roster = self.roster = Roster(replicas)
        return roster

    def eject_outliers(self, now: float, rules: OutlierRules) -> list[tuple[ReplicaState, Ejection]]:
        """Send nothing for a while to those that answer so much worse than the others; who they are."""
        routable = self.candidates(set())
        seen = [replica.observed.seen(replica.id, now, rules) for replica in routable]
        waiting = sum(not replica.health.is_routable for replica in self.replicas.values())
        found = []
        for ejection in find_outliers(seen, waiting, rules):
            replica = self.replicas[ejection.replica]
            replica.health.eject(now, ejection.why, replica.observed.ejected(now, rules))
            found.append((replica, ejection))
        return found

    def notify(self) -> None:
        """Wake who waits for a replica."""
        self._changed.set()
        self._changed = asyncio.Event()
        self.turns.pump()

    async def change(self) -> None:
        """Return when a replica has become routable, or the table has changed."""
        await self._changed.wait()

    def put_off(self, act: Callable[[], None]) -> None:
        """Let `act` change the index after what is being written now has gone out, yet before the next choice."""
        if not self._put_off:
            asyncio.get_running_loop().call_soon(self.catch_up)
        self._put_off.append(act)

    def catch_up(self) -> None:
        """Do what was put off."""
        acts, self._put_off = self._put_off, []
        for act in acts:
            act()

    def take(self, replica: ReplicaState, uncached_tokens: int) -> Ticket:
        """Count a request at `replica` until the ticket is released."""
        self.picks += 1
        replica.last_used = self.picks
        if self.is_waking:
            # Once it is counted.
            asyncio.get_running_loop().call_soon(self.turns.pump)
        return Ticket(replica, uncached_tokens)


class Roster:
    """Replicas that a choice is among, and what of them changes only with them."""

    __slots__ = ("groups", "ids", "replicas")

    def __init__(self, replicas: list[ReplicaState]) -> None:
        self.replicas = replicas
        self.ids = tuple(replica.id for replica in replicas)
        self.groups: dict[BlockSpace | None, tuple[str, ...]] = {}
        """Ids by block space."""
        for space in dict.fromkeys(replica.block_space for replica in replicas):
            self.groups[space] = tuple(each.id for each in replicas if each.block_space == space)


def as_candidates(
    replicas: Sequence[ReplicaState],
    ids: Sequence[str],
    cached_tokens: CachedTokens,
    others: Mapping[str, tuple[int, int]],
) -> Candidates:
    """`replicas` as the policies see them; others: what other gateways have there, see `DeploymentState.others`."""
    seen = Candidates(
        ids,
        [replica.in_flight for replica in replicas],
        [replica.queued_tokens for replica in replicas],
        cached_tokens,
        [replica.last_used for replica in replicas],
    )
    if others:
        for number, name in enumerate(seen.replicas):
            if (more := others.get(name)) is not None:
                seen.in_flight[number] += more[0]
                seen.queued_tokens[number] += more[1]
    return seen


def load_of(deployment: DeploymentState, now: float) -> wire.DeploymentLoad:
    """One deployment's load at `now` on the loop's clock."""
    meter = deployment.load
    ttft_p50_s, ttft_p90_s = meter.ttft.quantiles((0.5, 0.9), now)
    itl_p50_s, itl_p90_s = meter.itl.quantiles((0.5, 0.9), now)
    return wire.DeploymentLoad(
        deployment=deployment.table.name,
        namespace=deployment.table.namespace,
        in_flight=deployment.in_flight,
        held=deployment.held + len(deployment.turns),
        queued_tokens=sum(replica.queued_tokens for replica in deployment.replicas.values()),
        requests=meter.requests,
        idle_s=meter.idle_s(now),
        ttft_p50_s=ttft_p50_s,
        ttft_p90_s=ttft_p90_s,
        itl_p50_s=itl_p50_s,
        itl_p90_s=itl_p90_s,
        arrivals_per_s=meter.arrivals.per_second(now),
        service_s=meter.service.mean(now),
    )


class Fleet:
    """Follows the routing table. Requests in flight on a removed replica go on to their end."""

    def __init__(self, bounds: Bounds | None = None) -> None:
        self._bounds = bounds or Bounds()
        self.deployments: dict[tuple[str, str], DeploymentState] = {}
        self._by_name: dict[str, DeploymentState] = {}
        self._by_key: dict[bytes, list[Callers]] = {}
        self._closed: Callers | None = None
        """Any deployment's, where all have keys."""
        self.id = uuid.uuid4().hex
        self.others: dict[tuple[str, str], dict[str, tuple[int, int]]] = {}
        """By deployment and replica: requests in flight and tokens queued there by other gateways."""

    def apply(self, table: wire.RoutingTable) -> None:
        """Take over `table`; replicas that are new, or at a new address, are not routable yet.

        Raises:
            BadReplicaUrl: an address cannot be used; nothing was changed.
        """
        for entry in table.deployments:
            for replica in entry.replicas:
                UpstreamPool(replica.url)
        kept: dict[tuple[str, str], DeploymentState] = {}
        for entry in table.deployments:
            key = entry.namespace, entry.name
            deployment = (
                kept.get(key)
                or self.deployments.get(key)
                or DeploymentState(entry, self._bounds, self.others.setdefault(key, {}))
            )
            if deployment.table.policy != entry.policy:
                deployment.policy = POLICIES[entry.policy]()
            deployment.serve(entry)
            kept[key] = deployment
            self._apply_replicas(deployment, entry)
        for key, deployment in self.deployments.items():
            if key not in kept:
                for gone in list(deployment.replicas.values()):
                    self._remove(gone)
                deployment.notify()
        self.deployments = kept
        for key in [key for key, others in self.others.items() if not others and key not in kept]:
            del self.others[key]
        self._by_name = {}
        for deployment in kept.values():
            for name in deployment.table.served_names:
                self._by_name.setdefault(name, deployment)
            deployment.notify()
        callers = [deployment.callers for deployment in kept.values()]
        self._closed = callers[0] if callers and not any(each.is_open for each in callers) else None
        self._by_key = {}
        for each in callers:
            for digest in each.digests():
                self._by_key.setdefault(digest, []).append(each)

    def check_token(self, token: str) -> None:
        """Turn away who may use no model, whatever the request says; what it costs does not grow with the deployments.

        Raises:
            Refusal: 401, `token` is missing, no deployment's key, or has expired everywhere.
        """
        if self._closed is None:
            return
        holders = self._by_key.get(digest_of(token), [])
        if not any(callers.may_use(token) for callers in holders):
            (holders[0] if holders else self._closed).authorize(token)

    def serving(self, model: str) -> DeploymentState | None:
        """The deployment that serves `model`; the first of the table where two claim the name."""
        return self._by_name.get(model)

    def names(self) -> dict[str, DeploymentState]:
        """Served name -> deployment, in the table's order."""
        return self._by_name

    def visible(self, token: str) -> list[str]:
        """The served names that whoever shows `token` may use."""
        return [name for name, served in self._by_name.items() if served.callers.may_use(token)]

    def replicas(self) -> Iterator[ReplicaState]:
        for deployment in self.deployments.values():
            yield from deployment.replicas.values()

    def report(self) -> wire.GatewayReport:
        """What the operator (or `quire up`) wants to know."""
        now = asyncio.get_running_loop().time()
        return wire.GatewayReport(
            replicas=[
                wire.ReplicaReport(
                    deployment=replica.deployment.table.name,
                    namespace=replica.deployment.table.namespace,
                    replica=replica.id,
                    is_routable=replica.health.is_routable,
                    in_flight=replica.in_flight,
                    reason=replica.reason,
                    queued_tokens=replica.queued_tokens,
                    warmth=round(replica.saved_tokens.value(now), 3),
                    url=replica.url,
                    index_mode=replica.feed.mode(now),
                    index_blocks=replica.deployment.index.blocks_of(replica.id),
                    index_problem=replica.feed.problem,
                    model=replica.info,
                )
                for replica in self.replicas()
            ]
        )

    def load(self) -> wire.GatewayLoad:
        """What the scaling law steers by."""
        now = asyncio.get_running_loop().time()
        return wire.GatewayLoad(
            gateway=self.id, window_s=WINDOW_S, deployments=[load_of(each, now) for each in self.deployments.values()]
        )

    def _apply_replicas(self, deployment: DeploymentState, entry: wire.Deployment) -> None:
        listed = {replica.id: replica for replica in entry.replicas}
        for state in list(deployment.replicas.values()):
            if state.id not in listed or listed[state.id].url != state.url:
                self._remove(state)
        for replica in listed.values():
            known = deployment.replicas.get(replica.id)
            if known is None:
                known = ReplicaState(replica.id, replica.url, deployment, UpstreamPool(replica.url))
                deployment.replicas[replica.id] = known
            known.is_draining = replica.is_draining

    def _remove(self, replica: ReplicaState) -> None:
        replica.is_removed = True
        replica.pool.close()
        replica.deployment.index.remove_replica(replica.id)
        del replica.deployment.replicas[replica.id]
