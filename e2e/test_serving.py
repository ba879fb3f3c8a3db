"""From an applied resource to tokens, and changes of it while requests flow."""

from scenario import addresses, apply, ask, load, names, restarts, serve, wait_for_metrics, wait_for_replicas

OWNED = "deployments,services,serviceaccounts,secrets,poddisruptionbudgets,networkpolicies,replicasets,pods"


def test_helm_install_then_apply_then_a_stream_through_the_service(cluster, namespace, tiny, soon):
    model = serve(cluster, soon, tiny())
    answer = ask(cluster, model)
    assert answer.count("data: {") >= 2
    assert answer.rstrip().endswith("data: [DONE]")
    status = cluster.get("llmd", "tiny", namespace)["status"]
    assert status["url"] == "http://quire-gateway.quire-system.svc/v1"


def test_scaling_from_one_to_three_and_back_under_load_fails_nothing(cluster, namespace, tiny, soon):
    model = serve(cluster, soon, tiny())
    with load(cluster, model) as traffic:
        begun = traffic.begun
        cluster.kubectl("scale", "llmd/tiny", "-n", namespace, "--replicas=3")
        wait_for_replicas(cluster, soon, namespace, 3)
        soon(lambda: traffic.answered(after=begun), "streams of now to be answered")
        begun = traffic.begun
        cluster.kubectl("scale", "llmd/tiny", "-n", namespace, "--replicas=1")
        soon(lambda: len(cluster.objects("pods", namespace)) == 1, "one pod")
        soon(lambda: traffic.answered(after=begun), "streams of now to be answered")
    assert traffic.failed == []


def test_a_rolling_update_under_load_fails_nothing(cluster, namespace, tiny, soon):
    model = serve(cluster, soon, tiny())
    before = names(cluster.pods(namespace))

    def is_exchanged() -> bool:
        now = names(cluster.pods(namespace))
        return len(now) == 1 and now != before

    with load(cluster, model) as traffic:
        begun = traffic.begun
        apply(cluster, tiny(engine={"extraArgs": ["--max-num-seqs", "8"]}))
        soon(is_exchanged, "the new revision alone")
        soon(lambda: traffic.answered(after=begun), "streams of now to be answered")
    assert traffic.failed == []


def test_two_models_in_two_namespaces_answer_through_one_gateway(cluster, namespace, new_namespace, tiny, soon):
    other = new_namespace()
    models = [serve(cluster, soon, tiny()), serve(cluster, soon, tiny(within=other))]
    for model in models:
        assert f'"model":"{model}"' in ask(cluster, model).replace(" ", "")
    assert "does not exist" in ask(cluster, "nobody")


def test_deleting_removes_everything_and_hangs_nowhere(cluster, namespace, tiny, soon):
    model = serve(cluster, soon, tiny(replicas=2))

    def owned() -> list[str]:
        return [
            f"{o['kind']}/{o['metadata']['name']}"
            for o in cluster.objects(OWNED, namespace)
            if any(owner["kind"] != "Node" for owner in o["metadata"].get("ownerReferences", []))
        ]

    assert len(owned()) >= 7
    cluster.kubectl("delete", "llmd", "tiny", "-n", namespace, "--timeout=120s")
    soon(lambda: not owned(), "all that belonged to it to be gone")
    soon(lambda: "does not exist" in ask(cluster, model), "the name to be gone")


def test_an_edit_by_hand_is_taken_back(cluster, namespace, tiny, soon):
    model = serve(cluster, soon, tiny())
    before = restarts(cluster, namespace)
    (deployment,) = cluster.objects("deployments", namespace)
    name, image = deployment["metadata"]["name"], deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    (service,) = names(cluster.objects("services", namespace))
    cluster.kubectl("set", "image", f"deployment/{name}", "engine=example.invalid/nothing:1", "-n", namespace)
    cluster.kubectl("delete", "service", service, "-n", namespace)

    def is_repaired() -> bool:
        container = cluster.get("deployment", name, namespace)["spec"]["template"]["spec"]["containers"][0]
        return container["image"] == image and bool(cluster.get("service", service, namespace))

    soon(is_repaired, "the former image and the Service")
    soon(lambda: restarts(cluster, namespace) == before, "the same pod alone")
    assert "[DONE]" in ask(cluster, model)


def test_an_autoscaler_of_kubernetes_drives_the_replicas(cluster, namespace, tiny, soon):
    wait_for_metrics(cluster, soon)
    model = serve(cluster, soon, tiny())
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "tiny", "namespace": namespace},
        "spec": {
            "scaleTargetRef": {"apiVersion": "quire.dev/v1alpha1", "kind": "LLMDeployment", "name": "tiny"},
            "minReplicas": 1,
            "maxReplicas": 2,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "150m"}},
                }
            ],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 0}},
        },
    }
    with load(cluster, model) as traffic:
        begun = traffic.begun
        apply(cluster, autoscaler)
        wait_for_replicas(cluster, soon, namespace, 2)
        soon(lambda: traffic.answered(after=begun), "streams of now to be answered")
    soon(lambda: cluster.get("llmd", "tiny", namespace)["spec"]["replicas"] == 1, "the idle replica to go")
    assert traffic.failed == []


def test_at_zero_a_request_is_held_until_it_is_answered_and_silence_leads_back_to_zero(cluster, namespace, tiny, soon):
    resource = tiny(
        replicas=0, autoscaling={"minReplicas": 0, "maxReplicas": 1, "idleTimeout": "10s", "scaleDownDelay": "10s"}
    )
    apply(cluster, resource)
    soon(lambda: cluster.ready("tiny", namespace)[:2] == ("True", "ScaledToZero"), "ScaledToZero")
    assert cluster.pods(namespace) == []
    model = resource["spec"]["model"]["servedNames"][0]
    for address in addresses(cluster).values():
        soon(lambda address=address: model in cluster.request(f"{address}/v1/models"), "each gateway to know the name")
    assert "[DONE]" in ask(cluster, model)
    soon(lambda: cluster.ready("tiny", namespace)[:2] == ("True", "ScaledToZero"), "zero again")
