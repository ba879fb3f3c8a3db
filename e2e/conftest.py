"""One real node, Quire installed by Helm, and a client outside of it. `make e2e` runs what stands here."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent))

import app_images
from cluster import control_plane, daemon, images, network, node, pki, teardown
from cluster.layout import REPOSITORY, SOURCES, Layout

DEADLINE_S = 180.0
SYSTEM = "quire-system"
CHART = REPOSITORY / "charts" / "quire"
IMAGES = {
    "images.operator.repository": "e2e.local/quire-small",
    "images.gateway.repository": "e2e.local/quire-small",
    "images.runtime.repository": "e2e.local/quire-base",
    "images.operator.tag": "1",
    "images.gateway.tag": "1",
    "images.runtime.tag": "1",
    "images.pullPolicy": "Never",
    "gateway.resources.requests.cpu": "100m",
    "gateway.autoscaling.enabled": "false",
}


class Cluster:
    """kubectl, Helm and HTTP inside the cluster's network."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    def run(self, *command: str, given: str | None = None, check: bool = True) -> str:
        environment = {**os.environ, "PATH": daemon.search_path(self.layout)}
        environment["KUBECONFIG"] = str(self.layout.kubeconfig())
        done = subprocess.run(
            [*self.layout.inside, *command],
            env=environment,
            input=given,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S * 2,
            check=False,
        )
        assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def kubectl(self, *arguments: str, given: Any = None, check: bool = True) -> str:
        text = None
        if given is not None:
            text = yaml.safe_dump_all(given if isinstance(given, list) else [given])
        return self.run("kubectl", *arguments, given=text, check=check)

    def helm(self, *arguments: str) -> str:
        return self.run("helm", *arguments)

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any]:
        """The object; empty if there is none."""
        text = self.kubectl("get", kind, name, "-n", namespace, "-o", "json", "--ignore-not-found")
        return json.loads(text) if text else {}

    def pods(self, namespace: str, selector: str = "quire.dev/deployment") -> list[dict[str, Any]]:
        """Pods that are not on their way out."""
        text = self.kubectl("get", "pods", "-n", namespace, "-l", selector, "-o", "json")
        return [pod for pod in json.loads(text)["items"] if "deletionTimestamp" not in pod["metadata"]]

    def ready(self, name: str, namespace: str) -> tuple[str, str, str]:
        """Status, reason and message of the Ready condition."""
        for entry in self.get("llmd", name, namespace).get("status", {}).get("conditions", []):
            if entry["type"] == "Ready":
                return entry["status"], entry["reason"], entry["message"]
        return "", "", ""

    @property
    def gateway(self) -> str:
        """Base address of the gateway's Service."""
        service = self.get("service", "quire-gateway", SYSTEM)
        return f"http://{service['spec']['clusterIP']}/v1"


def eventually(holds: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """Poll until `holds` gives something true, and return that."""
    end = time.monotonic() + deadline_s
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < end, f"waited {deadline_s:.0f} s for {what}"
        time.sleep(0.3)


@pytest.fixture(scope="session")
def soon() -> Callable[..., Any]:
    """`eventually`."""
    return eventually


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A node with Quire installed by its chart."""
    layout = Layout()
    packed = {archive.stem for archive in layout.images.glob("*.tar")}
    if "pause" not in packed:
        images.pack_pause(layout)
    if "coredns" not in packed:
        images.pack_binary(layout, "coredns")
    app_images.pack_small(layout)
    app_images.pack_base(layout)
    try:
        network.create(layout)
        pki.write_pki(layout)
        control_plane.start(layout)
        node.start(layout)
        cluster = Cluster(layout)
        cluster.kubectl("apply", "-f", str(SOURCES / "manifests" / "coredns.yaml"))
        cluster.kubectl("create", "namespace", SYSTEM)
        cluster.kubectl("label", "namespace", SYSTEM, "pod-security.kubernetes.io/enforce=restricted")
        _install(cluster)
        yield cluster
    finally:
        if os.environ.get("QUIRE_KEEP_CLUSTER") != "1":
            teardown.down(layout)


@pytest.fixture
def install(cluster: Cluster) -> Callable[[], None]:
    """Installs the chart again."""
    return lambda: _install(cluster)


def _install(cluster: Cluster) -> None:
    flags = [f"--set={name}={value}" for name, value in IMAGES.items() if value in ("true", "false")]
    flags += [f"--set-string={name}={value}" for name, value in IMAGES.items() if value not in ("true", "false")]
    cluster.helm("install", "quire", str(CHART), "-n", SYSTEM, "--wait", "--timeout=3m", *flags)


@pytest.fixture
def namespace(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace under the restricted standard, with the repository as a read-only volume claim."""
    name = f"t{abs(hash(request.node.name)) % 10**8}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    volume = {
        "accessModes": ["ReadOnlyMany"],
        "storageClassName": "",
        "volumeName": name,
    }
    cluster.kubectl(
        "apply",
        "-f",
        "-",
        given=[
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name},
                "spec": {
                    "accessModes": ["ReadOnlyMany"],
                    "capacity": {"storage": "10Gi"},
                    "hostPath": {"path": str(REPOSITORY)},
                    "persistentVolumeReclaimPolicy": "Retain",
                    "storageClassName": "",
                },
            },
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": "repository", "namespace": name},
                "spec": {**volume, "resources": {"requests": {"storage": "10Gi"}}},
            },
        ],
    )
    yield name
    cluster.kubectl("delete", "namespace", name, "--wait=false")
    cluster.kubectl("delete", "pv", name, "--wait=false")


@pytest.fixture
def tiny(namespace: str) -> Callable[..., dict[str, Any]]:
    """quire-tiny from the repository; its served name is this test's alone."""

    def make(name: str = "tiny", **spec: Any) -> dict[str, Any]:
        model = {"source": f"file://{REPOSITORY}/models/quire-tiny", "servedNames": [f"{name}-{namespace}"]}
        model |= spec.pop("model", {})
        mounts = [{"name": "repository", "mountPath": str(REPOSITORY), "readOnly": True}]
        is_fetched = not model["source"].startswith("file://")
        template = {
            "spec": {
                "initContainers": [{"name": "agent", "volumeMounts": mounts}] if is_fetched else [],
                "containers": [{"name": "engine", "volumeMounts": mounts}],
                "volumes": [
                    {"name": "repository", "persistentVolumeClaim": {"claimName": "repository", "readOnly": True}}
                ],
            }
        }
        return {
            "apiVersion": "quire.dev/v1alpha1",
            "kind": "LLMDeployment",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "model": model,
                "engine": {
                    "device": "cpu",
                    "maxModelLen": 512,
                    "kvCache": {"memory": "64Mi"},
                    **spec.pop("engine", {}),
                },
                "resources": {"cpu": "100m", "memory": "2Gi"},
                "podTemplate": template,
                **spec,
            },
        }

    return make
