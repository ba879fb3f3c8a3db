"""The operator in a list of namespaces, as the service account of the chart: Roles there, and no ClusterRole."""

import json
import subprocess
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
SYSTEM = "quire-system"
SERVED = ("served-one", "served-two")
KINDS = ("ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding")


@pytest.fixture(scope="module")
def cluster(new_cluster):
    """One without the tests' other operator, which may do everything and would do what another may not."""
    with new_cluster("namespaced") as cluster:
        for namespace in (*SERVED, "unserved"):
            cluster.kubectl("create", "namespace", namespace)
        yield cluster


@pytest.fixture(scope="module")
def account(cluster, tmp_path_factory) -> list[str]:
    """Flags of an operator that has what the chart gives it for these namespaces, and nothing else."""
    command = [str(cluster.layout.binaries / "helm"), "template", "quire", str(REPOSITORY / "charts" / "quire")]
    flags = ["-n", SYSTEM, "--kube-version", "1.34.0", "--set", f"namespaces={{{','.join(SERVED)}}}"]
    text = subprocess.run([*command, *flags], capture_output=True, text=True, check=True).stdout
    rendered = [manifest for manifest in yaml.safe_load_all(text) if manifest and manifest["kind"] in KINDS]
    rights = [m for m in rendered if m["metadata"]["labels"]["app.kubernetes.io/name"] == "quire-operator"]
    assert not [m for m in rights if m["kind"].startswith("Cluster")]
    assert {m["metadata"]["namespace"] for m in rights} == {SYSTEM, *SERVED}
    for manifest in rights:
        cluster.kubectl("apply", "-f", "-", given=manifest)
    config = yaml.safe_load(cluster.layout.kubeconfig().read_text())
    (user,) = config["users"]
    user["user"] = {"token": cluster.kubectl("create", "token", "quire-operator", "-n", SYSTEM).strip()}
    file = tmp_path_factory.mktemp("account") / "kubeconfig.yaml"
    file.write_text(yaml.safe_dump(config))
    return ["--kubeconfig", str(file), "--namespaces", ",".join(SERVED)]


@pytest.fixture(scope="module")
def operator(cluster, account, soon):
    with cluster.operator("namespaced", *account) as process:
        soon(lambda: "this operator leads" in process.says, "leadership")
        yield process


def wish(name: str, **spec) -> dict:
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name},
        "spec": {
            "model": {"source": "file:///models/tiny", **spec.pop("model", {})},
            "engine": {"device": "cpu"},
            "resources": {"cpu": "100m", "memory": "64Mi"},
            "rollout": {"drainTimeout": "1s"},
            **spec,
        },
    }


def pods(cluster, namespace, name) -> list[str]:
    found = cluster.objects("pods", namespace, f"quire.dev/deployment={name}")
    return sorted(pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"])


def assert_nothing_was_forbidden(operator) -> None:
    lines = [json.loads(line) for line in operator.says.splitlines() if line.startswith("{")]
    told = [line["message"] for line in lines if line["level"] not in ("debug", "info")]
    assert not [message for message in told if "forbidden" in message.lower() or "permission" in message.lower()], told
    requests = "quire_operator_api_requests_total"
    assert operator.counted(requests) == operator.counted(requests, 'code="403"') > 0


def test_a_whole_life_of_a_deployment_needs_no_more_than_the_roles(cluster, operator, soon):
    namespace = SERVED[0]
    keys = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"alice": "sesame"}}
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=keys)
    access = {"apiKeysSecretRef": {"name": "keys"}}
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=wish("tiny", replicas=2, access=access))
    names = soon(lambda: len(found := pods(cluster, namespace, "tiny")) == 2 and found, "two pods")
    cluster.route(namespace, "tiny", *names)
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
    (entry,) = cluster.routes(namespace)
    assert [key["name"] for key in entry["api_keys"]] == ["alice"]
    soon(lambda: cluster.objects("events", namespace, ""), "events")

    changed = wish("tiny", replicas=1, access=access, engine={"device": "cpu", "maxModelLen": 64})
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=changed)
    both = soon(lambda: set(found := pods(cluster, namespace, "tiny")) - set(names) and found, "the new revision")
    cluster.route(namespace, "tiny", *both)
    soon(lambda: len(found := pods(cluster, namespace, "tiny")) == 1 and found[0] not in names, "the rollout")
    soon(lambda: not cluster.get("pdb", "tiny", namespace), "no budget at one replica")
    cluster.kubectl("delete", "llmd", "tiny", "-n", namespace)
    soon(lambda: not cluster.routes(namespace), "the route to go")
    assert_nothing_was_forbidden(operator)


def test_weights_are_kept_and_the_law_scales(cluster, operator, soon):
    namespace = SERVED[1]
    model = {"source": "hf://org/tiny", "volume": {"size": "1Gi", "storageClassName": "any"}}
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=wish("kept", model=model))
    soon(lambda: cluster.get("pvc", "kept-weights", namespace), "the claim")
    soon(lambda: pods(cluster, namespace, "kept"), "its pod, because nobody may look at storage classes")
    asleep = wish("asleep", replicas=0, autoscaling={"minReplicas": 0, "maxReplicas": 1})
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=asleep)
    soon(lambda: cluster.ready("asleep", namespace)[1] == "ScaledToZero", "ScaledToZero")
    load = {"deployment": "asleep", "namespace": namespace, "in_flight": 0, "queued_tokens": 0, "requests": 1}
    cluster.load([{**load, "held": 1, "idle_s": 0.0}])
    soon(lambda: pods(cluster, namespace, "asleep"), "a pod for the held request")
    cluster.load([])


def test_other_namespaces_are_left_alone(cluster, operator, soon):
    cluster.kubectl("apply", "-n", "unserved", "-f", "-", given=wish("tiny"))
    cluster.kubectl("apply", "-n", SERVED[1], "-f", "-", given=wish("marker"))
    soon(lambda: pods(cluster, SERVED[1], "marker"), "what came later")
    assert cluster.ready("tiny", "unserved") == ("", "", "")
