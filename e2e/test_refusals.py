"""What cannot work says why in `kubectl get llmd`, and heals once it is mended."""

import time

import pytest
from scenario import apply

CASES = {
    "a model path that does not exist": ({"model": {"source": "file:///no/such/model"}}, "WeightsNotFound"),
    "a hub that cannot be reached": ({"model": {"source": "hf://nobody/nothing"}}, "SourceUnreachable"),
    "a flag that does not exist": ({"engine": {"extraArgs": ["--no-such-flag"]}}, "InvalidSpec"),
    "a secret of API keys that does not exist": (
        {"access": {"apiKeysSecretRef": {"name": "nobody"}}},
        "SecretNotFound",
    ),
    "a secret of the hub that does not exist": (
        {"model": {"source": "hf://nobody/nothing", "auth": {"secretRef": {"name": "nobody"}}}},
        "SecretNotFound",
    ),
    "a GPU that no node has": ({"engine": {"device": "auto"}, "resources": {"gpus": 1}}, "GpuUnavailable"),
    "memory that no node has": ({"resources": {"cpu": "100m", "memory": "100Ti"}}, "InsufficientResources"),
    "memory that does not suffice": ({"resources": {"cpu": "100m", "memory": "64Mi"}}, "OutOfMemory"),
    "a storage class that does not exist": ({"model": {"source": "pvc://weights"}}, "StorageClassMissing"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_shows_its_reason_and_heals(cluster, namespace, tiny, soon, record, case):
    spec, reason = CASES[case]
    if reason == "StorageClassMissing":
        apply(cluster, claim(namespace))
    start = time.monotonic()
    apply(cluster, tiny(**spec))
    soon(lambda: reason in cluster.kubectl("get", "llmd", "tiny", "-n", namespace).split(), reason)
    record(f"apply -> {reason} ({case})", time.monotonic() - start)
    start = time.monotonic()
    apply(cluster, tiny())
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "healing")
    record(f"mended -> Ready ({case})", time.monotonic() - start)


def test_an_engine_that_ends_again_and_again_is_a_crash_loop_and_tells_its_last_words(
    cluster, namespace, tiny, soon, record
):
    resource = tiny()
    pod = resource["spec"].get("podTemplate", {}).get("spec", {})
    (engine,) = pod.get("containers", [{"name": "engine"}])
    engine = {**engine, "command": ["python", "-c", "raise SystemExit('the weights are of another model')"]}
    resource["spec"]["podTemplate"] = {"spec": {**pod, "containers": [engine]}}
    start = time.monotonic()
    apply(cluster, resource)
    message = soon(lambda: (found := cluster.ready("tiny", namespace))[1] == "CrashLoop" and found[2], "CrashLoop")
    record("apply -> CrashLoop (after the kubelet's waits)", time.monotonic() - start)
    assert "the weights are of another model" in message


def claim(namespace: str) -> dict:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "weights", "namespace": namespace},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": "no-such-class",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
