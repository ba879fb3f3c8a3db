"""The chart as Helm renders it. After a wanted change: QUIRE_WRITE_GOLDEN=1 pytest tests/charts"""

import json
import os
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from quire_api.version import __version__

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


def documented() -> list[list[str]]:
    """Every `helm install` and `helm upgrade` of the pages, without what only a cluster understands."""
    pages = [REPOSITORY / "docs" / "kubernetes.md", REPOSITORY / "images" / "README.md"]
    text = "\n".join(page.read_text().replace("\\\n", " ") for page in pages)
    commands = [shlex.split(line) for line in text.splitlines() if line.strip().startswith("helm ")]
    return [words[2:] for words in commands if words[1] in ("install", "upgrade")]


def test_commands_of_the_pages_name_values_that_the_chart_takes():
    assert len(documented()) >= 5
    for words in documented():
        assert words[:2] == ["quire", "charts/quire"]
        flags = [
            word for word in words[2:] if word not in ("--wait", "--create-namespace", "--reset-then-reuse-values")
        ]
        done = template(*(flag.replace("sha256:...", f"sha256:{'0' * 64}") for flag in flags))
        assert done.returncode == 0, f"{words}: {done.stderr}"


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
    assert f"image: mirror.example/q/quire/operator:{__version__}" in text
    assert f"image: mirror.example/q/quire/gateway:{__version__}" in text
    assert "--engine-image=mirror.example/q/quire/runtime:2" in text
    assert f"--agent-image=mirror.example/q/quire/agent:{__version__}" in text


def test_a_digest_pins_each_image_in_place_of_its_tag():
    digests = {"operator": "a", "gateway": "b", "runtime": "c", "agent": "d"}
    digests = {name: f"sha256:{digit * 64}" for name, digit in digests.items()}
    pins = [f"images.{name}.digest={digest},images.{name}.tag=v9" for name, digest in digests.items()]
    text = template("--set", ",".join(["images.registry=mirror.example", *pins])).stdout
    assert f"image: mirror.example/quire/operator@{digests['operator']}\n" in text
    assert f"image: mirror.example/quire/gateway@{digests['gateway']}\n" in text
    assert f"--engine-image=mirror.example/quire/runtime@{digests['runtime']}\n" in text
    assert f"--agent-image=mirror.example/quire/agent@{digests['agent']}\n" in text


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
        ("images.runtime.digest=latest", "digest"),
        ("namespaces=models", "namespaces"),
        ("monitoring.podMonitors.interval=soon", "interval"),
        ("namespaces={A_B}", "namespaces"),
        ("namespaces={models,models}", "namespaces"),
        ("gpuResource=foo bar", "gpuResource"),
        ("internalKey=a b", "internalKey"),
        ("gateway.resources.requests.cpu=abc", "cpu"),
        ("operator.resources.limits.memory=1GB", "memory"),
    ],
)
def test_values_are_checked_by_the_schema(flag, word):
    done = template("--set", flag)
    assert done.returncode != 0
    assert word in done.stderr


def test_two_ports_of_one_number_are_refused_in_a_sentence():
    done = template("--set", "gateway.tls.secretName=front-door,gateway.tls.port=80,gateway.tls.keepHTTP=true")
    assert done.returncode != 0
    assert "give them different ports" in done.stderr


@pytest.mark.parametrize("part", ["images", "gateway", "operator", "monitoring"])
def test_a_part_that_is_set_to_null_is_named(part: str):
    done = template("--set", f"{part}=null")
    assert done.returncode != 0
    assert "and set none of them to null" in done.stderr


def missing(values: dict, newer: dict, place: str = "") -> list[str]:
    """Paths of what the newer values have and these lack."""
    found = []
    for name, value in newer.items():
        if name not in values:
            found.append(f"{place}{name}")
        elif isinstance(value, dict) and isinstance(values[name], dict):
            found += missing(values[name], value, f"{place}{name}.")
    return found


def test_values_of_the_first_release_go_on_and_without_the_new_defaults_helm_is_told_which_flag_to_take():
    former = REPOSITORY / "e2e" / "fixtures" / "quire-0.1.0" / "values.yaml"
    assert rendered("--values", str(former))  # as with --reset-then-reuse-values
    added = missing(yaml.safe_load(former.read_text()), yaml.safe_load((CHART / "values.yaml").read_text()))
    assert added
    done = template(*(f"--set={path}=null" for path in added))  # as with --reuse-values
    assert done.returncode != 0
    assert "upgrade with --reset-then-reuse-values" in done.stderr
    assert "nil pointer" not in done.stderr


MONITORING = [
    "--set",
    "monitoring.podMonitors.enabled=true,monitoring.rules.enabled=true,monitoring.dashboards.enabled=true",
]


def test_nothing_of_monitoring_is_made_unless_asked_for():
    kinds = [o["kind"] for o in rendered()]
    assert not {"PodMonitor", "PrometheusRule", "ConfigMap"} & set(kinds)


def test_dashboards_are_config_maps_that_the_sidecar_finds():
    objects = rendered(*MONITORING, "--set", "monitoring.dashboards.namespace=grafana")
    boards = [o for o in objects if o["kind"] == "ConfigMap"]
    assert len(boards) == 3
    for board in boards:
        assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert board["metadata"]["namespace"] == "grafana"
        ((file, text),) = board["data"].items()
        source = CHART / "monitoring" / file.removeprefix("quire-")
        assert json.loads(text) == json.loads(source.read_text())


def test_the_prometheus_rule_is_the_rules_file_with_the_runbooks_of_the_values():
    rule = one(rendered(*MONITORING), "PrometheusRule", "quire")
    assert rule["spec"]["groups"] == yaml.safe_load((CHART / "monitoring" / "rules.yaml").read_text())["groups"]
    elsewhere = [
        "--set",
        "monitoring.rules.runbooks=https://example.org/pages/",
        "--set",
        "monitoring.rules.labels.of=us",
    ]
    objects = rendered(*MONITORING, *elsewhere)
    moved = one(objects, "PrometheusRule", "quire")
    assert moved["metadata"]["labels"]["of"] == "us"
    alert = moved["spec"]["groups"][1]["rules"][0]
    assert alert["annotations"]["runbook_url"] == "https://example.org/pages/QuireNoReadyReplica.md"
    (text,) = one(objects, "ConfigMap", "quire-dashboard-fleet")["data"].values()
    assert "https://example.org/pages" in text
    assert "docs/runbooks" not in text


def test_pod_monitors_select_pods_as_the_scrape_file_does():
    """Every job of the scrape file is a PodMonitor with the same component, ports and precedence of labels."""
    objects = rendered(*MONITORING)
    for job in yaml.safe_load((CHART / "monitoring" / "scrape.yaml").read_text())["scrape_configs"]:
        keeps = [entry["regex"] for entry in job["relabel_configs"] if entry.get("action") == "keep"]
        monitor = one(objects, "PodMonitor", job["job_name"])["spec"]
        assert monitor["selector"]["matchLabels"] == {"app.kubernetes.io/name": keeps[0]}
        endpoints = monitor["podMetricsEndpoints"]
        assert "|".join(endpoint["port"] for endpoint in endpoints) == keeps[1]
        assert {endpoint["honorLabels"] for endpoint in endpoints} == {job.get("honor_labels", False)}
    engines = one(objects, "PodMonitor", "quire-engine")["spec"]
    assert engines["namespaceSelector"] == {"any": True}
    named = one(rendered(*MONITORING, "--set", "namespaces={models}"), "PodMonitor", "quire-engine")["spec"]
    assert named["namespaceSelector"] == {"matchNames": ["models"]}


def test_prometheus_may_reach_metrics_where_its_namespace_is_named():
    flags = ["--set", "monitoring.namespace=watch,gateway.tls.secretName=door"]
    objects = rendered(*flags)
    (container,) = one(objects, "Deployment", "quire-operator")["spec"]["template"]["spec"]["containers"]
    assert "--monitoring-namespace=watch" in container["args"]
    peers = one(objects, "NetworkPolicy", "quire-gateway")["spec"]["ingress"][1]["from"]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "watch"}}} in peers


@pytest.mark.parametrize("case", CASES)
def test_every_gateway_finds_every_other_one_where_its_flag_says(case):
    objects = rendered(*CASES[case])
    service = one(objects, "Service", "quire-gateway-peers")
    pod = one(objects, "Deployment", "quire-gateway")["spec"]["template"]
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    (container,) = pod["spec"]["containers"]
    (port,) = service["spec"]["ports"]
    assert f"--peers=quire-gateway-peers:{port['port']}" in container["args"]
    # A headless Service gives pods' addresses and changes no port.
    (named,) = [each for each in container["ports"] if each["name"] == port["targetPort"]]
    assert named["containerPort"] == port["port"]
