"""The kopf skin: watches feed the store and wake reconciles, and nothing else.

Index handlers take in the first listing of every kind; kopf lets no event through before all of them are done, so the
first event says that the store is whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import kopf

from quire_api.connection import Connection
from quire_api.v1alpha1 import KIND
from quire_operator.build import OURS
from quire_operator.reconcile import Reconciler
from quire_operator.resync import Resync
from quire_operator.rights import Kind
from quire_operator.store import Store


def registry_of(
    store: Store, reconciler: Reconciler, resync: Resync, connection: Connection, kinds: Mapping[str, Kind]
) -> kopf.OperatorRegistry:
    """Handlers of these kinds that work on this store, in a registry of their own."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.ConnectionInfo:
        return kopf.ConnectionInfo(
            server=connection.server,
            ca_data=connection.ca.encode() or None,
            certificate_data=connection.certificate.encode() or None,
            private_key_data=connection.key.encode() or None,
            token=connection.bearer() or None,
            insecure=not connection.is_verified,
            default_namespace=connection.namespace,
        )

    def is_listing(**_: Any) -> bool:
        return not reconciler.is_synced

    for kind, (group, version, plural) in kinds.items():

        @kopf.index(group, version, plural, registry=registry, id=f"take-{plural}", param=kind, when=is_listing)
        async def take(*, body: kopf.Body, param: Any = None, **_: Any) -> None:
            store.put(param, dict(body))

        @kopf.on.event(group, version, plural, registry=registry, id=f"wake-{plural}", param=kind)
        async def wake(*, type: str | None, body: kopf.Body, param: Any = None, **_: Any) -> None:
            if type is None:
                resync.has_broken()
            change = store.remove if type == "DELETED" else store.put
            reconciler.seen(change(param, dict(body)))

    return registry


class _NoHistory(kopf.DiffBaseStorage):
    """Nothing to compare with: no handler asks what has changed. kopf's own would copy every object for each event."""

    def build(self, **_: Any) -> Any:
        return {}

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass


class _NoProgress(kopf.ProgressStorage):
    """No handler here is tried again by kopf."""

    def fetch(self, **_: Any) -> None:
        return None

    def store(self, **_: Any) -> None:
        pass

    def purge(self, **_: Any) -> None:
        pass

    def touch(self, **_: Any) -> None:
        pass

    def clear(self, *, essence: Any) -> Any:
        return essence


def settings_of(kinds: Mapping[str, Kind], namespaces: Sequence[str]) -> kopf.OperatorSettings:
    """Watch only our own children; write nothing through kopf; in single namespaces ask for nothing outside them."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    # kopf would watch namespaces and CRDs, which Roles do not reach.
    settings.scanning.disabled = bool(namespaces)
    settings.queueing.idle_timeout = 1.0
    settings.persistence.diffbase_storage = _NoHistory()
    settings.persistence.progress_storage = _NoProgress()
    settings.networking.error_backoffs = [1, 1, 2, 2, 5]
    for group, version, plural in (kind for name, kind in kinds.items() if name != KIND):
        settings.watching.label_selectors[group, version, plural] = OURS
    return settings
