"""The reconciler itself, on any object in any cluster: it ends with a status or with words that are tried again.

What it talks to over real sockets takes every write, or refuses as it is told to; nothing here is said of Kubernetes.
"""

import asyncio
import base64
import json
import logging
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.operator.test_any_pods import clusters
from tests.operator.test_any_spec import junk, specs

from quire_api.connection import Connection
from quire_operator import kube as kube_module
from quire_operator.agents import Agents
from quire_operator.build_pod import Settings
from quire_operator.gateways import Gateways
from quire_operator.kube import ApiError, ApiUnavailable, Kube
from quire_operator.kubernetes_world import Cluster
from quire_operator.nodes import Nodes
from quire_operator.reconcile import Reconciler
from quire_operator.record import ENTRY
from quire_operator.resource import read
from quire_operator.revision import revision_of
from quire_operator.routing import Routing
from quire_operator.store import Store
from quire_operator.world import Key

ODD, GOOD = Key("models", "odd"), Key("models", "good")
CHILDREN = ["deployments", "networkpolicies", "persistentvolumeclaims", "poddisruptionbudgets", "secrets", "services"]
REFUSALS = [
    (403, "exceeded quota: small, requested: 1, used: 1, limited: 1"),
    (403, 'User "operator" cannot patch resource "x"'),
    (403, "is being terminated"),
    (404, "namespaces not found"),
    (409, "conflict with somebody"),
    (422, "spec.template.spec.containers[0]: Invalid value"),
    (500, "failed to create typed patch object: .spec.template.spec.x: field not declared in schema"),
    (500, "an error of its own"),
    (400, "admission webhook does not support dry run"),
]


def raw(key: Key, spec, status=None) -> dict:
    metadata = {"name": key.name, "namespace": key.namespace, "uid": key.name, "generation": 1, "resourceVersion": "1"}
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": metadata,
        "spec": spec,
        **({} if status is None else {"status": status}),
    }


class Server:
    """Takes what is written, and says it back with a newer version; `refusals` for the odd one's, by plural."""

    def __init__(self, *resources: dict) -> None:
        self.resources = {resource["metadata"]["name"]: resource for resource in resources}
        self.refusals: dict[str, tuple[int, str]] = {}
        self.secrets: dict[str, dict] = {}
        self.statuses: dict[str, dict] = {}
        self.rehearsed: list[str] = []
        self.marked: list[str] = []
        self._version = 1000

    async def answer(self, request: web.BaseRequest) -> web.Response:
        _, _, rest = request.path.partition("/namespaces/models/")
        plural, _, rest = (rest or request.path.rsplit("/", 1)[-1]).partition("/")
        name, _, _ = rest.partition("/")
        body = json.loads(await request.read() or b"null")
        if request.method == "GET":
            if plural == "storageclasses" and not name:
                return web.json_response({"items": []})
            found = self.secrets.get(name) if plural == "secrets" else None
            return web.json_response(found or {"message": "no"}, status=200 if found else 404)
        if request.method == "DELETE":
            return web.json_response({})
        self._version += 1
        if "dryRun" in request.query:
            self.rehearsed.append(name)
        if plural == "pods":
            self.marked.append(name)
        if plural == "llmdeployments":
            known = self.resources[name]
            known = {**known, "metadata": {**known["metadata"], "resourceVersion": str(self._version)}, **body}
            self.resources[name], self.statuses[name] = known, body["status"]
            return web.json_response(known)
        if name.startswith(ODD.name) and plural in self.refusals:
            status, message = self.refusals[plural]
            return web.json_response({"reason": "Because", "message": message}, status=status)
        metadata = {"namespace": "models", "name": name, **(body.get("metadata") or {}), "uid": "c"}
        return web.json_response({**body, "metadata": {**metadata, "resourceVersion": str(self._version)}})


@asynccontextmanager
async def operator(server: Server):
    """The real parts, as `main` puts them together."""
    async with RawTestServer(server.answer) as running:
        kube = Kube(Connection(str(running.make_url("")).rstrip("/")))
        gateways = Gateways(kube, lambda keys: None, namespace="s", labels={}, port=1, internal_key="", addresses=["x"])
        agents = Agents(lambda keys: None)
        routing = Routing(kube, "quire-system", "quire-routing")
        parts = (kube, Store(), gateways, agents, Nodes(kube), routing, Settings("e", "a"), "http://gateway/v1")
        reconciler = Reconciler(Cluster(*parts), "me")
        try:
            yield reconciler, parts[1], gateways
        finally:
            for part in (kube, gateways, agents):
                await part.close()


def dressed(body: dict, version: int, owner: str) -> dict:
    """As the API server would hand it out."""
    metadata = {"namespace": "models", "resourceVersion": str(version), **body["metadata"]}
    labels = {"quire.dev/deployment": ODD.name, **metadata.get("labels", {})}
    return {
        **body,
        "metadata": {**metadata, "labels": labels, "ownerReferences": [{"kind": "LLMDeployment", "uid": owner}]},
    }


entries = st.dictionaries(
    st.sampled_from(["key", ENTRY, "alice", "token", "accessKeyId"]),
    st.one_of(st.text(max_size=8), junk.map(lambda value: json.dumps(value, default=str))).map(
        lambda text: base64.b64encode(text.encode(errors="replace")).decode()
    ),
    max_size=3,
)


def is_json(value) -> bool:
    """Whether an API server could hold it: no number that JSON cannot say."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        return False
    return True


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(kube_module, "FIRST_DELAY_S", 0.0005)
    monkeypatch.setattr(kube_module, "LONGEST_DELAY_S", 0.001)
    logging.getLogger("quire_operator").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("quire_operator").setLevel(logging.NOTSET)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_object_in_any_cluster_ends_with_a_status_or_is_tried_again_and_another_is_served(impatient, data):
    spec = data.draw(st.one_of(specs, specs, junk).filter(is_json), label="spec")
    status = data.draw(st.one_of(st.none(), junk, st.just({"servedNames": ["odd"], "replicas": 2})), label="status")
    odd, good = raw(ODD, spec, status), raw(GOOD, {"model": {"source": "file:///m", "servedNames": ["good"]}})
    understood = read(odd).deployment
    revision = revision_of(understood) if understood else "former"
    pods, deployments, heard = data.draw(clusters([revision, "former"]), label="cluster")
    refusals = data.draw(
        st.dictionaries(st.sampled_from(CHILDREN), st.sampled_from(REFUSALS), max_size=2), label="refusals"
    )
    kept = data.draw(entries, label="internal Secret")
    referred = data.draw(st.one_of(st.none(), entries), label="Secret s")
    asyncio.run(bring(odd, good, (pods, deployments, heard), refusals, kept, referred))


async def bring(odd, good, cluster, refusals, kept, referred) -> None:
    server = Server(odd, good)
    server.refusals = refusals
    if referred is not None:
        server.secrets["s"] = {"metadata": {"name": "s"}, "data": referred}
    async with operator(server) as (reconciler, store, gateways):
        pods, deployments, heard = cluster
        for version, (kind, body) in enumerate(
            [*(("Pod", p) for p in pods), *(("Deployment", d) for d in deployments)]
        ):
            store.put(kind, dressed(body, version, ODD.name))
        store.put("Secret", dressed({"metadata": {"name": "odd-internal"}, "data": kept}, 99, ODD.name))
        for resource in (odd, good):
            store.put("LLMDeployment", resource)
        gateways.words, gateways.count = {ODD: dict(heard)}, 1
        tried_again = None
        for _ in range(2):
            try:
                await reconciler.reconcile(ODD)
                tried_again = None
            except (ApiError, ApiUnavailable) as error:
                tried_again = error
            await reconciler.reconcile(GOOD)
        assert says(server, GOOD) in ("Loading", "ReplicasStarting")
        if tried_again is None:
            assert says(server, ODD)
        else:
            # Nothing but trouble of the API server's own keeps an owner without a word.
            assert {message for _, message in refusals.values()} & {
                "is being terminated",
                "namespaces not found",
                "an error of its own",
                "admission webhook does not support dry run",
            } or pods


def says(server: Server, key: Key) -> str:
    """The reason of Ready."""
    conditions = {each["type"]: each for each in server.statuses[key.name]["conditions"]}
    return conditions["Ready"]["reason"]


@pytest.mark.parametrize("replicas", [1, 0])
async def test_a_revision_is_rehearsed_once_also_where_nothing_comes_of_it(impatient, replicas):
    def spec(length):
        return {"model": {"source": "file:///m"}, "replicas": replicas, "engine": {"maxModelLen": length}}

    server = Server(raw(ODD, spec(64)))
    async with operator(server) as (reconciler, store, _):
        for generation, length in enumerate((64, 64, 128)):
            resource = raw(ODD, spec(length))
            resource["metadata"] |= {"generation": generation, "resourceVersion": str(10_000 + generation)}
            server.resources[ODD.name] = resource
            store.put("LLMDeployment", resource)
            for _ in range(3):
                await reconciler.reconcile(ODD)
    assert len(server.rehearsed) == len(set(server.rehearsed)) == 2


@pytest.mark.parametrize("refused", ["services", "networkpolicies", "secrets", "persistentvolumeclaims", "deployments"])
async def test_no_replica_goes_for_a_revision_that_cannot_have_what_it_needs(impatient, refused):
    """A rollout that begins by taking one away would lose it for nothing, and another at each new try."""

    def spec(length):
        rollout = {"maxSurge": 0, "maxUnavailable": 1}
        volume = {"source": "hf://a/b", "volume": {"size": "1Gi"}}
        return {"model": volume, "replicas": 2, "engine": {"maxModelLen": length}, "rollout": rollout}

    former = revision_of(read(raw(ODD, spec(64))).deployment)
    server = Server(raw(ODD, spec(128)))
    server.refusals = {refused: (403, "exceeded quota: small")}
    async with operator(server) as (reconciler, store, gateways):
        store.put("LLMDeployment", raw(ODD, spec(128)))
        labels = {"quire.dev/revision": former}
        live = {"metadata": {"name": f"odd-{former}", "generation": 1, "labels": labels}, "spec": {"replicas": 2}}
        store.put("Deployment", dressed(live, 5, ODD.name))
        ready = [{"type": kind, "status": "True"} for kind in ("ContainersReady", "quire.dev/routable")]
        for number in range(2):
            pod = {"metadata": {"name": f"pod-{number}", "labels": labels}, "status": {"conditions": ready}}
            store.put("Pod", dressed(pod, 6 + number, ODD.name))
        gateways.count = 1
        for _ in range(2):
            await reconciler.reconcile(ODD)
        assert says(server, ODD) == "QuotaExceeded"
        assert server.marked == []
        server.refusals = {}
        store.put("LLMDeployment", {**raw(ODD, {**spec(128), "access": {"sharedCache": True}}), **newer()})
        for _ in range(2):
            await reconciler.reconcile(ODD)
        assert server.marked != []


def newer() -> dict:
    return {"metadata": {**raw(ODD, {})["metadata"], "generation": 2, "resourceVersion": "9999"}}
