"""From intentions to writes: how many replicas each revision's Deployment has, and which pods are marked how. Pure.

The number is always counted anew from what is there, so that an intention asked for twice on the same observation ends
in the same number.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from quire_operator.build import LABEL_REVISION
from quire_operator.merge import Manifest
from quire_operator.pods import DELETION_COST, DRAIN_DEADLINE, STOPPING, is_missing
from quire_operator.world import (
    DrainReplica,
    Intention,
    Phase,
    ReplicaState,
    ResumeReplica,
    StartReplica,
    StopReplica,
)

FIRST_TO_GO = "-2147483647"
HISTORY = 5
"""Former revisions that are kept at zero replicas, so that going back is quick to see and to do."""


@dataclass
class Plan:
    """What to write."""

    replicas: dict[str, int] = field(default_factory=dict)
    """By revision."""
    marks: dict[str, dict[str, str | None]] = field(default_factory=dict)
    """By pod: annotations to set, or with None to remove."""


def plan_of(intentions: Iterable[Intention], replicas: Iterable[ReplicaState]) -> Plan:
    """The writes that carry out `intentions` on a world with these replicas."""
    plan = Plan()
    present = {replica.id: replica for replica in replicas}
    counts = Counter(r.revision for r in present.values() if r.phase is not Phase.STOPPING)
    for intention in intentions:
        match intention:
            case StartReplica(_, _, revision):
                counts[revision] += 1
            case StopReplica(name):
                replica = present[name]
                if replica.phase is not Phase.STOPPING:
                    counts[replica.revision] -= 1
                    if not is_missing(name):
                        plan.marks[name] = {STOPPING: "true", DELETION_COST: FIRST_TO_GO}
            case DrainReplica(name, deadline) if not is_missing(name):
                plan.marks[name] = {DRAIN_DEADLINE: f"{deadline:.3f}"}
            case ResumeReplica(name) if not is_missing(name):
                plan.marks[name] = {DRAIN_DEADLINE: None}
            case _:
                pass
    plan.replicas = dict(counts)
    return plan


def left_over(deployment: Manifest, pods: Iterable[Manifest]) -> list[str]:
    """Pods that were given up while the ReplicaSet let others go instead: they are deleted by name.

    Told by a Deployment that has settled: it has as many pods as it wants, and one of them is marked.
    """
    status, spec = deployment.get("status", {}), deployment.get("spec", {})
    if status.get("observedGeneration") != deployment["metadata"].get("generation"):
        return []
    if status.get("replicas", 0) != spec.get("replicas", 1):
        return []
    revision = deployment["metadata"].get("labels", {}).get(LABEL_REVISION)
    alive = [
        pod
        for pod in pods
        if pod["metadata"].get("labels", {}).get(LABEL_REVISION) == revision
        and not pod["metadata"].get("deletionTimestamp")
    ]
    if len(alive) != spec.get("replicas", 1):
        return []
    return [pod["metadata"]["name"] for pod in alive if STOPPING in (pod["metadata"].get("annotations") or {})]


def forgotten_revisions(deployments: Iterable[Manifest], current: str) -> list[str]:
    """Names of Deployments at zero that are older than the history is long."""
    empty = [
        deployment
        for deployment in deployments
        if deployment["metadata"].get("labels", {}).get(LABEL_REVISION) != current
        and deployment.get("spec", {}).get("replicas", 1) == 0
        and deployment.get("status", {}).get("replicas", 0) == 0
    ]
    empty.sort(key=lambda deployment: deployment["metadata"].get("creationTimestamp", ""), reverse=True)
    return [deployment["metadata"]["name"] for deployment in empty[HISTORY:]]


def covers(live: object, wanted: object) -> bool:
    """Whether everything in `wanted` stands in `live`; what others have added there does not matter.

    Mounts are compared by their path (a volume may be mounted twice), other lists of named things by name, and lists of
    anything else as a whole.
    """
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(key in live and covers(live[key], wanted[key]) for key in wanted)
    if isinstance(wanted, list):
        if not isinstance(live, list):
            return False
        for key in ("mountPath", "name"):
            if wanted and all(isinstance(item, Mapping) and key in item for item in wanted):
                known = {item[key]: item for item in live if isinstance(item, Mapping) and key in item}
                return all(item[key] in known and covers(known[item[key]], item) for item in wanted)
        return len(live) == len(wanted) and all(covers(*pair) for pair in zip(live, wanted, strict=True))
    return live == wanted
