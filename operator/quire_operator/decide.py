"""From wish and world to the next steps and the status. Pure: no clock, no I/O, no memory between calls.

Called again after every change and at `wake_at`; each call asks only for steps that are safe on what it sees.

    wanted            spec.replicas, within autoscaling's bounds
    active            every replica but draining and stopping ones; a crashed one keeps its place
    available         ready, routable, not draining
    surge limit       all processes, draining and stopping ones included, stay within wanted + maxSurge
    availability      no step of ours takes the available ones below wanted - maxUnavailable

The arithmetic of a rolling update is that of Kubernetes' Deployment: a new replica that is not available yet, or not
counted by the cluster yet, lends nothing to the old ones that may go, so a revision that never becomes available stops
the rollout by itself.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from quire_api.v1alpha1 import LLMDeployment, LLMDeploymentStatus
from quire_api.v1alpha1_values import duration_seconds, share_of
from quire_operator.conditions import View, status_of
from quire_operator.revision import revision_of
from quire_operator.world import (
    DrainReplica,
    Finding,
    Intention,
    Key,
    Observed,
    Phase,
    ReplicaState,
    RestartReplica,
    ResumeReplica,
    Route,
    ServeRoute,
    StartReplica,
    StopReplica,
    WithdrawRoute,
)

BACKOFF_FIRST_S = 1.0
BACKOFF_LONGEST_S = 60.0
STABLE_AFTER_S = 60.0
"""A replica that was ready for this long has left its earlier crashes behind."""


@dataclass(frozen=True)
class Decision:
    """What to do now, what to say, and when to look again though nothing happens."""

    intentions: list[Intention]
    statuses: dict[Key, LLMDeploymentStatus]
    wake_at: float | None
    """Unix time of the next restart or drain deadline; None: only a change matters."""


def decide(
    deployments: Sequence[LLMDeployment],
    observed: Observed,
    now: float,
    conflicts: Mapping[Key, Finding] | None = None,
) -> Decision:
    """The next steps towards all deployments at once.

    Each deployment carries its previous status, from which unchanged conditions keep their times. Replicas whose
    deployment is gone are drained and stopped. Who looks at one deployment alone gives the `conflicts` of all.
    """
    conflicts = name_conflicts(map(Holder.of, deployments)) if conflicts is None else conflicts
    intentions: list[Intention] = []
    statuses: dict[Key, LLMDeploymentStatus] = {}
    wakes: list[float] = []
    known = {Key.of(deployment) for deployment in deployments}

    for deployment in deployments:
        key = Key.of(deployment)
        replicas = sorted((r for r in observed.replicas if r.key == key), key=lambda r: r.id)
        finding = conflicts.get(key) or observed.findings.get(key)
        wanted = 0 if key in conflicts else wanted_replicas(deployment)
        scale = _Scale.of(deployment, wanted)
        revision = observed.revisions.get(key) or revision_of(deployment)
        steps = _next_steps(deployment, revision, scale, replicas, is_held=finding is not None, now=now)
        intentions += _route_steps(deployment, observed, is_refused=key in conflicts) + steps
        wakes += _wake_times(replicas)
        view = View(
            wanted=wanted,
            min_available=scale.min_available,
            revision=revision,
            replicas=replicas,
            finding=finding,
            complaint=observed.complaints.get(key),
            is_refused=key in conflicts,
            wakes_on_request=_wakes_on_request(deployment),
            gateways=observed.gateways,
            waits_for_renewal=key in observed.waiting,
            facts=observed.facts.get(key),
            fit=observed.fits.get(key),
            url=observed.url,
            retry_at={r.id: restart_time(r) for r in replicas if _starts_again(r)},
        )
        statuses[key] = status_of(deployment, view, now)

    for key in sorted({replica.key for replica in observed.replicas} - known):
        orphans = [replica for replica in observed.replicas if replica.key == key]
        intentions += _finish_drains(orphans, now) + [_retire(r, now) for r in orphans if _is_active(r)]
        wakes += _wake_times(orphans)
    held = {replica.key for replica in observed.replicas}
    intentions += [WithdrawRoute(key) for key in sorted(set(observed.routes) - known - held)]
    return Decision(intentions, statuses, min((wake for wake in wakes if wake > now), default=None))


def wanted_replicas(deployment: LLMDeployment) -> int:
    """`replicas`, held within the bounds of `autoscaling` where that is set."""
    law = deployment.spec.autoscaling
    replicas = deployment.spec.replicas
    return min(max(replicas, law.min_replicas), law.max_replicas) if law else replicas


@dataclass(frozen=True, order=True)
class Holder:
    """Who holds or wants served names, the oldest first."""

    created: str
    key: Key
    names: tuple[str, ...]

    @classmethod
    def of(cls, deployment: LLMDeployment) -> "Holder":
        return cls(deployment.metadata.creation_timestamp or "", Key.of(deployment), tuple(deployment.served_names))


def name_conflicts(holders: Iterable[Holder]) -> dict[Key, Finding]:
    """Deployments that want a served name which an older one has; the oldest keeps it."""
    owner: dict[str, Key] = {}
    conflicts: dict[Key, Finding] = {}
    for holder in sorted(holders):
        taken = next((name for name in holder.names if name in owner), None)
        if taken is None:
            owner.update(dict.fromkeys(holder.names, holder.key))
        else:
            conflicts[holder.key] = Finding(
                "NameConflict",
                f'the name "{taken}" is already served by {owner[taken]}, which is older; '
                f"choose another in model.servedNames",
            )
    return conflicts


def crashes_in_a_row(replica: ReplicaState) -> int:
    """Crashes up to and including the one an exited replica lies in; a stable run in between starts the count anew."""
    assert replica.failure is not None
    was_stable = replica.ready_at is not None and replica.failure.at - replica.ready_at >= STABLE_AFTER_S
    return 1 if was_stable else replica.failures + 1


def restart_time(replica: ReplicaState) -> float:
    """When an exited replica may start again: 1 s after the first crash, then 2, 4, 8 ... 60 s at most."""
    assert replica.failure is not None
    exponent = min(crashes_in_a_row(replica) - 1, 16)
    return replica.failure.at + min(BACKOFF_FIRST_S * 2.0**exponent, BACKOFF_LONGEST_S)


@dataclass(frozen=True)
class _Scale:
    wanted: int
    limit: int
    """Most processes at a time."""
    min_available: int

    @classmethod
    def of(cls, deployment: LLMDeployment, wanted: int) -> "_Scale":
        rollout = deployment.spec.rollout
        surge = share_of(wanted, rollout.max_surge, round_up=True)
        unavailable = min(share_of(wanted, rollout.max_unavailable, round_up=False), wanted)
        if surge == 0 and unavailable == 0:
            unavailable = min(1, wanted)
        return cls(wanted, wanted + surge, wanted - unavailable)


def _next_steps(
    deployment: LLMDeployment,
    revision: str,
    scale: _Scale,
    replicas: Sequence[ReplicaState],
    *,
    is_held: bool,
    now: float,
) -> list[Intention]:
    timeout_s = duration_seconds(deployment.spec.rollout.drain_timeout)
    replicas = [replace(replica, drain_timeout_s=timeout_s) for replica in replicas]
    active = [replica for replica in replicas if _is_active(replica)]
    new = [replica for replica in active if replica.revision == revision]
    old = [replica for replica in active if replica.revision != revision]
    steps = _finish_drains(replicas, now)

    surplus = sorted(new, key=_goes_first)[: max(len(new) - scale.wanted, 0)]
    kept = [replica for replica in new if replica not in surplus]
    steps += [_retire(replica, now) for replica in surplus]

    missing = scale.wanted - len(kept)
    for replica in replicas:
        if missing > 0 and replica.is_draining and replica.phase is Phase.READY and replica.revision == revision:
            if StopReplica(replica.id) in steps:
                continue
            steps.append(ResumeReplica(replica.id))
            missing -= 1

    going = _old_that_may_go(kept, old, scale) if not is_held or scale.wanted == 0 else []
    steps += [_retire(replica, now) for replica in going]

    if not is_held:
        room = scale.limit - len(replicas)
        names = _free_names(deployment, revision, {replica.id for replica in replicas})
        steps += [StartReplica(deployment, next(names), revision) for _ in range(min(missing, room))]

    steps += [
        RestartReplica(replica.id, crashes_in_a_row(replica))
        for replica in (*kept, *old)
        if _starts_again(replica) and replica not in going and restart_time(replica) <= now
    ]
    return steps


def _old_that_may_go(new: Sequence[ReplicaState], old: Sequence[ReplicaState], scale: _Scale) -> list[ReplicaState]:
    """Former replicas that may leave now: first those that serve nobody, then those whose place is taken."""
    broken = [replica for replica in old if not replica.is_available]
    new_unavailable = sum(not (replica.is_available and replica.is_counted) for replica in new)
    removable = len(new) + len(old) - scale.min_available - new_unavailable
    going = broken[: max(removable, 0)]
    serving = sorted((replica for replica in old if replica.is_available), key=_goes_first)
    available = len(serving) + len(new) - new_unavailable
    return going + serving[: max(available - scale.min_available, 0)]


def _goes_first(replica: ReplicaState) -> tuple[bool, bool, float, int, float]:
    """Order in which equals leave: who serves nobody, who is not counted, the coldest, the least busy, the youngest."""
    age = -(replica.ready_at or float("inf"))
    return replica.is_available, replica.is_counted, replica.warmth or 0.0, replica.in_flight or 0, age


def _is_active(replica: ReplicaState) -> bool:
    return not replica.is_draining and replica.phase is not Phase.STOPPING


def _retire(replica: ReplicaState, now: float) -> Intention:
    """Drain what may hold requests, stop what cannot."""
    if replica.phase is Phase.READY:
        return DrainReplica(replica.id, now + replica.drain_timeout_s)
    return StopReplica(replica.id)


def _finish_drains(replicas: Iterable[ReplicaState], now: float) -> list[Intention]:
    return [
        StopReplica(replica.id)
        for replica in replicas
        if replica.is_draining and replica.phase is not Phase.STOPPING and _is_drained(replica, now)
    ]


def _is_drained(replica: ReplicaState, now: float) -> bool:
    if replica.phase is not Phase.READY or replica.in_flight == 0:
        return True
    return replica.drain_deadline is not None and now >= replica.drain_deadline


def _starts_again(replica: ReplicaState) -> bool:
    return replica.phase is Phase.EXITED and not (replica.failure is not None and replica.failure.is_final)


def _free_names(deployment: LLMDeployment, revision: str, taken: set[str]) -> Iterator[str]:
    number = 0
    while True:
        name = f"{deployment.metadata.name}-{revision}-{number}"
        if name not in taken:
            yield name
        number += 1


def _wakes_on_request(deployment: LLMDeployment) -> bool:
    law = deployment.spec.autoscaling
    return law is not None and law.min_replicas == 0


def _route_steps(deployment: LLMDeployment, observed: Observed, *, is_refused: bool) -> list[Intention]:
    key = Key.of(deployment)
    if is_refused:
        return [WithdrawRoute(key)] if key in observed.routes else []
    secret = deployment.spec.access.api_keys_secret_ref
    route = Route(
        tuple(deployment.served_names),
        deployment.spec.routing.policy,
        secret.name if secret else None,
        _wakes_on_request(deployment),
        deployment.spec.access,
    )
    return [] if observed.routes.get(key) == route else [ServeRoute(key, route)]


def _wake_times(replicas: Iterable[ReplicaState]) -> list[float]:
    times = [replica.drain_deadline for replica in replicas if replica.drain_deadline is not None]
    return times + [restart_time(replica) for replica in replicas if _starts_again(replica)]
