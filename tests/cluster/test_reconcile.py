"""The operator against a real API server, with real controllers and pods on a fake node."""

import base64
import json

import pytest

CHILDREN = "deployments,services,serviceaccounts,networkpolicies,poddisruptionbudgets,secrets"
OURS = "app.kubernetes.io/managed-by=quire-operator"

pytestmark = pytest.mark.usefixtures("operator")


def pods(cluster, namespace) -> list[str]:
    found = cluster.objects("pods", namespace, OURS)
    return sorted(pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"])


def routed(cluster, namespace, soon, count, name="tiny") -> list[str]:
    """Wait for `count` pods and let the gateway route to all of them."""
    names = soon(lambda: len(found := pods(cluster, namespace)) == count and found, f"{count} pods")
    cluster.route(namespace, name, *names)
    return names


def serve(cluster, namespace, soon, resource) -> list[str]:
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=resource)
    names = routed(cluster, namespace, soon, resource["spec"].get("replicas", 1), resource["metadata"]["name"])
    soon(lambda: cluster.ready(resource["metadata"]["name"], namespace)[0] == "True", "Ready")
    return names


def test_an_applied_deployment_gets_its_objects_and_owns_them(cluster, namespace, tiny, soon):
    serve(cluster, namespace, soon, tiny(replicas=2))
    uid = cluster.get("llmd", "tiny", namespace)["metadata"]["uid"]
    objects = cluster.objects(CHILDREN, namespace, OURS)
    assert sorted(o["kind"] for o in objects) == [
        "Deployment",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Secret",
        "Service",
        "ServiceAccount",
    ]
    assert {o["metadata"]["ownerReferences"][0]["uid"] for o in objects} == {uid}
    assert not cluster.get("llmd", "tiny", namespace)["metadata"].get("finalizers")


def test_the_gate_of_a_pod_opens_with_the_gateways_word_and_stays_open(cluster, namespace, tiny, soon):
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny())
    (name,) = soon(lambda: pods(cluster, namespace), "a pod")
    cluster.route(namespace, "tiny", name)
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
    cluster.report([])
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready again")
    words = {"deployment": "tiny", "namespace": namespace, "replica": name, "in_flight": 0}
    cluster.report([{**words, "is_routable": False, "reason": "Ejected: connection refused"}])
    soon(lambda: cluster.ready("tiny", namespace)[1] == "ReplicasUnreachable", "what the gateway says now")
    gate = [c for c in cluster.get("pod", name, namespace)["status"]["conditions"] if c["type"] == "quire.dev/routable"]
    assert gate[0]["status"] == "True"


def test_kubectl_shows_the_columns_and_scales(cluster, namespace, tiny, soon):
    serve(cluster, namespace, soon, tiny())
    header, line = cluster.kubectl("get", "llmd", "tiny", "-n", namespace).splitlines()
    assert header.split() == ["NAME", "MODEL", "READY", "REPLICAS", "REASON", "URL", "AGE"]
    assert "file:///models/tiny" in line
    assert "Serving" in line
    assert "extraArgs" in cluster.kubectl("explain", "llmd.spec.engine")
    cluster.kubectl("scale", "llmd/tiny", "-n", namespace, "--replicas=3")
    routed(cluster, namespace, soon, 3)
    soon(lambda: cluster.get("llmd", "tiny", namespace)["status"]["readyReplicas"] == 3, "three ready replicas")
    scale = json.loads(cluster.kubectl("get", "llmd", "tiny", "-n", namespace, "--subresource=scale", "-o", "json"))
    assert scale["status"] == {"replicas": 3, "selector": "quire.dev/deployment=tiny"}
    cluster.kubectl("scale", "llmd/tiny", "-n", namespace, "--replicas=1")
    soon(lambda: len(pods(cluster, namespace)) == 1, "one pod")
    soon(lambda: not cluster.get("pdb", "tiny", namespace), "no disruption budget at one replica")


def test_manual_edits_of_children_are_repaired(cluster, namespace, tiny, soon):
    serve(cluster, namespace, soon, tiny())
    name = cluster.objects("deployments", namespace, OURS)[0]["metadata"]["name"]
    image = cluster.get("deployment", name, namespace)["spec"]["template"]["spec"]["containers"][0]["image"]

    cluster.kubectl("delete", "service", "tiny", "-n", namespace)
    soon(lambda: cluster.get("service", "tiny", namespace), "the service again")
    cluster.kubectl("scale", "deployment", name, "-n", namespace, "--replicas=4")
    soon(lambda: cluster.get("deployment", name, namespace)["spec"]["replicas"] == 1, "one replica again")
    cluster.kubectl("set", "image", f"deployment/{name}", "engine=somebody/else:1", "-n", namespace)
    soon(
        lambda: (
            cluster.get("deployment", name, namespace)["spec"]["template"]["spec"]["containers"][0]["image"] == image
        ),
        "the image again",
    )
    cluster.kubectl("delete", "deployment", name, "-n", namespace)
    soon(lambda: cluster.get("deployment", name, namespace), "the Deployment again")


def test_what_others_add_that_changes_pods_or_their_selection_goes_and_their_notes_stay(cluster, namespace, tiny, soon):
    serve(cluster, namespace, soon, tiny(replicas=2))
    (live,) = cluster.objects("deployments", namespace, OURS)
    name = live["metadata"]["name"]
    wanted = live["spec"]["template"]["spec"]
    pod = {
        "containers": [{"name": "theirs", "image": "x"}, {"name": "engine", "env": [{"name": "X", "value": "1"}]}],
        "volumes": [{"name": "theirs", "emptyDir": {}}],
        "nodeSelector": {"theirs": "1"},
    }
    note = {"metadata": {"annotations": {"somebodys": "note"}}}
    patch = json.dumps(note | {"spec": {"template": note | {"spec": pod}}})
    cluster.kubectl("patch", "deployment", name, "-n", namespace, "-p", patch)

    def template() -> dict:
        return cluster.get("deployment", name, namespace)["spec"]["template"]

    soon(lambda: template()["spec"] == wanted, "the pod as it was")
    assert template()["metadata"]["annotations"]["somebodys"] == "note"
    assert cluster.get("deployment", name, namespace)["metadata"]["annotations"]["somebodys"] == "note"

    selector = {"spec": {"selector": {"theirs": "1"}}}
    cluster.kubectl("patch", "service", "tiny", "-n", namespace, "-p", json.dumps(selector))
    labels = {"spec": {"selector": {"matchLabels": {"theirs": "1"}}}}
    cluster.kubectl("patch", "pdb", "tiny", "-n", namespace, "-p", json.dumps(labels))
    soon(
        lambda: "theirs" not in cluster.get("service", "tiny", namespace)["spec"]["selector"], "the Service's selector"
    )
    soon(lambda: "theirs" not in str(cluster.get("pdb", "tiny", namespace)["spec"]), "the budget's selector")


def test_what_we_set_is_restored_also_from_a_manager_that_has_forced_its_way(cluster, namespace, tiny, soon):
    serve(cluster, namespace, soon, tiny())
    (live,) = cluster.objects("deployments", namespace, OURS)
    name, engine = live["metadata"]["name"], live["spec"]["template"]["spec"]["containers"][0]
    theirs = {"name": "engine", "image": "somebody/else:1", "livenessProbe": {"periodSeconds": 99}}
    forced = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": 3, "template": {"spec": {"containers": [theirs]}}},
    }
    apply = ("apply", "--server-side", "--force-conflicts", "--field-manager=theirs", "-f", "-")
    cluster.kubectl(*apply, given=forced)

    def spec() -> dict:
        return cluster.get("deployment", name, namespace)["spec"]

    soon(lambda: spec()["replicas"] == 1 and spec()["template"]["spec"]["containers"] == [engine], "all as it was")
    refused = cluster.try_kubectl(*(word for word in apply if word != "--force-conflicts"), given=forced)
    assert refused.returncode != 0
    assert 'conflicts with "quire-operator"' in refused.stderr


def test_a_rollout_keeps_the_former_revision_until_the_new_one_is_routed(cluster, namespace, tiny, soon):
    (old,) = serve(cluster, namespace, soon, tiny())
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny(engine={"device": "cpu", "maxModelLen": 64}))
    both = soon(lambda: len(found := pods(cluster, namespace)) == 2 and found, "the new pod beside the old one")
    (new,) = set(both) - {old}
    assert cluster.ready("tiny", namespace)[0] == "True"
    cluster.route(namespace, "tiny", old, new)
    soon(lambda: pods(cluster, namespace) == [new], "the old pod to go")
    assert len(cluster.objects("deployments", namespace, OURS)) == 2

    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny())
    both = soon(lambda: len(found := pods(cluster, namespace)) == 2 and found, "the former revision again")
    cluster.route(namespace, "tiny", *both)
    soon(lambda: len(found := pods(cluster, namespace)) == 1 and new not in found, "the way back")
    assert len(cluster.objects("deployments", namespace, OURS)) == 2


def test_a_revision_that_never_becomes_ready_stops_the_rollout_and_says_so(cluster, namespace, tiny, soon):
    (old,) = serve(cluster, namespace, soon, tiny())
    spec = tiny(engine={"device": "auto"}, resources={"gpus": 8})
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=spec)
    soon(lambda: cluster.ready("tiny", namespace)[1] == "GpuUnavailable", "the reason")
    assert old in pods(cluster, namespace)
    assert "1 of the former revision serve on" in dict_of(cluster.get("llmd", "tiny", namespace))["Loaded"]
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny())
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "healing")
    soon(lambda: pods(cluster, namespace) == [old], "the stuck pod to go")


def dict_of(resource) -> dict[str, str]:
    return {condition["type"]: condition["message"] for condition in resource["status"]["conditions"]}


def test_deleting_leaves_nothing(cluster, namespace, tiny, soon):
    serve(cluster, namespace, soon, tiny(replicas=2))
    cluster.kubectl("delete", "llmd", "tiny", "-n", namespace, "--timeout=60s")
    soon(lambda: not cluster.objects(f"{CHILDREN},pods", namespace, OURS), "everything to be gone")
    cluster.kubectl("delete", "namespace", namespace, "--wait=true", "--timeout=60s")
    cluster.kubectl("create", "namespace", namespace)


def test_the_gateways_table_holds_names_and_keys(cluster, namespace, tiny, soon):
    keys = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "keys"},
        "stringData": {"alice": "sesame"},
    }
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=keys)
    wish = tiny(
        "chat", model={"source": "file:///m", "servedNames": ["gpt"]}, access={"apiKeysSecretRef": {"name": "keys"}}
    )
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=wish)

    (found,) = soon(lambda: cluster.routes(namespace), "the entry")
    assert found["served_names"] == ["gpt"]
    assert [(key["name"], key["key"]) for key in found["api_keys"]] == [("alice", "sesame")]
    key = base64.b64decode(cluster.get("secret", "chat-internal", namespace)["data"]["key"]).decode()
    assert found["internal_key"] == key
    cluster.kubectl("delete", "llmd", "chat", "-n", namespace)
    soon(lambda: not cluster.routes(namespace), "the entry to go")


def test_the_scaling_law_wakes_a_sleeping_deployment_for_a_held_request(cluster, namespace, tiny, soon):
    wish = tiny(replicas=0, autoscaling={"minReplicas": 0, "maxReplicas": 2, "targets": {"inFlightPerReplica": 4}})
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=wish)
    soon(lambda: cluster.ready("tiny", namespace)[:2] == ("True", "ScaledToZero"), "ScaledToZero")
    entry = {
        "deployment": "tiny",
        "namespace": namespace,
        "in_flight": 0,
        "queued_tokens": 0,
        "requests": 9,
        "idle_s": 0.0,
    }
    cluster.load([{**entry, "held": 7}])
    soon(lambda: cluster.get("llmd", "tiny", namespace)["spec"]["replicas"] == 2, "two replicas: 7 / 4")
    routed(cluster, namespace, soon, 2)
    soon(lambda: cluster.ready("tiny", namespace)[:2] == ("True", "Serving"), "Serving")
    cluster.load([])


def test_the_status_tells_what_the_engines_say_of_the_model(cluster, namespace, tiny, soon):
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny())
    (name,) = soon(lambda: pods(cluster, namespace), "a pod")
    model = {
        "served_names": ["tiny"],
        "model_revision": "abc",
        "block_size": 16,
        "block_format": 1,
        "max_model_len": 2048,
        "tokenizer_digest": "d",
        "kv_capacity_tokens": 4096,
        "max_num_seqs": 8,
        "engine_epoch": "e",
        "architecture": "LlamaForCausalLM",
        "num_parameters": 12,
    }
    words = {"deployment": "tiny", "namespace": namespace, "replica": name, "is_routable": True, "in_flight": 0}
    cluster.report([{**words, "model": model}])
    wanted = {"architecture": "LlamaForCausalLM", "parameters": 12, "contextLength": 2048, "revision": "abc"}
    soon(lambda: cluster.get("llmd", "tiny", namespace)["status"].get("model") == wanted, "the facts")

    # Gateways may tell of the former pod for a while.
    cluster.kubectl("delete", "llmd", "tiny", "-n", namespace)
    soon(lambda: name not in pods(cluster, namespace), "the pod to go")
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny(engine={"device": "cpu", "maxModelLen": 64}))
    (other,) = soon(lambda: pods(cluster, namespace), "a pod of the new one")
    cluster.report([{**words, "model": model}, {**words, "replica": other}])
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
    assert "model" not in cluster.get("llmd", "tiny", namespace)["status"]
    cluster.report([{**words, "replica": other, "model": {**model, "max_model_len": 64}}])
    wanted["contextLength"] = 64
    soon(lambda: cluster.get("llmd", "tiny", namespace)["status"].get("model") == wanted, "its own facts")


def test_describe_shows_why_a_deployment_is_not_ready_and_that_it_is_again(cluster, namespace, tiny, soon):
    """Its message is longer than the 1,024 bytes that an event may have, and a byte is not a character there."""
    policy = "é" * 600
    wish = tiny(podTemplate={"spec": {"containers": [{"name": "engine", "imagePullPolicy": policy}]}})
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=wish)
    soon(lambda: cluster.ready("tiny", namespace)[1] == "InvalidSpec", "InvalidSpec")
    serve(cluster, namespace, soon, tiny())
    uid = cluster.get("llmd", "tiny", namespace)["metadata"]["uid"]

    def said() -> dict[str, dict]:
        found = cluster.objects("events", namespace)
        return {e["reason"]: e for e in found if e["involvedObject"]["kind"] == "LLMDeployment"}

    events = soon(lambda: (found := said()).keys() >= {"InvalidSpec", "Serving"} and found, "the events")
    for event in events.values():
        about = event["involvedObject"]
        assert (about["apiVersion"], about["name"], about["namespace"]) == ("quire.dev/v1alpha1", "tiny", namespace)
        assert about["uid"] == uid
    assert (events["InvalidSpec"]["type"], events["Serving"]["type"]) == ("Warning", "Normal")
    assert "imagePullPolicy" in events["InvalidSpec"]["message"]
    assert events["Serving"]["message"] == "1 of 1 replicas serve"
    described = cluster.kubectl("describe", "llmd", "tiny", "-n", namespace)
    lines = [line.split() for line in described.split("Events:")[1].splitlines()]
    assert ["Warning", "InvalidSpec"] in [line[:2] for line in lines]
    assert ["Normal", "Serving"] in [line[:2] for line in lines]


def test_a_fetched_model_has_an_agent_beside_the_engine(cluster, namespace, tiny, soon):
    (name,) = serve(cluster, namespace, soon, tiny(model={"source": "hf://Qwen/Qwen3-0.6B"}))
    (agent,) = cluster.get("pod", name, namespace)["spec"]["initContainers"]
    assert (agent["name"], agent["restartPolicy"]) == ("agent", "Always")
