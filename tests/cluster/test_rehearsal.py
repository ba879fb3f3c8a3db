"""What the API server does not take is found before a running replica is touched, and holds back only what needs it."""

import pytest

OURS = "app.kubernetes.io/managed-by=quire-operator"

pytestmark = pytest.mark.usefixtures("operator")


def pods(cluster, namespace) -> list[str]:
    found = cluster.objects("pods", namespace, OURS)
    return sorted(pod["metadata"]["name"] for pod in found if "deletionTimestamp" not in pod["metadata"])


def serve(cluster, namespace, soon, wish) -> list[str]:
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=wish)
    count = wish["spec"].get("replicas", 1)
    names = soon(lambda: len(found := pods(cluster, namespace)) == count and found, f"{count} pods")
    cluster.route(namespace, "tiny", *names)
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
    return names


def quota(cluster, namespace, soon, counted, hard) -> None:
    manifest = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {f"count/{counted}": str(hard)}},
    }
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=manifest)
    soon(
        lambda: (
            cluster.get("resourcequota", "small", namespace).get("status", {}).get("hard") == manifest["spec"]["hard"]
        ),
        "the quota to hold",
    )


@pytest.mark.parametrize(
    ("template", "path"),
    [
        (
            {"containers": [{"name": "engine", "imagePullPolicy": "Sometimes"}]},
            "spec.podTemplate.spec.containers[0].imagePullPolicy",
        ),
        ({"tolerations": [{"operator": "Sometimes"}]}, "spec.podTemplate.spec.tolerations[0].operator"),
        ({"hostnames": "typo"}, "spec.podTemplate.spec.hostnames"),
        ({"volumes": {"a": 1}}, "spec.podTemplate.spec.volumes"),
    ],
    ids=["value", "other-list", "no-such-field", "shape"],
)
def test_a_template_that_nobody_takes_leaves_the_running_revision_whole(cluster, namespace, tiny, soon, template, path):
    """A rollout that begins by taking one away is where a replica would be lost."""
    rollout = {"maxSurge": 0, "maxUnavailable": 1, "drainTimeout": "1s"}
    names = serve(cluster, namespace, soon, tiny(replicas=2, rollout=rollout))
    before = cluster.objects("deployments", namespace, OURS)
    bad = tiny(replicas=2, rollout=rollout, podTemplate={"spec": template})
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=bad)
    soon(lambda: cluster.ready("tiny", namespace)[1] == "InvalidSpec", "InvalidSpec")
    assert path in cluster.ready("tiny", namespace)[2]

    # Whatever was begun shows by the time that a later change of the same deployment has been acted on.
    cluster.kubectl("delete", "service", "tiny", "-n", namespace)
    soon(lambda: cluster.get("service", "tiny", namespace), "a later reconcile")
    assert pods(cluster, namespace) == names
    for pod in cluster.objects("pods", namespace, OURS):
        assert not [mark for mark in pod["metadata"].get("annotations", {}) if mark.startswith("quire.dev/")]
    after = cluster.objects("deployments", namespace, OURS)
    assert [d["metadata"]["generation"] for d in after] == [d["metadata"]["generation"] for d in before]
    assert cluster.get("llmd", "tiny", namespace)["status"]["readyReplicas"] == 2

    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny(replicas=2, rollout=rollout))
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "healing")
    assert pods(cluster, namespace) == names


def test_a_budget_that_is_refused_is_told_and_holds_nobody_back(cluster, namespace, tiny, soon):
    quota(cluster, namespace, soon, "poddisruptionbudgets.policy", 0)
    serve(cluster, namespace, soon, tiny())
    cluster.kubectl("scale", "llmd/tiny", "-n", namespace, "--replicas=3")
    names = soon(lambda: len(found := pods(cluster, namespace)) == 3 and found, "three pods without a budget")
    cluster.route(namespace, "tiny", *names)
    soon(lambda: cluster.get("llmd", "tiny", namespace)["status"].get("readyReplicas") == 3, "three ready replicas")
    soon(lambda: cluster.ready("tiny", namespace)[1] == "QuotaExceeded", "what is missing")
    assert "the PodDisruptionBudget tiny" in cluster.ready("tiny", namespace)[2]
    quota(cluster, namespace, soon, "poddisruptionbudgets.policy", 1)
    soon(lambda: cluster.get("pdb", "tiny", namespace), "the budget")
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "the finding to go")
