"""From pods to replicas: phases, and the reasons of failures in words."""

import pytest

from quire_operator.pods import GatewayWord, creation_failure, gates_to_open, replicas_of
from quire_operator.world import Key, Phase

KEY = Key("models", "tiny")
NOW = 2_000_000_000.0
THEN = "2026-01-01T00:00:00Z"


def pod(name="tiny-r-1", *, revision="r", annotations=None, deleted=False, phase="Running", conditions=(), engine=None):
    metadata = {"name": name, "labels": {"quire.dev/revision": revision}, "annotations": annotations or {}}
    if deleted:
        metadata["deletionTimestamp"] = THEN
    statuses = [{"name": "engine", "image": "quire:1", "restartCount": 0, "state": {"running": {}}, **(engine or {})}]
    conditions = [{"lastTransitionTime": THEN, **condition} for condition in conditions]
    return {"metadata": metadata, "status": {"phase": phase, "conditions": conditions, "containerStatuses": statuses}}


def ready(**more):
    return pod(conditions=[{"type": "ContainersReady", "status": "True"}], **more)


def deployment(replicas, *, conditions=()):
    return {
        "metadata": {"name": "tiny-r", "labels": {"quire.dev/revision": "r"}},
        "spec": {"replicas": replicas},
        "status": {"conditions": list(conditions)},
    }


def one(body, words=None):
    (replica,) = replicas_of(KEY, [], [body], words or {}, NOW)
    return replica


def test_phases_follow_the_pod():
    assert one(pod()).phase is Phase.STARTING
    assert one(ready()).phase is Phase.READY
    assert one(ready(deleted=True)).phase is Phase.STOPPING
    assert one(ready(annotations={"quire.dev/stopping": "true"})).phase is Phase.STOPPING
    assert one(pod(phase="Failed")).phase is Phase.STOPPING
    looping = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "restartCount": 2}
    assert one(pod(engine=looping)).phase is Phase.EXITED


def test_a_pod_is_routable_by_word_or_by_its_gate():
    word = {"tiny-r-1": GatewayWord(True, 3, False)}
    assert one(ready(), word).is_routable
    assert one(ready(), word).in_flight == 3
    assert not one(ready()).is_routable
    gate = [{"type": "ContainersReady", "status": "True"}, {"type": "quire.dev/routable", "status": "True"}]
    assert one(pod(conditions=gate)).is_routable
    assert gates_to_open([ready()], word) == ["tiny-r-1"]
    assert gates_to_open([pod(conditions=gate), pod()], word) == []


def test_a_pod_is_counted_once_it_is_ready_and_the_gates_of_others_that_are_closed_are_named():
    served = [{"type": "ContainersReady", "status": "True"}, {"type": "quire.dev/routable", "status": "True"}]
    assert not one(pod(conditions=served)).is_counted
    assert one(pod(conditions=[*served, {"type": "Ready", "status": "True"}])).is_counted
    gates = [{"conditionType": name} for name in ("quire.dev/routable", "example.com/a", "example.com/b")]
    body = {**pod(conditions=[{"type": "example.com/a", "status": "True"}]), "spec": {"readinessGates": gates}}
    assert one(body).closed_gates == ("example.com/b",)


def test_the_count_of_a_draining_pod_is_believed_once_every_gateway_knows():
    draining = ready(annotations={"quire.dev/drain-deadline": "123.5"})
    assert one(draining).drain_deadline == 123.5
    assert one(draining, {"tiny-r-1": GatewayWord(True, 0, False)}).in_flight is None
    assert one(draining, {"tiny-r-1": GatewayWord(True, 0, True)}).in_flight == 0


def test_places_without_a_pod_are_replicas_too():
    """3 wanted, 1 there, 1 leaving: 2 places."""
    replicas = replicas_of(KEY, [deployment(3)], [pod("a"), pod("b", deleted=True)], {}, NOW)
    assert [replica.id for replica in replicas] == ["a", "b", "tiny-r-~0", "tiny-r-~1"]
    assert [replica.revision for replica in replicas] == ["r"] * 4


def test_a_full_quota_is_the_failure_of_the_missing():
    condition = {"type": "ReplicaFailure", "status": "True", "message": "pods x is forbidden: exceeded quota: small"}
    assert creation_failure(deployment(1, conditions=[condition]), NOW).reason == "QuotaExceeded"
    assert creation_failure(deployment(1), NOW) is None


def unschedulable(message):
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(conditions=[condition], phase="Pending")


def ended(**terminated):
    state = {"waiting": {"reason": "CrashLoopBackOff"}}
    return pod(
        engine={"state": state, "lastState": {"terminated": {"finishedAt": THEN, **terminated}}, "restartCount": 4}
    )


def waiting(reason, message=""):
    return pod(engine={"state": {"waiting": {"reason": reason, "message": message}}}, phase="Pending")


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        (
            unschedulable("0/3 nodes: 3 Insufficient nvidia.com/gpu. preemption: none"),
            "GpuUnavailable",
            "resources.gpus",
        ),
        (unschedulable("0/3 nodes: 3 Insufficient memory."), "InsufficientResources", "Insufficient memory"),
        (unschedulable("1 node(s) had untolerated taint"), "Unschedulable", "taint"),
        (unschedulable('persistentvolumeclaim "w" not found'), "VolumeUnavailable", '"w" not found'),
        (waiting("ImagePullBackOff", "not found"), "ImagePullFailed", "quire:1 cannot be pulled: not found"),
        (waiting("CreateContainerConfigError", 'secret "hub" not found'), "SecretNotFound", "create the Secret hub"),
        (waiting("RunContainerError", "exec: quire"), "ContainerRefused", "exec: quire"),
        (ended(reason="OOMKilled", exitCode=137), "OutOfMemory", "raise resources.memory"),
        (ended(exitCode=2, message='{"reason": "DoesNotFit", "message": "needs 3 GiB"}'), "DoesNotFit", "needs 3 GiB"),
        (ended(exitCode=1, message="a\nlast words\n"), "EngineExited", "exit code 1: last words"),
        (
            ended(exitCode=2, message="Usage: a\n\nError: No such option: --b\n"),
            "InvalidSpec",
            ": No such option: --b;",
        ),
        (ended(exitCode=2), "EngineExited", "it left no message"),
        (ended(exitCode=137), "EngineKilled", "exit code 137"),
    ],
)
def test_failures_have_a_reason_and_a_next_step(body, reason, words):
    failure = one(body).failure
    assert failure.reason == reason
    assert words in failure.message


def test_a_gpu_by_any_name_is_one():
    short = unschedulable("0/3 nodes: 3 Insufficient nvidia.com/mig-1g.5gb. preemption: none")
    (replica,) = replicas_of(KEY, [], [short], {}, NOW, gpu_resource="nvidia.com/mig-1g.5gb")
    assert replica.failure.reason == "GpuUnavailable"
    other = unschedulable("0/3 nodes: 3 Insufficient nvidia.com/mig-1g.5gb-more.")
    (replica,) = replicas_of(KEY, [], [other], {}, NOW, gpu_resource="nvidia.com/mig-1g.5gb")
    assert replica.failure.reason == "InsufficientResources"


def test_crashes_are_counted_without_the_one_it_lies_in():
    assert one(ended(exitCode=1)).failures == 3
    assert one(pod(engine={"restartCount": 4})).failures == 4


def test_what_a_deployment_has_beyond_its_number_is_kubernetes_own_coming_and_going():
    serving = [ready(name=f"old-{number}") for number in range(2)]
    words = {f"old-{number}": GatewayWord(True, 0, False) for number in range(2)}
    surge = pod(name="new")
    found = replicas_of(KEY, [deployment(2)], [*serving, surge], words, NOW)
    assert [replica.id for replica in found] == ["old-0", "old-1"]
    going = ready(name="old-0", deleted=True)
    found = replicas_of(KEY, [deployment(2)], [going, serving[1], ready(name="new")], words, NOW)
    assert {replica.id: replica.phase for replica in found} == {
        "old-0": Phase.STOPPING,
        "old-1": Phase.READY,
        "new": Phase.READY,
    }
