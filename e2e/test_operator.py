"""Operators that go away, come back, and are two."""

import time

from client import SYSTEM
from scenario import OPERATOR, apply, load, names, restarts, serve, start_operator, stop_operator, wait_for_replicas


def test_an_operator_killed_and_back_restarts_nothing(cluster, namespace, tiny, soon, tmp_path):
    model = serve(cluster, soon, tiny())
    before = restarts(cluster, namespace)
    with load(cluster, model, tmp_path) as traffic:
        begun = traffic.begun
        (killed,) = names(cluster.pods(SYSTEM, OPERATOR))
        cluster.kubectl("delete", "pod", killed, "-n", SYSTEM, "--grace-period=0", "--force")
        soon(lambda: killed not in names(cluster.pods(SYSTEM, OPERATOR)), "the operator to go")
        cluster.kubectl("rollout", "status", "deployment/quire-operator", "-n", SYSTEM, "--timeout=300s")
        cluster.kubectl("annotate", "llmd/tiny", "seen=yes", "-n", namespace)
        time.sleep(5)
        assert traffic.answered(after=begun) > 0
    assert restarts(cluster, namespace) == before
    assert traffic.failed == []
    cluster.kubectl("scale", "llmd/tiny", "-n", namespace, "--replicas=2")
    wait_for_replicas(cluster, soon, namespace, 2)
    assert before.items() <= restarts(cluster, namespace).items()


def test_a_namespace_deleted_while_the_operator_is_down_goes_at_once(cluster, namespace, tiny, soon):
    serve(cluster, soon, tiny())
    try:
        stop_operator(cluster, soon)
        cluster.kubectl("delete", "namespace", namespace, "--timeout=150s")
    finally:
        start_operator(cluster)


def test_two_operators_do_not_fight_and_one_takes_over_from_the_other(cluster, namespace, tiny, soon):
    serve(cluster, soon, tiny())
    before = restarts(cluster, namespace)

    def versions() -> dict[str, str]:
        found = cluster.objects("llmd,deployments,services,serviceaccounts,networkpolicies,pods", namespace)
        return {f"{o['kind']}/{o['metadata']['name']}": o["metadata"]["resourceVersion"] for o in found}

    try:
        start_operator(cluster, replicas=2)
        settled = versions()
        time.sleep(20)
        assert versions() == settled
        holder = cluster.get("lease", "quire-operator", SYSTEM)["spec"]["holderIdentity"]
        (leader,) = (pod for pod in names(cluster.pods(SYSTEM, OPERATOR)) if holder.startswith(pod))
        cluster.kubectl("delete", "pod", leader, "-n", SYSTEM, "--grace-period=0", "--force")
        apply(cluster, tiny(replicas=2))
        wait_for_replicas(cluster, soon, namespace, 2)
        assert cluster.get("lease", "quire-operator", SYSTEM)["spec"]["holderIdentity"] != holder
    finally:
        start_operator(cluster)
    assert before.items() <= restarts(cluster, namespace).items()
