"""Which revision replicas are to have under another operator, and whose turn it is."""

from dataclasses import replace

import pytest
from tests.operator.conftest import deployment

from quire_operator.build import MADE_FROM, TEMPLATE, revision_deployment
from quire_operator.build_pod import Settings
from quire_operator.renewal import Turns, are_under_way, finds_no_room, standing_of
from quire_operator.revision import revision_of, spec_marks
from quire_operator.world import Failure, Key, Phase, ReplicaState

OLD = Settings("quire/runtime:1", "quire/agent:1")
NEW = replace(OLD, engine_image="quire/runtime:2")


def made(wish, settings=OLD, *, live=(), replicas=2, available=2) -> dict:
    """The Deployment that an operator with these settings makes beside the live ones."""
    standing = standing_of(wish, live, settings)
    manifest = revision_deployment(wish, standing.revision, replicas, settings, template=standing.template)
    return {**manifest, "status": {"availableReplicas": available}}


def of_the_first_release(wish, **counts) -> dict:
    """Without marks."""
    live = made(wish, **counts)
    for mark in (MADE_FROM, TEMPLATE):
        del live["metadata"]["annotations"][mark]
    return live


@pytest.mark.parametrize("make_live", [made, of_the_first_release])
def test_the_same_operator_finds_what_it_made(make_live):
    wish = deployment()
    standing = standing_of(wish, [make_live(wish)], OLD)
    assert (standing.revision, standing.former) == (revision_of(wish), None)


@pytest.mark.parametrize("make_live", [made, of_the_first_release])
def test_another_image_is_another_revision_of_the_same_spec_and_the_way_back_is_the_first_one(make_live):
    wish = deployment()
    old = make_live(wish)
    standing = standing_of(wish, [old], NEW)
    assert standing.former == revision_of(wish) != standing.revision
    assert standing.serves
    assert not standing.is_under_way
    new = made(wish, NEW, live=[old], replicas=1, available=0)
    assert new["metadata"]["name"] != old["metadata"]["name"]
    both = standing_of(wish, [old, new], NEW)
    assert both == replace(standing, is_under_way=True)
    back = standing_of(wish, [old, new], OLD)
    assert (back.revision, back.former, back.is_under_way) == (revision_of(wish), standing.revision, True)


def test_what_serves_nobody_is_nothing_to_wait_for():
    wish = deployment()
    assert not standing_of(wish, [made(wish, available=0)], NEW).serves
    assert standing_of(wish, [made(wish, replicas=0, available=0)], NEW).former is None


def test_an_edited_spec_has_nothing_to_renew():
    edited = deployment(engine={"maxModelLen": 64})
    standing = standing_of(edited, [made(deployment())], NEW)
    assert (standing.revision, standing.former) == (revision_of(edited), None)


def test_times_that_a_deployment_keeps_and_its_number_make_no_other_pods():
    wish = deployment(replicas=2, rollout={"drainTimeout": "5s"})
    live = made(wish)
    assert standing_of(deployment(replicas=7, rollout={"drainTimeout": "9s"}), [live], OLD).former is None


def test_a_spec_is_known_again_though_a_version_has_other_defaults():
    wish = deployment()
    live = made(wish)
    with_default, as_written = spec_marks(wish)
    assert live["metadata"]["annotations"][MADE_FROM] == f"{with_default} {as_written}"
    live["metadata"]["annotations"][MADE_FROM] = f"another {as_written}"
    live["metadata"]["labels"]["quire.dev/revision"] = "another"
    assert standing_of(wish, [live], OLD).revision == "another"
    assert standing_of(wish, [live], NEW).former == "another"


def test_a_template_that_cannot_be_merged_renews_nothing():
    wish = deployment(podTemplate={"spec": {"containers": {"not": "a list"}}})
    assert standing_of(wish, [made(deployment())], NEW).former is None


def test_two_deployments_of_one_spec_with_replicas_are_on_their_way():
    wish = deployment()
    old = made(wish)
    new = made(wish, NEW, live=[old], replicas=1)
    assert are_under_way([old, new])
    assert not are_under_way([made(wish, replicas=0), new])
    assert not are_under_way([old, made(deployment(engine={"maxModelLen": 64}))])


KEYS = [Key("models", name) for name in "abc"]


def test_so_many_at_a_time_begin_and_the_next_is_woken_when_one_has_arrived():
    woken = []
    turns = Turns(1, woken.extend)
    assert [turns.has(key) for key in KEYS] == [True, False, False]
    assert turns.has(KEYS[0])
    turns.leave(KEYS[0])
    assert woken == [KEYS[1]]
    assert [turns.has(key) for key in (KEYS[1], KEYS[2])] == [True, False]


def test_one_that_finds_no_room_lets_others_begin_and_counts_again_once_it_has_room():
    woken = []
    turns = Turns(1, woken.extend)
    assert [turns.has(key) for key in KEYS] == [True, False, False]
    turns.place(KEYS[0], has_room=False)
    turns.place(KEYS[0], has_room=False)
    assert woken == [KEYS[1]]
    assert [turns.has(key) for key in KEYS] == [True, True, False]
    turns.place(KEYS[0], has_room=True)
    turns.leave(KEYS[1])
    assert woken == [KEYS[1]]
    turns.leave(KEYS[0])
    assert woken == [KEYS[1], KEYS[2]]


def test_there_is_no_room_where_every_new_replica_has_had_no_place_for_a_while():
    def replica(reason="GpuUnavailable", at=100.0, revision="new", **state):
        failure = Failure(reason, "no", at) if reason else None
        return ReplicaState(KEYS[0], f"{reason}-{at}", revision, Phase.STARTING, failure=failure, **state)

    assert finds_no_room([replica(), replica(revision="old", reason="")], "new", since=100.0)
    assert not finds_no_room([replica()], "new", since=99.0)
    assert not finds_no_room([replica(), replica("ImagePullFailed")], "new", since=100.0)
    assert not finds_no_room([replica(), replica("")], "new", since=100.0)
    assert not finds_no_room([], "new", since=100.0)


def test_one_that_goes_away_before_its_turn_hands_it_on():
    woken = []
    turns = Turns(1, woken.extend)
    for key in KEYS:
        turns.has(key)
    turns.leave(KEYS[0])
    turns.leave(KEYS[1])
    assert woken == [KEYS[1], KEYS[2]]


def test_a_new_leader_counts_what_the_former_one_has_begun():
    turns = Turns(1, lambda keys: None)
    turns.resume([KEYS[2]])
    assert not turns.has(KEYS[0])
    assert turns.has(KEYS[2])


def test_without_turns_nobody_begins():
    turns = Turns(0, lambda keys: None)
    assert not turns.has(KEYS[0])
    turns.leave(KEYS[1])
    assert not turns.has(KEYS[0])
