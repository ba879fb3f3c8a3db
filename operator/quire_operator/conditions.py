"""The condition tree: Ready = Resolved and Fits and Loaded and Available and Routable.

Each leaf has one owner below. Ready takes reason and message of the first leaf that is False, else of the first that is
Unknown. A condition keeps its lastTransitionTime while its status stays the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from quire_api.v1alpha1 import LABEL_DEPLOYMENT, Condition, LLMDeployment, LLMDeploymentStatus, ModelFacts
from quire_operator.world import NO_ROOM, Failure, Finding, Fit, Phase, ReplicaState

LEAVES = ("Resolved", "Fits", "Loaded", "Available", "Routable")

CRASH_LOOP_AFTER = 3
"""Crashes in a row that make a loop."""
OF_ANOTHER_OPERATOR = (
    "the replicas were made by an operator of another version, or with other images; they are exchanged in their turn"
)
LONGEST_MESSAGE = 4096
"""Characters of a condition's message. Engines, agents and the API server write parts of it, as long as they like."""

_RESOLVED_REASONS = {
    "InvalidSpec",
    "NameConflict",
    "SecretNotFound",
    "SourceNotSupported",
    "StorageClassMissing",
    "UnsupportedArchitecture",
    "WeightsNotFound",
    "WeightsUnauthorized",
}
_FITS_REASONS = {
    "DoesNotFit",
    "GpuUnavailable",
    "InsufficientResources",
    "KVTooSmall",
    "OutOfMemory",
    "QuotaExceeded",
    "Unschedulable",
}


@dataclass(frozen=True)
class Verdict:
    """What a leaf says."""

    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""


@dataclass(frozen=True)
class View:
    """All that the status of one deployment is made of."""

    wanted: int
    min_available: int
    revision: str
    replicas: Sequence[ReplicaState]
    finding: Finding | None = None
    complaint: Finding | None = None
    """Said like a finding; but replicas start all the same."""
    is_refused: bool = False
    """The name belongs to another; nothing is served."""
    wakes_on_request: bool = False
    waits_for_renewal: bool = False
    gateways: int = 0
    facts: ModelFacts | None = None
    fit: Fit | None = None
    url: str = ""
    retry_at: Mapping[str, float] = field(default_factory=dict)
    """When each exited replica starts again."""

    @property
    def available(self) -> list[ReplicaState]:
        return [replica for replica in self.replicas if replica.is_available]

    @property
    def newest(self) -> list[ReplicaState]:
        return [replica for replica in self.replicas if replica.revision == self.revision and not _is_leaving(replica)]

    def failure_of(self, replicas: Sequence[ReplicaState]) -> Failure | None:
        """Latest failure of replicas that have not recovered from it."""
        failures = [replica.failure for replica in replicas if replica.failure and not replica.is_available]
        return max(failures, key=lambda failure: failure.at, default=None)


def status_of(deployment: LLMDeployment, view: View, now: float) -> LLMDeploymentStatus:
    """The whole status, conditions included."""
    leaves = _leaves(view)
    generation = deployment.metadata.generation
    conditions = _conditions({"Ready": ready(leaves, view), **leaves}, deployment.status, generation, now)
    return LLMDeploymentStatus(
        observed_generation=generation,
        conditions=conditions,
        replicas=sum(replica.phase is not Phase.STOPPING for replica in view.replicas),
        ready_replicas=len(view.available),
        updated_replicas=len(view.newest),
        selector=f"{LABEL_DEPLOYMENT}={deployment.metadata.name}",
        url=view.url if not view.is_refused else "",
        revision=view.revision,
        served_names=[] if view.is_refused else deployment.served_names,
        model=view.facts or deployment.status.model,
    )


def invalid_status(
    previous: LLMDeploymentStatus | None, message: str, generation: int, now: float
) -> LLMDeploymentStatus:
    """Status of an object that cannot be understood: the counts stay, Ready and Resolved say what is wrong."""
    previous = previous or LLMDeploymentStatus()
    verdict = Verdict("False", "InvalidSpec", message)
    kept = {
        condition.type: Verdict(condition.status, condition.reason, condition.message)
        for condition in previous.conditions
    }
    conditions = _conditions({**kept, "Ready": verdict, "Resolved": verdict}, previous, generation, now)
    return previous.model_copy(update={"observed_generation": generation, "conditions": conditions})


def ready(leaves: Mapping[str, Verdict], view: View) -> Verdict:
    """The root of the tree."""
    for status in ("False", "Unknown"):
        for leaf in leaves.values():
            if leaf.status == status:
                return Verdict("False", leaf.reason, leaf.message)
    if view.wanted == 0:
        wakes = "; the next request brings one" if view.wakes_on_request else ""
        return Verdict("True", "ScaledToZero", f"no replica is wanted{wakes}")
    return Verdict("True", "Serving", f"{len(view.available)} of {view.wanted} replicas serve")


def _leaves(view: View) -> dict[str, Verdict]:
    resolved = _resolved(view)
    if view.is_refused:
        rest = Verdict("Unknown", "NotResolved", "nothing is started before the deployment is resolved")
        return {"Resolved": resolved, **dict.fromkeys(LEAVES[1:], rest)}
    if view.wanted == 0:
        asleep = Verdict("True", "ScaledToZero")
        # Only a gateway can hold the request that wakes it.
        routable = _routable(view) if view.wakes_on_request and view.gateways == 0 else asleep
        return {"Resolved": resolved, **dict.fromkeys(LEAVES[1:-1], asleep), "Routable": routable}
    return {
        "Resolved": resolved,
        "Fits": _fits(view),
        "Loaded": _loaded(view),
        "Available": _available(view),
        "Routable": _routable(view),
    }


def _resolved(view: View) -> Verdict:
    failure = view.failure_of(view.newest)
    told = failure if failure and failure.reason in _RESOLVED_REASONS else None
    found = [said for said in (view.finding, told, view.complaint) if said is not None]
    if found:
        # A spec that is not understood is to be mended first: what else is said is about a former one.
        said = view.complaint if view.complaint and view.complaint.reason == "InvalidSpec" else found[0]
        return Verdict("False", said.reason, said.message)
    return Verdict("True", "Resolved")


def _fits(view: View) -> Verdict:
    failure = view.failure_of(view.newest)
    if failure and failure.reason in _FITS_REASONS:
        return Verdict("False", failure.reason, f"{failure.message}{_room_by_rollout(view, failure)}")
    if any(replica.phase is Phase.READY for replica in view.newest):
        return Verdict("True", "Fits")
    if view.fit is not None and view.fit.fits is not None:
        return Verdict("True", "Fits", view.fit.message) if view.fit.fits else _does_not_fit(view.fit)
    if view.available:
        return Verdict("True", "RollingOut", "shown by the former revision; the new one has not begun to serve")
    if view.fit is not None:
        return Verdict("Unknown", "MemoryUnknown", view.fit.message)
    return Verdict("Unknown", "NotStarted", "shown by the first replica that becomes ready")


def _does_not_fit(fit: Fit) -> Verdict:
    return Verdict("False", "DoesNotFit", fit.message)


def _loaded(view: View) -> Verdict:
    failure = view.failure_of(view.newest)
    newest_available = any(replica.is_available for replica in view.newest)
    crashes = max((_crashes(replica) for replica in view.newest if not replica.is_available), default=0)
    if failure and (crashes >= CRASH_LOOP_AFTER or not newest_available):
        is_typed = failure.reason in _RESOLVED_REASONS | _FITS_REASONS
        reason = failure.reason if is_typed or crashes < CRASH_LOOP_AFTER else "CrashLoop"
        times = f"crashed {crashes} times in a row; last: " if crashes > 1 else ""
        former = sum(replica.revision != view.revision for replica in view.available)
        stopped = f"; the rollout waits, {former} of the former revision serve on" if former else ""
        return Verdict("False", reason, f"{times}{failure.message}{_next_try(view)}{stopped}")
    if newest_available or any(replica.phase is Phase.READY for replica in view.newest):
        return Verdict("True", "Loaded", OF_ANOTHER_OPERATOR if view.waits_for_renewal else _why_former_stay(view))
    if view.available:
        return Verdict("True", "RollingOut", "the new revision loads while the former one serves")
    if view.finding:
        return Verdict("Unknown", "NotResolved", "nothing is started before the deployment is resolved")
    loading = min((r.loading for r in view.newest if r.loading), key=lambda loading: loading.share, default=None)
    if loading is not None:
        return Verdict("False", loading.reason, loading.message)
    return Verdict("False", "Loading", "the engine loads the model")


def _why_former_stay(view: View) -> str:
    """Though a new replica serves: somebody else's readiness gates keep the cluster from counting it."""
    has_former = any(replica.revision != view.revision for replica in view.available)
    gates = sorted({gate for replica in view.newest if replica.is_available for gate in replica.closed_gates})
    if not has_former or not gates:
        return ""
    told = f"the former replicas stay until readiness gates of the new ones open: {', '.join(gates)}"
    return f"{told}; let them be opened, or take them out of spec.podTemplate"


def _available(view: View) -> Verdict:
    count = len(view.available)
    message = f"{count} of {view.wanted} replicas available"
    if count >= max(view.min_available, 1):
        return Verdict("True", "MinimumAvailable", message)
    failure = view.failure_of([replica for replica in view.replicas if not _is_leaving(replica)])
    if failure:
        return Verdict("False", failure.reason, f"{message}; {failure.message}{_next_try(view)}")
    return Verdict("False", "ReplicasStarting", message)


def _routable(view: View) -> Verdict:
    if view.gateways == 0:
        return Verdict("False", "GatewayUnavailable", "no gateway reports; requests cannot reach the replicas")
    if view.available and all(replica.is_lost for replica in view.available):
        message = "no gateway gets answers through any replica any more"
        return Verdict("False", "ReplicasUnreachable", f"{message}; look into the engines' logs and network policies")
    if view.available:
        return Verdict("True", "Probed", "a gateway has got answers through the replicas")
    if any(replica.phase is Phase.READY for replica in view.replicas):
        return Verdict("False", "ProbePending", "no gateway has got an answer through a replica yet")
    return Verdict("Unknown", "NoReplicaReady", "there is no ready replica to route to")


def _crashes(replica: ReplicaState) -> int:
    return replica.failures + (replica.phase is Phase.EXITED)


def _is_leaving(replica: ReplicaState) -> bool:
    return replica.is_draining or replica.phase is Phase.STOPPING


def _room_by_rollout(view: View, failure: Failure) -> str:
    """How a former replica could make room for a new one."""
    has_former = any(replica.revision != view.revision for replica in view.available)
    if not has_former or failure.reason not in NO_ROOM or view.min_available < view.wanted:
        return ""
    return "; or let a former replica make room by spec.rollout {maxSurge: 0, maxUnavailable: 1}"


def _next_try(view: View) -> str:
    if not view.retry_at:
        return ""
    return f"; starts again at {_stamp(min(view.retry_at.values()))}"


def _conditions(
    verdicts: Mapping[str, Verdict], previous: LLMDeploymentStatus, generation: int, now: float
) -> list[Condition]:
    stamp = _stamp(now)
    conditions = []
    for kind, verdict in verdicts.items():
        before = previous.condition(kind)
        unchanged = before is not None and before.status == verdict.status
        conditions.append(
            Condition(
                type=kind,
                status=verdict.status,
                reason=verdict.reason,
                message=_legible(verdict.message),
                last_transition_time=before.last_transition_time if before and unchanged else stamp,
                observed_generation=generation,
            )
        )
    return conditions


def _legible(message: str) -> str:
    """As the API server takes it: without halves of characters, and not too long."""
    text = message.encode(errors="replace").decode()
    return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - 1]}…"


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
