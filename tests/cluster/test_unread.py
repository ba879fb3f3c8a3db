"""A spec that was valid yesterday stays served: the API server takes it, and the operator understands it no more."""

import base64
import json

import pytest

OURS = "app.kubernetes.io/managed-by=quire-operator"
TOO_LONG = '{"spec":{"rollout":{"drainTimeout":"9000h"}}}'
"""A duration for the CRD's pattern, and longer than the year that the operator takes."""

pytestmark = pytest.mark.usefixtures("operator")


def pods(cluster, namespace) -> list[str]:
    found = cluster.objects("pods", namespace, OURS)
    return sorted(pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"])


def keys(cluster, namespace, **entries) -> None:
    data = {name: base64.b64encode(key.encode()).decode() for name, key in entries.items()}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "data": data}
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=secret)


def key_names(cluster, namespace) -> list[str]:
    return sorted(key["name"] for entry in cluster.routes(namespace) for key in entry["api_keys"])


@pytest.fixture
def unread(cluster, namespace, tiny, soon) -> list[str]:
    """Two routed pods of a deployment that is not understood any more."""
    keys(cluster, namespace, alice="sesame")
    wish = tiny(replicas=2, access={"apiKeysSecretRef": {"name": "keys"}})
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=wish)
    names = soon(lambda: len(found := pods(cluster, namespace)) == 2 and found, "two pods")
    cluster.route(namespace, "tiny", *names)
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
    cluster.kubectl("patch", "llmd", "tiny", "-n", namespace, "--type=merge", "-p", TOO_LONG)
    soon(lambda: cluster.ready("tiny", namespace)[1] == "InvalidSpec", "InvalidSpec")
    return names


def test_it_names_the_field_and_its_pods_stay(cluster, namespace, unread, soon):
    resource = cluster.get("llmd", "tiny", namespace)
    conditions = {c["type"]: (c["status"], c["message"]) for c in resource["status"]["conditions"]}
    assert conditions["Ready"][0] == conditions["Resolved"][0] == "False"
    assert conditions["Ready"][1].startswith("spec.rollout.drainTimeout: ")
    assert [conditions[leaf][0] for leaf in ("Loaded", "Available", "Routable")] == ["True"] * 3
    assert resource["status"]["observedGeneration"] == resource["metadata"]["generation"]
    assert resource["status"]["readyReplicas"] == 2
    assert pods(cluster, namespace) == unread


def test_new_keys_are_known_to_gateways(cluster, namespace, unread, soon):
    keys(cluster, namespace, alice="sesame", bob="open")
    soon(lambda: key_names(cluster, namespace) == ["alice", "bob"], "the new key")
    keys(cluster, namespace, bob="open")
    soon(lambda: key_names(cluster, namespace) == ["bob"], "the former key to go")


def test_what_somebody_changes_or_deletes_is_restored(cluster, namespace, unread, soon):
    (live,) = cluster.objects("deployments", namespace, OURS)
    name, wanted = live["metadata"]["name"], live["spec"]["template"]["spec"]["containers"][0]["image"]
    cluster.kubectl("delete", "service,pdb", "tiny", "-n", namespace)
    cluster.kubectl("set", "image", f"deployment/{name}", "engine=somebody/else:1", "-n", namespace)
    soon(lambda: cluster.get("service", "tiny", namespace) and cluster.get("pdb", "tiny", namespace), "both again")

    def image() -> str:
        return cluster.get("deployment", name, namespace)["spec"]["template"]["spec"]["containers"][0]["image"]

    soon(lambda: image() == wanted, "the image again")
    cluster.kubectl("delete", "deployment", name, "-n", namespace)
    soon(lambda: cluster.get("deployment", name, namespace), "the Deployment again")


def test_it_scales(cluster, namespace, unread, soon):
    cluster.kubectl("scale", "llmd/tiny", "-n", namespace, "--replicas=3")
    names = soon(lambda: len(found := pods(cluster, namespace)) == 3 and found, "a third pod")
    cluster.route(namespace, "tiny", *names)
    soon(lambda: cluster.get("llmd", "tiny", namespace)["status"]["readyReplicas"] == 3, "three ready replicas")
    cluster.kubectl("scale", "llmd/tiny", "-n", namespace, "--replicas=1")
    soon(lambda: len(pods(cluster, namespace)) == 1, "one pod")


def test_once_it_is_understood_again_it_is_ready_with_the_same_pods(cluster, namespace, unread, soon):
    mended = json.dumps({"spec": {"rollout": {"drainTimeout": "3s"}}})
    cluster.kubectl("patch", "llmd", "tiny", "-n", namespace, "--type=merge", "-p", mended)
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
    assert pods(cluster, namespace) == unread


def test_without_a_record_of_its_spec_what_follows_from_its_name_comes_back(cluster, namespace, unread, soon):
    route = cluster.routes(namespace)
    cluster.kubectl("delete", "secret", "tiny-internal", "-n", namespace)
    cluster.kubectl("delete", "service,pdb,networkpolicy,serviceaccount", "tiny", "-n", namespace)
    kinds = ("service", "pdb", "networkpolicy", "serviceaccount")
    soon(lambda: all(cluster.get(kind, "tiny", namespace) for kind in kinds), "all of them")
    secret = soon(lambda: cluster.get("secret", "tiny-internal", namespace), "the Secret of gateways and engines")
    assert base64.b64decode(secret["data"]["key"]).decode() == route[0]["internal_key"]
    foreign = json.dumps({"spec": {"selector": {"app": "somebody-else"}}})
    cluster.kubectl("patch", "service", "tiny", "-n", namespace, "-p", foreign)
    selector = {"quire.dev/deployment": "tiny"}
    soon(lambda: cluster.get("service", "tiny", namespace)["spec"]["selector"] == selector, "the selector again")
    assert cluster.routes(namespace) == route
    assert pods(cluster, namespace) == unread
