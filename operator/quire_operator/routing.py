"""The routing table without replicas, as a Secret that the gateways follow: names, policies, keys.

One operator writes it, gateways may read this one Secret and no other.
"""

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import Sequence

import msgspec

from quire_api import wire
from quire_api.access import wire_limits
from quire_operator.kube import ApiError, ApiUnavailable, Kube, NotLeading
from quire_operator.world import Key, Route

log = logging.getLogger(__name__)

FIELD = "table.json"
GATHER_S = 0.1
AGAIN_S = 2.0
REST = 5.0
"""Times that the last write took, before the next one; nothing after a quiet while."""
LONGEST_REST_S = 2.0
NOBODYS_KEY = secrets.token_urlsafe(32)
"""Stands for the keys of a Secret that is missing: nobody has it, so nobody gets in."""


class Routing:
    """Routes as wished; `run` writes them whenever they change."""

    def __init__(self, kube: Kube, namespace: str, name: str) -> None:
        self.routes: dict[Key, Route] = {}
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._entries: dict[Key, wire.Deployment] = {}
        self._written: bytes | None = None
        self._changed = asyncio.Event()

    async def load(self) -> None:
        """Begin with what was written last, so that nothing vanishes while everything is looked at anew."""
        secret = await self._kube.get("v1", "Secret", self._namespace, self._name)
        try:
            data = base64.b64decode((secret or {}).get("data", {}).get(FIELD, ""))
            table = msgspec.json.decode(data, type=wire.RoutingTable) if data else wire.RoutingTable()
        except (ValueError, msgspec.MsgspecError):
            table = wire.RoutingTable()
        self._entries = {Key(entry.namespace, entry.name): entry for entry in table.deployments}
        self.routes = {}
        self._written = None

    def serve(self, key: Key, route: Route, internal_key: str, api_keys: Sequence[wire.ApiKey] | None) -> None:
        """Let the deployment be found; `api_keys` None: none of its keys is known; []: everybody may ask."""
        self.routes[key] = route
        entry = wire.Deployment(
            name=key.name,
            namespace=key.namespace,
            served_names=list(route.served_names),
            policy=route.policy,
            internal_key=internal_key,
            api_keys=[NOBODYS_KEY] if api_keys is None else list(api_keys),
            limits=wire_limits(route.access.limits),
            shares_cache=route.access.shared_cache,
            scales_from_zero=route.scales_from_zero,
        )
        if self._entries.get(key) != entry:
            self._entries[key] = entry
            self._changed.set()

    def withdraw(self, key: Key) -> None:
        self.routes.pop(key, None)
        if self._entries.pop(key, None) is not None:
            self._changed.set()

    def keys(self) -> set[Key]:
        """Deployments that gateways know."""
        return set(self._entries)

    async def run(self) -> None:
        """Write for ever."""
        while True:
            await self._changed.wait()
            await asyncio.sleep(GATHER_S)
            self._changed.clear()
            table = wire.RoutingTable(deployments=[self._entries[key] for key in sorted(self._entries)])
            data = msgspec.json.encode(table)
            if data == self._written:
                continue
            began = time.monotonic()
            try:
                await self._kube.apply(self._secret(data), force=True)
                self._written = data
                # It holds every deployment: while thousands change, most of the time belongs to other writes.
                await asyncio.sleep(min(REST * (time.monotonic() - began), LONGEST_REST_S))
            except (ApiError, ApiUnavailable, NotLeading) as error:
                log.warning("the routing table cannot be written: %s", error)
                await asyncio.sleep(AGAIN_S)
                self._changed.set()

    def _secret(self, data: bytes) -> dict[str, object]:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": self._name, "namespace": self._namespace},
            "type": "Opaque",
            "data": {FIELD: base64.b64encode(data).decode()},
        }
