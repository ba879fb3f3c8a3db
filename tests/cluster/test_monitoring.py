"""A real Prometheus on real engines, a real gateway and a real operator: no panel and no rule is without data."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml
from client import Client
from prometheus import Prometheus, Target

REPOSITORY = Path(__file__).parents[2]
PORT = 8390
URL = f"http://127.0.0.1:{PORT}"
RESOURCE = {
    "apiVersion": "quire.dev/v1alpha1",
    "kind": "LLMDeployment",
    "metadata": {"name": "quire-tiny"},
    "spec": {
        "model": {"source": f"file://{REPOSITORY}/models/quire-tiny"},
        "engine": {"device": "cpu", "maxModelLen": 256, "kvCache": {"memory": "16Mi"}},
        "replicas": 2,
    },
}


def curl(cluster, path: str, body: dict | None = None) -> str:
    given = ["-H", "content-type: application/json", "-d", json.dumps(body)] if body else []
    command = [*cluster.layout.inside, "curl", "-s", "--max-time", "60", f"{URL}{path}", *given]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False).stdout


@pytest.fixture
def up(cluster, soon, tmp_path):
    """`quire up` with two engines inside the cluster's network."""
    if shutil.which("prometheus") is None:
        message = "Prometheus is not installed; Debian's package is prometheus"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(RESOURCE))
    command = [
        *(*cluster.layout.inside, sys.executable, "-m", "quire", "up", str(file)),
        *("--port", str(PORT), "--state-dir", str(tmp_path / "state")),
    ]
    with (tmp_path / "up.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    soon(lambda: curl(cluster, "/internal/v1/replicas").count('"is_routable":true') == 2, "two replicas", 240.0)
    yield process
    process.send_signal(signal.SIGTERM)
    process.wait(90)


@pytest.fixture
def load(cluster, up):
    """Streams until the test ends."""
    script = REPOSITORY / "e2e" / "load.py"
    command = [*cluster.layout.inside, sys.executable, str(script), f"{URL}/v1", "quire-tiny", "3"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    yield
    process.stdin.close()
    assert process.wait(120) == 0


def test_every_panel_and_every_rule_has_data_under_load(cluster, operator, namespace, tiny, up, load, soon, tmp_path):
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny())
    soon(lambda: cluster.ready("tiny", namespace)[1], "a condition")
    replicas = json.loads(curl(cluster, "/internal/v1/replicas"))["replicas"]
    targets = [
        Target(entry["url"].removeprefix("http://"), "quire-engine", "http", "default", entry["replica"], "quire-tiny")
        for entry in replicas
    ]
    metrics_port = re.search(r"serves /metrics on port (\d+)", operator.says)[1]
    targets += [
        Target(f"127.0.0.1:{PORT}", "quire-gateway", "http", "quire-system", "gateway-1"),
        Target(f"127.0.0.1:{metrics_port}", "quire-operator", "http", "quire-system", "operator-1"),
    ]
    client = Client(cluster.layout, is_own=True, is_repository_mounted=True, is_visiting=False)
    prometheus = Prometheus(client, tmp_path, targets)
    try:
        assert prometheus.wait(prometheus.unhealthy) == []
        provoke(cluster, up, namespace)
        assert "\n".join(prometheus.wait(prometheus.silent)) == ""
    finally:
        prometheus.stop()


def provoke(cluster, up, namespace) -> None:
    """What does not happen by itself: an edit, refusals at both doors, and a replica lost under its requests."""
    cluster.kubectl("annotate", "llmd", "tiny", "-n", namespace, "example.com/edited=true")
    assert "error" in curl(cluster, "/v1/completions", {"model": "quire-tiny", "prompt": "word " * 3000})
    assert "error" in curl(cluster, "/v1/nonsense")
    engines = [child for child in psutil.Process(up.pid).children() if "serve" in child.cmdline()]
    engines[0].kill()
