"""What scenarios share: applying and waiting, streams under way, one question."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client import SYSTEM, Client

OPERATOR = "app.kubernetes.io/name=quire-operator"


def apply(cluster: Client, resource: dict[str, Any]) -> None:
    cluster.kubectl("apply", "-f", "-", given=resource)


def serve(cluster: Client, soon: Callable[..., Any], resource: dict[str, Any]) -> str:
    """Apply, wait until Ready; the served name."""
    apply(cluster, resource)
    name, namespace = resource["metadata"]["name"], resource["metadata"]["namespace"]
    wait_for_replicas(cluster, soon, namespace, resource["spec"].get("replicas", 1), name)
    soon(lambda: cluster.ready(name, namespace)[0] == "True", "Ready")
    return str(resource["spec"]["model"]["servedNames"][0])


def wait_for_replicas(
    cluster: Client, soon: Callable[..., Any], namespace: str, count: int, name: str = "tiny"
) -> None:
    what = f"{count} ready replicas"
    soon(lambda: cluster.get("llmd", name, namespace).get("status", {}).get("readyReplicas") == count, what)


def names(pods: list[dict[str, Any]]) -> list[str]:
    return [pod["metadata"]["name"] for pod in pods]


def restarts(cluster: Client, namespace: str) -> dict[str, int]:
    """Restarts of each pod's containers."""
    return {
        pod["metadata"]["name"]: sum(status["restartCount"] for status in pod["status"]["containerStatuses"])
        for pod in cluster.pods(namespace)
    }


def stop_operator(cluster: Client, soon: Callable[..., Any]) -> None:
    cluster.kubectl("scale", "deployment/quire-operator", "-n", SYSTEM, "--replicas=0")
    soon(lambda: not cluster.objects("pods", SYSTEM, OPERATOR), "the operator to go")


def start_operator(cluster: Client, replicas: int = 1) -> None:
    cluster.kubectl("scale", "deployment/quire-operator", "-n", SYSTEM, f"--replicas={replicas}")
    cluster.kubectl("rollout", "status", "deployment/quire-operator", "-n", SYSTEM, "--timeout=300s")


@dataclass
class Traffic:
    """What became of the streams, once they have ended."""

    answered: int = 0
    lost: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        return self.lost + self.cut


@contextmanager
def load(cluster: Client, model: str, folder: Path, clients: int = 3, gateway: str = "") -> Iterator[Traffic]:
    """Streams while the block runs, which begins once the first was answered; all at `gateway`, if one is given."""
    stop = folder / "stop"
    command = [*cluster.inside, sys.executable, str(Path(__file__).with_name("load.py"))]
    process = subprocess.Popen(
        [*command, gateway or cluster.gateway, model, str(clients), str(stop)], stdout=subprocess.PIPE, text=True
    )
    traffic = Traffic()
    try:
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first == "under way\n", first or "the streams ended before the first was answered"
        yield traffic
        stop.touch()
        for name, value in json.loads(process.communicate(timeout=300)[0]).items():
            setattr(traffic, name, value)
    finally:
        process.kill()
        process.wait()


def ask(cluster: Client, model: str, prompt: str = "Once") -> str:
    """One stream through the gateway's Service, as it came."""
    body = json.dumps({"model": model, "prompt": prompt, "max_tokens": 8, "stream": True})
    return cluster.run(
        *("curl", "-sN", "--max-time", "100", f"{cluster.gateway}/completions"),
        *("-H", "content-type: application/json", "-d", body),
    )
