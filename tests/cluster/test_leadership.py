"""Two operators, one that writes."""

import json

IDLE_AT_ONCE = json.dumps({"spec": {"autoscaling": {"idleTimeout": "1s", "scaleDownDelay": "1s"}}})


def generation_of(cluster, namespace) -> dict[str, str]:
    kinds = "deployments,services,serviceaccounts,networkpolicies,secrets,llmd,pods"
    return {
        f"{o['kind']}/{o['metadata']['name']}": o["metadata"]["resourceVersion"]
        for o in cluster.objects(kinds, namespace, "")
        if o["metadata"]["name"] not in ("default",)
    }


def test_of_two_operators_one_writes_and_the_other_takes_over(cluster, namespace, tiny, soon):
    with cluster.operator("one", "--lease", "duel", "--lease-duration-s", "4") as one:
        soon(lambda: "this operator leads" in one.says, "the first to lead")
        with cluster.operator("two", "--lease", "duel", "--lease-duration-s", "4") as two:
            cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny(replicas=2))
            found = soon(lambda: len(p := cluster.objects("pods", namespace)) == 2 and p, "two pods")
            names = sorted(pod["metadata"]["name"] for pod in found)
            cluster.route(namespace, "tiny", *names)
            soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
            assert one.counted("quire_operator_api_requests_total", 'method="GET"') > 0
            # What it would apply is what stands there already, and that leaves no trace in the objects.
            assert two.counted("quire_operator_api_requests_total") > 0
            assert two.counted("quire_operator_api_requests_total", 'method="GET"') == 0

            one.kill()
            soon(lambda: "this operator leads" in two.says, "the second to lead")
            cluster.kubectl("delete", "service", "tiny", "-n", namespace)
            soon(lambda: cluster.get("service", "tiny", namespace), "the second to work")
            assert sorted(pod["metadata"]["name"] for pod in cluster.objects("pods", namespace)) == names


def test_an_operator_that_is_told_to_end_gives_the_lease_back(cluster, namespace, soon):
    with cluster.operator("brief", "--lease", "brief", "--namespaces", namespace) as brief:
        soon(lambda: "this operator leads" in brief.says, "it to lead")
        assert brief.stop() == 0
        assert "Traceback" not in brief.says
    assert not cluster.get("lease", "brief", "quire-system")["spec"]["holderIdentity"]


def test_a_restarted_operator_changes_nothing(cluster, namespace, tiny, soon, operator):
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny())
    (pod,) = soon(lambda: cluster.objects("pods", namespace), "a pod")
    cluster.route(namespace, "tiny", pod["metadata"]["name"])
    soon(lambda: cluster.ready("tiny", namespace)[0] == "True", "Ready")
    before = generation_of(cluster, namespace)
    with cluster.operator("fresh", "--namespaces", namespace, "--lease", "other") as fresh:
        soon(lambda: "this operator leads" in fresh.says, "the fresh one to lead")
        soon(lambda: fresh.counted("quire_operator_reconciles_total") > 0, "its first look")
        looks = fresh.counted("quire_operator_reconciles_total")
        cluster.kubectl("annotate", "llmd", "tiny", "-n", namespace, "looked=at")
        soon(lambda: fresh.counted("quire_operator_reconciles_total") > looks, "a look at what was touched")
    after = generation_of(cluster, namespace)
    after.pop("LLMDeployment/tiny"), before.pop("LLMDeployment/tiny")
    assert after == before


def test_a_new_leader_goes_on_with_the_scaling_laws_memory(cluster, namespace, tiny, soon):
    """Here: for how long as many replicas have been ready, without which idleTimeout would begin anew."""

    def memory():
        annotations = cluster.get("secret", "tiny-internal", namespace)["metadata"].get("annotations", {})
        text = annotations.get("quire.dev/scaling-memory")
        return json.loads(text) if text else {"ready": 0}

    entry = {"deployment": "tiny", "namespace": namespace, "held": 0, "queued_tokens": 0, "requests": 9}
    busy = {**entry, "in_flight": 1, "idle_s": 0.0}
    flags = ("--lease", "heirs", "--lease-duration-s", "4", "--namespaces", namespace)
    with cluster.operator("former", *flags) as former:
        cluster.load([busy])
        scaling = {"minReplicas": 0, "maxReplicas": 2, "idleTimeout": "1h", "targets": {"inFlightPerReplica": 4}}
        cluster.kubectl("apply", "-n", namespace, "-f", "-", given=tiny(replicas=1, autoscaling=scaling))
        (pod,) = soon(lambda: cluster.objects("pods", namespace), "a pod")
        cluster.route(namespace, "tiny", pod["metadata"]["name"])
        before = soon(lambda: (m := memory())["ready"] == 1 and m, "a memory of one ready replica")
        former.kill()
    with cluster.operator("heir", *flags) as heir:
        soon(lambda: "this operator leads" in heir.says, "the heir to lead")
        after = soon(lambda: (m := memory()) != before and m["ready"] == 1 and m, "the heir to write its own memory")
        assert abs(after["ready_changed_at"] - before["ready_changed_at"]) < 1.0
        cluster.kubectl("patch", "llmd", "tiny", "-n", namespace, "--type=merge", "-p", IDLE_AT_ONCE)
        cluster.load([{**entry, "in_flight": 0, "idle_s": 100_000.0}])
        soon(lambda: cluster.get("llmd", "tiny", namespace)["spec"]["replicas"] == 0, "nobody to be needed")
    cluster.load([])
