"""One real node, Quire installed by Helm, and a client outside of it. `make e2e` runs what stands here."""

import json
import os
import platform
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import bystander
import installation
import stores
from client import VISITORS, Client, eventually
from cluster import teardown, traces
from cluster.layout import REPOSITORY
from stores import Hub, Registry

IN_THE_IMAGE = "/opt/quire/models/quire-tiny"
KEEP = os.environ.get("QUIRE_KEEP_CLUSTER") == "1"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}
TIMES: dict[str, float] = {}
RECORDS = REPOSITORY / ".quire"
"""Of every run; those that are published are written to bench/results."""


@pytest.fixture(scope="session")
def soon() -> Callable[..., Any]:
    """`eventually`."""
    return eventually


@pytest.fixture(scope="session")
def cluster() -> Iterator[Client]:
    """A cluster with Quire installed by its chart. With QUIRE_KEEP_CLUSTER=1 it stays, and is taken up again.

    Else ours goes in the end, and the run fails if it leaves anything on the machine; from another Quire is taken away.
    """
    client = installation.open_client()
    before = traces.read(client.layout) if client.is_own else frozenset()
    if not client.is_own and not KEEP:
        installation.refuse_where_quire_is(client)
    try:
        if client.is_own and not (KEEP and client.layout.namespace.exists()):
            TIMES.update(installation.bring_up(client))
        installation.prepare(client)
        began = time.monotonic()
        installation.install(client)
        TIMES["helm install, until operator and gateways are ready"] = round(time.monotonic() - began, 2)
        if not client.is_own:
            bystander.place(client, VISITORS)
        yield client
    finally:
        if not client.is_own and not KEEP:
            installation.remove(client)
        if client.is_own and not KEEP:
            teardown.down(client.layout)
            if left := traces.new(client.layout, before):
                pytest.fail("the cluster left behind:\n" + "\n".join(left))


@pytest.fixture
def record() -> Callable[[str, float], None]:
    """Keeps a measured time under a name; the session's end prints all, and writes them to RECORDS or $QUIRE_RECORD."""

    def keep(what: str, seconds: float) -> None:
        TIMES[what] = round(seconds, 2)

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not TIMES:
        return
    terminalreporter.section("measured, in seconds")
    for what, seconds in TIMES.items():
        terminalreporter.line(f"{seconds:8.2f}  {what}")
    given = {name: os.environ.get(f"QUIRE_E2E_{name}", "") for name in ("CLUSTER", "IMAGES", "REGISTRY", "TAG")}
    kind = "-current" if given["CLUSTER"] == "current" else "-full" if given["IMAGES"] == "full" else ""
    file = Path(os.environ.get("QUIRE_RECORD") or RECORDS / f"cluster{kind}.json")
    given["SCENARIOS"] = " ".join(terminalreporter.config.args)
    command = ["make e2e", *(f"{name}='{value}'" for name, value in given.items() if value not in ("", "own", "e2e"))]
    machine = {"cpus": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version()}
    found = {
        "command": " ".join(command),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {**machine, "load_average_15m": round(os.getloadavg()[2], 1)},
        "scenarios": {
            state: len(terminalreporter.getreports(state)) for state in ("passed", "failed", "error", "skipped")
        },
        "left_out": {
            skipped.nodeid.rpartition("::")[2]: str(skipped.longrepr[2]).removeprefix("Skipped: ")
            for skipped in terminalreporter.getreports("skipped")
        },
        "seconds": TIMES,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n")
    terminalreporter.line(f"written to {file}")


@pytest.fixture
def install(cluster: Client) -> Callable[..., None]:
    """Installs or upgrades the chart, or the one given, with values."""
    return lambda *chart, **values: installation.install(cluster, *chart, **values)


@pytest.fixture
def namespace(new_namespace: Callable[[], str]) -> str:
    """A namespace under the restricted standard."""
    return new_namespace()


@pytest.fixture
def new_namespace(cluster: Client, request: pytest.FixtureRequest) -> Iterator[Callable[[], str]]:
    """Makes namespaces under the restricted standard, with the repository as a read-only volume claim where engines
    run from it.
    """
    made: list[str] = []

    def make() -> str:
        name = f"t{zlib.crc32(request.node.nodeid.encode())}-{len(made)}"
        made.append(name)
        metadata = {"name": name, "labels": RESTRICTED}
        wanted = [{"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}]
        cluster.kubectl("apply", "-f", "-", given=wanted + (_volume(name) if cluster.is_repository_mounted else []))
        return name

    yield make
    for name in made:
        cluster.kubectl("delete", "llmd", "--all", "-n", name, "--wait=false")
    # What still drains would take memory and CPU from the next scenario; an empty namespace goes by itself.
    for name in made:
        eventually(lambda name=name: _emptied(cluster, name), "the pods to go")
        cluster.kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
        if cluster.is_repository_mounted:
            cluster.kubectl("delete", "pv", name, "--wait=false", "--ignore-not-found")


def _emptied(cluster: Client, namespace: str) -> bool:
    """Whether no pod is left; those whose Deployments are gone are not given the time to drain."""
    if cluster.objects("deployments", namespace, "quire.dev/deployment"):
        return False
    pods = cluster.objects("pods", namespace)
    if pods:
        cluster.kubectl("delete", "pods", "--all", "-n", namespace, "--grace-period=1", "--wait=false")
    return not pods


@pytest.fixture
def tiny(cluster: Client, namespace: str) -> Callable[..., dict[str, Any]]:
    """quire-tiny on the CPU; its served name is this test's alone."""

    def make(name: str = "tiny", *, within: str = namespace, **spec: Any) -> dict[str, Any]:
        folder = f"{REPOSITORY}/models/quire-tiny" if cluster.is_repository_mounted else IN_THE_IMAGE
        model = {"source": f"file://{folder}", "servedNames": [f"{name}-{within}"], **spec.pop("model", {})}
        engine = {"device": "cpu", "maxModelLen": 512, "kvCache": {"memory": "64Mi"}, **spec.pop("engine", {})}
        return {
            "apiVersion": "quire.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": {"name": name, "namespace": within},
            "spec": {
                "model": model,
                "engine": engine,
                "resources": {"cpu": "100m", "memory": "2Gi"},
                **({"podTemplate": MOUNTED} if cluster.is_repository_mounted else {}),
                **spec,
            },
        }

    return make


@pytest.fixture
def hub(cluster: Client, tmp_path: Path) -> Iterator[Callable[..., Hub]]:
    """Starts a hub that serves a folder, with the flags of hub.py."""
    started: list[Hub] = []

    def start(folder: Path, *flags: str, port: int = stores.HUB_PORT) -> Hub:
        started.append(Hub(cluster, tmp_path / f"hub-{port}.log", folder, *flags, port=port))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.fixture
def registry(cluster: Client, tmp_path: Path) -> Iterator[Registry | None]:
    """An empty registry of images on our node; a containerd elsewhere would not pull from one without TLS."""
    registry = Registry(cluster, tmp_path / "registry") if cluster.is_own else None
    yield registry
    if registry:
        registry.stop()


MOUNTED = {
    "spec": {
        "containers": [
            {
                "name": "engine",
                "volumeMounts": [{"name": "repository", "mountPath": str(REPOSITORY), "readOnly": True}],
            }
        ],
        "volumes": [{"name": "repository", "persistentVolumeClaim": {"claimName": "repository", "readOnly": True}}],
    }
}


def _volume(name: str) -> list[dict[str, Any]]:
    """A static volume: the restricted standard allows no hostPath in a pod."""
    shared = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name},
            "spec": {
                **shared,
                "capacity": {"storage": "10Gi"},
                "hostPath": {"path": str(REPOSITORY)},
                "persistentVolumeReclaimPolicy": "Retain",
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "repository", "namespace": name},
            "spec": {**shared, "volumeName": name, "resources": {"requests": {"storage": "10Gi"}}},
        },
    ]
