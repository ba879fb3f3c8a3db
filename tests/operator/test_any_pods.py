"""Whatever objects a cluster holds, looking at them never fails, and what is then asked for leads to the wish."""

import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_operator.decide import decide
from quire_operator.plan import forgotten_revisions, left_over, plan_of
from quire_operator.pods import GatewayWord, gates_to_open, replicas_of
from quire_operator.revision import revision_of
from quire_operator.world import Key, Observed

NOW = 2_000_000_000.0
stamps = st.sampled_from(["2026-01-01T00:00:00Z", "2033-05-18T03:33:10Z", "nonsense", None])
words = st.text(max_size=12)
anything = st.text(st.characters(), max_size=12)
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), anything),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(anything, inner, max_size=2),
    max_leaves=6,
)
last_words = st.one_of(
    words,
    junk.map(json.dumps),
    st.fixed_dictionaries({"reason": junk, "message": junk}).map(json.dumps),
    st.fixed_dictionaries({"reason": anything, "message": anything}).map(json.dumps),
    st.builds(lambda text, times: text * times, words, st.sampled_from([1, 40_000])),
    st.builds(lambda reason, times: json.dumps({"reason": reason, "message": "y" * times}), words, st.just(40_000)),
    st.sampled_from(["x\ny", "[" * 4000]),
)
"""What a container may leave at /dev/termination-log: any text, any JSON."""
terminated = st.fixed_dictionaries(
    {"exitCode": st.integers(0, 255)},
    optional={
        "finishedAt": stamps,
        "message": last_words,
        "reason": words,
    },
)
states = st.one_of(
    st.just({}),
    st.just({"running": {}}),
    st.fixed_dictionaries({"terminated": terminated}),
    st.fixed_dictionaries(
        {
            "waiting": st.fixed_dictionaries(
                {},
                optional={
                    "reason": st.sampled_from(["CrashLoopBackOff", "ErrImagePull", "CreateContainerConfigError"]),
                    "message": words,
                },
            )
        }
    ),
)
containers = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["engine", "agent"]),
        "restartCount": st.integers(0, 9),
        "state": states,
        "lastState": states,
    }
)
conditions = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["ContainersReady", "Ready", "PodScheduled", "quire.dev/routable", "ReplicaFailure"]),
        "status": st.sampled_from(["True", "False", "Unknown"]),
    },
    optional={"reason": st.sampled_from(["Unschedulable", ""]), "message": words, "lastTransitionTime": stamps},
)
annotations = st.dictionaries(
    st.sampled_from(["quire.dev/drain-deadline", "quire.dev/stopping", "other"]),
    st.sampled_from(["1", "true", "x", ""]),
    max_size=2,
)


@st.composite
def clusters(draw, revisions):
    pods = [
        {
            "metadata": {
                "name": f"pod-{number}",
                "labels": draw(st.sampled_from([{}, *({"quire.dev/revision": r} for r in revisions)])),
                **draw(st.sampled_from([{}, {"deletionTimestamp": "2026-01-01T00:00:00Z"}])),
                "annotations": draw(st.one_of(st.none(), annotations)),
            },
            "spec": {"readinessGates": draw(st.sampled_from([None, [], [{"conditionType": "example.com/a"}]]))},
            "status": draw(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "phase": st.sampled_from(["Pending", "Running", "Failed", "Succeeded", "Unknown"]),
                        "conditions": st.one_of(st.none(), st.lists(conditions, max_size=3)),
                        "containerStatuses": st.one_of(st.none(), st.lists(containers, max_size=2)),
                        "initContainerStatuses": st.lists(containers, max_size=1),
                    },
                )
            ),
        }
        for number in range(draw(st.integers(0, 5)))
    ]
    deployments = [
        {
            "metadata": {"name": f"tiny-{revision}", "generation": 1, "labels": {"quire.dev/revision": revision}},
            "spec": draw(st.fixed_dictionaries({}, optional={"replicas": st.integers(0, 4)})),
            "status": draw(
                st.fixed_dictionaries(
                    {},
                    optional={
                        "replicas": st.integers(0, 4),
                        "observedGeneration": st.integers(0, 2),
                        "conditions": st.lists(conditions, max_size=2),
                    },
                )
            ),
        }
        for revision in draw(st.sets(st.sampled_from(revisions)))
    ]
    heard = draw(
        st.dictionaries(
            st.sampled_from([f"pod-{n}" for n in range(6)]),
            st.builds(GatewayWord, st.booleans(), st.integers(0, 9), st.booleans()),
        )
    )
    return pods, deployments, heard


@settings(max_examples=300, deadline=None)
@given(data=st.data(), replicas=st.integers(0, 4))
def test_any_cluster_can_be_looked_at_and_no_count_falls_below_zero(make, data, replicas):
    wish = make(replicas=replicas)
    key, revision = Key.of(wish), revision_of(wish)
    pods, deployments, heard = data.draw(clusters([revision, "former"]))
    seen = replicas_of(key, deployments, pods, heard, NOW)
    decision = decide([wish], Observed(replicas=seen, gateways=1), NOW)
    msgspec.json.encode(decision.statuses[key].model_dump(by_alias=True))
    plan = plan_of(decision.intentions, seen)
    assert all(count >= 0 for count in plan.replicas.values())
    assert plan.replicas.get(revision, 0) <= max(replicas + 1, len(seen))
    assert set(plan.marks) <= {pod["metadata"]["name"] for pod in pods}
    assert plan_of(decision.intentions, seen) == plan
    gates_to_open(pods, heard)
    forgotten_revisions(deployments, revision)
    for deployment in deployments:
        left_over(deployment, pods)


def said(reason, message):
    return json.dumps({"reason": reason, "message": message})


@pytest.mark.parametrize(
    ("message", "reason", "words"),
    [
        (said("out of luck!", "no luck"), "EngineExited", "no luck"),
        (said("", "no word"), "EngineExited", "no word"),
        (said("R" * 2000, "a long word"), "EngineExited", "a long word"),
        (said("DiskFull", "é" * 40_000), "DiskFull", "ééé"),
        (said("DiskFull", "half \ud83d of a face"), "DiskFull", "half ? of a face"),
        ("[" * 4000, "EngineExited", "exit code 1: ["),
    ],
    ids=["sentence", "empty", "long-reason", "long-message", "surrogate", "nested"],
)
def test_whatever_a_container_says_last_the_deployment_is_decided_on_and_told(make, message, reason, words):
    wish = make()
    ended = {"terminated": {"exitCode": 1, "message": message, "finishedAt": "2026-01-01T00:00:00Z"}}
    pod = {
        "metadata": {"name": "pod", "labels": {"quire.dev/revision": revision_of(wish)}},
        "status": {"containerStatuses": [{"name": "engine", "restartCount": 1, "state": ended}]},
    }
    seen = replicas_of(Key.of(wish), [], [pod], {}, NOW)
    status = decide([wish], Observed(replicas=seen, gateways=1), NOW).statuses[Key.of(wish)]
    ready = status.condition("Ready")
    assert ready.reason == reason
    assert words in ready.message
    assert len(ready.message) < 5000
    msgspec.json.encode(status.model_dump(by_alias=True))
