"""The chart as Helm renders it. After a wanted change: QUIRE_WRITE_GOLDEN=1 pytest tests/charts"""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
CHART = REPOSITORY / "charts" / "quire"
GOLDEN = Path(__file__).parent / "golden"
HELM = REPOSITORY / ".quire" / "bin" / "helm"
CASES = {
    "default": [],
    "namespaced": ["--set", "namespaces={models,more}", "--set", "gateway.autoscaling.enabled=false"],
    "tls": ["--set", "gateway.tls.secretName=front-door"],
}


@pytest.fixture(autouse=True)
def _helm_is_there() -> None:
    if not HELM.exists():
        message = "Helm is not built; `make cluster-up` builds it"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, timeout=120, check=False)


def template(*flags: str) -> subprocess.CompletedProcess[str]:
    fixed = ["--namespace", "quire-system", "--kube-version", "1.34.0", "--set", "internalKey=golden"]
    return helm("template", "quire", str(CHART), *fixed, *flags)


def rendered(*flags: str) -> list[dict]:
    done = template(*flags)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def one(objects: list[dict], kind: str, name: str) -> dict:
    (found,) = (o for o in objects if o["kind"] == kind and o["metadata"]["name"] == name)
    return found


def test_lint_finds_nothing():
    done = helm("lint", "--strict", "--kube-version", "1.34.0", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES)
def test_it_renders_as_in_the_golden_file(case):
    objects = [o for o in rendered(*CASES[case]) if o["kind"] != "CustomResourceDefinition"]
    text = "---\n".join(yaml.safe_dump(o, sort_keys=False, width=120) for o in objects)
    file = GOLDEN / f"{case}.yaml"
    if os.environ.get("QUIRE_WRITE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()


def test_the_crd_is_the_generated_one_and_outlives_the_release():
    crd = one(rendered(), "CustomResourceDefinition", "llmdeployments.quire.dev")
    assert crd["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    assert crd == yaml.safe_load((REPOSITORY / "crds" / "llmdeployments.yaml").read_text())
    assert not [o for o in rendered("--set", "crds.install=false") if o["kind"] == "CustomResourceDefinition"]


@pytest.mark.parametrize("case", CASES)
def test_pods_satisfy_the_restricted_standard(case):
    for deployment in (o for o in rendered(*CASES[case]) if o["kind"] == "Deployment"):
        spec = deployment["spec"]["template"]["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


def test_named_namespaces_need_no_cluster_wide_rights():
    kinds = {o["kind"] for o in rendered("--set", "namespaces={models}")}
    assert not kinds & {"ClusterRole", "ClusterRoleBinding"}


def test_gateways_read_pods_and_one_secret():
    objects = rendered()
    assert one(objects, "ClusterRole", "quire-gateway")["rules"] == [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}
    ]
    (rule,) = one(objects, "Role", "quire-gateway")["rules"]
    assert rule["resourceNames"] == ["quire-routing"]


def test_a_registry_goes_before_every_image():
    text = template("--set", "images.registry=mirror.example/q/", "--set-string", "images.runtime.tag=2").stdout
    assert "image: mirror.example/q/quire/operator:0.1.0" in text
    assert "image: mirror.example/q/quire/gateway:0.1.0" in text
    assert "--engine-image=mirror.example/q/quire/runtime:2" in text
    assert "--agent-image=mirror.example/q/quire/agent:0.1.0" in text


def test_with_a_tls_secret_the_service_speaks_https_alone_unless_asked_otherwise():
    def ports(*flags: str) -> list[tuple[str, int]]:
        objects = rendered("--set", "gateway.tls.secretName=front-door", *flags)
        return [(port["name"], port["port"]) for port in one(objects, "Service", "quire-gateway")["spec"]["ports"]]

    assert ports() == [("https", 443)]
    assert ports("--set", "gateway.tls.keepHTTP=true,gateway.tls.port=8443") == [("https", 8443), ("http", 80)]
    text = template("--set", "gateway.tls.secretName=front-door,gateway.tls.port=8443").stdout
    assert "--gateway-url=https://quire-gateway.quire-system.svc:8443" in text


@pytest.mark.parametrize(
    ("flag", "word"),
    [
        ("gateway.replicas=-1", "gateway"),
        ("gatway.replicas=1", "gatway"),
        ("images.pullPolicy=Sometimes", "pullPolicy"),
        ("namespaces=models", "namespaces"),
    ],
)
def test_values_are_checked_by_the_schema(flag, word):
    done = template("--set", flag)
    assert done.returncode != 0
    assert word in done.stderr
