"""The scaling law in a cluster: asks the gateways each second and writes `replicas` by the scale subresource."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from quire_api.v1alpha1 import API_VERSION, KIND
from quire_operator.events import Happening, event_of
from quire_operator.gateways import Gateways
from quire_operator.kube import ApiError, ApiUnavailable, Kube, NotLeading
from quire_operator.pods import replicas_of
from quire_operator.scaling import Scaler
from quire_operator.served import served_by
from quire_operator.store import Store
from quire_operator.world import Key

log = logging.getLogger(__name__)

EVERY_S = 1.0


async def autoscale_for_ever(
    kube: Kube,
    store: Store,
    gateways: Gateways,
    is_leading: asyncio.Event,
    identity: str,
    wake: Callable[[Iterable[Key]], None],
) -> None:
    """Apply the law to every deployment that has `autoscaling`, while we lead; a new leader begins with no memory."""
    scaler = Scaler()
    while True:
        await asyncio.sleep(EVERY_S)
        if not is_leading.is_set():
            scaler = Scaler()
            continue
        try:
            await _step(kube, store, gateways, scaler, wake)
            await _object(kube, store, scaler, identity)
        except (ApiError, ApiUnavailable, NotLeading) as error:
            log.warning("scaling: %s", error)


async def _step(
    kube: Kube, store: Store, gateways: Gateways, scaler: Scaler, wake: Callable[[Iterable[Key]], None]
) -> None:
    found = [served_by(store, resource) for resource in store.resources.values()]
    scaled = {Key.of(served): served for served in found if served is not None and served.spec.autoscaling}
    if not scaled:
        return
    now = time.time()
    replicas = [
        replica
        for key in scaled
        for replica in replicas_of(
            key, store.children(key, "Deployment"), store.children(key, "Pod"), gateways.words.get(key, {}), now
        )
    ]
    decisions = scaler.decide(scaled.values(), await gateways.ask_load(), replicas, time.monotonic())
    changes = {key: each for key, each in decisions.items() if each.replicas != scaled[key].spec.replicas}
    for key in changes:
        scaler.wrote(key, None)
    for key, decision in changes.items():
        change = {"spec": {"replicas": decision.replicas}}
        try:
            await kube.patch(API_VERSION, KIND, key.namespace, key.name, change, "scale")
            # A late watch would show the former number, as if somebody had set it back.
            after = await kube.get(API_VERSION, KIND, key.namespace, key.name)
        except ApiError as error:
            log.warning("scaling %s: %s", key, error)
            continue
        if after is not None:
            # Its event will be no news to the store then, and somebody's edit may have come with it.
            wake(store.put(KIND, after))
        scaler.wrote(key, decision.replicas)
        log.info("%s scales %s", key, decision.reason)


async def _object(kube: Kube, store: Store, scaler: Scaler, identity: str) -> None:
    """Say once that somebody else writes what the law would."""
    for key, reason in scaler.take_objections().items():
        log.warning("%s %s", key, reason)
        if (owner := store.raw(key)) is not None:
            await kube.create(event_of(Happening("Warning", "AutoscalingContested", reason), owner, identity))
