"""What scenarios share: applying and waiting, streams under way, one question."""

import json
import re
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

import pytest
from client import SYSTEM, Client, eventually

GATEWAY = "app.kubernetes.io/name=quire-gateway"
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


def restarts(cluster: Client, namespace: str, selector: str = "quire.dev/deployment") -> dict[str, int]:
    """Restarts of each pod's containers."""
    return {
        pod["metadata"]["name"]: sum(status["restartCount"] for status in pod["status"]["containerStatuses"])
        for pod in cluster.pods(namespace, selector)
    }


def addresses(cluster: Client) -> dict[str, str]:
    """Of every ready gateway pod, its API."""
    found = {}
    for pod in cluster.pods(SYSTEM, GATEWAY):
        conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", [])}
        if conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]:
            ports = {port["name"]: port["containerPort"] for port in pod["spec"]["containers"][0]["ports"]}
            found[pod["metadata"]["name"]] = f"http://{pod['status']['podIP']}:{ports['http']}"
    return found


def moved_streams(cluster: Client) -> float:
    """How many streams the gateways have moved away from a replica that broke."""
    text = "".join(cluster.request(f"{address}/metrics") for address in addresses(cluster).values())
    return sum(float(value) for value in re.findall(r"^quire_gateway_stream_moves_total\S* (\S+)$", text, re.M))


def stop_operator(cluster: Client, soon: Callable[..., Any]) -> None:
    cluster.kubectl("scale", "deployment/quire-operator", "-n", SYSTEM, "--replicas=0")
    soon(lambda: not cluster.objects("pods", SYSTEM, OPERATOR), "the operator to go")


def start_operator(cluster: Client, replicas: int = 1) -> None:
    cluster.kubectl("scale", "deployment/quire-operator", "-n", SYSTEM, f"--replicas={replicas}")
    cluster.kubectl("rollout", "status", "deployment/quire-operator", "-n", SYSTEM, "--timeout=300s")


@dataclass
class Traffic:
    """Streams under way, as load.py tells of them. The counts are of this moment; complete once the load has ended."""

    begun: int = 0
    """How many requests were sent."""
    lost: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    _answered: list[int] = field(default_factory=list)
    _streaming: dict[int, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[str]:
        return self.lost + self.cut

    def answered(self, after: int = 0) -> int:
        """How many have been answered of those that began after the first `after`."""
        return sum(request >= after for request in self._answered)

    def streaming(self, after: int = 0) -> Counter[str]:
        """How many answers each replica is writing to requests that began after the first `after`."""
        return Counter(replica for request, replica in self._streaming.copy().items() if request >= after)

    def follow(self, lines: Iterable[str]) -> None:
        """Take in what load.py writes, until it ends."""
        for line in lines:
            told = json.loads(line)
            request, state, detail = told["request"], told["state"], told["detail"]
            if state == "begun":
                self.begun = request + 1
                continue
            if state == "streaming":
                self._streaming[request] = detail
                continue
            self._streaming.pop(request, None)
            if state == "answered":
                self._answered.append(request)
            else:
                (self.cut if state == "cut" else self.lost).append(detail)


@contextmanager
def load(cluster: Client, model: str, clients: int = 3, gateway: str = "", tokens: int = 24) -> Iterator[Traffic]:
    """Streams while the block runs, which begins once the first was answered; all at `gateway`, if one is given."""
    process = subprocess.Popen(
        [*cluster.inside, *cluster.script("load.py", gateway or cluster.gateway, model, str(clients), str(tokens))],
        env=cluster.environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    traffic = Traffic()
    reader = threading.Thread(target=traffic.follow, args=(process.stdout,), daemon=True)
    reader.start()
    try:
        eventually(lambda: traffic.answered() or not reader.is_alive(), "the first stream to be answered")
        assert traffic.answered(), "the streams ended before the first was answered"
        yield traffic
        process.stdin.close()
        assert process.wait(timeout=300) == 0
        reader.join()
    finally:
        process.kill()
        process.wait()


def ask(cluster: Client, model: str, prompt: str = "Once") -> str:
    """One stream through the gateway's Service, as it came."""
    body = {"model": model, "prompt": prompt, "max_tokens": 8, "stream": True}
    return cluster.request(f"{cluster.gateway}/completions", body)


def needs_the_node(cluster: Client, why: str) -> None:
    """Skip a scenario that nothing but a kubeconfig cannot play."""
    if not cluster.is_own:
        pytest.skip(f"{why}, which a kubeconfig does not give (CLUSTER=current)")


def lacks(cluster: Client, what: str) -> NoReturn:
    """Skip on a cluster of somebody else's; our own has what scenarios need."""
    if cluster.is_own:
        pytest.fail(what)
    pytest.skip(f"{what} (CLUSTER=current)")


def wait_for_metrics(cluster: Client, soon: Callable[..., Any]) -> None:
    """Until metrics-server tells what nodes use; where it is not installed, the scenario is skipped."""
    if not cluster.get("apiservice", "v1beta1.metrics.k8s.io", SYSTEM):
        lacks(cluster, "there is no metrics-server")
    soon(lambda: cluster.kubectl("get", "--raw", "/apis/metrics.k8s.io/v1beta1/nodes", check=False), "metrics-server")
