"""Which pods a gateway routes to, and odd API servers. A real one is watched in tests/cluster."""

import asyncio
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from quire_api import wire
from quire_api.connection import Connection
from quire_gateway import discovery_kubernetes
from quire_gateway.config import GatewayConfig
from quire_gateway.discovery_kubernetes import GATHER_S, LONGEST_DELAY_S, KubernetesDiscovery, replica_of, with_replicas
from quire_gateway.gateway import Gateway, NoDiscovery


def pod(name="tiny-1", *, ready=True, address="10.0.0.7", annotations=None, port=None, **metadata):
    containers = [{"name": "engine", "ports": [{"name": "http", "containerPort": port}]}] if port else []
    return {
        "metadata": {
            "name": name,
            "namespace": "models",
            "labels": {"quire.dev/deployment": "tiny"},
            "annotations": annotations or {},
            **metadata,
        },
        "spec": {"containers": containers},
        "status": {
            "podIP": address,
            "conditions": [
                {"type": "Ready", "status": "False"},
                {"type": "ContainersReady", "status": "True" if ready else "False"},
            ],
        },
    }


def test_a_pod_counts_from_ready_containers_on_though_its_gate_is_closed():
    assert replica_of(pod()) == wire.Replica(id="tiny-1", url="http://10.0.0.7:8000")
    assert replica_of(pod(ready=False)) is None
    assert replica_of(pod(address=None)) is None


def test_addresses_of_both_families_and_named_ports():
    assert replica_of(pod(address="fd00::7", port=9000)).url == "http://[fd00::7]:9000"


@pytest.mark.parametrize(
    "leaving",
    [
        {"deletionTimestamp": "2026-01-01T00:00:00Z"},
        {"annotations": {"quire.dev/drain-deadline": "1"}},
        {"annotations": {"quire.dev/stopping": "true"}},
    ],
    ids=["deleted", "draining", "stopping"],
)
def test_a_pod_that_leaves_gets_nothing_new(leaving):
    assert replica_of(pod(**leaving)).is_draining


def test_pods_join_their_deployment_and_strangers_nothing():
    table = wire.RoutingTable(deployments=[wire.Deployment(name="tiny", namespace="models", served_names=["tiny"])])
    stranger = pod("other")
    stranger["metadata"]["labels"] = {"quire.dev/deployment": "unknown"}
    joined = with_replicas(table, [pod("b"), pod("a"), stranger])
    assert [replica.id for replica in joined.deployments[0].replicas] == ["a", "b"]


def test_a_gateway_without_any_table_says_what_to_give_it():
    with pytest.raises(NoDiscovery, match="--kubernetes-table NAMESPACE/SECRET"):
        Gateway(GatewayConfig())


@dataclass
class Server:
    """An API server without objects that ends each watch at once.

    is_odd: its answers are no objects either. refuses: it lets nobody watch.
    """

    url: str = ""
    is_odd: bool = False
    refuses: bool = False
    events: list[str] = field(default_factory=list)

    async def answer(self, request):
        kind = "watch" if "watch" in request.query else "list"
        self.events.append(kind)
        if self.is_odd:
            return web.json_response([])
        if kind == "watch":
            return web.Response(status=403 if self.refuses else 200)
        return web.json_response({"items": [], "metadata": {"resourceVersion": "1"}})


@pytest.fixture
async def server():
    server = Server()
    async with RawTestServer(server.answer) as running:
        server.url = str(running.make_url("")).rstrip("/")
        yield server


@pytest.fixture
async def follow(server, tmp_path):
    """Discovery by `server`, followed, and the token's file that it reads."""
    token = tmp_path / "token"
    token.write_text("t")
    found = KubernetesDiscovery(Connection(server.url, token_file=token), "n", "table")

    async def take():
        async for _ in found.tables():
            pass

    task = asyncio.create_task(take())
    yield found, token
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until(condition):
    async with asyncio.timeout(60.0):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("trouble", ["token cannot be read", "answers are odd"])
async def test_a_watch_goes_on_after_trouble_of_any_kind(server, follow, trouble):
    found, token = follow
    aside = token.with_suffix(".aside")
    await until(lambda: "watch" in server.events)
    assert not found.problem
    if trouble == "answers are odd":
        server.is_odd = True
    else:
        token.rename(aside)
    await until(lambda: found.problem)
    server.is_odd = False
    if aside.exists():
        aside.rename(token)
    await until(lambda: not found.problem)
    server.events.clear()
    await until(lambda: server.events.count("watch") > 4)


async def test_a_server_that_ends_each_watch_at_once_is_not_asked_without_a_pause(server, follow, monkeypatch):
    sleep = asyncio.sleep

    async def pause(seconds):
        if seconds > GATHER_S:
            server.events.append("pause")
        await sleep(0)

    monkeypatch.setattr(discovery_kubernetes.asyncio, "sleep", pause)
    async with asyncio.timeout(60.0):
        while server.events.count("watch") < 50:
            await sleep(0.001)
    # Two watches, of the table and of the pods.
    assert server.events.count("pause") >= server.events.count("watch") - 2


async def test_a_server_that_refuses_to_be_watched_is_asked_ever_less_often_and_told_as_a_problem(
    server, follow, monkeypatch
):
    found, _ = follow
    server.refuses = True
    sleep = asyncio.sleep
    pauses = []

    async def pause(seconds):
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(discovery_kubernetes.asyncio, "sleep", pause)
    async with asyncio.timeout(60.0):
        while max(pauses, default=0.0) < LONGEST_DELAY_S / 2:
            await sleep(0.001)
    assert "403" in found.problem
    monkeypatch.undo()
    server.refuses = False
    await until(lambda: not found.problem)
