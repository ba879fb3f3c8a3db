"""Each finding of `quire doctor`, from what a cluster shows; no cluster is asked here."""

import base64
import copy
from pathlib import Path

import pytest
import yaml

from quire.doctor.checks import examine
from quire.doctor.findings import TITLES, Level
from quire.doctor.look import OPERATOR_RIGHTS, Hidden, Seen, needed_secrets, served_namespaces
from quire_api.version import __version__

REPOSITORY = Path(__file__).parents[2]
CRD = yaml.safe_load((REPOSITORY / "crds" / "llmdeployments.yaml").read_text())
NOW = "Tue, 24 Nov 2026 12:00:00 GMT"
LABELS = {"app.kubernetes.io/version": __version__}


def workload(name: str, available: int = 1) -> dict:
    container = {"name": name, "args": ["--port=8000"]}
    template = {"spec": {"serviceAccountName": name, "containers": [container]}}
    return {"spec": {"replicas": 1, "template": template}, "status": {"availableReplicas": available}}


def pod(name: str, **labels: str) -> dict:
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {"name": name, "namespace": "shop", "labels": {**LABELS, **labels}}, "status": status}


def secret(**entries: str) -> dict:
    return {"data": {name: base64.b64encode(value.encode()).decode() for name, value in entries.items()}}


def endpoints(*addresses: str, **labels: str) -> dict:
    ready = [{"addresses": [address], "conditions": {"ready": True}} for address in addresses]
    return {"metadata": {"namespace": "shop", "labels": labels}, "endpoints": ready}


def deployment(name: str = "qwen", **status) -> dict:
    ready = {"type": "Ready", "status": "True", "reason": "Serving", "message": "1 of 1 replicas serve"}
    told = {"observedGeneration": 1, "selector": f"quire.dev/deployment={name}", "conditions": [ready], **status}
    spec = {"model": {"source": "hf://a/b"}}
    return {"metadata": {"name": name, "namespace": "shop", "generation": 1}, "spec": spec, "status": told}


def report(mode: str, problem: str = "") -> dict:
    entry = {"deployment": "qwen", "namespace": "shop", "replica": "qwen-1", "is_routable": True}
    return {"replicas": [{**entry, "index_mode": mode, "index_problem": problem}]}


def healthy() -> Seen:
    mine = {"quire.dev/deployment": "qwen"}
    front = {"app.kubernetes.io/name": "quire-gateway"}
    return Seen(
        server="https://api:6443",
        system="quire-system",
        now=NOW,
        crd=copy.deepcopy(CRD),
        operator=workload("quire-operator"),
        operator_pods=[pod("operator-1")],
        lease={
            "spec": {
                "holderIdentity": "operator-1",
                "renewTime": "2026-11-24T11:59:57.000000Z",
                "leaseDurationSeconds": 15,
            }
        },
        gateway=workload("quire-gateway"),
        gateway_service={"spec": {"selector": front}},
        gateway_pods=[pod("gateway-1", **front)],
        gateway_slices=[endpoints("10.0.0.1")],
        reports={"gateway-1": report("EXACT")},
        internal=secret(key="k"),
        routing=secret(table="{}"),
        network_plugins=["kube-proxy", "cilium"],
        deployments=[deployment()],
        pods=[pod("qwen-1", **mine)],
        services=[{"metadata": {"name": "qwen", "namespace": "shop"}, "spec": {"selector": mine}}],
        slices=[endpoints("10.0.0.2", **mine)],
    )


def worst(seen: Seen) -> dict[str, Level]:
    """The gravest level by code."""
    order = [Level.OK, Level.SKIPPED, Level.WARNING, Level.ERROR]
    levels: dict[str, Level] = {}
    for finding in examine(seen):
        levels[finding.code] = max(levels.get(finding.code, Level.OK), finding.level, key=order.index)
    return levels


def test_a_healthy_cluster_has_every_code_and_no_complaint():
    assert worst(healthy()) == dict.fromkeys(TITLES, Level.OK)


def older_crd() -> dict:
    crd = copy.deepcopy(CRD)
    del crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["rollout"]
    return crd


def renamed_crd() -> dict:
    crd = copy.deepcopy(CRD)
    crd["spec"]["versions"][0]["name"] = "v1"
    return crd


def crashing() -> list[dict]:
    waiting = {"reason": "ImagePullBackOff", "message": "no such image"}
    return [{"metadata": {"name": "p"}, "status": {"containerStatuses": [{"state": {"waiting": waiting}}]}}]


NOT_READY = [{"type": "Ready", "status": "False", "reason": "WeightsNotFound", "message": "no such model"}]
LEASE = {"holderIdentity": "gone", "renewTime": "2026-11-24T11:00:00.000000Z", "leaseDurationSeconds": 15}
KEYED = {**deployment(), "spec": {"model": {"source": "hf://a/b"}, "access": {"apiKeysSecretRef": {"name": "keys"}}}}
STRANGER = [pod("gateway-1", **{"app.kubernetes.io/name": "other"})]
ERROR, WARNING, SKIPPED = Level.ERROR, Level.WARNING, Level.SKIPPED

CASES = [
    ("QD002", ERROR, "not installed", {"crd": None}),
    ("QD002", ERROR, "not v1alpha1", {"crd": renamed_crd()}),
    ("QD002", WARNING, "spec.rollout", {"crd": older_crd()}),
    ("QD003", ERROR, "no Deployment quire-operator in namespace quire-system", {"operator": None}),
    (
        "QD003",
        ERROR,
        "ImagePullBackOff no such image",
        {"operator": workload("quire-operator", 0), "operator_pods": crashing()},
    ),
    ("QD004", ERROR, "no operator holds the lease", {"lease": None}),
    ("QD004", ERROR, "gone holds the lease and has been silent for 3600 s", {"lease": {"spec": LEASE}}),
    ("QD005", ERROR, "0 of 1 replicas", {"gateway": workload("quire-gateway", 0)}),
    ("QD006", ERROR, "may not patch pods", {"missing_rights": ["patch pods"]}),
    ("QD007", ERROR, "does not select gateway-1", {"gateway_pods": STRANGER}),
    ("QD007", ERROR, "an HPA would count other pods", {"deployments": [deployment(selector="app=other")]}),
    (
        "QD007",
        ERROR,
        "does not select qwen-1",
        {"services": [{"metadata": {"name": "qwen", "namespace": "shop"}, "spec": {"selector": {"app": "x"}}}]},
    ),
    ("QD008", ERROR, "does not exist", {"internal": None}),
    ("QD008", ERROR, "has no entry key", {"internal": secret(other="x")}),
    ("QD008", ERROR, "is named by an LLMDeployment and does not exist", {"secrets": {("shop", "keys"): None}}),
    ("QD008", ERROR, "holds nothing", {"secrets": {("shop", "keys"): secret()}}),
    ("QD009", ERROR, "no ready endpoint", {"gateway_slices": []}),
    ("QD009", WARNING, "1 pods are ready and its Service has 0 ready endpoints", {"slices": []}),
    ("QD010", WARNING, "FALLBACK: refused", {"reports": {"gateway-1": report("FALLBACK", "refused")}}),
    ("QD010", SKIPPED, "cannot be asked", {"reports": {"gateway-1": Hidden("not allowed")}}),
    ("QD011", WARNING, "no network plugin", {"network_plugins": ["kube-proxy"]}),
    ("QD012", WARNING, "WeightsNotFound: no such model", {"deployments": [deployment(conditions=NOT_READY)]}),
    ("QD012", ERROR, "no operator has looked at it", {"deployments": [deployment(conditions=[])]}),
    ("QD012", WARNING, "latest edit", {"deployments": [deployment(observedGeneration=0)]}),
    (
        "QD013",
        WARNING,
        f"operator and gateways are {__version__}, 9.9",
        {"operator_pods": [pod("o") | {"metadata": {"name": "o", "labels": {"app.kubernetes.io/version": "9.9"}}}]},
    ),
]


@pytest.mark.parametrize(("code", "level", "says", "change"), CASES)
def test_what_is_wrong_is_found_with_its_code_and_a_next_step(code, level, says, change):
    seen = healthy()
    for name, value in change.items():
        setattr(seen, name, value)
    (finding,) = (f for f in examine(seen) if f.code == code and f.level is level)
    assert says in finding.message
    assert finding.fix or level is SKIPPED
    assert TITLES[code]


@pytest.mark.parametrize(
    "name",
    [
        "crd", "operator", "operator_pods", "lease", "gateway", "gateway_service", "gateway_pods", "gateway_slices",
        "missing_rights", "internal", "routing", "network_plugins", "deployments", "pods", "services", "slices",
    ],
)  # fmt: skip
def test_what_may_not_be_read_is_no_error(name):
    seen = healthy()
    setattr(seen, name, Hidden("not allowed"))
    assert Level.ERROR not in worst(seen).values()


def test_an_empty_cluster_says_that_quire_is_not_installed():
    levels = worst(Seen("https://api", "quire-system", NOW))
    assert {code for code, level in levels.items() if level is Level.ERROR} == {
        "QD002",
        "QD003",
        "QD004",
        "QD005",
        "QD008",
    }


def test_the_rights_are_those_of_the_chart():
    text = (REPOSITORY / "charts" / "quire" / "templates" / "operator-rbac.yaml").read_text()
    rules = yaml.safe_load(text.split('"quire.operatorRules" -}}')[1].split("{{- end }}")[0])
    granted = {
        (verb, group, resource)
        for rule in rules
        for verb in rule["verbs"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    needed = {(right.verb, right.group, right.resource) for right in OPERATOR_RIGHTS if not right.home}
    # Owner references of objects need it where the API server checks them.
    assert granted - needed == {("update", "quire.dev", "llmdeployments/finalizers")}
    assert needed <= granted


def test_secrets_and_namespaces_are_read_from_what_names_them():
    assert needed_secrets([KEYED, deployment()]) == [("shop", "keys")]
    operator = workload("quire-operator")
    assert served_namespaces(operator) == []
    operator["spec"]["template"]["spec"]["containers"][0]["args"] = ["--namespaces=a,b"]
    assert served_namespaces(operator) == ["a", "b"]
