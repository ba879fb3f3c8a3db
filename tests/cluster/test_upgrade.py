"""One operator takes over from one of another version, or with other images, on a real API server."""

import json
from collections import defaultdict
from pathlib import Path

import pytest
import yaml
from tests.cluster.conftest import condition

OURS = "app.kubernetes.io/managed-by=quire-operator"
WRITTEN = Path(__file__).parent / "fixtures" / "written-by-0.1.0.yaml"
SLOT = "example.com/slot"
OLD, NEW = "quire/runtime:old", "quire/runtime:new"


@pytest.fixture(scope="module")
def cluster(new_cluster):
    """Of its own: operators come and go here."""
    with new_cluster("upgrade") as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def no_name_is_taken(cluster, soon):
    """Those of the test before hold the names that they serve until their namespace is gone."""
    soon(lambda: not cluster.kubectl("get", "llmd", "--all-namespaces", "-o", "name").strip(), "the names to be free")


def resource(name: str) -> dict:
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "file:///models/tiny"},
            "engine": {"device": "cpu"},
            "resources": {"cpu": "100m", "memory": "64Mi"},
            "rollout": {"drainTimeout": "2s"},
            "replicas": 2,
        },
    }


class Watched:
    """The pods of one namespace; the gateway routes to those of which `is_routed` says so."""

    def __init__(self, cluster, namespace: str) -> None:
        self._cluster, self._namespace = cluster, namespace
        self.is_routed = lambda image: True

    def look(self) -> dict[str, dict[str, list[str]]]:
        """Pods that are not going, by deployment and image. None was ever seen with fewer than two ready."""
        pods = [
            pod
            for pod in self._cluster.objects("pods", self._namespace, OURS)
            if "deletionTimestamp" not in pod["metadata"]
        ]
        found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        ready: dict[str, int] = defaultdict(int)
        words = []
        for pod in pods:
            name, owner = pod["metadata"]["name"], pod["metadata"]["labels"]["quire.dev/deployment"]
            image = pod["spec"]["containers"][0]["image"]
            found[owner][image].append(name)
            conditions = pod.get("status", {}).get("conditions", [])
            ready[owner] += any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
            if self.is_routed(image):
                word = {"deployment": owner, "namespace": self._namespace, "replica": name}
                words.append({**word, "is_routable": True, "in_flight": 0})
        self._cluster.report(words)
        self.ready = ready
        return found

    def serve(self, soon, *names: str) -> None:
        for name in names:
            self._cluster.kubectl("apply", "-n", self._namespace, "-f", "-", given=resource(name))
        soon(lambda: self.look() and all(self.ready[name] == 2 for name in names), "two ready replicas each")

    def exchanged(self, image: str, *names: str) -> bool:
        """Whether all have this image alone; on the way none has fewer than two ready, and one at a time has both."""
        found = self.look()
        assert all(self.ready[name] >= 2 for name in names), self.ready
        assert sum(len(found[name]) > 1 for name in names) <= 1, found
        return all(set(found[name]) == {image} and len(found[name][image]) == 2 for name in names)


def message(cluster, name: str, namespace: str) -> str:
    return condition(cluster.get("llmd", name, namespace), "Loaded")[2]


def test_an_upgrade_exchanges_the_replicas_of_one_deployment_after_the_other_and_a_rollback_brings_them_back(
    cluster, namespace, soon
):
    watched = Watched(cluster, namespace)
    with cluster.operator("old", f"--engine-image={OLD}"):
        watched.serve(soon, "one", "two")
    before = watched.look()
    former = {each["metadata"]["name"] for each in cluster.objects("deployments", namespace, OURS)}

    watched.is_routed = lambda image: image == OLD
    with cluster.operator("new", f"--engine-image={NEW}") as operator:
        soon(lambda: any(NEW in images for images in watched.look().values()), "a new replica")
        soon(lambda: operator.counted("quire_operator_renewals") == 2, "one that is exchanged and one that waits")
        (first,) = (name for name, images in watched.look().items() if NEW in images)
        (second,) = {"one", "two"} - {first}
        soon(lambda: "in their turn" in message(cluster, second, namespace), "what the other one waits for")
        # A new revision that serves nobody lets none of the former go, and keeps the other from beginning.
        found = watched.look()
        assert {name: sorted(images[OLD]) for name, images in found.items()} == {
            name: sorted(images[OLD]) for name, images in before.items()
        }
        assert NEW not in found[second]
        assert {cluster.ready(name, namespace)[0] for name in ("one", "two")} == {"True"}

        watched.is_routed = lambda image: True
        soon(lambda: watched.exchanged(NEW, "one", "two"), "new replicas everywhere")
        soon(lambda: operator.counted("quire_operator_renewals") == 0, "nothing to exchange any more")
        events = [e["message"] for e in cluster.objects("events", namespace) if e["reason"] == "RolloutStarted"]
        assert len(events) == 2
        assert {cluster.ready(name, namespace)[0] for name in ("one", "two")} == {"True"}
        soon(lambda: not message(cluster, second, namespace), "nothing more to say")

    with cluster.operator("back", f"--engine-image={OLD}"):
        soon(lambda: watched.exchanged(OLD, "one", "two"), "the former image")
    serving = [d for d in cluster.objects("deployments", namespace, OURS) if d["spec"]["replicas"]]
    assert {each["metadata"]["name"] for each in serving} == former


def test_one_without_room_for_a_new_replica_says_what_to_do_and_keeps_no_other_from_its_exchange(
    cluster, namespace, soon
):
    slots = json.dumps({"status": {"capacity": {SLOT: "2"}, "allocatable": {SLOT: "2"}}})
    cluster.kubectl("patch", "node", "fake", "--subresource=status", "--type=merge", "-p", slots)
    tight = resource("a")
    tight["spec"]["podTemplate"] = {"spec": {"containers": [{"name": "engine", "resources": {"limits": {SLOT: "1"}}}]}}
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tight)
    watched = Watched(cluster, namespace)
    with cluster.operator("old", f"--engine-image={OLD}"):
        watched.serve(soon, "b")
        soon(lambda: watched.look() and watched.ready["a"] == 2, "both to serve")
    with cluster.operator("new", f"--engine-image={NEW}", "--renewal-patience-s=1"):
        soon(lambda: "maxSurge: 0" in cluster.ready("a", namespace)[2], "what to do about the missing room")
        soon(lambda: set(watched.look()["b"]) == {NEW}, "new replicas where there is room")
        assert len(watched.look()["a"][OLD]) == 2
        making_room = json.dumps({"spec": {"rollout": {"maxSurge": 0, "maxUnavailable": 1}}})
        cluster.kubectl("patch", "llmd", "a", "-n", namespace, "--type=merge", "-p", making_room)
        soon(lambda: set(watched.look()["a"]) == {NEW}, "new replicas in the place of former ones")
        soon(lambda: cluster.ready("a", namespace)[0] == "True", "Ready")


def test_an_edit_of_the_spec_does_not_wait_and_without_turns_it_is_what_brings_the_new_image(cluster, namespace, soon):
    watched = Watched(cluster, namespace)
    with cluster.operator("old", f"--engine-image={OLD}"):
        watched.serve(soon, "one", "two")
    before = watched.look()
    with cluster.operator("new", f"--engine-image={NEW}", "--renewals=0"):
        soon(lambda: "in their turn" in message(cluster, "two", namespace), "that it waits")
        edited = resource("one")
        edited["spec"]["engine"]["maxModelLen"] = 64
        cluster.kubectl("apply", "-n", namespace, "-f", "-", given=edited)
        soon(lambda: watched.exchanged(NEW, "one"), "the edited one's new image")
        cluster.kubectl("scale", "llmd/two", "-n", namespace, "--replicas=3")
        soon(lambda: len(watched.look()["two"][OLD]) == 3, "a third replica like the two")
        assert set(before["two"][OLD]) <= set(watched.look()["two"][OLD])


def test_what_others_change_in_replicas_that_wait_for_their_exchange_is_taken_back(cluster, namespace, soon):
    watched = Watched(cluster, namespace)
    with cluster.operator("old", f"--engine-image={OLD}"):
        watched.serve(soon, "one")
    (live,) = cluster.objects("deployments", namespace, OURS)
    with cluster.operator("new", f"--engine-image={NEW}", "--renewals=0"):
        soon(lambda: "in their turn" in message(cluster, "one", namespace), "that it waits")
        foreign = {"name": "engine", "image": "somebody/else:1", "env": [{"name": "THEIRS", "value": "1"}]}
        change = json.dumps({"spec": {"template": {"spec": {"containers": [foreign]}}}})
        cluster.kubectl("patch", "deployment", live["metadata"]["name"], "-n", namespace, "-p", change)

        def is_as_it_was() -> bool:
            found = cluster.get("deployment", live["metadata"]["name"], namespace)
            return found["spec"]["template"] == live["spec"]["template"]

        soon(is_as_it_was, "the former pods' description")
        soon(lambda: set(watched.look()["one"]) == {OLD} and len(watched.look()["one"][OLD]) == 2, "them alone")


def test_what_the_operator_of_the_first_release_wrote_is_taken_over_without_a_moment_without_replicas(
    cluster, namespace, soon
):
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=resource("one"))
    uid = cluster.get("llmd", "one", namespace)["metadata"]["uid"]
    text = WRITTEN.read_text().replace("NAMESPACE", namespace).replace("UID", uid)
    for manifest in yaml.safe_load_all(text):
        cluster.kubectl("apply", "--server-side", "--field-manager=quire-operator", "-f", "-", given=manifest)
    former = soon(lambda: cluster.objects("pods", namespace, OURS), "the first release's pods")
    for pod in former:
        gate = {"status": {"conditions": [{"type": "quire.dev/routable", "status": "True"}]}}
        name = pod["metadata"]["name"]
        cluster.kubectl("patch", "pod", name, "-n", namespace, "--subresource=status", "-p", yaml.safe_dump(gate))
    watched = Watched(cluster, namespace)
    soon(lambda: watched.look() and watched.ready["one"] == 2, "the first release to serve")
    key = cluster.get("secret", "one-internal", namespace)["data"]["key"]

    with cluster.operator("new", f"--engine-image={NEW}"):
        soon(lambda: watched.exchanged(NEW, "one"), "replicas of this version")
        soon(lambda: cluster.ready("one", namespace)[0] == "True", "Ready")
    secret = cluster.get("secret", "one-internal", namespace)
    assert secret["data"]["key"] == key, "engines of both versions answer to the same key"
    assert "spec" in secret["data"]
    counts = sorted(d["spec"]["replicas"] for d in cluster.objects("deployments", namespace, OURS))
    assert counts == [0, 2]


def test_kubectl_rollout_restart_replaces_every_pod_and_none_is_missed(cluster, namespace, soon):
    watched = Watched(cluster, namespace)
    with cluster.operator("one", f"--engine-image={OLD}"):
        watched.serve(soon, "one")
        before = set(watched.look()["one"][OLD])
        (live,) = cluster.objects("deployments", namespace, OURS)
        cluster.kubectl("rollout", "restart", f"deployment/{live['metadata']['name']}", "-n", namespace)

        def is_restarted() -> bool:
            found = set(watched.look()["one"][OLD])
            assert watched.ready["one"] >= 2
            return len(found) == 2 and not found & before

        soon(is_restarted, "two other pods")
        soon(lambda: cluster.ready("one", namespace)[0] == "True", "Ready")
    assert not any(
        "stopping" in str(pod["metadata"]["annotations"]) for pod in cluster.objects("pods", namespace, OURS)
    )
