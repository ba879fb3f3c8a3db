"""The scaling law in a cluster: asks the gateways each second and writes `replicas` by the scale subresource."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable

from quire_api.v1alpha1 import API_VERSION, KIND
from quire_operator.autoscale import History
from quire_operator.build import internal_name
from quire_operator.events import Happening, event_of
from quire_operator.gateways import Gateways
from quire_operator.kube import ApiError, ApiUnavailable, Kube, NotLeading
from quire_operator.pods import replicas_of
from quire_operator.scaling import Scaler
from quire_operator.scaling_memory import Saved, from_text, to_text
from quire_operator.served import served_by
from quire_operator.store import Store
from quire_operator.world import Key

log = logging.getLogger(__name__)

EVERY_S = 1.0
MEMORY = "quire.dev/scaling-memory"


async def autoscale_for_ever(
    kube: Kube,
    store: Store,
    gateways: Gateways,
    is_leading: asyncio.Event,
    identity: str,
    wake: Callable[[Iterable[Key]], None],
) -> None:
    """Apply the law to every deployment that has `autoscaling`, while we lead.

    A new leader goes on where the former ended: the law's memory stands in an annotation of the deployment's internal
    Secret, which exists at zero replicas too and needs no further right.
    """
    scaler, saved = Scaler(), defaultdict[Key, Saved](Saved)
    while True:
        await asyncio.sleep(EVERY_S)
        if not is_leading.is_set():
            scaler, saved = Scaler(), defaultdict[Key, Saved](Saved)
            continue
        try:
            await _step(kube, store, gateways, scaler, wake)
            await _object(kube, store, scaler, identity)
            await _save(kube, scaler, saved)
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
    for key in scaled:
        if scaler.history(key) is None and (past := _restored(store, key)) is not None:
            scaler.restore(key, past)
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


def _restored(store: Store, key: Key) -> History | None:
    secret = store.child(key, "Secret", internal_name(key.name))
    text = (secret["metadata"].get("annotations") or {}).get(MEMORY) if secret else None
    return None if text is None else from_text(text, time.monotonic(), time.time())


async def _save(kube: Kube, scaler: Scaler, saved: defaultdict[Key, Saved]) -> None:
    """Write what has changed of the law's memory."""
    now = time.monotonic()
    for key, history in scaler.histories():
        if not saved[key].is_due(history, now):
            continue
        change = {"metadata": {"annotations": {MEMORY: to_text(history, now, time.time())}}}
        try:
            await kube.patch("v1", "Secret", key.namespace, internal_name(key.name), change)
        except ApiError as error:
            if error.status == 404:
                continue  # it has not been made yet
            log.warning("the scaling law's memory of %s cannot be kept: %s", key, error)
        saved[key].wrote(history, now)


async def _object(kube: Kube, store: Store, scaler: Scaler, identity: str) -> None:
    """Say once that somebody else writes what the law would."""
    for key, reason in scaler.take_objections().items():
        log.warning("%s %s", key, reason)
        if (owner := store.raw(key)) is not None:
            await kube.create(event_of(Happening("Warning", "AutoscalingContested", reason), owner, identity))
