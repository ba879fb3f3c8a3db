"""The gateway follows pods on a real API server. Those of the fake node answer nobody, so none is routable."""

import json
import subprocess
import sys

import pytest

PORT = 9200


@pytest.fixture
def gateway(cluster, operator, tmp_path):
    """The gateway as a process inside the cluster's network."""
    command = [
        *cluster.layout.inside,
        *(sys.executable, "-m", "quire_gateway", "--port", str(PORT), "--kubeconfig", str(cluster.layout.kubeconfig())),
        *("--kubernetes-table", "quire-system/quire-routing"),
    ]
    with (tmp_path / "gateway.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    yield process
    process.terminate()
    assert process.wait(60) == 0


def ask(cluster, path) -> tuple[int, dict]:
    command = [*cluster.layout.inside, "curl", "-s", "-w", "\n%{http_code}", f"http://127.0.0.1:{PORT}{path}"]
    body, _, status = subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.rpartition("\n")
    return int(status or 0), json.loads(body) if body else {}


def replicas(cluster, namespace) -> set[str]:
    _, report = ask(cluster, "/internal/v1/replicas")
    return {entry["replica"] for entry in report.get("replicas", []) if entry["namespace"] == namespace}


def test_it_is_ready_without_replicas_and_follows_pods(cluster, namespace, tiny, soon, gateway):
    soon(lambda: ask(cluster, "/ready")[0] == 200, "the gateway to be ready")
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny(replicas=2))
    soon(lambda: len(replicas(cluster, namespace)) == 2, "two replicas")
    names = {pod["metadata"]["name"] for pod in cluster.objects("pods", namespace)}
    assert replicas(cluster, namespace) == names
    cluster.kubectl("scale", "llmd/tiny", "-n", namespace, "--replicas=1")
    soon(lambda: len(replicas(cluster, namespace)) == 1, "one replica")
    _, models = ask(cluster, "/v1/models")
    assert f"tiny-{namespace}" in {model["id"] for model in models["data"]}
    cluster.kubectl("delete", "llmd", "tiny", "-n", namespace)
    soon(lambda: not replicas(cluster, namespace), "no replica")
    soon(lambda: ask(cluster, "/v1/models")[1]["data"] == [], "the name to be gone")
