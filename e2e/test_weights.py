"""Weights that the agent fetches from a hub, or finds on a volume, and models that are too large for their pods."""

import bystander
import pytest
from client import PLACE, VISITOR
from cluster.layout import REPOSITORY
from scenario import apply, ask, lacks, names, serve

TINY = REPOSITORY / "models" / "quire-tiny"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"


@pytest.fixture
def storage(cluster) -> None:
    """Claims that name no class are given volumes."""
    classes = cluster.objects("storageclasses", namespace="")
    if not any(each["metadata"].get("annotations", {}).get(DEFAULT_CLASS) == "true" for each in classes):
        lacks(cluster, "the cluster has no default storage class")


def test_weights_come_from_a_hub_and_serve(cluster, tiny, soon, hub):
    served = hub(TINY)
    resource = tiny(model=served.model())
    resource["spec"]["podTemplate"] = served.pod_template(resource["spec"].get("podTemplate", {}))
    assert "[DONE]" in ask(cluster, serve(cluster, soon, resource))
    assert served.downloads() == 1


@pytest.mark.usefixtures("storage")
def test_weights_of_a_claim_serve(cluster, namespace, tiny, soon):
    metadata = {"name": "weights", "namespace": namespace}
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    apply(cluster, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec})
    bystander.place(cluster, namespace, claim="weights")
    cluster.send(TINY, namespace, VISITOR, f"{PLACE}/{TINY.name}")
    cluster.kubectl("delete", "pod", VISITOR, "-n", namespace)
    assert "[DONE]" in ask(cluster, serve(cluster, soon, tiny(model={"source": f"pvc://weights/{TINY.name}"})))


@pytest.mark.usefixtures("storage")
def test_kept_weights_are_fetched_once_for_all_pods_after(cluster, namespace, tiny, soon, hub):
    served = hub(TINY)
    resource = tiny(model=served.model(volume={"size": "1Gi"}))
    resource["spec"]["podTemplate"] = served.pod_template(resource["spec"].get("podTemplate", {}))
    model = serve(cluster, soon, resource)
    (former,) = names(cluster.pods(namespace))
    cluster.kubectl("delete", "pod", former, "-n", namespace)
    soon(lambda: names(cluster.pods(namespace)) not in ([], [former]), "another pod")
    (new,) = names(cluster.pods(namespace))
    cluster.kubectl("wait", f"pod/{new}", "-n", namespace, "--for=condition=Ready", "--timeout=300s")
    assert "[DONE]" in ask(cluster, model)
    assert served.downloads() == 1


def test_a_model_above_the_memory_is_told_while_its_weights_are_still_to_come(cluster, namespace, tiny, soon, hub):
    served = hub(TINY, f"--hold-weights={16 << 30}")
    resource = tiny(model=served.model(), resources={"cpu": "100m", "memory": "2Gi"})
    resource["spec"]["podTemplate"] = served.pod_template(resource["spec"].get("podTemplate", {}))
    apply(cluster, resource)
    message = soon(lambda: (found := cluster.ready("tiny", namespace))[1] == "DoesNotFit" and found[2], "DoesNotFit")
    assert "weights need 16.0 GiB" in message
    apply(cluster, tiny())
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "healing")
