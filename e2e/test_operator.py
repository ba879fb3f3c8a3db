"""Operators that go away, come back, and are two."""

import time

from client import SYSTEM, Client
from scenario import OPERATOR, apply, load, names, restarts, serve, start_operator, stop_operator, wait_for_replicas


def leader(cluster: Client) -> str:
    """Who leads: the name of an operator's pod, and more."""
    return str(cluster.get("lease", "quire-operator", SYSTEM)["spec"].get("holderIdentity") or "")


def test_an_operator_killed_and_back_restarts_nothing(cluster, namespace, tiny, soon):
    model = serve(cluster, soon, tiny())
    before = restarts(cluster, namespace)
    with load(cluster, model) as traffic:
        begun = traffic.begun
        (killed,) = names(cluster.pods(SYSTEM, OPERATOR))
        cluster.kubectl("delete", "pod", killed, "-n", SYSTEM, "--grace-period=0", "--force")
        soon(lambda: names(cluster.pods(SYSTEM, OPERATOR)) not in ([], [killed]), "another operator")
        (back,) = names(cluster.pods(SYSTEM, OPERATOR))
        soon(lambda: leader(cluster).startswith(back), "the operator to lead again")
        cluster.kubectl("annotate", "llmd/tiny", "seen=yes", "-n", namespace)
        soon(lambda: traffic.answered(after=begun), "streams of now to be answered")
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

    def is_quiet(seconds: float) -> bool:
        """Whether nobody writes anything for so long."""
        settled = versions()
        time.sleep(seconds)
        return versions() == settled

    try:
        start_operator(cluster, replicas=2)
        soon(lambda: is_quiet(20), "what the rollout brought to be written, and nothing more")
        holder = leader(cluster)
        (leading,) = (pod for pod in names(cluster.pods(SYSTEM, OPERATOR)) if holder.startswith(pod))
        cluster.kubectl("delete", "pod", leading, "-n", SYSTEM, "--grace-period=0", "--force")
        apply(cluster, tiny(replicas=2))
        wait_for_replicas(cluster, soon, namespace, 2)
        soon(lambda: leader(cluster) not in ("", holder), "the other one to lead")
    finally:
        start_operator(cluster)
    assert before.items() <= restarts(cluster, namespace).items()
