"""Manifests against golden files. After a wanted change: QUIRE_WRITE_GOLDEN=1 pytest tests/operator/test_build.py"""

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from quire_api.v1alpha1 import ModelSpec, WeightsVolume, from_object
from quire_operator.build import revision_deployment, standing_objects, weights_claim
from quire_operator.build_pod import Settings, model_location
from quire_operator.revision import revision_of

GOLDEN = Path(__file__).parent / "golden"
SETTINGS = Settings(engine_image="quire/runtime:1", agent_image="quire/agent:1", gateway_namespace="quire-system")

WISHES = {
    "smallest": {"model": {"source": "file:///models/tiny"}},
    "gpu": {
        "model": {"source": "hf://Qwen/Qwen3-8B", "revision": "main", "auth": {"secretRef": {"name": "hub"}}},
        "engine": {"maxModelLen": 16384, "kvCache": {"memory": "0.9"}, "extraArgs": ["--max-num-seqs", "128"]},
        "resources": {"gpus": 1, "cpu": 4, "memory": "32Gi"},
        "replicas": 2,
        "rollout": {"drainTimeout": "2m"},
    },
    "registry": {"model": {"source": "oci://registry.example/models/tiny:1", "auth": {"secretRef": {"name": "pull"}}}},
    "bucket": {"model": {"source": "s3://models/tiny", "auth": {"secretRef": {"name": "s3"}}}},
    "kept": {
        "model": {"source": "hf://Qwen/Qwen3-8B", "volume": {"size": "40Gi", "storageClassName": "fast"}},
    },
    "kept-gpu": {
        "model": {"source": "hf://Qwen/Qwen3-8B", "volume": {"size": "40Gi"}},
        "resources": {"gpus": 1},
    },
    "claim-and-template": {
        "model": {"source": "pvc://weights/qwen3"},
        "podTemplate": {
            "metadata": {"labels": {"team": "search", "quire.dev/deployment": "stolen"}},
            "spec": {
                "priorityClassName": "high",
                "nodeSelector": {"disk": "fast"},
                "volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "warm"}}],
                "containers": [
                    {
                        "name": "engine",
                        "image": "mirror/quire:1",
                        "env": [{"name": "HF_HOME", "value": "/elsewhere"}, {"name": "NEW", "value": "1"}],
                        "resources": {"limits": {"example.com/fpga": 1}},
                    },
                    {"name": "proxy", "image": "proxy:1"},
                ],
            },
        },
    },
}


def wish(name: str):
    metadata = {"name": name, "namespace": "models", "uid": "0-0-0", "generation": 1}
    return from_object(
        {"apiVersion": "quire.dev/v1alpha1", "kind": "LLMDeployment", "metadata": metadata, "spec": WISHES[name]}
    )


@pytest.mark.parametrize("name", WISHES)
def test_manifests_are_as_in_the_golden_file(name):
    deployment = wish(name)
    replicas = deployment.spec.replicas
    objects = [
        revision_deployment(deployment, revision_of(deployment), replicas, SETTINGS),
        *standing_objects(deployment, replicas, "internal-key", SETTINGS),
        *([claim] if (claim := weights_claim(deployment)) else []),
    ]
    text = "---\n".join(yaml.safe_dump(o, sort_keys=False, width=120) for o in objects)
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("QUIRE_WRITE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def pod(name: str) -> dict:
    return revision_deployment(wish(name), "r", 1, SETTINGS)["spec"]["template"]["spec"]


@pytest.mark.parametrize("name", WISHES)
def test_own_containers_satisfy_the_restricted_standard(name):
    spec = pod(name)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault"
    engine = next(c for c in spec["containers"] if c["name"] == "engine")
    assert engine["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert engine["securityContext"]["allowPrivilegeEscalation"] is False
    assert engine["securityContext"]["readOnlyRootFilesystem"] is True
    assert all(set(v) - {"name"} <= {"emptyDir", "persistentVolumeClaim", "secret"} for v in spec["volumes"])
    for agent in spec.get("initContainers", []):
        assert agent["restartPolicy"] == "Always"
        assert agent["securityContext"] == engine["securityContext"]
    assert spec["automountServiceAccountToken"] is False


def test_a_pod_may_finish_its_streams():
    """120 s of draining + 5 s notice before SIGTERM + 10 s margin."""
    assert pod("gpu")["terminationGracePeriodSeconds"] == 135
    assert "--shutdown-timeout 120" in " ".join(pod("gpu")["containers"][0]["args"])


def test_one_replica_has_no_disruption_budget_and_two_have():
    kinds = {n: [o["kind"] for o in standing_objects(wish("gpu"), n, "k", SETTINGS)] for n in (0, 1, 2)}
    assert [("PodDisruptionBudget" in kinds[n]) for n in (0, 1, 2)] == [False, False, True]


def test_labels_that_select_pods_cannot_be_overwritten():
    template = revision_deployment(wish("claim-and-template"), "r", 1, SETTINGS)["spec"]["template"]
    assert template["metadata"]["labels"]["quire.dev/deployment"] == "claim-and-template"
    assert template["metadata"]["labels"]["team"] == "search"


def test_the_priority_class_of_the_template_is_the_pods():
    assert pod("claim-and-template")["priorityClassName"] == "high"
    assert "priorityClassName" not in pod("smallest")


@pytest.mark.parametrize(
    ("source", "location"),
    [
        ("file:///models/tiny", "/models/tiny"),
        ("hf://Qwen/Qwen3-8B", "/models"),
        ("pvc://weights", "/models"),
        ("pvc://weights/a/b/", "/models/a/b"),
    ],
)
def test_where_the_engine_looks_for_the_model(source, location):
    assert model_location(ModelSpec(source=source)) == location


def test_in_a_kept_volume_every_source_and_revision_has_a_folder():
    def folder(source: str, revision: str | None = None) -> str:
        return model_location(ModelSpec(source=source, revision=revision, volume=WeightsVolume(size="1Gi")))

    folders = {folder("hf://a/b"), folder("hf://a/b", "main"), folder("hf://a/c"), folder("s3://a/b")}
    assert len(folders) == 4
    assert all(re.fullmatch("/models/[0-9a-f]{16}", found) for found in folders)


def test_a_retained_claim_has_no_owner_and_a_change_of_its_size_makes_no_revision():
    kept = wish("kept")
    volume = kept.spec.model.volume.model_copy(update={"when_deleted": "Retain", "size": "80Gi"})
    model = kept.spec.model.model_copy(update={"volume": volume})
    retained = kept.model_copy(update={"spec": kept.spec.model_copy(update={"model": model})})
    assert weights_claim(kept)["metadata"]["ownerReferences"][0]["uid"] == "0-0-0"
    assert weights_claim(retained)["metadata"]["ownerReferences"] == []
    assert revision_of(retained) == revision_of(kept)


def test_a_changed_drain_timeout_waits_for_the_next_revision():
    short = wish("gpu")
    longer = short.spec.rollout.model_copy(update={"drain_timeout": "10m"})
    edited = short.model_copy(update={"spec": short.spec.model_copy(update={"rollout": longer})})
    live = revision_deployment(short, "r", 1, SETTINGS)
    assert revision_deployment(edited, "r", 1, SETTINGS, live) == live
    assert revision_deployment(edited, "r", 1, SETTINGS) != live


def test_the_namespace_of_monitoring_may_reach_metrics_of_engine_and_agent():
    settings = replace(SETTINGS, monitoring_namespace="watch")
    (policy,) = (o for o in standing_objects(wish("smallest"), 1, "key", settings) if o["kind"] == "NetworkPolicy")
    *_, monitors = policy["spec"]["ingress"]
    assert monitors["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "watch"}}}]
    assert [port["port"] for port in monitors["ports"]] == [8000, 8001]


def test_images_by_digest_are_taken_as_they_are():
    digest = f"sha256:{'0123456789abcdef' * 4}"
    settings = replace(SETTINGS, engine_image=f"r.example:5000/quire@{digest}", agent_image=f"agent:1@{digest}")
    pod = revision_deployment(wish("registry"), "r", 1, settings)["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == settings.engine_image
    assert pod["initContainers"][0]["image"] == settings.agent_image
    own = {"spec": {"containers": [{"name": "engine", "image": f"mirror/quire@{digest}"}]}}
    wished = wish("smallest")
    spec = wished.spec.model_copy(update={"pod_template": own})
    manifest = revision_deployment(wished.model_copy(update={"spec": spec}), "r", 1, settings)
    assert manifest["spec"]["template"]["spec"]["containers"][0]["image"] == f"mirror/quire@{digest}"
