"""What cannot be served says so where people look: at `kubectl apply`, or in the Ready condition."""

import pytest

pytestmark = pytest.mark.usefixtures("operator")


def apply(cluster, namespace, resource) -> None:
    cluster.kubectl("apply", "-n", namespace, "-f", "-", given=resource)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({"model": {"source": "llama"}}, "source must begin with hf://"),
        ({"model": {"source": "file:///m", "revision": "main"}}, "revision applies to hf:// sources only"),
        ({"engine": {"device": "cuda"}}, "engine.device cuda needs resources.gpus"),
        ({"engine": {"extraArgs": ["--port=1"]}}, "extraArgs must not set --host"),
        ({"autoscaling": {"minReplicas": 3, "maxReplicas": 2}}, "minReplicas must not be above maxReplicas"),
        (
            {"model": {"source": "file:///m", "volume": {"size": "1Gi"}}},
            "volume applies to hf://, s3:// and oci:// sources only",
        ),
        ({"rollout": {"maxSurge": 0, "maxUnavailable": "0%"}}, "must not both be 0"),
    ],
    ids=["source", "revision", "device", "flags", "bounds", "volume", "rollout"],
)
def test_the_api_server_refuses_with_a_sentence(cluster, namespace, tiny, spec, sentence):
    done = cluster.try_kubectl("apply", "-n", namespace, "-f", "-", given=tiny(**spec))
    assert done.returncode != 0
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        (
            {"podTemplate": {"spec": {"containers": {}}}},
            "InvalidSpec",
            "spec.podTemplate.spec.containers: must be a list",
        ),
        (
            {"podTemplate": {"spec": {"containers": [{"name": "engine", "imagePullPolicy": "Sometimes"}]}}},
            "InvalidSpec",
            "imagePullPolicy",
        ),
        ({"engine": {"device": "auto"}, "resources": {"gpus": 1}}, "GpuUnavailable", "resources.gpus"),
        ({"resources": {"memory": "900Ti"}}, "InsufficientResources", "Insufficient memory"),
        (
            {"model": {"source": "hf://a/b", "auth": {"secretRef": {"name": "nohub"}}}},
            "SecretNotFound",
            "spec.model.auth.secretRef: the Secret nohub does not exist",
        ),
        ({"model": {"source": "pvc://weights/tiny"}}, "WeightsNotFound", "volume claim weights does not exist"),
        ({"access": {"apiKeysSecretRef": {"name": "nokeys"}}}, "SecretNotFound", "nokeys"),
    ],
    ids=["template", "field", "gpu", "memory", "auth", "claim", "secret"],
)
def test_the_ready_condition_names_the_reason(cluster, namespace, tiny, soon, spec, reason, words):
    apply(cluster, namespace, tiny(**spec))
    soon(lambda: cluster.ready("tiny", namespace)[1] == reason, reason)
    assert words in cluster.ready("tiny", namespace)[2]


def test_a_missing_storage_class_is_named(cluster, namespace, tiny, soon):
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "weights"},
        "spec": {
            "accessModes": ["ReadOnlyMany"],
            "storageClassName": "golden",
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    apply(cluster, namespace, claim)
    apply(cluster, namespace, tiny(model={"source": "pvc://weights/tiny"}))
    soon(lambda: cluster.ready("tiny", namespace)[1] == "StorageClassMissing", "the reason")
    assert "golden" in cluster.ready("tiny", namespace)[2]


def test_a_full_quota_is_named(cluster, namespace, tiny, soon):
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {"pods": "0"}},
    }
    apply(cluster, namespace, quota)
    apply(cluster, namespace, tiny())
    soon(lambda: cluster.ready("tiny", namespace)[1] == "QuotaExceeded", "the reason")


@pytest.mark.parametrize("counted", ["services", "deployments.apps"])
def test_a_full_quota_of_objects_is_named_and_everything_else_is_done(cluster, namespace, tiny, soon, counted):
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "none-more"},
        "spec": {"hard": {f"count/{counted}": "0"}},
    }
    apply(cluster, namespace, quota)
    soon(lambda: cluster.get("resourcequota", "none-more", namespace)["status"].get("used"), "the quota to be counted")
    apply(cluster, namespace, tiny(replicas=2))
    soon(lambda: cluster.ready("tiny", namespace)[1] == "QuotaExceeded", "QuotaExceeded")
    message = cluster.ready("tiny", namespace)[2]
    assert f"count/{counted}" in message
    assert "raise the quota" in message
    others = "serviceaccounts,networkpolicies,poddisruptionbudgets"
    assert len(cluster.objects(others, namespace, "quire.dev/deployment=tiny")) == 3
    assert cluster.routes(namespace)
    assert not cluster.objects("pods", namespace, "quire.dev/deployment=tiny")
    cluster.kubectl("delete", "resourcequota", "none-more", "-n", namespace)
    soon(lambda: len(cluster.objects("pods", namespace, "quire.dev/deployment=tiny")) == 2, "pods")
    soon(lambda: cluster.ready("tiny", namespace)[1] == "Serving", "the finding to go")


def test_a_policy_that_denies_an_object_is_quoted(cluster, namespace, tiny, soon):
    api = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": f"deny-{namespace}"}}
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["services"]}
    ours = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    policy = {
        "matchConstraints": {"resourceRules": [rule], "namespaceSelector": ours},
        "validations": [{"expression": "false", "message": "services are made on Tuesdays"}],
    }
    binding = {"policyName": f"deny-{namespace}", "validationActions": ["Deny"]}
    apply(cluster, namespace, {**api, "kind": "ValidatingAdmissionPolicy", "spec": policy})
    apply(cluster, namespace, {**api, "kind": "ValidatingAdmissionPolicyBinding", "spec": binding})
    try:
        probe = ("create", "service", "clusterip", "probe", "--tcp=80", "-n", namespace, "--dry-run=server")
        soon(lambda: "Tuesdays" in cluster.try_kubectl(*probe).stderr, "the policy to hold")
        apply(cluster, namespace, tiny())
        soon(lambda: cluster.ready("tiny", namespace)[1] == "Forbidden", "Forbidden")
        assert "the Service tiny: services" in cluster.ready("tiny", namespace)[2]
        assert "services are made on Tuesdays; ask for an exception" in cluster.ready("tiny", namespace)[2]
        assert cluster.objects("networkpolicies", namespace, "quire.dev/deployment=tiny")
    finally:
        name = f"deny-{namespace}"
        cluster.kubectl("delete", "validatingadmissionpolicy,validatingadmissionpolicybinding", name)
    soon(lambda: cluster.objects("pods", namespace, "quire.dev/deployment=tiny"), "a pod")


def test_the_younger_of_two_with_one_name_is_refused_until_the_older_goes(cluster, namespace, tiny, soon):
    model = {"source": "file:///m", "servedNames": [f"name-{namespace}"]}
    apply(cluster, namespace, tiny("older", model=model))
    soon(lambda: cluster.ready("older", namespace)[1], "a status")
    apply(cluster, namespace, tiny("younger", model=model))
    soon(lambda: cluster.ready("younger", namespace)[1] == "NameConflict", "NameConflict")
    assert f"{namespace}/older" in cluster.ready("younger", namespace)[2]
    cluster.kubectl("delete", "llmd", "older", "-n", namespace)
    soon(lambda: cluster.ready("younger", namespace)[1] not in ("", "NameConflict"), "the name to be free")


def test_somebody_elses_service_is_left_alone(cluster, namespace, tiny, soon):
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "tiny"},
        "spec": {"selector": {"app": "theirs"}, "ports": [{"name": "http", "port": 80, "targetPort": 1234}]},
    }
    apply(cluster, namespace, service)
    apply(cluster, namespace, tiny())
    soon(lambda: cluster.ready("tiny", namespace)[1] == "NameConflict", "NameConflict")
    assert cluster.get("service", "tiny", namespace)["spec"]["selector"] == {"app": "theirs"}


def test_a_bad_object_says_so_and_delays_no_other(cluster, namespace, tiny, soon):
    apply(cluster, namespace, tiny("bad", podTemplate={"spec": {"volumes": ["x"]}}))
    apply(cluster, namespace, tiny("good"))
    soon(lambda: cluster.ready("bad", namespace)[1] == "InvalidSpec", "InvalidSpec")
    soon(lambda: cluster.objects("pods", namespace, "quire.dev/deployment=good"), "the other's pod")
