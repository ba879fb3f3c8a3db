"""Weights that are kept: the claim, its class, and what becomes of it."""

import pytest

pytestmark = pytest.mark.usefixtures("operator")


@pytest.fixture
def storage(cluster, namespace):
    """A storage class of this test's own, made when called, with one volume of it."""
    made = []

    def make() -> None:
        labels = {"name": f"kept-{namespace}"}
        storage_class = {
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": labels,
            "provisioner": "kubernetes.io/no-provisioner",
        }
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": labels,
            "spec": {
                "capacity": {"storage": "2Gi"},
                "accessModes": ["ReadWriteOnce"],
                "storageClassName": labels["name"],
                "hostPath": {"path": "/tmp"},
            },
        }
        for given in (storage_class, volume):
            cluster.kubectl("apply", "-f", "-", given=given)
            made.append((given["kind"], labels["name"]))

    yield make
    for kind, name in made:
        cluster.kubectl("delete", kind, name, "--wait=false")


def kept(tiny, namespace, **volume):
    volume = {"size": "1Gi", "storageClassName": f"kept-{namespace}", **volume}
    return tiny(model={"source": "hf://org/tiny", "volume": {k: v for k, v in volume.items() if v is not None}})


def test_a_missing_class_is_named_and_once_it_is_there_pods_use_the_claim(cluster, namespace, tiny, soon, storage):
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=kept(tiny, namespace))
    soon(lambda: cluster.ready("tiny", namespace)[1] == "StorageClassMissing", "the reason")
    assert f"kept-{namespace}, which does not exist" in cluster.ready("tiny", namespace)[2]
    storage()
    (pod,) = soon(lambda: cluster.objects("pods", namespace, "quire.dev/deployment=tiny"), "a pod")
    claims = [v["persistentVolumeClaim"] for v in pod["spec"]["volumes"] if "persistentVolumeClaim" in v]
    assert claims == [{"claimName": "tiny-weights"}]
    claim = cluster.get("pvc", "tiny-weights", namespace)
    assert claim["metadata"]["ownerReferences"][0]["uid"] == cluster.get("llmd", "tiny", namespace)["metadata"]["uid"]
    cluster.kubectl("delete", "llmd", "tiny", "-n", namespace)
    soon(lambda: not cluster.get("pvc", "tiny-weights", namespace), "the claim to go with its deployment")


def test_without_a_class_and_without_a_default_one_the_way_out_is_told(cluster, namespace, tiny, soon):
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=kept(tiny, namespace, storageClassName=None))
    soon(lambda: cluster.ready("tiny", namespace)[1] == "StorageClassMissing", "the reason")
    assert "set spec.model.volume.storageClassName" in cluster.ready("tiny", namespace)[2]


def test_a_retained_claim_outlives_its_deployment_and_serves_the_next(cluster, namespace, tiny, soon, storage):
    storage()
    wish = kept(tiny, namespace, whenDeleted="Retain")
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=wish)
    claim = soon(lambda: cluster.get("pvc", "tiny-weights", namespace), "the claim")
    assert "ownerReferences" not in claim["metadata"]
    soon(lambda: cluster.objects("pods", namespace, "quire.dev/deployment=tiny"), "a pod")
    cluster.kubectl("delete", "llmd", "tiny", "-n", namespace)
    soon(lambda: not cluster.objects("deployments,pods", namespace, "quire.dev/deployment=tiny"), "the rest to go")
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=wish)
    soon(lambda: cluster.objects("pods", namespace, "quire.dev/deployment=tiny"), "a pod again")
    again = cluster.get("pvc", "tiny-weights", namespace)
    assert again["metadata"]["uid"] == claim["metadata"]["uid"]
    assert "deletionTimestamp" not in again["metadata"]


def test_a_claim_that_cannot_become_what_is_asked_says_so(cluster, namespace, tiny, soon, storage):
    storage()
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=kept(tiny, namespace))
    soon(lambda: cluster.get("pvc", "tiny-weights", namespace).get("status", {}).get("phase") == "Bound", "a volume")
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=kept(tiny, namespace, size="512Mi"))
    soon(lambda: cluster.ready("tiny", namespace)[1] == "InvalidSpec", "InvalidSpec")
    assert "spec.model.volume: the API server refuses the claim tiny-weights" in cluster.ready("tiny", namespace)[2]


def test_somebody_elses_claim_is_left_alone(cluster, namespace, tiny, soon, storage):
    storage()
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "tiny-weights"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": f"kept-{namespace}",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=claim)
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=kept(tiny, namespace))
    soon(lambda: cluster.ready("tiny", namespace)[1] == "NameConflict", "NameConflict")
    assert "ownerReferences" not in cluster.get("pvc", "tiny-weights", namespace)["metadata"]
