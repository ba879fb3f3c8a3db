"""From an applied resource to tokens, and everything that happens to replicas while requests flow."""

import pytest
from scenario import apply, ask, load, serve


def test_helm_install_then_apply_then_a_stream_through_the_service(cluster, namespace, tiny, soon):
    model = serve(cluster, namespace, soon, tiny())
    answer = ask(cluster, model)
    assert answer.count("data: {") >= 2
    assert answer.rstrip().endswith("data: [DONE]")
    status = cluster.get("llmd", "tiny", namespace)["status"]
    assert status["url"] == "http://quire-gateway.quire-system.svc/v1"


def test_scaling_from_one_to_three_and_back_under_load_fails_nothing(cluster, namespace, tiny, soon, tmp_path):
    model = serve(cluster, namespace, soon, tiny())
    with load(cluster, model, tmp_path) as seen:
        cluster.kubectl("scale", "llmd/tiny", "-n", namespace, "--replicas=3")
        soon(lambda: cluster.get("llmd", "tiny", namespace)["status"]["readyReplicas"] == 3, "three replicas")
        cluster.kubectl("scale", "llmd/tiny", "-n", namespace, "--replicas=1")
        soon(lambda: len(cluster.pods(namespace)) == 1, "one pod")
    assert seen["failed"] == []
    assert seen["answered"] > 0


def test_a_rolling_update_under_load_fails_nothing(cluster, namespace, tiny, soon, tmp_path):
    model = serve(cluster, namespace, soon, tiny())
    (before,) = (pod["metadata"]["name"] for pod in cluster.pods(namespace))
    with load(cluster, model, tmp_path) as seen:
        apply(cluster, tiny(engine={"extraArgs": ["--max-num-seqs", "8"]}))
        soon(
            lambda: (
                [p["metadata"]["name"] for p in cluster.pods(namespace)] not in ([before], [])
                and len(cluster.pods(namespace)) == 1
            ),
            "the new revision alone",
        )
    assert seen["failed"] == []
    assert seen["answered"] > 0


def test_a_pod_deleted_without_grace_is_replaced(cluster, namespace, tiny, soon):
    model = serve(cluster, namespace, soon, tiny())
    (pod,) = (pod["metadata"]["name"] for pod in cluster.pods(namespace))
    cluster.kubectl("delete", "pod", pod, "-n", namespace, "--grace-period=0", "--force")
    soon(lambda: [p["metadata"]["name"] for p in cluster.pods(namespace)] not in ([pod], []), "another pod")
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
    assert "[DONE]" in ask(cluster, model)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"model": {"source": "file:///no/such/model"}}, "WeightsNotFound"),
        ({"model": {"source": "hf://nobody/nothing"}}, "SourceUnreachable"),
        ({"engine": {"extraArgs": ["--no-such-flag"]}}, "EngineExited"),
        ({"engine": {"device": "auto"}, "resources": {"gpus": 1}}, "GpuUnavailable"),
    ],
    ids=["path", "hub", "flag", "gpu"],
)
def test_what_is_wrong_shows_its_reason_and_heals(cluster, namespace, tiny, soon, spec, reason):
    apply(cluster, tiny(**spec))
    soon(lambda: cluster.ready("tiny", namespace)[1] == reason, reason)
    apply(cluster, tiny())
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "healing")
