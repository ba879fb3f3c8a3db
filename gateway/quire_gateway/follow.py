"""Keeps the fleet true: follows discovery, and probes replicas that are new or were ejected until they answer."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from quire_api import wire
from quire_api.errors import UserError
from quire_gateway.discovery import Discovery
from quire_gateway.fleet import Fleet, ReplicaState
from quire_gateway.health import probe
from quire_gateway.keep import keep_going
from quire_gateway.kv_follow import follow_events
from quire_gateway.models import ModelStore
from quire_gateway.outliers import OutlierRules
from quire_gateway.pulse import LOST_AFTER_S, watch_pulses
from quire_gateway.upstream import UpstreamFailure
from quire_gateway.warm import OnWarming, WarmRules, warm

log = logging.getLogger(__name__)

OUTLIERS_EVERY_S = 1.0


class Follower:
    """Owns the tasks that follow the table and probe replicas.

    has_answered: some replica has given a token since the start, or requests are to be held for one that sleeps.
    """

    def __init__(
        self,
        discovery: Discovery,
        fleet: Fleet,
        models: ModelStore,
        probe_timeout_s: float,
        rules: OutlierRules,
        on_outlier: Callable[[tuple[str, str], str], None],
        warm_rules: WarmRules,
        on_warming: OnWarming,
    ) -> None:
        """on_outlier: called with the deployment and the cause when one of its replicas is ejected for it.
        on_warming: called with the deployment and what came of warming one of its replicas.
        """
        self._discovery = discovery
        self._fleet = fleet
        self._models = models
        self._probe_timeout_s = probe_timeout_s
        self._rules = rules
        self._on_outlier = on_outlier
        self._warm_rules = warm_rules
        self._on_warming = on_warming
        self._tasks: set[asyncio.Task[None]] = set()
        self._refused = ""
        self.has_answered = False

    @property
    def problem(self) -> str:
        """Why the newest routing table is not in use; empty while it is."""
        return self._discovery.problem or self._refused

    def start(self) -> None:
        self._spawn("following the routing table", self._follow)
        self._spawn("listening for signs of life", lambda: watch_pulses(self._fleet.replicas, self._lose))
        self._spawn("looking for outliers", self._watch_outliers)

    def watch(self, replica: ReplicaState) -> None:
        """Probe `replica` until it is routable or gone."""
        replica.is_watched = True
        self._spawn(f"probing replica {replica.id}", lambda: self._open(replica))

    async def close(self) -> None:
        """Stop, and forget every replica."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._fleet.apply(wire.RoutingTable())

    async def _watch_outliers(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(OUTLIERS_EVERY_S)
            for deployment in list(self._fleet.deployments.values()):
                for replica, ejection in deployment.eject_outliers(loop.time(), self._rules):
                    log.warning("replica %s of %s is ejected: %s", replica.id, deployment.table.name, ejection.why)
                    self._on_outlier(deployment.key, ejection.cause)
                    self.watch(replica)

    def _lose(self, replica: ReplicaState) -> None:
        why = f"it gave no sign of life for {LOST_AFTER_S:g} s"
        if replica.lose(why, asyncio.get_running_loop().time()):
            log.warning("replica %s of %s is ejected: %s", replica.id, replica.deployment.table.name, why)
            self.watch(replica)

    async def _follow(self) -> None:
        async for table in self._discovery.tables():
            try:
                self._fleet.apply(table)
            except UserError as error:
                self._refused = str(error)
                log.warning("The routing table is refused, so the last good one stands: %s", error)
                continue
            self._refused = ""
            self.has_answered |= self._discovery.is_ready_without_replicas
            # A gateway that waited for a first answer could never bring a sleeping deployment its first request.
            self.has_answered |= any(entry.scales_from_zero for entry in table.deployments)
            self._drop_tokenizers()
            for replica in self._fleet.replicas():
                if not replica.is_watched:
                    self.watch(replica)

    def _drop_tokenizers(self) -> None:
        infos = [replica.info for replica in self._fleet.replicas()]
        # A replica that is being probed may have fetched its tokenizer already.
        if None not in infos:
            self._models.retain(info.tokenizer_digest for info in infos if info is not None)

    async def _open(self, replica: ReplicaState) -> None:
        loop = asyncio.get_running_loop()
        while not replica.is_removed:
            await asyncio.sleep(max(0.0, replica.health.probe_at - loop.time()))
            table = replica.deployment.table
            try:
                info = await self._models.learn(replica.pool, table.internal_key, self._probe_timeout_s)
                names = info.served_names if info is not None and info.served_names else table.served_names
                await probe(replica.pool, names[0], table.internal_key, self._probe_timeout_s)
                if info is not None and await self._warm(replica, info):
                    # It may have died meanwhile.
                    await probe(replica.pool, names[0], table.internal_key, self._probe_timeout_s)
            except UpstreamFailure as failure:
                replica.health.probe_failed(loop.time(), str(failure))
                continue
            if not replica.is_removed:
                replica.became_routable(info)
                if info is not None and not replica.is_followed:
                    replica.is_followed = True
                    self._spawn(f"following the KV events of {replica.id}", lambda: follow_events(replica))
                self.has_answered = True
                log.info("replica %s of %s is routable", replica.id, table.name)
            return

    async def _warm(self, replica: ReplicaState, info: wire.ModelInfo) -> bool:
        """Warm its cache, once for each start of its engine that this gateway has not sent requests to yet."""
        known = replica.warmed_epoch or (replica.info.engine_epoch if replica.info is not None else "")
        if known == info.engine_epoch:
            return False
        replica.warmed_epoch = info.engine_epoch
        replica.health.warming()
        warming = await warm(replica, info, self._warm_rules)
        if warming is None:
            return False
        self._on_warming(replica.deployment.key, warming)
        log.info(
            "replica %s of %s: warming, %s: %d prefixes, %d tokens, %.2f s",
            replica.id,
            replica.deployment.table.name,
            warming.outcome,
            warming.prefixes,
            warming.tokens,
            warming.seconds,
        )
        return True

    def _spawn(self, what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.get_running_loop().create_task(keep_going(what, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
