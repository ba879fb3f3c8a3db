"""The kopf skin: watches feed the store and wake reconciles, and nothing else.

Index handlers take in the first listing of every kind; kopf lets no event through before all of them are done, so the
first event says that the store is whole.
"""

from typing import Any

import kopf

from quire_api.connection import Connection
from quire_api.v1alpha1 import GROUP, KIND, PLURAL, VERSION
from quire_operator.build import LABEL_MANAGED_BY, MANAGER
from quire_operator.reconcile import Reconciler
from quire_operator.store import Store

CHILDREN = {
    "Deployment": ("apps", "v1", "deployments"),
    "NetworkPolicy": ("networking.k8s.io", "v1", "networkpolicies"),
    "PersistentVolumeClaim": ("", "v1", "persistentvolumeclaims"),
    "Pod": ("", "v1", "pods"),
    "PodDisruptionBudget": ("policy", "v1", "poddisruptionbudgets"),
    "Secret": ("", "v1", "secrets"),
    "Service": ("", "v1", "services"),
    "ServiceAccount": ("", "v1", "serviceaccounts"),
}


def registry_of(store: Store, reconciler: Reconciler, connection: Connection) -> kopf.OperatorRegistry:
    """Handlers that work on this store; a registry of its own, so that two operators can live in one process."""
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

    for kind, (group, version, plural) in {KIND: (GROUP, VERSION, PLURAL), **CHILDREN}.items():

        @kopf.index(group, version, plural, registry=registry, id=f"take-{plural}", param=kind)
        async def take(*, body: kopf.Body, param: Any = None, **_: Any) -> None:
            store.put(param, dict(body))

        @kopf.on.event(group, version, plural, registry=registry, id=f"wake-{plural}", param=kind)
        async def wake(*, type: str, body: kopf.Body, param: Any = None, **_: Any) -> None:
            change = store.remove if type == "DELETED" else store.put
            reconciler.seen(change(param, dict(body)))

    return registry


def settings_of() -> kopf.OperatorSettings:
    """Watch only our own children; write nothing through kopf."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.peering.standalone = True
    settings.queueing.idle_timeout = 1.0
    settings.networking.error_backoffs = [1, 1, 2, 2, 5]
    for group, version, plural in CHILDREN.values():
        settings.watching.label_selectors[group, version, plural] = f"{LABEL_MANAGED_BY}={MANAGER}"
    return settings
