"""Any object at all can be read; what cannot be understood says so, and decisions hold for everything that can."""

from hypothesis import given, settings
from hypothesis import strategies as st

from quire_operator.decide import decide
from quire_operator.resource import read
from quire_operator.world import Failure, Key, Observed, Phase, ReplicaState

VALID = {
    "apiVersion": "quire.dev/v1alpha1",
    "kind": "LLMDeployment",
    "metadata": {"name": "tiny", "namespace": "team", "generation": 3, "uid": "u", "resourceVersion": "12"},
    "spec": {"model": {"source": "hf://a/b"}},
}

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
names = st.sampled_from(
    ["model", "source", "replicas", "engine", "autoscaling", "minReplicas", "metadata", "name", "spec", "x", "kvCache"]
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=4)),
    max_leaves=12,
)


def test_a_valid_object_is_understood_with_its_status():
    resource = read({**VALID, "status": {"observedGeneration": 2, "url": "http://x"}})
    assert resource.key == Key("team", "tiny")
    assert resource.deployment.status.url == "http://x"
    assert resource.previous.observed_generation == 2
    assert (resource.generation, resource.problems) == (3, ())


def test_an_invalid_object_keeps_key_generation_and_status():
    resource = read({**VALID, "spec": {"model": {"source": "a/b"}, "x": 1}, "status": {"url": "http://x"}})
    assert resource.deployment is None
    assert (resource.key, resource.generation, resource.previous.url) == (Key("team", "tiny"), 3, "http://x")
    assert resource.message.startswith('spec.model.source: "a/b" must begin with hf://')
    assert "spec.x: unknown field" in resource.message


def test_a_status_of_another_version_is_dropped():
    resource = read({**VALID, "status": {"phase": "Running"}})
    assert resource.deployment is not None
    assert resource.previous is None


@settings(max_examples=300)
@given(
    st.dictionaries(st.sampled_from(["apiVersion", "kind", "metadata", "spec", "status", "x"]), anything, max_size=6)
)
def test_no_object_is_too_strange_to_be_read(data):
    resource = read(data)
    assert resource.deployment is not None or resource.problems


@settings(max_examples=300)
@given(anything)
def test_no_spec_is_too_strange_to_be_read(spec):
    resource = read({**VALID, "spec": spec})
    assert resource.deployment is not None or resource.problems


replica_states = st.builds(
    ReplicaState,
    key=st.sampled_from([Key("default", "a"), Key("default", "b"), Key("default", "gone")]),
    id=st.uuids().map(str),
    revision=st.sampled_from(["00000000", "11111111"]),
    phase=st.sampled_from([Phase.STARTING, Phase.READY, Phase.STOPPING]),
    ready_at=st.one_of(st.none(), st.floats(0, 1000)),
    is_routable=st.booleans(),
    in_flight=st.one_of(st.none(), st.integers(0, 9)),
    is_draining=st.booleans(),
    drain_deadline=st.one_of(st.none(), st.floats(0, 2000)),
    failures=st.integers(0, 9),
    failure=st.one_of(st.none(), st.builds(Failure, st.just("EngineExited"), st.text(max_size=5), st.floats(0, 1000))),
)
exited = st.builds(
    ReplicaState,
    key=st.just(Key("default", "a")),
    id=st.uuids().map(str),
    revision=st.just("00000000"),
    phase=st.just(Phase.EXITED),
    failures=st.integers(0, 9),
    failure=st.builds(Failure, st.just("DoesNotFit"), st.text(max_size=5), st.floats(0, 1000)),
)


@settings(max_examples=300)
@given(
    replicas=st.lists(st.one_of(replica_states, exited), max_size=8),
    wanted=st.integers(0, 4),
    gateways=st.integers(0, 2),
)
def test_a_decision_exists_for_every_state_of_the_world(make, replicas, wanted, gateways):
    wishes = [make("a", replicas=wanted), make("b", replicas=1)]
    decision = decide(wishes, Observed(replicas=replicas, gateways=gateways), 1000.0)
    assert set(decision.statuses) == {Key("default", "a"), Key("default", "b")}
    touched = [intention.replica for intention in decision.intentions if hasattr(intention, "replica")]
    assert len(touched) == len(set(touched))  # never two steps on one replica
    assert decision.wake_at is None or decision.wake_at > 1000.0


def test_one_deployment_never_changes_what_is_decided_for_another(make):
    alone = decide([make("a", replicas=2)], Observed(), 0.0)
    beside = decide([make("a", replicas=2), make("b", replicas=3)], Observed(), 0.0)
    key = Key("default", "a")
    assert alone.statuses[key] == beside.statuses[key]
    assert [i for i in beside.intentions if getattr(i, "key", key) == key][: len(alone.intentions)] == alone.intentions
