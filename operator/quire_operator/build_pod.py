"""The pod template of one revision: the engine under the restricted pod security standard, then `podTemplate`."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from quire_api.v1alpha1 import LLMDeployment, ModelSpec
from quire_api.v1alpha1_values import quantity_value
from quire_operator.credentials import BUCKET, HUB, REGISTRY_CONFIG
from quire_operator.merge import Manifest, merge_template
from quire_operator.serving import INTERNAL_KEY, TERMINATION_LOG, serve_flags

ENGINE = "engine"
ENGINE_PORT = 8000
ROUTABLE_GATE = "quire.dev/routable"
USER_ID = 65532
CACHE = "/cache"
MODELS = "/models"
KERNELS = "/kernels"
"""What a GPU's kernels are compiled to, where the weights are kept too: the next pod need not compile."""
NOTICE_S = 5
"""From a pod's deletion to SIGTERM: gateways and endpoints see it go before it turns requests away."""
MARGIN_S = 10
"""From the end of the drain to SIGKILL."""
FETCH_S = 6 * 3600
"""What fetching may take before the kubelet tries anew."""
DOCKER_CONFIG = "/registry"
AGENT = "agent"
AGENT_PORT = 8001
AGENT_REQUESTS = {"cpu": "10m", "memory": "64Mi"}
"""An HPA on CPU wants every container of a pod, sidecars too, to request some."""
FETCHED = ("hf://", "s3://", "oci://")
"""Sources that the agent brings into the pod before the engine starts."""
CHECKED = "pvc://"
"""Of what somebody else has put there the agent says whether it is a whole model."""


@dataclass(frozen=True)
class Settings:
    """What the operator's own configuration adds to a deployment."""

    engine_image: str
    agent_image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    gpu_resource: str = "nvidia.com/gpu"
    gateway_namespace: str = "quire-system"
    gateway_labels: Mapping[str, str] = field(default_factory=lambda: {"app.kubernetes.io/name": "quire-gateway"})
    operator_labels: Mapping[str, str] = field(default_factory=lambda: {"app.kubernetes.io/name": "quire-operator"})
    """Of the operator's own pods, which ask the agents."""
    agent_port: int = AGENT_PORT
    monitoring_namespace: str = ""
    """Whose pods may read metrics; empty: nobody but gateways reaches engines."""


def pod_template(
    deployment: LLMDeployment, labels: Mapping[str, str], start_s: int, drain_s: float, settings: Settings
) -> Manifest:
    """A pod whose engine may take `start_s` seconds to serve, and `drain_s` to end its requests.

    Raises:
        BadTemplate: `spec.podTemplate` has a shape that cannot be merged.
    """
    name = deployment.metadata.name
    gpus = deployment.spec.resources.gpus
    spec: Manifest = {
        "serviceAccountName": name,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": NOTICE_S + ceil(drain_s) + MARGIN_S,
        "readinessGates": [{"conditionType": ROUTABLE_GATE}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER_ID,
            "runAsGroup": USER_ID,
            "fsGroup": USER_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "initContainers": [_agent(deployment, settings)] if _has_agent(deployment) else [],
        "containers": [_engine(deployment, start_s, drain_s, settings)],
        "volumes": [
            {"name": "cache", "emptyDir": {}},
            {"name": "tmp", "emptyDir": {}},
            *([{"name": "shm", "emptyDir": {"medium": "Memory"}}] if gpus else []),
            *_model_volumes(deployment),
        ],
        "topologySpreadConstraints": [
            {
                "topologyKey": "kubernetes.io/hostname",
                "maxSkew": 1,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": dict(labels)},
            }
        ],
    }
    if not spec["initContainers"]:
        del spec["initContainers"]
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": secret} for secret in settings.image_pull_secrets]
    if gpus:
        spec["tolerations"] = [{"key": settings.gpu_resource, "operator": "Exists", "effect": "NoSchedule"}]
    template: Manifest = {
        "metadata": {"labels": dict(labels), "annotations": {"kubectl.kubernetes.io/default-container": ENGINE}},
        "spec": spec,
    }
    merged = merge_template(template, deployment.spec.pod_template or {})
    # The selector of the Deployment matches these.
    merged["metadata"]["labels"] = {**merged["metadata"].get("labels", {}), **labels}
    return merged


def model_location(model: ModelSpec) -> str:
    """The path in the container that the engine loads; in a kept volume each source has a folder of its own."""
    source = model.source
    if model.volume is not None:
        identity = f"{source}@{model.revision or ''}"
        return f"{MODELS}/{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if source.startswith("file://"):
        return source.removeprefix("file://")
    if source.startswith("pvc://"):
        _, path = _claim_and_path(source)
        return f"{MODELS}/{path}".rstrip("/")
    return MODELS


def _engine(deployment: LLMDeployment, start_s: int, drain_s: float, settings: Settings) -> Manifest:
    spec = deployment.spec
    flags = serve_flags(deployment, model_location(spec.model), "0.0.0.0", ENGINE_PORT, max(drain_s, 1.0))
    probe = {"periodSeconds": 2, "timeoutSeconds": 5}
    mounts = [{"mountPath": CACHE, "name": "cache"}, {"mountPath": "/tmp", "name": "tmp"}]
    if spec.resources.gpus:
        mounts.append({"mountPath": "/dev/shm", "name": "shm"})
    if not spec.model.source.startswith("file://"):
        mounts.append({"mountPath": MODELS, "name": "model", "readOnly": True})  # type: ignore[dict-item]
    if _keeps_kernels(deployment):
        mounts.append({"mountPath": KERNELS, "name": "model", "subPath": "kernels"})
    return {
        "name": ENGINE,
        "image": settings.engine_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["quire", "serve"],
        "args": flags,
        "env": _environment(deployment),
        "ports": [{"containerPort": ENGINE_PORT, "name": "http", "protocol": "TCP"}],
        "startupProbe": {
            "httpGet": {"path": "/ready", "port": "http"},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": start_s,
        },
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, **probe, "failureThreshold": 2},
        # Asked only once the startup probe has held: no start is too slow for it.
        "livenessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 10, "timeoutSeconds": 10},
        "lifecycle": {"preStop": {"sleep": {"seconds": NOTICE_S}}},
        "resources": _resources(deployment, settings.gpu_resource),
        "securityContext": _confined(),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _agent(deployment: LLMDeployment, settings: Settings) -> Manifest:
    """A native sidecar: the engine starts once its startup probe holds, and it outlives an engine that crashes."""
    model = deployment.spec.model
    flags = ["--source", model.source, "--destination", model_location(model)]
    flags += ["--port", str(settings.agent_port)]
    if model.revision is not None:
        flags += ["--revision", model.revision]
    mounts: list[Manifest] = [
        {"mountPath": MODELS, "name": "model", **({} if _is_fetched(deployment) else {"readOnly": True})},
        {"mountPath": CACHE, "name": "cache"},
        {"mountPath": "/tmp", "name": "tmp"},
    ]
    if model.auth is not None and model.source.startswith("oci://"):
        mounts.append({"mountPath": DOCKER_CONFIG, "name": "registry", "readOnly": True})
    return {
        "name": AGENT,
        "restartPolicy": "Always",
        "image": settings.agent_image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", "quire_runtime.agent"],
        "args": flags,
        "env": _agent_environment(deployment),
        "ports": [{"containerPort": settings.agent_port, "name": "agent", "protocol": "TCP"}],
        "startupProbe": {
            "httpGet": {"path": "/healthz", "port": "agent"},
            "periodSeconds": 1,
            "timeoutSeconds": 5,
            "failureThreshold": FETCH_S,
        },
        "resources": {"requests": dict(AGENT_REQUESTS)},
        "securityContext": _confined(),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }


def _agent_environment(deployment: LLMDeployment) -> list[Manifest]:
    model = deployment.spec.model
    environment: list[Manifest] = [
        {"name": INTERNAL_KEY, "valueFrom": _internal_key(deployment)},
        {"name": TERMINATION_LOG, "value": "/dev/termination-log"},
        {"name": "HOME", "value": CACHE},
        {"name": "HF_HOME", "value": f"{CACHE}/huggingface"},
        {"name": "PYTHONUNBUFFERED", "value": "1"},
    ]
    if model.auth is None or not _is_fetched(deployment):
        return environment
    if model.source.startswith("oci://"):
        return [*environment, {"name": "DOCKER_CONFIG", "value": DOCKER_CONFIG}]
    is_bucket = model.source.startswith("s3://")
    optional: Manifest = {"optional": True} if is_bucket else {}
    secret = model.auth.secret_ref.name
    return environment + [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": entry, **optional}}}
        for entry, variable in (BUCKET if is_bucket else HUB).items()
    ]


def _confined() -> Manifest:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def _has_agent(deployment: LLMDeployment) -> bool:
    return deployment.spec.model.source.startswith((*FETCHED, CHECKED))


def _internal_key(deployment: LLMDeployment) -> Manifest:
    return {"secretKeyRef": {"name": f"{deployment.metadata.name}-internal", "key": "key"}}


def _is_fetched(deployment: LLMDeployment) -> bool:
    return deployment.spec.model.source.startswith(FETCHED)


def _keeps_kernels(deployment: LLMDeployment) -> bool:
    spec = deployment.spec
    return bool(spec.resources.gpus and spec.model.volume and _is_fetched(deployment))


def _environment(deployment: LLMDeployment) -> list[Manifest]:
    spec = deployment.spec
    environment: list[Manifest] = [
        {"name": INTERNAL_KEY, "valueFrom": _internal_key(deployment)},
        {"name": TERMINATION_LOG, "value": "/dev/termination-log"},
        {"name": "HOME", "value": CACHE},
        {"name": "HF_HOME", "value": f"{CACHE}/huggingface"},
        {"name": "TRITON_CACHE_DIR", "value": f"{CACHE}/triton"},
        {"name": "PYTHONUNBUFFERED", "value": "1"},
    ]
    if _keeps_kernels(deployment):
        environment.append({"name": "QUIRE_KERNEL_CACHE", "value": KERNELS})
    if spec.resources.cpu is not None:
        cores = max(ceil(quantity_value(spec.resources.cpu)), 1)
        environment.append({"name": "OMP_NUM_THREADS", "value": str(cores)})
    return environment


def _resources(deployment: LLMDeployment, gpu_resource: str) -> Manifest:
    """Requests; limits only where exceeding would hurt others (memory) or where Kubernetes demands them (GPUs)."""
    wanted = deployment.spec.resources
    requests: Manifest = {}
    limits: Manifest = {}
    if wanted.cpu is not None:
        requests["cpu"] = str(wanted.cpu)
    if wanted.memory is not None:
        requests["memory"] = limits["memory"] = str(wanted.memory)
    if wanted.gpus:
        requests[gpu_resource] = limits[gpu_resource] = str(wanted.gpus)
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def _model_volumes(deployment: LLMDeployment) -> list[dict[str, Any]]:
    model = deployment.spec.model
    if model.source.startswith("pvc://"):
        claim, _ = _claim_and_path(model.source)
        return [{"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}]
    if not _is_fetched(deployment):
        return []
    kept = {"persistentVolumeClaim": {"claimName": claim_name(deployment)}}
    volumes: list[dict[str, Any]] = [{"name": "model", **(kept if model.volume else {"emptyDir": {}})}]
    if model.auth is not None and model.source.startswith("oci://"):
        items = [{"key": REGISTRY_CONFIG, "path": "config.json"}]
        volumes.append({"name": "registry", "secret": {"secretName": model.auth.secret_ref.name, "items": items}})
    return volumes


def claim_name(deployment: LLMDeployment) -> str:
    """Of the claim that `model.volume` asks for."""
    return f"{deployment.metadata.name}-weights"


def _claim_and_path(source: str) -> tuple[str, str]:
    claim, _, path = source.removeprefix("pvc://").partition("/")
    return claim, path.strip("/")
