"""Discovery in a cluster: the operator's routing table (a Secret) joined with a watch on the engines' pods.

A pod is listed from the moment its containers are ready; its own readiness waits for what gateways say of it, so ready
endpoints would never show it. When the API server is away the last table stands.
"""

import asyncio
import base64
import json
import logging
import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any

import httpx
import msgspec

from quire_api import wire
from quire_api.connection import Connection
from quire_api.routing_secret import unpack
from quire_api.v1alpha1 import LABEL_DEPLOYMENT
from quire_gateway.discovery import MalformedTable, parse_table

log = logging.getLogger(__name__)

Object = dict[str, Any]

DRAINING_MARKS = ("quire.dev/drain-deadline", "quire.dev/stopping")
PORT = 8000
GATHER_S = 0.02
WATCH_S = 240
SILENCE_S = WATCH_S + 30.0
FIRST_DELAY_S = 0.1
LONGEST_DELAY_S = 5.0


class KubernetesDiscovery:
    """`namespaces`: whose pods to watch; empty names mean all."""

    def __init__(self, connection: Connection, namespace: str, table: str, namespaces: Sequence[str] = ()) -> None:
        self.problem = ""
        self.is_ready_without_replicas = True
        self._connection = connection
        self._namespaces = [each for each in namespaces if each] or [""]
        self._namespace = namespace
        self._table = table
        self._changed = asyncio.Event()
        self._last = wire.RoutingTable()

    async def tables(self) -> AsyncIterator[wire.RoutingTable]:
        context = self._connection.ssl_context()
        async with httpx.AsyncClient(base_url=self._connection.server, verify=context, trust_env=False) as http:
            secret = _Watch(
                http,
                self._connection,
                f"/api/v1/namespaces/{self._namespace}/secrets",
                {"fieldSelector": f"metadata.name={self._table}"},
                self._changed,
            )
            pods = [
                _Watch(
                    http,
                    self._connection,
                    f"/api/v1/namespaces/{each}/pods" if each else "/api/v1/pods",
                    {"labelSelector": LABEL_DEPLOYMENT},
                    self._changed,
                )
                for each in self._namespaces
            ]
            watches = [secret, *pods]
            tasks = [asyncio.create_task(watch.run()) for watch in watches]
            try:
                while True:
                    await self._changed.wait()
                    await asyncio.sleep(GATHER_S)
                    self._changed.clear()
                    self.problem = " ".join(watch.problem for watch in watches if watch.problem)
                    if all(watch.is_synced for watch in watches):
                        yield self._joined(secret, pods)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _joined(self, secret: "_Watch", pods: Iterable["_Watch"]) -> wire.RoutingTable:
        found = secret.objects.get(f"{self._namespace}/{self._table}")
        if found is not None:
            try:
                entries = {name: base64.b64decode(value) for name, value in (found.get("data") or {}).items()}
                self._last = parse_table(unpack(entries))
            except (MalformedTable, ValueError) as error:
                self.problem = (
                    f"The table in {self._namespace}/{self._table} is malformed, the last one stands: {error}"
                )
                log.warning("%s", self.problem)
        else:
            self._last = wire.RoutingTable()
        return with_replicas(self._last, [pod for watch in pods for pod in watch.objects.values()])


def with_replicas(table: wire.RoutingTable, pods: Iterable[Object]) -> wire.RoutingTable:
    """The table with every pod whose containers are ready; pods that leave are marked as draining."""
    replicas: dict[tuple[str, str], list[wire.Replica]] = {}
    for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"])):
        replica = replica_of(pod)
        if replica is not None:
            metadata = pod["metadata"]
            replicas.setdefault((metadata["namespace"], metadata["labels"][LABEL_DEPLOYMENT]), []).append(replica)
    return wire.RoutingTable(
        deployments=[
            msgspec.structs.replace(entry, replicas=replicas.get((entry.namespace, entry.name), []))
            for entry in table.deployments
        ]
    )


def replica_of(pod: Mapping[str, Any]) -> wire.Replica | None:
    """A pod as a replica; None while its containers are not ready."""
    metadata, status = pod["metadata"], pod.get("status", {})
    address = status.get("podIP")
    ready = any(
        condition.get("type") == "ContainersReady" and condition.get("status") == "True"
        for condition in status.get("conditions") or ()
    )
    if not ready or not address:
        return None
    annotations = metadata.get("annotations") or {}
    host = f"[{address}]" if ":" in address else address
    return wire.Replica(
        id=str(metadata["name"]),
        url=f"http://{host}:{_port(pod)}",
        is_draining="deletionTimestamp" in metadata or any(mark in annotations for mark in DRAINING_MARKS),
    )


def _port(pod: Mapping[str, Any]) -> int:
    for container in pod.get("spec", {}).get("containers") or ():
        for port in container.get("ports") or ():
            if port.get("name") == "http":
                return int(port["containerPort"])
    return PORT


class _Watch:
    """Keeps `objects` (by namespace/name) as the API server has them: lists, follows, and lists anew when it must."""

    def __init__(
        self,
        http: httpx.AsyncClient,
        connection: Connection,
        path: str,
        selector: Mapping[str, str],
        changed: asyncio.Event,
    ) -> None:
        self.objects: dict[str, Object] = {}
        self.is_synced = False
        self.problem = ""
        self._http = http
        self._connection = connection
        self._path = path
        self._selector = dict(selector)
        self._changed = changed
        self._version = ""
        self._delay_s = FIRST_DELAY_S

    async def run(self) -> None:
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._follow()
                # A server that ends each watch at once is not asked all the time; from where it ended nothing is lost.
                await asyncio.sleep(self._delay_s)
            except Exception as error:  # nobody else would begin the watch again
                is_told = isinstance(error, httpx.HTTPError | OSError | _Refused) and str(error)
                why = str(error) if is_told else f"{type(error).__name__}: {error}".removesuffix(": ")
                self._say(f"Pods and routing table may be old: {why}.")
                await asyncio.sleep(self._delay_s * random.uniform(0.5, 1.0))
                self._delay_s = min(self._delay_s * 2, LONGEST_DELAY_S)

    async def _list(self) -> None:
        answer = await self._http.get(self._path, params=self._selector, headers=self._headers(), timeout=30.0)
        if not answer.is_success:
            raise _Refused(f"GET {self._path} was answered {answer.status_code}: {answer.text[:200]}")
        listed = answer.json()
        self.objects = {_name(item): item for item in listed["items"]}
        self._version = listed["metadata"]["resourceVersion"]
        self.is_synced = True
        self._changed.set()

    async def _follow(self) -> None:
        parameters = self._selector | {
            "watch": "1",
            "resourceVersion": self._version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        timeout = httpx.Timeout(10.0, read=SILENCE_S)
        async with self._http.stream(
            "GET", self._path, params=parameters, headers=self._headers(), timeout=timeout
        ) as stream:
            if not stream.is_success:
                if stream.status_code == 410:
                    self._version = ""
                    return
                raise _Refused(f"watching {self._path} was answered {stream.status_code}")
            self._say("")
            self._delay_s = FIRST_DELAY_S
            async for line in stream.aiter_lines():
                if line and not self._take(json.loads(line)):
                    return

    def _take(self, event: Object) -> bool:
        """Take in one event; False when the list has to be read anew."""
        kind, body = event["type"], event["object"]
        if kind == "ERROR":
            self._version = ""
            return False
        self._version = body["metadata"]["resourceVersion"]
        if kind == "BOOKMARK":
            return True
        if kind == "DELETED":
            self.objects.pop(_name(body), None)
        else:
            self.objects[_name(body)] = body
        self._changed.set()
        return True

    def _headers(self) -> dict[str, str]:
        bearer = self._connection.bearer()
        return {"accept": "application/json"} | ({"authorization": f"Bearer {bearer}"} if bearer else {})

    def _say(self, problem: str) -> None:
        if problem and not self.problem:
            log.warning("%s", problem)
        if problem != self.problem:
            self.problem = problem
            self._changed.set()


class _Refused(Exception):
    """The API server answered with an error."""


def _name(body: Object) -> str:
    return f"{body['metadata'].get('namespace', '')}/{body['metadata']['name']}"
