"""What is deleted while the operator hears nothing: it may be the API server that restarts, or a node that pauses."""

import pytest
from cluster import control_plane, daemon

CHILD = "quire.dev/deployment=kept"


@pytest.fixture(scope="module")
def cluster(new_cluster):
    """One whose API server may be restarted."""
    with new_cluster("unseen") as cluster:
        yield cluster


def test_what_was_deleted_in_an_outage_is_noticed_after_it(cluster, namespace, tiny, soon):
    with cluster.operator("deaf", "--namespaces", namespace) as operator:
        soon(lambda: "this operator leads" in operator.says, "it to lead")
        ghost = tiny("ghost")
        kept = tiny("kept", replicas=2)
        for resource in (ghost, kept):
            cluster.kubectl("apply", "-n", namespace, "-f", "-", given=resource)
        kinds = ("deployments", "poddisruptionbudgets")
        soon(lambda: cluster.get("pdb", "kept", namespace), "the children")
        before = {each["metadata"]["uid"] for kind in kinds for each in cluster.objects(kind, namespace, CHILD)}
        waits = {**tiny("waits"), "spec": ghost["spec"]}
        cluster.kubectl("apply", "-n", namespace, "-f", "-", given=waits)
        soon(lambda: cluster.ready("waits", namespace)[1] == "NameConflict", "the name's conflict")

        with operator.stopped():
            daemon.stop(cluster.layout, "kube-apiserver")
            control_plane.start_api_server(cluster.layout)
            cluster.kubectl("delete", "llmd", "ghost", "-n", namespace)
            for kind in kinds:
                cluster.kubectl("delete", kind, "-l", CHILD, "-n", namespace, "--cascade=orphan")

        soon(lambda: cluster.ready("waits", namespace)[1] != "NameConflict", "the name to be free")
        soon(lambda: all(cluster.objects(kind, namespace, CHILD) for kind in kinds), "the children again")
        after = {each["metadata"]["uid"] for kind in kinds for each in cluster.objects(kind, namespace, CHILD)}
        assert not before & after


def test_what_was_deleted_while_no_operator_ran_leaves_the_gateways_table(cluster, namespace, tiny, soon):
    with cluster.operator("before", "--namespaces", namespace):
        cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny())
        soon(lambda: [entry["name"] for entry in cluster.routes(namespace)] == ["tiny"], "the entry")
    cluster.kubectl("delete", "llmd", "tiny", "-n", namespace)
    kinds = "deployments,services,serviceaccounts,networkpolicies,secrets,pods"
    soon(lambda: not cluster.objects(kinds, namespace, "app.kubernetes.io/managed-by=quire-operator"), "nothing left")
    with cluster.operator("after", "--namespaces", namespace):
        soon(lambda: not cluster.routes(namespace), "the entry to go")
