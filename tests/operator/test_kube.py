"""The client against a server that misbehaves on real sockets."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import RawTestServer

from quire_api.connection import Connection, NoCluster
from quire_operator import kube as module
from quire_operator.kube import ApiError, ApiUnavailable, Kube, NotLeading, path_of
from quire_operator.lease import Lease

SERVICE = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s", "namespace": "n"}}


class Server:
    """Answers with the statuses given (0: 200 and no JSON), then with 200 and the pages given."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self.pages: list[dict[str, object]] = []
        self.seen: list[web.BaseRequest] = []
        self.bodies: list[object] = []
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.seen.append(request)
        self.bodies.append(await request.json() if request.can_read_body else None)
        if self.statuses and (status := self.statuses.pop(0)) != 200:
            if not status:
                return web.Response(text="<html>please wait</html>")
            return web.json_response(
                {"reason": "Because", "message": "no"}, status=status, headers={"Retry-After": "0"}
            )
        page = {"items": [SERVICE], "metadata": {"resourceVersion": "1"}}
        return web.json_response(self.pages.pop(0) if self.pages else page)


@pytest.fixture
async def server(monkeypatch) -> AsyncIterator[Server]:
    monkeypatch.setattr(module, "FIRST_DELAY_S", 0.001)
    monkeypatch.setattr(module, "LONGEST_DELAY_S", 0.002)
    server = Server()
    async with RawTestServer(server.answer) as running:
        server.url = str(running.make_url("")).rstrip("/")
        yield server


@pytest.fixture
async def connect(server) -> AsyncIterator[Callable[..., Kube]]:
    made: list[Kube] = []

    def make(**more) -> Kube:
        made.append(Kube(Connection(server.url, token="secret"), **more))
        return made[-1]

    yield make
    for kube in made:
        await kube.close()


async def test_apply_is_a_forced_patch_of_one_manager_with_our_token(server, connect):
    await connect().apply(SERVICE, force=True)
    (request,) = server.seen
    assert (request.method, request.path) == ("PATCH", "/api/v1/namespaces/n/services/s")
    assert dict(request.query) == {"fieldManager": "quire-operator", "force": "true"}
    assert request.headers["content-type"] == "application/apply-patch+yaml"
    assert request.headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_busy_server_is_asked_again(server, connect, status):
    server.statuses = [status, status]
    await connect().apply(SERVICE, force=False)
    assert len(server.seen) == 3


async def test_what_is_no_answer_of_an_api_server_is_asked_again(server, connect):
    server.statuses = [0]
    assert await connect().list("v1", "Service", None) == [SERVICE]
    server.statuses = [0] * 99
    with pytest.raises(ApiUnavailable, match="no JSON"):
        await connect().list("v1", "Service", None)


async def test_a_token_that_cannot_be_read_for_a_moment_is_no_end(server, tmp_path):
    token = tmp_path / "token"
    kube = Kube(Connection(server.url, token_file=token))
    with pytest.raises(ApiUnavailable, match="token"):
        await kube.list("v1", "Service", None)
    token.write_text("t")
    assert await kube.list("v1", "Service", None) == [SERVICE]
    await kube.close()


async def test_a_token_that_no_header_can_carry_is_told_as_trouble(server):
    kube = Kube(Connection(server.url, token="two\nlines"))
    with pytest.raises(ApiUnavailable):
        await kube.list("v1", "Service", None)
    await kube.close()


async def test_places_are_gathered_over_pages_of_names_alone(server, connect):
    server.pages = [
        {"items": [SERVICE], "metadata": {"resourceVersion": "7", "continue": "on"}},
        {"items": [{"metadata": {"name": "z"}}], "metadata": {"resourceVersion": "7"}},
    ]
    assert await connect().places("v1", "Service", None, "a=b") == (7, {("n", "s"), ("", "z")})
    first, second = ({**request.query} for request in server.seen)
    assert (first["labelSelector"], "continue" in first) == ("a=b", False)
    assert second == {**first, "continue": "on"}
    assert all("PartialObjectMetadataList" in request.headers["accept"] for request in server.seen)


async def test_a_server_that_stays_busy_is_unavailable(server, connect):
    server.statuses = [503] * 99
    with pytest.raises(ApiUnavailable, match="503"):
        await connect().list("v1", "Pod", "n")
    assert len(server.seen) == module.TRIES


async def test_what_is_refused_is_not_asked_again(server, connect):
    server.statuses = [422]
    with pytest.raises(ApiError, match="422 Because: no"):
        await connect().apply(SERVICE, force=True)
    assert len(server.seen) == 1


async def test_creating_is_never_repeated(server, connect):
    server.statuses = [500]
    with pytest.raises(ApiUnavailable):
        await connect().create(SERVICE)
    assert len(server.seen) == 1


async def test_missing_objects_are_none_and_deleting_them_is_fine(server, connect):
    server.statuses = [404, 404]
    kube = connect()
    assert await kube.get("v1", "Secret", "n", "x") is None
    await kube.delete("v1", "Secret", "n", "x")


async def test_without_the_lease_nothing_is_written_but_all_is_read(server, connect):
    kube = connect(may_write=lambda: False)
    assert await kube.list("v1", "Service", None) == [SERVICE]
    for write in (kube.apply(SERVICE, force=True), kube.create(SERVICE), kube.delete("v1", "Pod", "n", "p")):
        with pytest.raises(NotLeading):
            await write
    assert [request.method for request in server.seen] == ["GET"]


def test_paths():
    assert path_of("v1", "Pod", None) == "/api/v1/pods"
    assert path_of("apps/v1", "Deployment", "n", "d") == "/apis/apps/v1/namespaces/n/deployments/d"


async def test_a_holder_that_cannot_renew_stops_before_others_may_begin(server, connect):
    """Duration 9 s: others wait 9 s from the last renewal they saw, the holder stops after 6 s."""
    now = [0.0]
    server.statuses = [404]
    lease = Lease(connect(), "n", "l", "me", duration_s=9.0, renew_s=0.01, clock=lambda: now[0])
    task = asyncio.create_task(lease.run())
    await asyncio.wait_for(lease.changed.wait(), 60)
    server.statuses = [403] * 10_000
    await asyncio.sleep(0.05)
    held_from = now[0]
    now[0] = held_from + 5.9
    assert lease.is_held()
    now[0] = held_from + 6.1
    assert not lease.is_held()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_a_kubeconfig_gives_server_certificates_and_namespace(tmp_path):
    (tmp_path / "ca.crt").write_text("CA")
    config = tmp_path / "config"
    config.write_text(
        """
current-context: here
contexts: [{name: here, context: {cluster: c, user: u, namespace: models}}]
clusters: [{name: c, cluster: {server: "https://api:6443/", certificate-authority: ca.crt}}]
users: [{name: u, user: {client-certificate-data: Q0VSVA==, client-key-data: S0VZ}}]
"""
    )
    found = Connection.from_kubeconfig(config)
    assert (found.server, found.namespace) == ("https://api:6443", "models")
    assert (found.ca, found.certificate, found.key) == ("CA", "CERT", "KEY")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "has no current context: it has none"),
        ("{current-context: a, contexts: [{name: b}]}", "has no context a: it has b"),
        ("{current-context: a, contexts: [{name: a, context: {}}]}", "no complete kubeconfig"),
        ("[", "no complete kubeconfig"),
        (
            "{current-context: a, contexts: [{name: a, context: {cluster: c, user: u}}], "
            "clusters: [{name: c, cluster: {server: x}}], users: [{name: u, user: {auth-provider: {}}}]}",
            "logs in by an auth-provider",
        ),
        (
            "{current-context: a, contexts: [{name: a, context: {cluster: c, user: u}}], "
            "clusters: [{name: c, cluster: {server: x}}], "
            "users: [{name: u, user: {exec: {command: quire-no-such-plugin, apiVersion: v1}}}]}",
            "the plugin quire-no-such-plugin .* failed: it is not installed",
        ),
    ],
)
def test_an_unusable_kubeconfig_is_named(tmp_path, text, words):
    (tmp_path / "config").write_text(text)
    with pytest.raises(NoCluster, match=words):
        Connection.from_kubeconfig(tmp_path / "config")


def test_the_account_of_a_pod_is_found_and_its_token_read_anew(tmp_path, monkeypatch):
    for name, text in (("token", "first"), ("ca.crt", "CA"), ("namespace", "quire-system")):
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    found = Connection.find(account=tmp_path)
    assert (found.server, found.namespace, found.bearer()) == ("https://10.96.0.1:443", "quire-system", "first")
    (tmp_path / "token").write_text("second")
    assert found.bearer() == "second"
