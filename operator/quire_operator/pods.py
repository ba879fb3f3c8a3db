"""From pods and Deployments to the replicas that decisions are made on. Pure.

A replica is a pod; a Deployment that has fewer pods than it should lends the missing ones a name, so that they keep
their place while the cluster has not made them (a quota, an admission, or merely a moment). What it has beyond its
number comes and goes by Kubernetes' own hand (`kubectl rollout restart`), is no replica yet, and not ours to let go.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from quire_operator.build import LABEL_REVISION
from quire_operator.build_pod import ENGINE, ROUTABLE_GATE
from quire_operator.merge import Manifest
from quire_operator.world import Failure, Key, Loading, Phase, ReplicaState, reason_or

DRAIN_DEADLINE = "quire.dev/drain-deadline"
"""Annotation of a pod that gets nothing new: unix time after which it goes even with requests in flight."""
STOPPING = "quire.dev/stopping"
"""Annotation of a pod that has been given up; it no longer counts."""
DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
MISSING = "~"
"""Begins the number in the name of a replica that has no pod yet."""

_PULL_REASONS = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_CONFIG_REASONS = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
_MISUSED = 2
"""Exit code of a command that does not take its flags."""


@dataclass(frozen=True)
class GatewayWord:
    """What all gateways together say of one pod."""

    is_routable: bool
    in_flight: int
    is_drain_seen: bool
    """Every gateway that knows it sends it nothing new, so its count can only fall."""
    warmth: float = 0.0
    """Prompt tokens that its cache has saved of late."""
    is_failing: bool = False
    """Every gateway that knows it gets no answers through it."""
    is_lost: bool = False
    """It has been failing for a while."""


def replicas_of(
    key: Key,
    deployments: Iterable[Manifest],
    pods: Sequence[Manifest],
    words: Mapping[str, GatewayWord],
    now: float,
    loadings: Mapping[str, Loading] | None = None,
    gpu_resource: str = "nvidia.com/gpu",
) -> list[ReplicaState]:
    """All replicas of one deployment."""
    loadings = loadings or {}
    found = [_replica(key, pod, words.get(_name(pod)), now, loadings.get(_name(pod)), gpu_resource) for pod in pods]
    for deployment in deployments:
        revision = deployment["metadata"].get("labels", {}).get(LABEL_REVISION, "")
        mine = [r for r in found if r.revision == revision and r.phase is not Phase.STOPPING]
        there, wanted = len(mine), deployment.get("spec", {}).get("replicas", 1)
        mine.sort(key=lambda r: (not r.is_available, r.phase is not Phase.READY, r.ready_at or now))
        for passing in mine[wanted:]:
            found.remove(passing)
        failure = creation_failure(deployment, now)
        found += [
            ReplicaState(key, f"{_name(deployment)}-{MISSING}{number}", revision, Phase.STARTING, failure=failure)
            for number in range(wanted - there)
        ]
    return found


def is_gate_open(pod: Manifest) -> bool:
    """Whether a gateway has once got an answer through it; the gate never closes again."""
    return _is_true(pod, ROUTABLE_GATE)


def closed_gates(pod: Manifest) -> tuple[str, ...]:
    """Readiness gates of others that are not open."""
    gates = [str(gate.get("conditionType")) for gate in pod.get("spec", {}).get("readinessGates") or ()]
    return tuple(gate for gate in gates if gate != ROUTABLE_GATE and not _is_true(pod, gate))


def gates_to_open(pods: Iterable[Manifest], words: Mapping[str, GatewayWord]) -> list[str]:
    """Pods that have become routable."""
    return [
        _name(pod)
        for pod in pods
        if not is_gate_open(pod)
        and _phase(pod) is Phase.READY
        and _name(pod) in words
        and words[_name(pod)].is_routable
    ]


def is_missing(replica: str) -> bool:
    """Whether the replica is a place without a pod."""
    return f"-{MISSING}" in replica


def creation_failure(deployment: Manifest, now: float) -> Failure | None:
    """Why the cluster makes no pods for a Deployment."""
    condition = _condition(deployment, "ReplicaFailure")
    if condition is None or condition.get("status") != "True":
        return None
    message = str(condition.get("message", ""))
    at = _seconds(condition.get("lastTransitionTime")) or now
    if "exceeded quota" in message:
        return Failure("QuotaExceeded", f"{message}; raise the quota or lower resources or replicas", at)
    return Failure("PodRefused", f"the cluster refuses the pod: {message}", at)


def _replica(
    key: Key, pod: Manifest, word: GatewayWord | None, now: float, loading: Loading | None, gpu_resource: str
) -> ReplicaState:
    annotations = pod["metadata"].get("annotations") or {}
    phase = _phase(pod)
    deadline = _number(annotations.get(DRAIN_DEADLINE))
    is_draining = deadline is not None
    ready = _condition(pod, "ContainersReady") or {}
    crashes = max(_restarts(pod) - (phase is Phase.EXITED), 0)
    failure = _failure(pod, now, gpu_resource)
    if failure is None and phase is Phase.EXITED:
        failure = Failure("EngineExited", f"{_name(pod)} ended; it left no message", now)
    return ReplicaState(
        key=key,
        id=_name(pod),
        revision=pod["metadata"].get("labels", {}).get(LABEL_REVISION, ""),
        phase=phase,
        ready_at=_seconds(ready.get("lastTransitionTime")) if phase is Phase.READY else None,
        is_routable=is_gate_open(pod) or (word is not None and word.is_routable),
        is_counted=_is_true(pod, "Ready"),
        closed_gates=closed_gates(pod),
        in_flight=word.in_flight if word and (word.is_drain_seen or not is_draining) else None,
        is_lost=word is not None and word.is_lost,
        warmth=word.warmth if word else None,
        is_draining=is_draining,
        drain_deadline=deadline,
        failures=crashes,
        failure=failure,
        loading=loading if phase is Phase.STARTING else None,
    )


def _phase(pod: Manifest) -> Phase:
    metadata, status = pod["metadata"], pod.get("status", {})
    if metadata.get("deletionTimestamp") or STOPPING in (metadata.get("annotations") or {}):
        return Phase.STOPPING
    if status.get("phase") in ("Failed", "Succeeded"):
        return Phase.STOPPING
    if _is_true(pod, "ContainersReady"):
        return Phase.READY
    state = _engine(pod).get("state", {})
    if "terminated" in state or state.get("waiting", {}).get("reason") == "CrashLoopBackOff":
        return Phase.EXITED
    return Phase.STARTING


def _failure(pod: Manifest, now: float, gpu_resource: str) -> Failure | None:
    """The latest thing that went wrong with a pod, in words that a person can act on."""
    return _unscheduled(pod, now, gpu_resource) or _waiting(pod, now) or _ended(pod, now)


def _unscheduled(pod: Manifest, now: float, gpu_resource: str) -> Failure | None:
    condition = _condition(pod, "PodScheduled") or {}
    if condition.get("reason") != "Unschedulable":
        return None
    message = re.sub(r"\s*preemption:.*", "", str(condition.get("message", "")))
    at = _seconds(condition.get("lastTransitionTime")) or now
    # The operator's own name for one, or what podTemplate asks of another vendor.
    if re.search(rf"Insufficient ([\w.-]+/gpu|{re.escape(gpu_resource)})(?![\w/-])", message):
        return Failure("GpuUnavailable", f"no node has the GPUs free: {message} Add GPUs or lower resources.gpus.", at)
    if "Insufficient" in message:
        return Failure("InsufficientResources", f"no node has room: {message} Lower resources or add nodes.", at)
    if "persistentvolume" in message.lower().replace(" ", ""):
        text = (
            f"a volume claim of the pod cannot be used: {message} Create or bind it; `kubectl describe pvc` says more."
        )
        return Failure("VolumeUnavailable", text, at)
    text = f"no node takes the pod: {message} Change what spec.podTemplate asks of nodes, or the nodes."
    return Failure("Unschedulable", text, at)


def _waiting(pod: Manifest, now: float) -> Failure | None:
    for container in _containers(pod):
        waiting = container.get("state", {}).get("waiting", {})
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in _PULL_REASONS:
            text = f"the image {container.get('image', '')} cannot be pulled: {message or reason}"
            return Failure("ImagePullFailed", f"{text}; check its name and the pull secrets", now)
        if reason in _CONFIG_REASONS:
            missing = re.search(r'secret "([^"]+)" not found', message)
            if missing:
                return Failure("SecretNotFound", f"create the Secret {missing[1]}: the pod needs it", now)
            text = f"the container {container.get('name')} cannot start: {message}; correct spec.podTemplate"
            return Failure("ContainerRefused", text, now)
    return None


def _ended(pod: Manifest, now: float) -> Failure | None:
    for container in _containers(pod):
        states = container.get("state", {}), container.get("lastState", {})
        ended = next((state["terminated"] for state in states if "terminated" in state), None)
        if ended is not None and (container.get("name") == ENGINE or ended.get("exitCode")):
            return _termination(_name(pod), str(container.get("name")), ended, now)
    return None


def _termination(pod: str, container: str, ended: Mapping[str, Any], now: float) -> Failure:
    at = _seconds(ended.get("finishedAt")) or now
    text = str(ended.get("message", "")).strip()
    if ended.get("reason") == "OOMKilled":
        message = f"{pod} used more memory than its limit and was killed; raise resources.memory"
        return Failure("OutOfMemory", f"{message} or lower engine.kvCache.memory", at)
    code = ended.get("exitCode", "?")
    last = text.splitlines()[-1][:500] if text else "it left no message"
    reason = "EngineKilled" if code in (137, 143) else "EngineExited"
    more = f"`kubectl logs {pod} -c {container} --previous` says more"
    told = Failure(reason, f"{pod} ended with exit code {code}: {last}; {more}", at)
    if container == ENGINE and code == _MISUSED and text:
        sentence = re.sub(r"^(error|quire): ", "", last, flags=re.IGNORECASE).rstrip(".")
        message = f"the engine does not take these flags: {sentence}"
        told = Failure("InvalidSpec", f"{message}; correct spec.engine.extraArgs, or the field that sets it", at)
    try:
        said = json.loads(text)
        return Failure(reason_or(told.reason, said["reason"]), str(said["message"]), at)
    # Any image can write this: lists, numbers, nesting without end.
    except (ValueError, KeyError, TypeError, RecursionError):
        return told


def _containers(pod: Manifest) -> Iterator[Mapping[str, Any]]:
    status = pod.get("status", {})
    yield from status.get("initContainerStatuses") or ()
    yield from status.get("containerStatuses") or ()


def _engine(pod: Manifest) -> Mapping[str, Any]:
    return next((c for c in pod.get("status", {}).get("containerStatuses") or () if c.get("name") == ENGINE), {})


def _restarts(pod: Manifest) -> int:
    return int(_engine(pod).get("restartCount", 0))


def _condition(owner: Manifest, kind: str) -> Mapping[str, Any] | None:
    conditions = owner.get("status", {}).get("conditions") or ()
    return next((condition for condition in conditions if condition.get("type") == kind), None)


def _is_true(owner: Manifest, kind: str) -> bool:
    return (_condition(owner, kind) or {}).get("status") == "True"


def _name(owner: Manifest) -> str:
    return str(owner["metadata"]["name"])


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return 0.0


def _seconds(stamp: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(stamp)).timestamp()
    except ValueError:
        return None
