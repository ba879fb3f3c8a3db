"""Replicas and nodes go away while requests flow."""

import json
import os
import signal
import time

from client import SYSTEM
from cluster import control_plane, daemon, node
from scenario import GATEWAY, ask, load, moved_streams, names, needs_the_node, restarts, serve, wait_for_replicas

LONG = 400
"""Tokens of streams that still run when what strikes their replica arrives."""


def busy(traffic, soon) -> str:
    """The pod of a replica that has just begun answers: older ones may be written already, and wait to be read."""
    begun = traffic.begun
    return soon(lambda: max((new := traffic.streaming(begun)), key=new.get, default=""), "a busy replica")


def test_a_pod_deleted_under_load_fails_nothing(cluster, namespace, tiny, soon):
    model = serve(cluster, soon, tiny(replicas=2))
    with load(cluster, model, tokens=LONG) as traffic:
        gone, begun = busy(traffic, soon), traffic.begun
        cluster.kubectl("delete", "pod", gone, "-n", namespace)
        wait_for_replicas(cluster, soon, namespace, 2)
        assert traffic.answered(after=begun) > 0
    assert gone not in names(cluster.pods(namespace))
    assert traffic.failed == []


def test_a_pod_deleted_without_grace_under_load_fails_nothing(cluster, namespace, tiny, soon):
    model = serve(cluster, soon, tiny(replicas=2))
    with load(cluster, model, tokens=LONG) as traffic:
        gone, begun = busy(traffic, soon), traffic.begun
        cluster.kubectl("delete", "pod", gone, "-n", namespace, "--grace-period=0", "--force")
        soon(lambda: gone not in names(cluster.pods(namespace)), "the pod to go")
        wait_for_replicas(cluster, soon, namespace, 2)
        assert traffic.answered(after=begun) > 0
    assert traffic.failed == []


def test_a_container_killed_under_load_fails_nothing_since_its_streams_go_on_elsewhere(cluster, namespace, tiny, soon):
    needs_the_node(cluster, "a process is killed with -9 on its node")
    model = serve(cluster, soon, tiny(replicas=2))
    tasks = dict(line.split()[:2] for line in node.ctr(cluster.layout, "tasks", "list").stdout.splitlines()[1:])
    processes = {
        pod["metadata"]["name"]: int(tasks[status["containerID"].removeprefix("containerd://")])
        for pod in cluster.pods(namespace)
        for status in pod["status"]["containerStatuses"]
    }
    with load(cluster, model, tokens=LONG) as traffic:
        moved = moved_streams(cluster)
        struck, begun = busy(traffic, soon), traffic.begun
        os.kill(processes[struck], signal.SIGKILL)

        def has_restarted() -> bool:
            (status,) = cluster.get("pod", struck, namespace)["status"]["containerStatuses"]
            return status["restartCount"] == 1 and status["ready"]

        soon(has_restarted, "the container to be back")
        wait_for_replicas(cluster, soon, namespace, 2)
        assert traffic.answered(after=begun) > 0
    assert moved_streams(cluster) > moved
    assert traffic.failed == []


def test_a_replica_evicted_from_a_cordoned_node_comes_back_after_uncordon(cluster, namespace, tiny, soon):
    model = serve(cluster, soon, tiny(replicas=2))
    nodes = {pod["spec"]["nodeName"] for pod in cluster.pods(namespace)}
    gone, stays = names(cluster.pods(namespace))
    try:
        cluster.kubectl("cordon", *nodes)
        with load(cluster, model) as traffic:
            begun = traffic.begun
            assert evict(cluster, namespace, gone)
            soon(lambda: gone not in names(cluster.pods(namespace)), "the eviction")
            assert not evict(cluster, namespace, stays) or len(nodes) > 1
            assert "[DONE]" in ask(cluster, model)
            cluster.kubectl("uncordon", *nodes)
            wait_for_replicas(cluster, soon, namespace, 2)
            assert traffic.answered(after=begun) > 0
    finally:
        cluster.kubectl("uncordon", *nodes)
    assert traffic.failed == []
    assert stays in names(cluster.pods(namespace))


def evict(cluster, namespace: str, pod: str) -> bool:
    """Whether the disruption budget allowed it."""
    metadata = {"name": pod, "namespace": namespace}
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction"
    said = cluster.run("kubectl", "create", "--raw", path, "-f", "-", given=json.dumps(eviction), check=False)
    return "Success" in said


def test_traffic_goes_on_without_the_api_server_and_the_state_converges_after(cluster, namespace, tiny, soon):
    needs_the_node(cluster, "the API server is stopped for a minute")
    model = serve(cluster, soon, tiny())
    engines, gateways = restarts(cluster, namespace), restarts(cluster, SYSTEM, GATEWAY)
    with load(cluster, model, clients=1) as traffic:
        daemon.stop(cluster.layout, "kube-apiserver")
        begun = traffic.begun
        time.sleep(60)
        answered = traffic.answered(after=begun)
        control_plane.start_api_server(cluster.layout)
    assert answered > 0
    assert traffic.failed == []
    cluster.kubectl("scale", "llmd/tiny", "-n", namespace, "--replicas=2")
    wait_for_replicas(cluster, soon, namespace, 2)
    assert engines.items() <= restarts(cluster, namespace).items()
    assert gateways == restarts(cluster, SYSTEM, GATEWAY)
