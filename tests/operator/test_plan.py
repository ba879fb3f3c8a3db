"""Intentions become numbers and marks, the same however often they are asked for."""

from dataclasses import replace

import pytest

from quire_operator.plan import HISTORY, covers, forgotten_revisions, left_over, plan_of
from quire_operator.world import DrainReplica, Key, Phase, ReplicaState, ResumeReplica, StartReplica, StopReplica

KEY = Key("models", "tiny")


def replica(name: str, revision: str = "new", phase: Phase = Phase.READY) -> ReplicaState:
    return ReplicaState(KEY, name, revision, phase)


def test_starts_and_stops_move_the_count_of_their_revision(make):
    start = StartReplica(make(), "tiny-new-9", "new")
    there = [replica("a"), replica("b", "old"), replica("c", "old")]
    plan = plan_of([start, StopReplica("b")], there)
    assert plan.replicas == {"new": 2, "old": 1}
    assert set(plan.marks) == {"b"}
    assert plan.marks["b"]["quire.dev/stopping"] == "true"


def test_a_stop_asked_for_twice_shrinks_once():
    there = [replica("a"), replica("b")]
    assert plan_of([StopReplica("a")], there).replicas == {"new": 1}
    there[0] = replace(there[0], phase=Phase.STOPPING)
    assert plan_of([StopReplica("a")], there).replicas == {"new": 1}


def test_a_place_without_a_pod_is_given_up_without_a_mark():
    plan = plan_of(
        [StopReplica("tiny-new-~0"), DrainReplica("tiny-new-~1", 5.0)], [replica("tiny-new-~0"), replica("tiny-new-~1")]
    )
    assert plan.replicas == {"new": 1}
    assert plan.marks == {}


def test_drains_are_marked_with_their_deadline_and_taken_back():
    plan = plan_of([DrainReplica("a", 12.5), ResumeReplica("b")], [replica("a"), replica("b")])
    assert plan.marks == {"a": {"quire.dev/drain-deadline": "12.500"}, "b": {"quire.dev/drain-deadline": None}}
    assert plan.replicas == {"new": 2}


def deployment(name: str, *, replicas: int, seen: int | None = None, created: str = "", generation: int = 1):
    revision = name.rsplit("-", 1)[1]
    return {
        "metadata": {
            "name": name,
            "generation": generation,
            "creationTimestamp": created,
            "labels": {"quire.dev/revision": revision},
        },
        "spec": {"replicas": replicas},
        "status": {"replicas": replicas if seen is None else seen, "observedGeneration": 1},
    }


def pod(name: str, *, marked: bool = False):
    return {
        "metadata": {
            "name": name,
            "labels": {"quire.dev/revision": "r"},
            "annotations": {"quire.dev/stopping": "true"} if marked else {},
        }
    }


def test_a_marked_pod_that_a_settled_replica_set_has_kept_is_left_over():
    assert left_over(deployment("t-r", replicas=1), [pod("a", marked=True)]) == ["a"]
    assert left_over(deployment("t-r", replicas=1, seen=2), [pod("a", marked=True), pod("b")]) == []
    assert left_over(deployment("t-r", replicas=1, generation=2), [pod("a", marked=True)]) == []
    assert left_over(deployment("t-r", replicas=2), [pod("a"), pod("b")]) == []


def test_history_is_kept_as_long_as_it_is_short():
    old = [deployment(f"t-{n}", replicas=0, created=f"2026-01-0{n}") for n in range(1, HISTORY + 3)]
    assert forgotten_revisions([*old, deployment("t-now", replicas=0, created="2020")], "now") == ["t-2", "t-1"]
    assert forgotten_revisions([deployment("t-1", replicas=0, seen=1)], "now") == []


@pytest.mark.parametrize(
    ("live", "wanted", "holds"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({}, {"a": None}, False),
        ({"env": [{"name": "X", "value": "1"}, {"name": "Y"}]}, {"env": [{"name": "X", "value": "1"}]}, True),
        ({"env": [{"name": "X", "value": "2"}]}, {"env": [{"name": "X", "value": "1"}]}, False),
        ({"args": ["a", "b"]}, {"args": ["a"]}, False),
        ({"ports": [{"port": 1, "protocol": "TCP"}]}, {"ports": [{"port": 1}]}, True),
        ({"a": []}, {"a": {}}, False),
    ],
)
def test_what_is_wished_must_stand_in_what_is(live, wanted, holds):
    assert covers(live, wanted) is holds


def test_a_volume_that_is_mounted_twice_is_covered_by_both_mounts():
    mounts = [{"name": "model", "mountPath": "/models"}, {"name": "model", "mountPath": "/kernels", "subPath": "k"}]
    assert covers([*mounts, {"name": "theirs", "mountPath": "/theirs"}], mounts)
    assert not covers(mounts[:1], mounts)
    assert not covers([mounts[0], {**mounts[1], "subPath": "other"}], mounts)
