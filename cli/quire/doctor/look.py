"""Reads from a cluster all that the checks look at. What may not be read is kept as the refusal's words."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from quire.cluster.api import Api, ClusterRefused, ClusterUnreachable, Manifest, NotFound, deployments_path
from quire_api import wire
from quire_api.v1alpha1 import GROUP, LABEL_DEPLOYMENT, PLURAL

GATEWAY = "quire-gateway"
OPERATOR = "quire-operator"
GATEWAY_PORT = 8000


@dataclass(frozen=True)
class Hidden:
    """What could not be read."""

    why: str


@dataclass(frozen=True)
class Right:
    """What the operator must be allowed, where the models are or (`home`) where it is itself."""

    verb: str
    group: str
    resource: str
    home: bool = False

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}" + (f".{self.group}" if self.group else "")


def _rights() -> tuple[Right, ...]:
    table: Sequence[tuple[str, str, str]] = (
        (GROUP, "llmdeployments", "get list watch"),
        (GROUP, "llmdeployments/status", "patch"),
        (GROUP, "llmdeployments/scale", "patch"),
        ("apps", "deployments", "get list watch create patch delete"),
        ("", "services", "get list watch create patch"),
        ("", "serviceaccounts", "get list watch create patch"),
        ("", "secrets", "get list watch create patch"),
        ("networking.k8s.io", "networkpolicies", "get list watch create patch"),
        ("policy", "poddisruptionbudgets", "get list watch create patch delete"),
        ("", "pods", "get list watch patch delete"),
        ("", "pods/status", "patch"),
        ("", "events", "create"),
        ("", "persistentvolumeclaims", "get list watch create patch"),
    )
    of_models = [Right(verb, group, resource) for group, resource, verbs in table for verb in verbs.split()]
    home = [Right(verb, "coordination.k8s.io", "leases", home=True) for verb in ("get", "create", "update")]
    return (*of_models, *home)


OPERATOR_RIGHTS = _rights()
Found = Any
"""An object, a list of them, None where there is none, or Hidden."""


@dataclass
class Seen:
    """One look at a cluster."""

    server: str
    system: str
    now: str = ""
    """The API server's time, an HTTP date."""
    crd: Found = None
    operator: Found = None
    operator_pods: Found = field(default_factory=list)
    lease: Found = None
    gateway: Found = None
    gateway_service: Found = None
    gateway_pods: Found = field(default_factory=list)
    gateway_slices: Found = field(default_factory=list)
    reports: dict[str, Found] = field(default_factory=dict)
    """What each gateway's pod says of its replicas (wire.GatewayReport as plain data)."""
    missing_rights: Found = field(default_factory=list)
    """Of OPERATOR_RIGHTS, as sentences."""
    internal: Found = None
    routing: Found = None
    network_plugins: Found = field(default_factory=list)
    """Names of DaemonSets."""
    deployments: Found = field(default_factory=list)
    pods: Found = field(default_factory=list)
    services: Found = field(default_factory=list)
    slices: Found = field(default_factory=list)
    secrets: dict[tuple[str, str], Found] = field(default_factory=dict)
    """Secrets that LLMDeployments need, by (namespace, name)."""


def look_cluster(api: Api, system: str, namespace: str = "") -> Seen:
    """
    Raises:
        ClusterUnreachable, ClusterRefused: nothing can be read at all.
    """
    _, now = api.dated_get("/version")
    seen = Seen(api.connection.server, system, now)

    def maybe(ask: Callable[[], Found]) -> Found:
        try:
            return ask()
        except NotFound:
            return None
        except (ClusterRefused, ClusterUnreachable) as refusal:
            return Hidden(str(refusal))

    def one(path: str) -> Found:
        return maybe(lambda: api.get(path))

    def some(path: str, labels: str = "") -> Found:
        found = maybe(lambda: api.items(path, labels))
        return [] if found is None else found

    core, home = "/api/v1/namespaces", f"/api/v1/namespaces/{system}"
    apps = f"/apis/apps/v1/namespaces/{system}/deployments"
    discovery = "/apis/discovery.k8s.io/v1"
    seen.crd = one(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{PLURAL}.{GROUP}")
    seen.operator, seen.gateway = one(f"{apps}/{OPERATOR}"), one(f"{apps}/{GATEWAY}")
    seen.operator_pods = some(f"{home}/pods", f"app.kubernetes.io/name={OPERATOR}")
    seen.gateway_pods = some(f"{home}/pods", f"app.kubernetes.io/name={GATEWAY}")
    seen.lease = one(f"/apis/coordination.k8s.io/v1/namespaces/{system}/leases/{OPERATOR}")
    seen.gateway_service = one(f"{home}/services/{GATEWAY}")
    seen.gateway_slices = some(
        f"{discovery}/namespaces/{system}/endpointslices", f"kubernetes.io/service-name={GATEWAY}"
    )
    seen.internal, seen.routing = one(f"{home}/secrets/quire-internal"), one(f"{home}/secrets/quire-routing")
    daemons = some("/apis/apps/v1/daemonsets")
    seen.network_plugins = daemons if isinstance(daemons, Hidden) else [item["metadata"]["name"] for item in daemons]
    seen.deployments = some(deployments_path(namespace))
    place = f"{core}/{namespace}" if namespace else "/api/v1"
    seen.pods = some(f"{place}/pods", LABEL_DEPLOYMENT)
    seen.services = some(f"{place}/services", LABEL_DEPLOYMENT)
    seen.slices = some(
        f"{discovery}/namespaces/{namespace}/endpointslices" if namespace else f"{discovery}/endpointslices",
        LABEL_DEPLOYMENT,
    )
    for key in needed_secrets(seen.deployments):
        seen.secrets[key] = one(f"{core}/{key[0]}/secrets/{key[1]}")
    if seen.operator is not None and not isinstance(seen.operator, Hidden):
        seen.missing_rights = maybe(lambda: _missing_rights(api, seen, system))
    _read_reports(api, seen, maybe)
    return seen


def needed_secrets(deployments: Found) -> list[tuple[str, str]]:
    """Those that specs name."""
    if isinstance(deployments, Hidden):
        return []
    found = set()
    for item in deployments:
        spec = item.get("spec") or {}
        references = [
            (spec.get("access") or {}).get("apiKeysSecretRef"),
            ((spec.get("model") or {}).get("auth") or {}).get("secretRef"),
        ]
        found |= {(item["metadata"]["namespace"], entry["name"]) for entry in references if entry}
    return sorted(found)


def served_namespaces(operator: Manifest) -> list[str]:
    """What the operator's flag --namespaces says; empty: all."""
    for container in operator["spec"]["template"]["spec"]["containers"]:
        for argument in container.get("args", []):
            if argument.startswith("--namespaces="):
                return [name for name in argument.partition("=")[2].split(",") if name]
    return []


def _missing_rights(api: Api, seen: Seen, system: str) -> list[str]:
    account = seen.operator["spec"]["template"]["spec"].get("serviceAccountName", "default")
    user = f"system:serviceaccount:{system}:{account}"
    missing = []
    for right in OPERATOR_RIGHTS:
        for namespace in [system] if right.home else served_namespaces(seen.operator) or [""]:
            resource, _, subresource = right.resource.partition("/")
            attributes = {
                "verb": right.verb,
                "group": right.group,
                "resource": resource,
                "subresource": subresource,
                **({"namespace": namespace} if namespace else {}),
            }
            if not api.may(attributes, user):
                missing.append(f"{right}" + (f" in {namespace}" if namespace else ""))
    return missing


def _read_reports(api: Api, seen: Seen, maybe: Callable[[Callable[[], Found]], Found]) -> None:
    if isinstance(seen.gateway_pods, Hidden):
        return
    key = "" if not isinstance(seen.internal, dict) else decoded(seen.internal).get("key", "")
    headers = {wire.HEADER_INTERNAL_KEY: key} if key else {}
    for pod in seen.gateway_pods:
        name = pod["metadata"]["name"]
        if pod.get("status", {}).get("phase") != "Running":
            continue
        seen.reports[name] = maybe(
            lambda name=name: api.through_proxy(  # type: ignore[misc]
                seen.system, name, GATEWAY_PORT, "/internal/v1/replicas", headers
            )
        )


def decoded(secret: Manifest) -> dict[str, str]:
    data = secret.get("data") or {}
    return {name: base64.b64decode(value).decode(errors="replace") for name, value in data.items()}
