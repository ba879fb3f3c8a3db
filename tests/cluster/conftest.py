"""A real control plane with fake nodes, and the operator as a process in it."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from quire_api.routing_secret import unpack

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY / "e2e"))

from cluster import build, control_plane, daemon, network, pki, teardown, traces  # noqa: E402
from cluster.layout import Layout  # noqa: E402

DEADLINE_S = 180.0
SYSTEM = "quire-system"
KWOK = [
    "kwok",
    "--manage-all-nodes=false",
    "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
    "--cidr=10.245.0.0/16",
    "--node-ip=10.245.255.1",
    "--node-lease-duration-seconds=40",
    "--server-address=127.0.0.1:10247",
]


class Cluster:
    """kubectl and processes inside the cluster's network."""

    def __init__(self, layout: Layout, folder: Path) -> None:
        self.layout = layout
        self.folder = folder
        self._reports = folder / "internal" / "v1" / "replicas"
        self._reports.parent.mkdir(parents=True)
        self.report([])

    def try_kubectl(self, *arguments: str, given: Any = None) -> subprocess.CompletedProcess[str]:
        """`given` goes to standard input as YAML."""
        environment = {**os.environ, "PATH": daemon.search_path(self.layout)}
        environment["KUBECONFIG"] = str(self.layout.kubeconfig())
        return subprocess.run(
            [*self.layout.inside, "kubectl", *arguments],
            env=environment,
            input=yaml.safe_dump(given) if given is not None else None,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def kubectl(self, *arguments: str, given: Any = None) -> str:
        done = self.try_kubectl(*arguments, given=given)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        """The object; empty if there is none."""
        text = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text else {}

    def objects(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        return json.loads(self.kubectl("get", kind, "-n", namespace, "-l", selector, "-o", "json"))["items"]

    def ready(self, name: str, namespace: str) -> tuple[str, str, str]:
        """Status, reason and message of the Ready condition."""
        return condition(self.get("llmd", name, namespace), "Ready")

    def routes(self, namespace: str, secret: str = "quire-routing") -> list[dict[str, Any]]:
        """The namespace's entries in the gateways' table; without a namespace those of all."""
        found = self.get("secret", secret, SYSTEM)
        if not found:
            return []
        table = json.loads(unpack({name: base64.b64decode(value) for name, value in found["data"].items()}))
        return [entry for entry in table["deployments"] if namespace in ("", entry["namespace"])]

    def report(self, replicas: list[dict[str, Any]]) -> None:
        """What the one gateway of this cluster says from now on."""
        beside = self._reports.with_name("next")
        beside.write_text(json.dumps({"replicas": replicas}))
        beside.replace(self._reports)

    def load(self, deployments: list[dict[str, Any]]) -> None:
        """What the gateway says of its load from now on."""
        beside = self._reports.with_name("next-load")
        beside.write_text(json.dumps({"gateway": "g", "deployments": deployments}))
        beside.replace(self._reports.with_name("load"))

    def route(self, namespace: str, deployment: str, *pods: str, in_flight: int = 0) -> None:
        """Let the gateway say that it got answers through these pods."""
        self.report(
            [
                {
                    "deployment": deployment,
                    "namespace": namespace,
                    "replica": pod,
                    "is_routable": True,
                    "in_flight": in_flight,
                }
                for pod in pods
            ]
        )

    @contextmanager
    def operator(self, name: str, *flags: str) -> Iterator["OperatorProcess"]:
        """One more operator."""
        process = OperatorProcess(self, name, flags)
        try:
            yield process
        finally:
            process.stop()


class OperatorProcess:
    """`python -m quire_operator` inside the cluster's network."""

    def __init__(self, cluster: Cluster, name: str, flags: tuple[str, ...]) -> None:
        self.log = cluster.folder / f"{name}.log"
        self._inside = cluster.layout.inside
        command = [
            *cluster.layout.inside,
            *(sys.executable, "-m", "quire_operator", "--kubeconfig", str(cluster.layout.kubeconfig())),
            *("--namespace", SYSTEM, "--identity", name, "--port", "0"),
            *("--gateway-addresses", "http://127.0.0.1:9100", *flags),
        ]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=cluster.folder)
        try:
            eventually(lambda: "serves /metrics" in self.log.read_text(), "the operator to start")
        except AssertionError:
            self.kill()
            raise

    @property
    def says(self) -> str:
        return self.log.read_text()

    def counted(self, metric: str, *without: str) -> float:
        """Sum of a counter's samples as /metrics tells them, less those that have one of these labels."""
        port = re.findall(r"serves /metrics on port (\d+)", self.says)[-1]
        command = [*self._inside, "curl", "-s", "--fail", f"http://127.0.0.1:{port}/metrics"]
        text = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=True).stdout
        samples = [line.rsplit(" ", 1) for line in text.splitlines() if re.match(rf"{metric}[{{ ]", line)]
        return sum(float(value) for series, value in samples if not any(label in series for label in without))

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It stands still while the block runs."""
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self._process.send_signal(signal.SIGTERM)
        return self.wait()

    def wait(self) -> int:
        """The exit code of an operator that ends by itself."""
        return self._process.wait(DEADLINE_S)


def condition(resource: dict[str, Any], kind: str) -> tuple[str, str, str]:
    for entry in resource.get("status", {}).get("conditions", []):
        if entry["type"] == kind:
            return entry["status"], entry["reason"], entry["message"]
    return "", "", ""


def eventually(holds: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Poll until `holds` gives something true, and return that."""
    end = time.monotonic() + deadline_s
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < end, f"waited {deadline_s:.0f} s for {what}"
        time.sleep(0.2)


def _unless_possible() -> str:
    """Why there can be no cluster here; empty if there can."""
    if os.geteuid() != 0:
        return "a control plane needs root (it lives in a network namespace of its own)"
    if shutil.which("ip") is None:
        return "a control plane needs iproute2"
    if not all((Layout().binaries / tool).exists() for tool in ("kube", "kwok", "helm")) and shutil.which("go") is None:
        return "a control plane is built from Go modules, and Go is not on the PATH"
    return ""


@contextmanager
def _cluster(name: str, folder: Path) -> Iterator[Cluster]:
    """A control plane with one fake node and the CRD; built first where it is not. It may leave nothing of its name."""
    layout = Layout(name=name)
    before = traces.read(layout)
    if not (layout.binaries / "kube").exists():
        build.build_kube(layout)
    for tool in ("kwok", "helm"):
        if not (layout.binaries / tool).exists():
            build.build_tool(layout, tool)
    try:
        network.create(layout)
        pki.write_pki(layout)
        control_plane.start(layout)
        cluster = Cluster(layout, folder)
        daemon.start(layout, "kwok", [*KWOK, f"--kubeconfig={layout.kubeconfig()}"])
        daemon.start(
            layout, "reports", [sys.executable, "-m", "http.server", "9100", "--directory", str(cluster.folder)]
        )
        cluster.kubectl("apply", "-f", "-", given=FAKE_NODE)
        cluster.kubectl("create", "namespace", SYSTEM)
        cluster.kubectl("apply", "--server-side", "-f", str(REPOSITORY / "crds"))
        # kubectl does not wait for conditions that are not there at all yet.
        established = ("wait", "--for=condition=Established", "crd/llmdeployments.quire.dev")
        eventually(lambda: cluster.try_kubectl(*established).returncode == 0, "the CRD")
        eventually(
            lambda: cluster.try_kubectl("get", "sa", "default", "-n", SYSTEM).returncode == 0, "service accounts"
        )
        yield cluster
    finally:
        daemon.stop(layout, "reports")
        teardown.down(layout)
        # Other clusters may come and go on this machine meanwhile.
        left = [line for line in traces.new(layout, before) if name in line]
        assert not left, "the control plane left behind:\n" + "\n".join(left)


@pytest.fixture(scope="session")
def possible() -> None:
    """Skips what needs a control plane where none can be; in CI that fails."""
    if obstacle := _unless_possible():
        if os.environ.get("CI") == "true":
            pytest.fail(obstacle)
        pytest.skip(obstacle)


@pytest.fixture(scope="session")
def new_cluster(
    possible: None, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], AbstractContextManager[Cluster]]:
    """Brings up a control plane of its own name while a block runs."""
    return lambda name: _cluster(f"quire-{name}-{os.getpid()}", tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="session")
def cluster(new_cluster: Callable[[str], AbstractContextManager[Cluster]]) -> Iterator[Cluster]:
    """The control plane of all tests."""
    with new_cluster("test") as cluster:
        yield cluster


@pytest.fixture(scope="session")
def operator(cluster: Cluster) -> Iterator[OperatorProcess]:
    """The operator that leads in all tests."""
    with cluster.operator("leader") as process:
        eventually(lambda: "this operator leads" in process.says, "leadership")
        yield process


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty namespace, deleted afterwards."""
    name = f"t{abs(hash(request.node.name)) % 10**8}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.report([])
    cluster.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def tiny(namespace: str) -> Callable[..., dict[str, Any]]:
    """An LLMDeployment that fits the fake node; its served name is this test's alone."""

    def make(name: str = "tiny", **spec: Any) -> dict[str, Any]:
        model = {"source": "file:///models/tiny", "servedNames": [f"{name}-{namespace}"], **spec.pop("model", {})}
        return {
            "apiVersion": "quire.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": {"name": name},
            "spec": {
                "model": model,
                "engine": {"device": "cpu"},
                "resources": {"cpu": "100m", "memory": "64Mi"},
                "rollout": {"drainTimeout": "2s"},
                **spec,
            },
        }

    return make


@pytest.fixture(scope="session")
def soon() -> Callable[..., Any]:
    """`eventually`."""
    return eventually


FAKE_NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {
        "name": "fake",
        "annotations": {"kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0"},
        "labels": {"type": "kwok", "kubernetes.io/hostname": "fake"},
    },
    "status": {
        "allocatable": {"cpu": "64", "memory": "256Gi", "pods": "2000"},
        "capacity": {"cpu": "64", "memory": "256Gi", "pods": "2000"},
    },
}
