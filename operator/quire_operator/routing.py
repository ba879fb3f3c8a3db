"""The routing table without replicas, as a Secret that the gateways follow: names, policies, keys.

One operator writes it, gateways may read this one Secret and no other. Operators of different namespaces may share it:
each writes its own namespaces' entries, and leaves the others as they are. An annotation says which namespaces each one
serves, so that who is told to serve fewer takes back the entries that are nobody's then.
"""

import asyncio
import base64
import contextlib
import json
import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import msgspec

from quire_api import wire
from quire_api.access import wire_limits
from quire_api.routing_secret import unpack
from quire_operator.kube import ApiError, ApiUnavailable, Kube, NotLeading
from quire_operator.merge import Manifest
from quire_operator.metrics import TABLE_BYTES, TABLE_REFUSED
from quire_operator.table import Table, fitting, refusal_of
from quire_operator.world import Finding, Key, Route

log = logging.getLogger(__name__)

GATHER_S = 0.1
AGAIN_S = 2.0
REST = 5.0
"""Times that the last write took, before the next one; nothing after a quiet while."""
LONGEST_REST_S = 2.0
LOOK_EVERY_S = 10.0
"""Whether the Secret is still as it was written: watches tell of children alone, and not of the namespace it is in."""
SERVED = "quire.dev/served-namespaces"
"""Annotation of the Secret: by the name of their lease, the namespaces that operators serve; ALL: every one."""
ALL = "*"
NOBODYS_KEY = secrets.token_urlsafe(32)
"""Stands for the keys of a Secret that is missing: nobody has it, so nobody gets in."""


class Routing:
    """Routes as wished; `run` writes them whenever they change.

    namespaces: whose entries are ours; empty: all.
    owner: name of our lease, by which operators that share the table know each other.
    on_refused: gets the deployments for which `refusals` has changed.
    """

    def __init__(
        self,
        kube: Kube,
        namespace: str,
        name: str,
        namespaces: Collection[str] = (),
        on_refused: Callable[[Iterable[Key]], None] = lambda keys: None,
        owner: str = "quire-operator",
    ) -> None:
        self.routes: dict[Key, Route] = {}
        self.refusals: Mapping[Key, Finding] = {}
        """What found no room in the table."""
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._namespaces = frozenset(namespaces)
        self._on_refused = on_refused
        self._owner = owner
        self._entries: dict[Key, wire.Deployment] = {}
        self._former: Mapping[Key, wire.Deployment] = {}
        """What gateways have."""
        self._written: Mapping[str, bytes] | None = None
        self._version = ""
        self._changed = asyncio.Event()

    async def load(self) -> None:
        """Begin with what was written last, so that nothing vanishes while everything is looked at anew.

        Raises:
            ApiError, ApiUnavailable
        """
        self._former, _, served = await self._read()
        self._entries = {key: entry for key, entry in self._former.items() if self._is_ours(key)}
        self.routes = {}
        self._written = None
        if self._namespaces and self._with_ours(served) != served:
            self._changed.set()

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

    def internal_key(self, key: Key) -> str:
        """Between gateways and the deployment's engines; empty where gateways do not know it."""
        return self._entries[key].internal_key if key in self._entries else ""

    def keys(self) -> set[Key]:
        """Deployments that gateways know."""
        return set(self._entries)

    async def run(self) -> None:
        """Write for ever: what has changed, and the whole if somebody has edited or deleted it."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._changed.wait()
            if not self._changed.is_set() and await self._is_as_written():
                continue
            await asyncio.sleep(GATHER_S)
            self._changed.clear()
            began = time.monotonic()
            try:
                if await self._write():
                    # It holds every deployment: while thousands change, most of the time belongs to other writes.
                    await asyncio.sleep(min(REST * (time.monotonic() - began), LONGEST_REST_S))
            except (ApiError, ApiUnavailable, NotLeading) as error:
                log.warning("the routing table cannot be written: %s", error)
                await asyncio.sleep(AGAIN_S)
                self._changed.set()

    async def _is_as_written(self) -> bool:
        """True also where nothing was, or where nobody can tell."""
        if self._written is None or not self._kube.may_write():
            return True
        try:
            version = await self._kube.version_of("v1", "Secret", self._namespace, self._name)
        except (ApiError, ApiUnavailable) as error:
            log.warning("the routing table cannot be looked at: %s", error)
            return True
        if version == self._version:
            return True
        if not self._namespaces:
            log.warning("the routing table was edited or deleted; it is written anew")
            self._written = None
        return False

    async def _write(self) -> bool:
        """Whether there was something to write.

        Raises:
            ApiError: 409 where another operator was faster.
            ApiUnavailable, NotLeading
        """
        wished, version = dict(self._entries), ""
        served: dict[str, list[str]] = {}
        if self._namespaces:
            self._former, version, served = await self._read()
            others = {key: entry for key, entry in self._former.items() if not self._is_ours(key)}
            nobodys = {key for key in others if is_given_up(key.namespace, served, self._owner)}
            for key in sorted(nobodys):
                log.warning("%s: its namespace is served no more, its route is taken back", key)
            wished |= {key: entry for key, entry in others.items() if key not in nobodys}
        # A table that does not fit is compressed several times over.
        table = await asyncio.to_thread(fitting, self._former, wished)
        self._refuse(table, wished)
        is_told = not version or self._with_ours(served) == served
        if is_told and table.fields == (Table.of(self._former).fields if version else self._written):
            self._version = version or self._version
            return False
        secret = self._secret(table, self._with_ours(served))
        if version:
            secret["metadata"]["resourceVersion"] = version
        if self._namespaces and not version:
            written = await self._kube.create(secret)
        else:
            written = await self._kube.apply(secret, force=True)
        self._version = str(written["metadata"].get("resourceVersion", ""))
        self._former, self._written = table.entries, table.fields
        TABLE_BYTES.set(table.size)
        return True

    def _refuse(self, table: Table, wished: Mapping[Key, wire.Deployment]) -> None:
        entries = table.entries
        before, self.refusals = (
            self.refusals,
            {
                key: refusal_of(entry, is_known=key in entries)
                for key, entry in wished.items()
                if entries.get(key) != entry
            },
        )
        TABLE_REFUSED.set(len(self.refusals))
        changed = {key for key in before.keys() | self.refusals if before.get(key) != self.refusals.get(key)}
        for key in sorted(changed & self.refusals.keys()):
            log.warning("%s: %s", key, self.refusals[key].message)
        self._on_refused(changed)

    async def _read(self) -> tuple[dict[Key, wire.Deployment], str, dict[str, list[str]]]:
        """The entries as they are written, the Secret's resource version, who serves what; nothing without a Secret.

        Raises:
            ApiError, ApiUnavailable
        """
        secret = await self._kube.get("v1", "Secret", self._namespace, self._name)
        if secret is None:
            return {}, "", {}
        try:
            data = unpack({name: base64.b64decode(value) for name, value in (secret.get("data") or {}).items()})
            table = msgspec.json.decode(data, type=wire.RoutingTable) if data else wire.RoutingTable()
        except (ValueError, msgspec.MsgspecError):
            table = wire.RoutingTable()
        entries = {Key(entry.namespace, entry.name): entry for entry in table.deployments}
        written = (secret["metadata"].get("annotations") or {}).get(SERVED)
        return entries, str(secret["metadata"].get("resourceVersion", "")), _served(written)

    def _is_ours(self, key: Key) -> bool:
        return not self._namespaces or key.namespace in self._namespaces

    def _with_ours(self, served: Mapping[str, list[str]]) -> dict[str, list[str]]:
        return {**served, self._owner: sorted(self._namespaces) or [ALL]}

    def _secret(self, table: Table, served: Mapping[str, list[str]]) -> Manifest:
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": self._name,
                "namespace": self._namespace,
                "annotations": {SERVED: json.dumps(served, sort_keys=True)},
            },
            "type": "Opaque",
            "data": {name: base64.b64encode(value).decode() for name, value in table.fields.items()},
        }


def is_given_up(namespace: str, served: Mapping[str, list[str]], owner: str) -> bool:
    """Whether the owner, who does not serve a namespace now, did so when it wrote last, and nobody else does."""
    by_owner = served.get(owner, [])
    others = {each for name, namespaces in served.items() if name != owner for each in namespaces}
    return (namespace in by_owner or ALL in by_owner) and not others & {namespace, ALL}


def _served(written: object) -> dict[str, list[str]]:
    """Of the annotation; nothing where it is not as we write it."""
    try:
        return msgspec.json.decode(str(written), type=dict[str, list[str]])
    except msgspec.MsgspecError:
        return {}
