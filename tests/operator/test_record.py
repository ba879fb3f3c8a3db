"""A spec that is no longer understood is served as it was when it was."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.operator.conftest import deployment
from tests.operator.test_any_spec import junk, resource, specs

from quire_operator.build import standing_objects
from quire_operator.build_pod import Settings
from quire_operator.record import ENTRY, LONGEST, last_understood, record_of
from quire_operator.resource import read
from quire_operator.revision import revision_of
from quire_operator.served import served_by
from quire_operator.store import Store
from quire_operator.world import Finding, Key, StartReplica

KEY = Key("default", "tiny")
UNREAD = Finding("InvalidSpec", 'spec.rollout.drainTimeout: "9000h" is longer than a year')


@settings(max_examples=300, deadline=None)
@given(spec=specs, later=junk)
def test_what_was_understood_once_comes_back_whole_whatever_is_written_over_it(spec, later):
    once = read(resource(spec)).deployment
    if once is None:
        return
    wanted = later["replicas"] if isinstance(later, dict) and "replicas" in later else None
    found = last_understood(resource(later), record_of(once))
    assert found is not None
    assert revision_of(found) == revision_of(once)
    assert found.spec.model_copy(update={"replicas": 0}) == once.spec.model_copy(update={"replicas": 0})
    assert found.spec.replicas in (once.spec.replicas, wanted)


@pytest.mark.parametrize(
    ("asked", "served"), [(5, 5), (0, 0), (-1, 2), (1001, 2), ("5", 2), (True, 2), (None, 2), (1.5, 2)]
)
def test_scaling_goes_on_while_the_rest_is_being_mended(asked, served):
    raw = resource({"model": {}, "replicas": asked})
    assert last_understood(raw, record_of(deployment(replicas=2))).spec.replicas == served


@settings(max_examples=200, deadline=None)
@given(entry=st.one_of(st.text(), junk.map(lambda value: json.dumps(value, default=str)), st.just("[" * 100_000)))
def test_a_record_that_somebody_has_spoilt_is_none(entry):
    assert last_understood(resource(None), {ENTRY: entry}) is None


def test_a_spec_too_long_for_the_secret_is_not_recorded():
    assert record_of(deployment(experimental={"x": "y" * LONGEST})) == {}


def test_a_complaint_is_said_and_keeps_nobody_from_starting(make, world):
    world.run(make(replicas=1))
    world.complaints = {KEY: UNREAD}
    decision = world.run(make(replicas=3))
    assert len(world.available()) == 3
    conditions = {c.type: (c.status, c.reason) for c in decision.statuses[KEY].conditions}
    assert conditions["Ready"] == conditions["Resolved"] == ("False", "InvalidSpec")
    assert conditions["Available"] == ("True", "MinimumAvailable")
    assert decision.statuses[KEY].condition("Ready").message == UNREAD.message


def test_what_keeps_replicas_from_starting_does_so_beside_a_complaint(make, world):
    world.complaints, world.findings = {KEY: UNREAD}, {KEY: Finding("SecretNotFound", "create it")}
    decision = world.step(make(replicas=1))
    assert not any(isinstance(step, StartReplica) for step in decision.intentions)
    assert decision.statuses[KEY].condition("Ready").reason == "InvalidSpec"


def test_the_record_of_a_former_deployment_of_this_name_serves_nobody():
    store = Store()
    raw = resource({"model": {}})
    raw["metadata"]["resourceVersion"] = "2"
    store.put("LLMDeployment", raw)
    for uid, is_served in (("former", False), (raw["metadata"]["uid"], True)):
        store.put("Secret", secret_of(read(resource({"model": {"source": "file://m"}})).deployment, uid))
        assert (served_by(store, read(raw)) is not None) is is_served


def secret_of(wish, uid: str) -> dict:
    (secret,) = (o for o in standing_objects(wish, 1, "k", Settings("e", "a")) if o["kind"] == "Secret")
    secret["metadata"]["ownerReferences"][0]["uid"] = uid
    return secret
