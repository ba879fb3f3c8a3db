"""Events for people: one for each change of what a deployment is, none for a mere look at it."""

from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import uuid4

from quire_api.v1alpha1 import API_VERSION, KIND, LLMDeploymentStatus
from quire_operator.merge import Manifest

_ORDINARY = frozenset(
    {
        "Downloading",
        "Loading",
        "ReplicasStarting",
        "ProbePending",
        "NoReplicaReady",
        "NotStarted",
        "RollingOut",
        "NotResolved",
    }
)
"""Reasons that a start passes through."""
LONGEST_MESSAGE = 1024
"""Bytes that the API server takes."""
LONGEST_REPORTER = 128
"""Bytes, too."""


@dataclass(frozen=True)
class Happening:
    kind: str
    """Normal or Warning."""
    reason: str
    message: str


def happenings(before: LLMDeploymentStatus | None, after: LLMDeploymentStatus) -> list[Happening]:
    """What changed between two statuses that a person wants to know."""
    found = []
    old = before or LLMDeploymentStatus()
    if after.revision and old.revision and after.revision != old.revision:
        message = f"revision {after.revision} replaces {old.revision}"
        found.append(Happening("Normal", "RolloutStarted", message))
    if before is not None and old.replicas != after.replicas and old.revision == after.revision:
        found.append(Happening("Normal", "Scaled", f"replicas went from {old.replicas} to {after.replicas}"))
    was, now = old.condition("Ready"), after.condition("Ready")
    if now is not None and (was is None or (was.status, was.reason) != (now.status, now.reason)):
        is_fine = now.status == "True" or now.reason in _ORDINARY
        found.append(Happening("Normal" if is_fine else "Warning", now.reason, now.message))
    return found


def event_of(happening: Happening, owner: Manifest, reporter: str) -> Manifest:
    """The Event about an LLMDeployment."""
    metadata = owner["metadata"]
    now = datetime.now(UTC)
    stamp = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{uuid4().hex[:16]}", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata.get("uid", ""),
            "resourceVersion": metadata.get("resourceVersion", ""),
        },
        "type": happening.kind,
        "reason": happening.reason,
        "message": _cut(happening.message, LONGEST_MESSAGE),
        "source": {"component": "quire-operator"},
        "reportingComponent": "quire.dev/operator",
        "reportingInstance": _cut(reporter, LONGEST_REPORTER),
        "firstTimestamp": stamp,
        "lastTimestamp": stamp,
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "action": "Reconcile",
        "count": 1,
    }


def _cut(text: str, size: int) -> str:
    """As much of it as fits so many bytes, in whole characters."""
    return text.encode()[:size].decode(errors="ignore")
