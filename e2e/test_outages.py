"""Parts of the system go away while requests flow, and come back."""

import time

from cluster import control_plane, daemon
from scenario import ask, load, serve

SYSTEM = "quire-system"


def restarts(cluster, namespace) -> dict[str, int]:
    return {
        pod["metadata"]["name"]: sum(status["restartCount"] for status in pod["status"]["containerStatuses"])
        for pod in cluster.pods(namespace)
    }


def test_a_pod_deleted_under_load_fails_nothing(cluster, namespace, tiny, soon, tmp_path):
    model = serve(cluster, namespace, soon, tiny(replicas=2))
    gone = cluster.pods(namespace)[0]["metadata"]["name"]
    with load(cluster, model, tmp_path) as seen:
        time.sleep(2)
        cluster.kubectl("delete", "pod", gone, "-n", namespace)
        soon(lambda: cluster.get("llmd", "tiny", namespace)["status"]["readyReplicas"] == 2, "two replicas")
    assert seen["failed"] == []
    assert seen["answered"] > 0


def test_an_operator_that_goes_and_comes_back_restarts_nothing(cluster, namespace, tiny, soon, tmp_path):
    model = serve(cluster, namespace, soon, tiny())
    before = restarts(cluster, namespace)
    with load(cluster, model, tmp_path) as seen:
        cluster.kubectl("scale", "deployment/quire-operator", "-n", SYSTEM, "--replicas=0")
        soon(lambda: not cluster.pods(SYSTEM, "app.kubernetes.io/name=quire-operator"), "the operator to go")
        cluster.kubectl("create", "namespace", f"{namespace}-gone")
        cluster.kubectl(
            "apply", "-f", "-", given={**tiny(), "metadata": {"name": "x", "namespace": f"{namespace}-gone"}}
        )
        cluster.kubectl("delete", "namespace", f"{namespace}-gone", "--timeout=60s")
        cluster.kubectl("scale", "deployment/quire-operator", "-n", SYSTEM, "--replicas=1")
        cluster.kubectl("rollout", "status", "deployment/quire-operator", "-n", SYSTEM, "--timeout=120s")
        time.sleep(5)
    assert restarts(cluster, namespace) == before
    assert seen["failed"] == []


def test_traffic_goes_on_without_the_api_server_and_the_state_converges_after(cluster, namespace, tiny, soon, tmp_path):
    model = serve(cluster, namespace, soon, tiny())
    with load(cluster, model, tmp_path, clients=1) as seen:
        daemon.stop(cluster.layout, "kube-apiserver")
        time.sleep(60)
        control_plane.start_api_server(cluster.layout)
    assert seen["failed"] == []
    assert seen["answered"] > 0
    cluster.kubectl("scale", "llmd/tiny", "-n", namespace, "--replicas=2")
    soon(lambda: cluster.get("llmd", "tiny", namespace)["status"]["readyReplicas"] == 2, "two replicas")


def test_two_models_through_one_gateway(cluster, namespace, tiny, soon):
    model = serve(cluster, namespace, soon, tiny())
    other = serve(cluster, namespace, soon, tiny("other"))
    assert "[DONE]" in ask(cluster, model)
    assert "[DONE]" in ask(cluster, other)
    assert "does not exist" in ask(cluster, "nobody")
    cluster.kubectl("delete", "llmd", "--all", "-n", namespace, "--timeout=60s")
    soon(lambda: not cluster.pods(namespace), "every pod to be gone")
    soon(lambda: "does not exist" in ask(cluster, model), "the name to be gone")


def test_uninstalling_leaves_resources_and_pods_and_installing_again_takes_them_over(
    cluster, namespace, tiny, soon, install
):
    model = serve(cluster, namespace, soon, tiny())
    before = restarts(cluster, namespace)
    cluster.helm("uninstall", "quire", "-n", SYSTEM, "--wait")
    assert cluster.get("llmd", "tiny", namespace)
    assert restarts(cluster, namespace) == before
    install()
    soon(lambda: "[DONE]" in ask(cluster, model), "an answer")
    assert restarts(cluster, namespace) == before
