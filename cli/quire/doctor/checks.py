"""From one look at a cluster to findings. Pure: nothing is asked here."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from quire.cluster.api import Manifest
from quire.cluster.status import condition
from quire.doctor.findings import Finding, error, ok, skipped, warning
from quire.doctor.look import GATEWAY, OPERATOR, Found, Hidden, Seen, decoded
from quire_api.crd import structural_schema
from quire_api.v1alpha1 import LABEL_DEPLOYMENT, VERSION
from quire_api.version import __version__

INSTALL = "helm upgrade --install quire charts/quire -n {system}"
ENFORCERS = (
    "anetd",
    "antrea",
    "azure-npm",
    "calico",
    "canal",
    "cilium",
    "kube-router",
    "kindnet",
    "ovn",
    "weave",
)
"""DaemonSets of network plugins that enforce policies, by the beginning of their names."""
NAME_LABEL = "app.kubernetes.io/name"


def examine(seen: Seen) -> list[Finding]:
    """All findings, in the order of their codes."""
    return [finding for check in CHECKS for finding in check(seen)]


def _connection(seen: Seen) -> Iterator[Finding]:
    yield ok("QD001", f"{seen.server} answers")


def _crd(seen: Seen) -> Iterator[Finding]:
    install = INSTALL.format(system=seen.system)
    if isinstance(seen.crd, Hidden):
        yield skipped("QD002", seen.crd.why)
        return
    if seen.crd is None:
        yield error("QD002", "llmdeployments.quire.dev is not installed", f"Install Quire: {install}")
        return
    versions = {entry["name"]: entry for entry in seen.crd["spec"]["versions"] if entry.get("served")}
    if VERSION not in versions:
        yield error("QD002", f"serves {', '.join(versions)}, and not {VERSION}", f"Upgrade the chart: {install}")
        return
    there = versions[VERSION].get("schema", {}).get("openAPIV3Schema", {})
    differing = sorted(_different_fields(_bare(structural_schema()), _bare(there)))
    if differing:
        names = ", ".join(differing[:4]) + (", ..." if len(differing) > 4 else "")
        message = f"{VERSION} differs from the one of this quire {__version__} in {names}"
        yield warning("QD002", message, f"Upgrade the chart, or use the quire of its version: {install}")
    else:
        yield ok("QD002", f"{VERSION}, the one of quire {__version__}")


def _different_fields(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    ours, theirs = ours if isinstance(ours, dict) else {}, theirs if isinstance(theirs, dict) else {}
    mine, others = ours.get("properties", {}), theirs.get("properties", {})
    for name in mine.keys() | others.keys():
        inner = f"{path}.{name}" if path else name
        if name not in mine or name not in others:
            yield inner
        else:
            yield from _different_fields(mine[name], others[name], inner)


def _bare(schema: Any) -> Any:
    """What an API server stores of metadata and the like is not compared."""
    properties = schema.get("properties", {})
    return {"properties": {name: properties[name] for name in ("spec", "status") if name in properties}}


def _operator(seen: Seen) -> Iterator[Finding]:
    yield from _workload("QD003", seen.operator, seen.operator_pods, OPERATOR, seen.system)


def _workload(code: str, live: Found, pods: Found, name: str, system: str) -> Iterator[Finding]:
    if isinstance(live, Hidden):
        yield skipped(code, live.why)
        return
    if live is None:
        install = f"Install Quire: {INSTALL.format(system=system)} (or name its namespace with --system-namespace)"
        yield error(code, f"no Deployment {name} in namespace {system}", install)
        return
    wanted, available = live["spec"].get("replicas", 1), live.get("status", {}).get("availableReplicas", 0)
    if available == 0:
        why = "; ".join(sorted(set(_troubles(pods)))) or "no pod is available"
        fix = f"kubectl describe pods -n {system} -l {NAME_LABEL}={name}"
        yield error(code, f"0 of {wanted} replicas are available: {why}", fix)
    elif available < wanted:
        fix = f"kubectl get pods -n {system} -l {NAME_LABEL}={name}"
        yield warning(code, f"{available} of {wanted} replicas are available", fix)
    else:
        yield ok(code, f"{available} of {wanted} replicas are available")


def _troubles(pods: Found) -> Iterator[str]:
    for pod in [] if isinstance(pods, Hidden) else pods:
        for status in pod.get("status", {}).get("containerStatuses", []):
            waiting = status.get("state", {}).get("waiting")
            if waiting and waiting.get("reason") not in ("ContainerCreating", "PodInitializing"):
                yield f"{waiting.get('reason', 'waiting')} {waiting.get('message', '')}".strip()
        for entry in pod.get("status", {}).get("conditions", []):
            if entry["type"] == "PodScheduled" and entry["status"] == "False":
                yield str(entry.get("message", "cannot be scheduled"))


def _leader(seen: Seen) -> Iterator[Finding]:
    fix = f"kubectl logs -n {seen.system} deployment/{OPERATOR}"
    if isinstance(seen.lease, Hidden):
        yield skipped("QD004", seen.lease.why)
        return
    spec = (seen.lease or {}).get("spec", {})
    holder = spec.get("holderIdentity")
    if not holder:
        yield error("QD004", "no operator holds the lease, so nothing is reconciled", f"Look at its log: {fix}")
        return
    renewed = datetime.fromisoformat(spec["renewTime"])
    now = parsedate_to_datetime(seen.now) if seen.now else datetime.now(UTC)
    silent = now - renewed
    # The holder's clock is not the API server's.
    if silent > timedelta(seconds=spec.get("leaseDurationSeconds", 15) * 2 + 5):
        message = f"{holder} holds the lease and has been silent for {int(silent.total_seconds())} s"
        yield error("QD004", message, f"Look at its log: {fix}")
    else:
        yield ok("QD004", f"{holder} leads")


def _gateway(seen: Seen) -> Iterator[Finding]:
    yield from _workload("QD005", seen.gateway, seen.gateway_pods, GATEWAY, seen.system)


def _rights(seen: Seen) -> Iterator[Finding]:
    if isinstance(seen.missing_rights, Hidden):
        yield skipped("QD006", f"cannot review the operator's rights: {seen.missing_rights.why}")
    elif seen.operator is None or isinstance(seen.operator, Hidden):
        yield skipped("QD006", "there is no operator to ask for")
    elif seen.missing_rights:
        shown = ", ".join(seen.missing_rights[:6]) + (", ..." if len(seen.missing_rights) > 6 else "")
        fix = f"Upgrade the chart, which brings the roles: {INSTALL.format(system=seen.system)}"
        yield error("QD006", f"the operator may not {shown}", fix)
    else:
        yield ok("QD006", "the operator may do all that it must")


def _selectors(seen: Seen) -> Iterator[Finding]:
    """What one object selects others by, and whether it finds them."""
    found: list[Finding] = []
    if isinstance(seen.gateway_service, dict) and not isinstance(seen.gateway_pods, Hidden):
        selector = seen.gateway_service["spec"].get("selector") or {}
        strangers = [pod["metadata"]["name"] for pod in seen.gateway_pods if not _matches(pod, selector)]
        if strangers:
            message = f"the Service {GATEWAY} does not select {', '.join(strangers)}"
            found.append(error("QD007", message, "Two releases, or an edited Service: upgrade the chart.", "gateway"))
    for item in [] if isinstance(seen.deployments, Hidden) else seen.deployments:
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        wanted = f"{LABEL_DEPLOYMENT}={name}"
        selector = (item.get("status") or {}).get("selector", "")
        if selector and selector != wanted:
            message = f"status.selector is {selector}, not {wanted}: an HPA would count other pods"
            found.append(
                error("QD007", message, "Restart the operator; it writes the status anew.", f"{namespace}/{name}")
            )
        for service in [] if isinstance(seen.services, Hidden) else seen.services:
            if _key(service) != (namespace, name):
                continue
            chosen = service["spec"].get("selector") or {}
            lost = [pod["metadata"]["name"] for pod in _pods_of(seen, namespace, name) if not _matches(pod, chosen)]
            if lost:
                message = f"its Service does not select {', '.join(lost)}"
                found.append(
                    error("QD007", message, "Remove the edit of the Service or the pods.", f"{namespace}/{name}")
                )
    yield from found or [ok("QD007", "Services and scale subresources select the pods that they should")]


def _secrets(seen: Seen) -> Iterator[Finding]:
    found: list[Finding] = []
    install = INSTALL.format(system=seen.system)
    internal = f"Upgrade the chart, which makes it: {install}"
    routing = f"The operator writes it once it leads: kubectl logs -n {seen.system} deployment/{OPERATOR}"
    for name, secret, entry, fix in (
        ("quire-internal", seen.internal, "key", internal),
        ("quire-routing", seen.routing, "", routing),
    ):
        if isinstance(secret, Hidden):
            found.append(skipped("QD008", secret.why, f"{seen.system}/{name}"))
        elif secret is None:
            found.append(error("QD008", "does not exist", fix, f"{seen.system}/{name}"))
        elif entry and not decoded(secret).get(entry):
            found.append(error("QD008", f"has no entry {entry}", fix, f"{seen.system}/{name}"))
    for (namespace, name), secret in seen.secrets.items():
        subject = f"{namespace}/{name}"
        if isinstance(secret, Hidden):
            found.append(skipped("QD008", secret.why, subject))
        elif secret is None:
            fix = f"kubectl create secret generic {name} -n {namespace} --from-literal=..."
            found.append(error("QD008", "is named by an LLMDeployment and does not exist", fix, subject))
        elif not any(decoded(secret).values()):
            fix = f"kubectl edit secret {name} -n {namespace}"
            found.append(error("QD008", "is named by an LLMDeployment and holds nothing", fix, subject))
    yield from found or [ok("QD008", "keys and credentials are where they are looked for")]


def _endpoints(seen: Seen) -> Iterator[Finding]:
    found: list[Finding] = []
    if isinstance(seen.gateway_slices, Hidden) or isinstance(seen.slices, Hidden) or isinstance(seen.pods, Hidden):
        hidden = next(part for part in (seen.gateway_slices, seen.slices, seen.pods) if isinstance(part, Hidden))
        yield skipped("QD009", hidden.why)
        return
    if isinstance(seen.gateway_service, dict) and not _ready_addresses(seen.gateway_slices):
        fix = f"kubectl get pods -n {seen.system} -l {NAME_LABEL}={GATEWAY}"
        found.append(error("QD009", f"the Service {GATEWAY} has no ready endpoint", fix, "gateway"))
    for item in [] if isinstance(seen.deployments, Hidden) else seen.deployments:
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        ready = sum(_is_true(pod, "Ready") for pod in _pods_of(seen, namespace, name))
        slices = [part for part in seen.slices if part["metadata"]["namespace"] == namespace and _of(part) == name]
        count = len(_ready_addresses(slices))
        if count < ready:
            message = f"{ready} pods are ready and its Service has {count} ready endpoints"
            fix = f"kubectl get endpointslices -n {namespace} -l {LABEL_DEPLOYMENT}={name}"
            found.append(warning("QD009", message, fix, f"{namespace}/{name}"))
    yield from found or [ok("QD009", "every ready pod is an endpoint of its Service")]


def _index(seen: Seen) -> Iterator[Finding]:
    found: list[Finding] = []
    known = 0
    for pod, report in seen.reports.items():
        if report is None or isinstance(report, Hidden):
            why = report.why if report else "it has no such page"
            found.append(skipped("QD010", f"gateway {pod} cannot be asked: {why}"))
            continue
        for entry in report.get("replicas", []):
            mode = entry.get("index_mode", "FALLBACK")
            if mode == "EXACT":
                known += 1
            elif entry.get("is_routable"):
                why = entry.get("index_problem") or "no snapshot has come yet"
                message = f"gateway {pod} knows its cache as {mode}: {why}"
                subject = f"{entry.get('namespace')}/{entry.get('replica')}"
                found.append(warning("QD010", message, "See docs/runbooks/QuireIndexNotExact.md", subject))
    yield from found or [ok("QD010", f"EXACT for all {known} pairs of gateway and replica")]


def _network_policies(seen: Seen) -> Iterator[Finding]:
    if isinstance(seen.network_plugins, Hidden):
        yield skipped("QD011", seen.network_plugins.why)
        return
    enforcers = [name for name in seen.network_plugins if name.startswith(ENFORCERS)]
    if enforcers:
        yield ok("QD011", f"{enforcers[0]} enforces them")
    else:
        message = "no network plugin is known here that enforces them, so that every pod may reach engines"
        fix = "Ask your provider, or install one (Calico, Cilium); the internal key protects the inner pages meanwhile."
        yield warning("QD011", message, fix)


def _deployments(seen: Seen) -> Iterator[Finding]:
    if isinstance(seen.deployments, Hidden):
        yield skipped("QD012", seen.deployments.why)
        return
    if not seen.deployments:
        yield ok("QD012", "there is none yet")
    for item in seen.deployments:
        namespace, name = item["metadata"]["namespace"], item["metadata"]["name"]
        subject = f"{namespace}/{name}"
        status, ready = item.get("status") or {}, condition(item, "Ready")
        if not ready:
            message = "no operator has looked at it"
            yield error("QD012", message, "Does the operator work in this namespace? See QD003, QD004, QD006.", subject)
        elif status.get("observedGeneration", 0) < item["metadata"].get("generation", 0):
            yield warning("QD012", "the operator has not seen its latest edit yet", "Wait, or see QD004.", subject)
        elif ready.get("status") == "True":
            yield ok("QD012", f"Ready: {ready.get('message', '')}", subject)
        else:
            message = f"not Ready, {ready.get('reason')}: {ready.get('message', '')}"
            yield warning("QD012", message, f"quire status {name} -n {namespace} -v", subject)


def _versions(seen: Seen) -> Iterator[Finding]:
    label = "app.kubernetes.io/version"
    pods = [pod for group in (seen.operator_pods, seen.gateway_pods) if not isinstance(group, Hidden) for pod in group]
    versions = {pod["metadata"].get("labels", {}).get(label, "unknown") for pod in pods}
    ours = __version__
    if not versions:
        yield skipped("QD013", "there are no pods of Quire to compare")
    elif versions == {ours}:
        yield ok("QD013", f"operator, gateways and this command are {ours}")
    else:
        message = f"operator and gateways are {', '.join(sorted(versions))}, this command is {ours}"
        yield warning("QD013", message, f"Upgrade what is older: {INSTALL.format(system=seen.system)}")


def _pods_of(seen: Seen, namespace: str, name: str) -> list[Manifest]:
    pods = [] if isinstance(seen.pods, Hidden) else seen.pods
    return [pod for pod in pods if pod["metadata"]["namespace"] == namespace and _of(pod) == name]


def _of(item: Manifest) -> str:
    return str(item["metadata"].get("labels", {}).get(LABEL_DEPLOYMENT, ""))


def _key(item: Manifest) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def _matches(item: Manifest, selector: Manifest) -> bool:
    labels = item["metadata"].get("labels", {})
    return all(labels.get(name) == value for name, value in selector.items())


def _is_true(pod: Manifest, kind: str) -> bool:
    return condition(pod, kind).get("status") == "True"


def _ready_addresses(slices: list[Manifest]) -> set[str]:
    return {
        address
        for part in slices
        for endpoint in part.get("endpoints") or []
        if endpoint.get("conditions", {}).get("ready", True)
        for address in endpoint["addresses"]
    }


CHECKS: tuple[Callable[[Seen], Iterator[Finding]], ...] = (
    _connection,
    _crd,
    _operator,
    _leader,
    _gateway,
    _rights,
    _selectors,
    _secrets,
    _endpoints,
    _index,
    _network_policies,
    _deployments,
    _versions,
)
