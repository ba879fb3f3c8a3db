"""From a deployment to the manifests of its objects. Pure; golden files in tests/operator/golden show the result.

NAME-REVISION   Deployment, one for each revision
NAME            Service, ServiceAccount, NetworkPolicy, and from two replicas on a PodDisruptionBudget
NAME-internal   Secret with the key between gateways and engines, and the spec that all this was built from
NAME-weights    PersistentVolumeClaim, where `model.volume` asks for one
"""

import base64

from quire_api.v1alpha1 import API_VERSION, KIND, LABEL_DEPLOYMENT, LLMDeployment
from quire_api.v1alpha1_values import duration_seconds
from quire_operator.build_pod import ENGINE_PORT, Settings, claim_name, pod_template
from quire_operator.merge import Manifest
from quire_operator.record import record_of
from quire_operator.revision import spec_marks
from quire_operator.start import START_TIMEOUT, kept_allowance_s, start_allowance_s

LABEL_REVISION = "quire.dev/revision"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGER = "quire-operator"
OURS = f"{LABEL_MANAGED_BY}={MANAGER}"
"""Selects every child."""
DRAIN_TIMEOUT = "quire.dev/drain-timeout"
MADE_FROM = "quire.dev/made-from"
"""Annotation of a Deployment: the marks of its spec."""
TEMPLATE = "quire.dev/template"
"""Annotation of a Deployment: the mark of the pods that the operator made of that spec."""


def labels_of(deployment: LLMDeployment) -> dict[str, str]:
    """On every object of the deployment."""
    return {
        "app.kubernetes.io/name": "quire-engine",
        "app.kubernetes.io/instance": deployment.metadata.name,
        LABEL_MANAGED_BY: MANAGER,
        LABEL_DEPLOYMENT: deployment.metadata.name,
    }


def revision_deployment(
    deployment: LLMDeployment,
    revision: str,
    replicas: int,
    settings: Settings,
    live: Manifest | None = None,
    weight_bytes: int | None = None,
    template: str = "",
) -> Manifest:
    """The Deployment of one revision, built from the spec that the revision was made of.

    `rollout.drainTimeout` and the size of the weights are no part of a revision: pods keep the times that their `live`
    Deployment began with. template: the mark of its pods, to know them again by.

    Raises:
        BadTemplate: `spec.podTemplate` has a shape that cannot be merged.
    """
    labels = {**labels_of(deployment), LABEL_REVISION: revision}
    selector = {LABEL_DEPLOYMENT: deployment.metadata.name, LABEL_REVISION: revision}
    manifest = _object("apps/v1", "Deployment", f"{deployment.metadata.name}-{revision}", deployment)
    begun = (live or {}).get("metadata", {}).get("annotations") or {}
    drain_timeout = begun.get(DRAIN_TIMEOUT) or deployment.spec.rollout.drain_timeout
    start_s = start_allowance_s(deployment.spec, weight_bytes) if live is None else kept_allowance_s(begun)
    annotations = {DRAIN_TIMEOUT: drain_timeout, START_TIMEOUT: str(start_s)}
    if template:
        annotations |= {MADE_FROM: " ".join(spec_marks(deployment)), TEMPLATE: template}
    manifest["metadata"] |= {"labels": labels, "annotations": annotations}
    manifest["spec"] = {
        "replicas": replicas,
        "selector": {"matchLabels": selector},
        "revisionHistoryLimit": 1,
        "progressDeadlineSeconds": 2**31 - 1,
        # Ours stays as it is; an edit of somebody's and `kubectl rollout restart` are rolled out by this.
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "template": pod_template(deployment, labels, start_s, duration_seconds(drain_timeout), settings),
    }
    return manifest


def standing_objects(deployment: LLMDeployment, wanted: int, internal_key: str, settings: Settings) -> list[Manifest]:
    """Everything but the Deployments; `internal_key` is the one that exists, or a new one."""
    objects = [
        _internal_secret(deployment, internal_key),
        _service_account(deployment),
        _service(deployment),
        _network_policy(deployment, settings),
    ]
    return objects + ([_disruption_budget(deployment)] if wanted > 1 else [])


def weights_claim(deployment: LLMDeployment) -> Manifest | None:
    """The claim that `model.volume` asks for; without an owner it outlives the deployment."""
    volume = deployment.spec.model.volume
    if volume is None:
        return None
    manifest = _object("v1", "PersistentVolumeClaim", claim_name(deployment), deployment)
    if volume.when_deleted == "Retain":
        manifest["metadata"]["ownerReferences"] = []
    spec: Manifest = {
        "accessModes": [volume.access_mode],
        "resources": {"requests": {"storage": str(volume.size)}},
    }
    if volume.storage_class_name is not None:
        spec["storageClassName"] = volume.storage_class_name
    return {**manifest, "spec": spec}


def internal_name(deployment: str) -> str:
    """Of the Secret between gateways, engines and operators."""
    return f"{deployment}-internal"


def owner_reference(deployment: LLMDeployment) -> Manifest:
    """Deleting the deployment deletes what carries this, without any finalizer."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": deployment.metadata.name,
        "uid": deployment.metadata.uid or "",
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _object(api_version: str, kind: str, name: str, deployment: LLMDeployment) -> Manifest:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": deployment.metadata.namespace,
            "labels": labels_of(deployment),
            "ownerReferences": [owner_reference(deployment)],
        },
    }


def _internal_secret(deployment: LLMDeployment, key: str) -> Manifest:
    entries = {"key": key, **record_of(deployment)}
    data = {entry: base64.b64encode(text.encode()).decode() for entry, text in entries.items()}
    name = internal_name(deployment.metadata.name)
    return {**_object("v1", "Secret", name, deployment), "type": "Opaque", "data": data}


def _service_account(deployment: LLMDeployment) -> Manifest:
    manifest = _object("v1", "ServiceAccount", deployment.metadata.name, deployment)
    return {**manifest, "automountServiceAccountToken": False}


def _service(deployment: LLMDeployment) -> Manifest:
    return {
        **_object("v1", "Service", deployment.metadata.name, deployment),
        "spec": {
            "type": "ClusterIP",
            "selector": {LABEL_DEPLOYMENT: deployment.metadata.name},
            "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}],
        },
    }


def _network_policy(deployment: LLMDeployment, settings: Settings) -> Manifest:
    gateways, operators = (
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.gateway_namespace}},
            "podSelector": {"matchLabels": dict(labels)},
        }
        for labels in (settings.gateway_labels, settings.operator_labels)
    )
    ingress: list[Manifest] = [
        {"from": [gateways], "ports": [{"protocol": "TCP", "port": ENGINE_PORT}]},
        {"from": [operators], "ports": [{"protocol": "TCP", "port": settings.agent_port}]},
    ]
    if settings.monitoring_namespace:
        monitors = {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.monitoring_namespace}}
        }
        ports = [{"protocol": "TCP", "port": port} for port in (ENGINE_PORT, settings.agent_port)]
        ingress.append({"from": [monitors], "ports": ports})
    return {
        **_object("networking.k8s.io/v1", "NetworkPolicy", deployment.metadata.name, deployment),
        "spec": {
            "podSelector": {"matchLabels": {LABEL_DEPLOYMENT: deployment.metadata.name}},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }


def _disruption_budget(deployment: LLMDeployment) -> Manifest:
    return {
        **_object("policy/v1", "PodDisruptionBudget", deployment.metadata.name, deployment),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": {LABEL_DEPLOYMENT: deployment.metadata.name}},
        },
    }
