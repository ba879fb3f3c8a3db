"""Replicas and nodes go away while requests flow."""

import json
import time

from cluster import control_plane, daemon
from cluster import node as machine
from scenario import ask, load, names, serve, wait_for_replicas


def test_a_pod_deleted_under_load_fails_nothing(cluster, namespace, tiny, soon, tmp_path):
    model = serve(cluster, soon, tiny(replicas=2))
    gone = names(cluster.pods(namespace))[0]
    with load(cluster, model, tmp_path) as traffic:
        time.sleep(2)
        cluster.kubectl("delete", "pod", gone, "-n", namespace)
        wait_for_replicas(cluster, soon, namespace, 2)
    assert traffic.failed == []
    assert traffic.answered > 0


def test_a_pod_deleted_without_grace_loses_nothing_that_had_not_begun(cluster, namespace, tiny, soon, tmp_path):
    model = serve(cluster, soon, tiny(replicas=2))
    gone = names(cluster.pods(namespace))[0]
    with load(cluster, model, tmp_path) as traffic:
        time.sleep(2)
        cluster.kubectl("delete", "pod", gone, "-n", namespace, "--grace-period=0", "--force")
        soon(lambda: gone not in names(cluster.pods(namespace)), "the pod to go")
        wait_for_replicas(cluster, soon, namespace, 2)
    assert traffic.lost == []
    assert traffic.answered > 0


def test_a_container_killed_loses_nothing_that_had_not_begun(node, namespace, tiny, soon, tmp_path):
    model = serve(node, soon, tiny(replicas=2))
    pod = node.pods(namespace)[0]
    (container,) = pod["status"]["containerStatuses"]
    with load(node, model, tmp_path) as traffic:
        time.sleep(2)
        task = container["containerID"].removeprefix("containerd://")
        assert machine.ctr(node.layout, "tasks", "kill", "--signal=SIGKILL", task).returncode == 0

        def has_restarted() -> bool:
            (status,) = node.get("pod", pod["metadata"]["name"], namespace)["status"]["containerStatuses"]
            return status["restartCount"] == 1 and status["ready"]

        soon(has_restarted, "the container to be back")
        wait_for_replicas(node, soon, namespace, 2)
    assert traffic.lost == []
    assert traffic.answered > 0


def test_a_replica_evicted_from_a_cordoned_node_comes_back_after_uncordon(cluster, namespace, tiny, soon, tmp_path):
    model = serve(cluster, soon, tiny(replicas=2))
    nodes = {pod["spec"]["nodeName"] for pod in cluster.pods(namespace)}
    gone, stays = names(cluster.pods(namespace))
    try:
        cluster.kubectl("cordon", *nodes)
        with load(cluster, model, tmp_path) as traffic:
            assert evict(cluster, namespace, gone)
            soon(lambda: gone not in names(cluster.pods(namespace)), "the eviction")
            assert not evict(cluster, namespace, stays) or len(nodes) > 1
            assert "[DONE]" in ask(cluster, model)
            cluster.kubectl("uncordon", *nodes)
            wait_for_replicas(cluster, soon, namespace, 2)
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


def test_traffic_goes_on_without_the_api_server_and_the_state_converges_after(node, namespace, tiny, soon, tmp_path):
    model = serve(node, soon, tiny())
    with load(node, model, tmp_path, clients=1) as traffic:
        daemon.stop(node.layout, "kube-apiserver")
        time.sleep(60)
        control_plane.start_api_server(node.layout)
    assert traffic.failed == []
    assert traffic.answered > 0
    node.kubectl("scale", "llmd/tiny", "-n", namespace, "--replicas=2")
    wait_for_replicas(node, soon, namespace, 2)
