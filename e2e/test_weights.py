"""Weights that the agent fetches from a hub, or finds on a volume, and models that are too large for their pods."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster.layout import REPOSITORY
from scenario import apply, ask, names, serve, wait_for_replicas

TINY = REPOSITORY / "models" / "quire-tiny"


@pytest.fixture
def volume(node, namespace, tmp_path) -> Iterator[Callable[[str, Path, str], None]]:
    """Makes a claim bound to a folder of the node."""
    made = []

    def make(claim: str, folder: Path, mode: str) -> None:
        name = f"{namespace}-{claim}"
        made.append(name)
        shared = {"accessModes": [mode], "storageClassName": "", "volumeMode": "Filesystem"}
        size = {"storage": "1Gi"}
        place = {"capacity": size, "hostPath": {"path": str(folder)}, "persistentVolumeReclaimPolicy": "Retain"}
        wanted = {**shared, "volumeName": name, "resources": {"requests": size}}
        apply(
            node, {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": shared | place}
        )
        metadata = {"name": claim, "namespace": namespace}
        apply(node, {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": wanted})

    yield make
    for name in made:
        node.kubectl("delete", "pv", name, "--wait=false", "--ignore-not-found")


def test_weights_come_from_a_hub_and_serve(node, tiny, soon, hub):
    served = hub(TINY)
    resource = tiny(model=served.model())
    resource["spec"]["podTemplate"] = served.pod_template(resource["spec"].get("podTemplate", {}))
    assert "[DONE]" in ask(node, serve(node, soon, resource))
    assert served.downloads() == 1


def test_weights_of_a_claim_serve(node, tiny, soon, volume):
    volume("weights", TINY.parent, "ReadOnlyMany")
    assert "[DONE]" in ask(node, serve(node, soon, tiny(model={"source": f"pvc://weights/{TINY.name}"})))


def test_kept_weights_are_fetched_once_for_all_pods_after(node, namespace, tiny, soon, hub, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    kept.chmod(0o777)
    served = hub(TINY)
    resource = tiny(model=served.model(volume={"size": "1Gi", "storageClassName": f"kept-{namespace}"}))
    resource["spec"]["podTemplate"] = served.pod_template(resource["spec"].get("podTemplate", {}))
    metadata = {"name": f"kept-{namespace}"}
    place = {"accessModes": ["ReadWriteOnce"], "storageClassName": metadata["name"], "capacity": {"storage": "1Gi"}}
    storage_class = {"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": metadata}
    apply(node, {**storage_class, "provisioner": "kubernetes.io/no-provisioner"})
    spec = {**place, "hostPath": {"path": str(kept)}}
    apply(node, {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": metadata, "spec": spec})
    try:
        model = serve(node, soon, resource)
        (former,) = names(node.pods(namespace))
        node.kubectl("delete", "pod", former, "-n", namespace)
        soon(lambda: names(node.pods(namespace)) not in ([], [former]), "another pod")
        wait_for_replicas(node, soon, namespace, 1)
        assert "[DONE]" in ask(node, model)
        assert served.downloads() == 1
    finally:
        node.kubectl("delete", "storageclass,pv", metadata["name"], "--wait=false")


def test_a_model_above_the_memory_is_told_while_its_weights_are_still_to_come(
    node, namespace, tiny, soon, hub, tmp_path
):
    folder = tmp_path / "large"
    shutil.copytree(TINY, folder)
    os.truncate(folder / "model.safetensors", 16 << 30)
    served = hub(folder, "--hold-weights")
    resource = tiny(model=served.model(), resources={"cpu": "100m", "memory": "2Gi"})
    resource["spec"]["podTemplate"] = served.pod_template(resource["spec"].get("podTemplate", {}))
    apply(node, resource)
    soon(lambda: node.ready("tiny", namespace)[1] == "DoesNotFit", "DoesNotFit")
    assert "weights need 16.0 GiB" in node.ready("tiny", namespace)[2]
    apply(node, tiny())
    soon(lambda: node.ready("tiny", namespace)[0] == "True", "healing")
