"""An operator whose role lacks something: what it can do without it does, and else it ends with a sentence."""

import subprocess
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster(new_cluster):
    """One without the tests' other operator, which may do everything and would do what another may not."""
    with new_cluster("rights") as cluster:
        yield cluster


@pytest.fixture
def role(cluster, namespace, tmp_path):
    """Gives a service account the chart's role without some resources or verbs; the flags of an operator with it."""
    name = f"narrow-{namespace}"

    def give(*lacking: str, verb: str = "") -> list[str]:
        helm = [str(cluster.layout.binaries / "helm"), "template", "quire", str(REPOSITORY / "charts" / "quire")]
        text = subprocess.run(
            [*helm, *("-n", "quire-system", "--kube-version", "1.34.0")], capture_output=True, text=True, check=True
        ).stdout
        (found,) = (
            document
            for document in yaml.safe_load_all(text)
            if document and document["kind"] == "ClusterRole" and document["metadata"]["name"] == "quire-operator"
        )
        rules = [
            {
                **rule,
                "resources": [word for word in rule["resources"] if word not in lacking],
                "verbs": [word for word in rule["verbs"] if word != verb],
            }
            for rule in found["rules"]
            if set(rule["resources"]) - set(lacking)
        ]
        leases = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["get", "create", "update"]}
        api = {"apiVersion": "rbac.authorization.k8s.io/v1"}
        cluster.kubectl("create", "serviceaccount", "operator", "-n", namespace)
        for manifest in (
            {**api, "kind": "ClusterRole", "metadata": {"name": name}, "rules": [*rules, leases]},
            {
                **api,
                "kind": "ClusterRoleBinding",
                "metadata": {"name": name},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": namespace}],
            },
        ):
            cluster.kubectl("apply", "-f", "-", given=manifest)
        config = yaml.safe_load(cluster.layout.kubeconfig().read_text())
        token = cluster.kubectl("create", "token", "operator", "-n", namespace).strip()
        (user,) = config["users"]
        user["user"] = {"token": token}
        file = tmp_path / "operator.yaml"
        file.write_text(yaml.safe_dump(config))
        return ["--kubeconfig", str(file), "--namespaces", namespace, "--lease", namespace]

    yield give
    cluster.kubectl("delete", "clusterrole,clusterrolebinding", name, "--ignore-not-found")


def test_the_charts_role_is_enough(cluster, namespace, tiny, soon, role):
    with cluster.operator("narrow", *role()):
        cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny())
        soon(lambda: cluster.objects("pods", namespace), "a pod")
        soon(lambda: cluster.ready("tiny", namespace)[1], "a condition")


def test_without_volume_claims_all_but_their_users_are_served(cluster, namespace, tiny, soon, role):
    with cluster.operator("narrow", *role("persistentvolumeclaims")) as operator:
        kept = tiny("kept", model={"source": "hf://org/tiny", "volume": {"size": "1Gi"}})
        cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny())
        cluster.kubectl("apply", "-n", namespace, "-f", "-", given=kept)
        soon(lambda: cluster.objects("pods", namespace), "a pod")
        soon(lambda: cluster.ready("kept", namespace)[1] == "Forbidden", "Forbidden")
        assert "the role of its version's chart" in cluster.ready("kept", namespace)[2]
        assert 'cannot list resource \\"persistentvolumeclaims\\"' in operator.says


def test_without_pods_it_ends_with_a_sentence(cluster, namespace, soon, role):
    with cluster.operator("narrow", *role("pods")) as operator:
        soon(lambda: "quire-operator: pods is forbidden" in operator.says, "the sentence")
        assert "Give it the role of this version's chart" in operator.says
        assert operator.wait() == 2


def test_an_operator_that_cannot_watch_ends_instead_of_standing_idle(cluster, role):
    with cluster.operator("narrow", *role(verb="watch")) as operator:
        assert operator.wait() == 1
        assert "the operator ends" in operator.says
