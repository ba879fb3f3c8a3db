"""Brings one deployment after the other to where its spec wants it: look, decide, write, say."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Iterable

from quire_api.v1alpha1 import API_VERSION, KIND, LLMDeployment, LLMDeploymentStatus
from quire_operator.conditions import invalid_status
from quire_operator.decide import Holder, decide, name_conflicts, wanted_replicas
from quire_operator.events import event_of, happenings
from quire_operator.kube import ApiError, ApiUnavailable, NotLeading
from quire_operator.kubernetes_world import Cluster, KubernetesWorld, Memory, open_gates
from quire_operator.merge import Manifest
from quire_operator.metrics import DEPLOYMENTS, READY, RECONCILE_SECONDS, RECONCILES, REPLICAS, STATUS_WRITES
from quire_operator.queue import WakeQueue
from quire_operator.renewal import Target, Turns, are_under_way, finds_no_room, standing_of
from quire_operator.resource import Resource
from quire_operator.served import served_by, shell_of
from quire_operator.world import Finding, Key

log = logging.getLogger(__name__)

WORKERS = 8
WORKERS_FOR_FAILED = 4
FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0
LOOK_AGAIN_S = 15.0
LOOK_AGAIN_READY_S = 60.0
"""For what no watch tells: Secrets, claims and classes that are only referred to."""
LOOK_AGAIN_ANYWAY_S = 300.0
"""A ready deployment that refers to nothing: the watches tell everything, and lists are compared as often."""


class Reconciler:
    """Level-triggered: whoever wakes a deployment says only that something changed."""

    def __init__(self, cluster: Cluster, identity: str, renewals: int = 1, renewal_patience_s: float = 300.0) -> None:
        self.queue: WakeQueue[Key] = WakeQueue()
        self.is_leading = asyncio.Event()
        self.is_synced = False
        self._cluster = cluster
        self._identity = identity
        self._memories: dict[Key, Memory] = {}
        self._turns = Turns(renewals, self.wake)
        self._renewal_patience_s = renewal_patience_s
        self._failures: Counter[Key] = Counter()

    def wake(self, keys: Iterable[Key]) -> None:
        # What has not been listed looks gone, or without its Secret and its pods; `seen` wakes all once it has been.
        if self.is_synced:
            for key in keys:
                self.queue.wake(key)

    def lead(self) -> None:
        """The lease is ours: look at everything, and let gateways forget what is gone."""
        self.is_leading.set()
        if self.is_synced:
            self.sweep()

    def sweep(self) -> None:
        """Wake every deployment, and those that only the routing table still knows."""
        store = self._cluster.store
        keys = list(store.keys())
        self._turns.resume(key for key in keys if are_under_way(store.children(key, "Deployment")))
        self.wake({*keys, *self._cluster.routing.keys()})

    def seen(self, keys: Iterable[Key]) -> None:
        """Something about these has changed; the first call says that everything has been listed."""
        if not self.is_synced:
            self.is_synced = True
            self.sweep()
        self.wake(keys)

    async def run(self) -> None:
        """Work for ever; without the lease nothing is done, and everything is looked at when it comes."""
        workers = [self._work(failed=False) for _ in range(WORKERS)]
        await asyncio.gather(*workers, *(self._work(failed=True) for _ in range(WORKERS_FOR_FAILED)))

    async def _work(self, *, failed: bool) -> None:
        while True:
            key = await self.queue.take(failed=failed)
            try:
                await self.is_leading.wait()
                with RECONCILE_SECONDS.time():
                    await self.reconcile(key)
                RECONCILES.labels("done").inc()
                self._failures.pop(key, None)
            except NotLeading:
                RECONCILES.labels("not_leading").inc()
                # The lease may have lapsed and come back unnoticed, and then nobody looks at everything anew.
                self.queue.wake_in(key, FIRST_RETRY_S)
            except Exception as error:
                RECONCILES.labels("failed").inc()
                self._failures[key] += 1
                delay = min(FIRST_RETRY_S * 2.0 ** min(self._failures[key] - 1, 10), LONGEST_RETRY_S)
                is_expected = isinstance(error, ApiError | ApiUnavailable)
                log.warning("%s: %s; again in %.1f s", key, error, delay, exc_info=None if is_expected else error)
                self.queue.wake_in(key, delay)
            finally:
                self.queue.done(key, failed=key in self._failures)

    async def reconcile(self, key: Key) -> None:
        """
        Raises:
            ApiError, ApiUnavailable, NotLeading
        """
        store = self._cluster.store
        resource = store.resources.get(key)
        raw = store.raw(key)
        if resource is None or raw is None or raw["metadata"].get("deletionTimestamp"):
            self._memories.pop(key, None)
            self._turns.leave(key)
            self._cluster.agents.forget(key)
            self._cluster.routing.withdraw(key)
            return
        served = served_by(store, resource)
        if served is None:
            await open_gates(self._cluster, key)
            status = invalid_status(resource.previous, resource.message, resource.generation, time.time())
            await self._say(resource, status)
            await self._restore(key, raw)
            self.queue.wake_in(key, LOOK_AGAIN_S)
            return
        await self._bring(resource, served)

    async def _restore(self, key: Key, raw: Manifest) -> None:
        """What runs of a spec that nobody knows any more keeps the objects that it stands on."""
        shell = shell_of(raw)
        if shell is None or not self._cluster.store.children(key, "Deployment"):
            return
        memory = self._memories.setdefault(key, Memory())
        try:
            await KubernetesWorld(self._cluster, shell, Target(""), memory).restore()
        except ApiError as error:
            log.warning("%s: an object cannot be restored: %s", key, error)

    async def _bring(self, resource: Resource, deployment: LLMDeployment) -> None:
        """Towards `deployment`, which is the resource as last understood."""
        key, store = resource.key, self._cluster.store
        memory = self._memories.setdefault(key, Memory())
        rivals = [Holder(rival.created, rival.key, tuple(rival.served_names)) for rival in store.rivals(key)]
        conflict = name_conflicts(rivals).get(key)
        complaint = Finding("InvalidSpec", resource.message) if resource.problems else None
        target = self._target(key, deployment)
        world = KubernetesWorld(self._cluster, deployment, target, memory, complaint)
        was_refused, now = memory.refused is not None, time.time()
        if conflict is None:
            await world.prepare(wanted_replicas(deployment))
        decision = decide([deployment], await world.observe(), now, {key: conflict} if conflict else {})
        for intention in decision.intentions:
            await world.apply(intention)
        await world.flush()
        # What was written shows already.
        observed = await world.observe()
        after = decide([deployment], observed, now, {key: conflict} if conflict else {})
        roomless = finds_no_room(observed.replicas, target.revision, now - self._renewal_patience_s)
        self._turns.place(key, has_room=not roomless)
        await self._say(resource, after.statuses[key])
        wake_in = look_again_in(deployment, after.statuses[key])
        if memory.refused is not None:
            wake_in = min(wake_in, max(memory.refused.until - time.monotonic(), 0.05))
        elif was_refused:
            # What was held back goes on.
            wake_in = 0.05
        if after.wake_at is not None:
            wake_in = min(wake_in, max(after.wake_at - time.time(), 0.05))
        self.queue.wake_in(key, wake_in)

    def _target(self, key: Key, deployment: LLMDeployment) -> Target:
        """What replicas are to be now."""
        standing = standing_of(deployment, self._cluster.store.children(key, "Deployment"), self._cluster.settings)
        if standing.former is None:
            self._turns.leave(key)
        elif standing.is_under_way:
            self._turns.take(key)
        elif standing.serves and wanted_replicas(deployment) and not self._turns.has(key):
            return Target(standing.former)
        return Target(standing.revision, standing.template)

    async def _say(self, resource: Resource, status: LLMDeploymentStatus) -> None:
        """Write the status if it differs, and an event for what a person wants to know."""
        if status == resource.previous:
            return
        kube, store, key = self._cluster.kube, self._cluster.store, resource.key
        body = status.model_dump(by_alias=True)
        # A JSON merge patch: what is absent must be null to go away.
        body["conditions"] = [condition.model_dump(by_alias=True, exclude_none=True) for condition in status.conditions]
        try:
            after = await kube.patch(API_VERSION, KIND, key.namespace, key.name, {"status": body}, "status")
        except ApiError as error:
            if error.status == 404:
                return
            raise
        STATUS_WRITES.inc()
        # An edit since then comes with it; of its event the store will know everything.
        concerned = store.put(KIND, after)
        if after["metadata"].get("generation") != resource.generation:
            self.wake(concerned)
        for happening in happenings(resource.previous, status):
            try:
                await kube.create(event_of(happening, after, self._identity))
            except (ApiError, ApiUnavailable) as error:
                log.warning("%s: the event %s cannot be written: %s", key, happening.reason, error)

    def count(self) -> None:
        """Bring the gauges of deployments up to date."""
        states: Counter[tuple[str, str]] = Counter()
        for gauge in (DEPLOYMENTS, READY, REPLICAS):
            gauge.clear()
        for key, resource in self._cluster.store.resources.items():
            who, status = (key.namespace, key.name), resource.previous or LLMDeploymentStatus()
            ready = status.condition("Ready")
            word, reason = (str(ready.status), ready.reason) if ready else ("Unknown", "New")
            states[word, reason] += 1
            READY.labels(*who, reason).set(word == "True")
            if (served := served_by(self._cluster.store, resource)) is not None:
                REPLICAS.labels(*who, "wanted").set(wanted_replicas(served))
            REPLICAS.labels(*who, "existing").set(status.replicas)
            REPLICAS.labels(*who, "ready").set(status.ready_replicas)
        for (word, reason), count in states.items():
            DEPLOYMENTS.labels(word, reason).set(count)


def look_again_in(deployment: LLMDeployment, status: LLMDeploymentStatus) -> float:
    """Seconds after which a deployment is looked at though nothing woke it."""
    ready = status.condition("Ready")
    if ready is None or ready.status != "True":
        return LOOK_AGAIN_S
    model, access = deployment.spec.model, deployment.spec.access
    is_on_claim = model.volume is not None or model.source.startswith("pvc://")
    refers = is_on_claim or model.auth is not None or access.api_keys_secret_ref is not None
    return LOOK_AGAIN_READY_S if refers else LOOK_AGAIN_ANYWAY_S
