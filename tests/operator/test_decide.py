"""Replicas come, go and are exchanged; each test states its arithmetic."""

from collections import Counter

import pytest

from quire_operator.decide import (
    BACKOFF_LONGEST_S,
    STABLE_AFTER_S,
    Holder,
    crashes_in_a_row,
    name_conflicts,
    restart_time,
    wanted_replicas,
)
from quire_operator.revision import revision_of
from quire_operator.world import (
    DrainReplica,
    Failure,
    Finding,
    Key,
    Phase,
    ReplicaState,
    RestartReplica,
    ResumeReplica,
    StartReplica,
    StopReplica,
)

KEY = Key("default", "tiny")


def kinds(intentions) -> Counter:
    return Counter(type(intention).__name__ for intention in intentions)


def revisions(world) -> Counter:
    return Counter(replica.revision for replica in world.replicas.values())


class TestRevision:
    @pytest.mark.parametrize(
        "spec",
        [
            {"replicas": 5},
            {"autoscaling": {"maxReplicas": 3}},
            {"routing": {"policy": "random"}},
            {"rollout": {"drainTimeout": "5s"}},
            {"access": {"apiKeysSecretRef": {"name": "keys"}}},
        ],
    )
    def test_stays_when_running_replicas_can_take_the_change(self, make, spec):
        assert revision_of(make(**spec)) == revision_of(make())

    @pytest.mark.parametrize(
        "spec",
        [
            {"engine": {"maxModelLen": 100}},
            {"engine": {"extraArgs": ["--enforce-eager"]}},
            {"resources": {"gpus": 1}},
            {"podTemplate": {"spec": {}}},
            {"experimental": {"a": 1}},
            {"model": {"servedNames": ["other"]}},
            {"model": {"source": "file://n"}},
        ],
    )
    def test_changes_when_replicas_must_be_built_anew(self, make, spec):
        assert revision_of(make(**spec)) != revision_of(make())

    def test_writing_out_a_default_changes_nothing(self, make):
        assert revision_of(make(engine={"device": "auto"}, model={"servedNames": ["tiny"]})) == revision_of(make())


class TestScale:
    def test_the_wanted_replicas_start_at_once(self, make, world):
        decision = world.step(make(replicas=3))
        assert kinds(decision.intentions)["StartReplica"] == 3

    def test_nothing_is_left_to_do_once_all_serve(self, make, world):
        wish = make(replicas=3)
        assert world.run(wish).intentions == []
        assert len(world.available()) == 3

    def test_up_and_down(self, make, world):
        for count in (1, 4, 2, 0, 1):
            world.run(make(replicas=count))
            assert len(world.available()) == len(world.replicas) == count

    def test_down_drains_before_it_stops(self, make, world):
        world.run(make(replicas=2))
        busy = world.available()[0]
        for name in world.available():
            world.load(name, 3)
        decision = world.step(make(replicas=1))
        (drained,) = [i for i in decision.intentions if isinstance(i, DrainReplica)]
        assert drained.deadline == world.now + 30
        assert decision.wake_at is None
        world.log.clear()
        for _ in range(3):  # three requests end, one a tick
            assert not any(isinstance(intention, StopReplica) for intention in world.log)
            world.tick()
            world.step(make(replicas=1))
        assert StopReplica(drained.replica) in world.log
        assert busy != drained.replica or world.available()

    def test_down_takes_the_least_busy(self, make, world):
        world.run(make(replicas=3))
        first, second, third = world.available()
        world.load(first, 5)
        world.load(second, 1)
        world.load(third, 4)
        drains = [i.replica for i in world.step(make(replicas=2)).intentions if isinstance(i, DrainReplica)]
        assert drains == [second]

    def test_down_takes_one_that_does_not_serve_before_one_that_does(self, make, world):
        world.run(make(replicas=2))
        world.step(make(replicas=3))
        starting = next(name for name, replica in world.replicas.items() if replica.phase is Phase.STARTING)
        assert StopReplica(starting) in world.step(make(replicas=2)).intentions

    def test_down_takes_one_that_the_cluster_does_not_count_before_one_that_it_does(self, make, world):
        world.run(make(replicas=1))
        (counted,) = world.available()
        world.load(counted, 5)
        while len(world.available()) < 2:
            world.step(make(replicas=2))
            world.tick()
        (other,) = set(world.available()) - {counted}
        world.load(other, 9)
        drains = [i.replica for i in world.step(make(replicas=1)).intentions if isinstance(i, DrainReplica)]
        assert drains == [other]

    def test_a_drain_ends_at_its_deadline_whatever_is_in_flight(self, make, world):
        wish = make(replicas=1, rollout={"drainTimeout": "10s"})
        world.run(wish)
        (name,) = world.available()
        world.load(name, 1000)
        gone = make(replicas=0, rollout={"drainTimeout": "10s"})
        world.step(gone)
        for _ in range(9):
            world.tick()
            decision = world.step(gone)
            assert StopReplica(name) not in decision.intentions
            assert decision.wake_at is not None
        world.tick()
        assert StopReplica(name) in world.step(gone).intentions

    def test_a_drain_waits_while_the_load_is_not_known(self, make, world):
        world.run(make(replicas=1))
        (name,) = world.available()
        world.step(make(replicas=0))
        world.load(name, None)
        assert StopReplica(name) not in world.step(make(replicas=0)).intentions

    def test_up_again_resumes_what_still_drains(self, make, world):
        world.run(make(replicas=2))
        for name in world.available():
            world.load(name, 50)
        world.step(make(replicas=1))
        decision = world.step(make(replicas=2))
        assert kinds(decision.intentions) == {"ResumeReplica": 1}
        assert isinstance(decision.intentions[0], ResumeReplica)

    @pytest.mark.parametrize(("replicas", "wanted"), [(0, 2), (3, 3), (9, 4)])
    def test_autoscaling_bounds_hold_replicas(self, make, replicas, wanted):
        assert wanted_replicas(make(replicas=replicas, autoscaling={"minReplicas": 2, "maxReplicas": 4})) == wanted

    def test_a_deployment_that_is_gone_is_drained_and_stopped(self, make, world):
        world.run(make(replicas=2))
        world.load(world.available()[0], 2)
        decision = world.step()
        assert kinds(decision.intentions) == {"DrainReplica": 2}
        world.run()
        assert not world.replicas
        assert not world.routes

    def test_others_are_left_alone(self, make, world):
        world.run(make("one", replicas=2), make("two", replicas=1))
        one = [name for name in world.available() if name.startswith("one")]
        world.run(make("one", replicas=2))
        assert world.available() == one


class TestRollout:
    def test_new_comes_up_before_old_goes(self, make, world):
        world.run(make(replicas=2))
        changed = make(replicas=2, engine={"maxModelLen": 64})
        for _ in range(30):
            world.step(changed)
            assert len(world.available()) >= 2  # maxUnavailable 0
            assert len(world.counted()) >= 2  # by endpoints and budgets, which come to know a moment later
            assert len(world.replicas) <= 3  # replicas 2 + maxSurge 1
            world.tick()
        assert revisions(world) == {revision_of(changed): 2}

    def test_old_stays_while_a_readiness_gate_of_new_is_closed_and_the_status_names_it(self, make, world):
        before = make(replicas=2)
        world.run(before)
        changed = make(replicas=2, engine={"maxModelLen": 64})
        world.closed_gates = ("example.com/balanced",)
        status = world.run(changed).statuses[KEY]
        assert revisions(world) == {revision_of(before): 2, revision_of(changed): 1}
        assert status.condition("Ready").status == "True"
        assert "example.com/balanced" in status.condition("Loaded").message
        world.closed_gates = ()
        status = world.run(changed).statuses[KEY]
        assert revisions(world) == {revision_of(changed): 2}
        assert status.condition("Loaded").message == ""

    def test_without_surge_old_makes_room_for_new(self, make, world):
        rollout = {"maxSurge": 0, "maxUnavailable": 1}
        world.run(make(replicas=2, rollout=rollout))
        changed = make(replicas=2, rollout=rollout, engine={"maxModelLen": 64})
        for _ in range(40):
            world.step(changed)
            assert len(world.available()) >= 1
            assert len(world.replicas) <= 2
            world.tick()
        assert revisions(world) == {revision_of(changed): 2}

    def test_percentages_that_round_to_nothing_still_take_a_step(self, make, world):
        rollout = {"maxSurge": 0, "maxUnavailable": "25%"}  # 25 % of 2 rounds down to 0
        world.run(make(replicas=2, rollout=rollout))
        changed = make(replicas=2, rollout=rollout, engine={"maxModelLen": 64})
        world.run(changed)
        assert revisions(world) == {revision_of(changed): 2}

    def test_a_broken_revision_stops_the_rollout_and_the_old_one_serves_on(self, make, world):
        before = make(replicas=3)
        world.run(before)
        broken = make(replicas=3, engine={"extraArgs": ["--no-such-flag"]})
        world.broken = lambda replica: replica.revision == revision_of(broken)
        decision = world.run(broken, ticks=120)
        assert len(world.available()) == 3
        assert revisions(world) == {revision_of(before): 3, revision_of(broken): 1}
        ready = decision.statuses[KEY].condition("Ready")
        assert (ready.status, ready.reason) == ("False", "CrashLoop")
        assert "3 of the former revision serve on" in ready.message

    def test_an_old_replica_that_crashes_beside_a_broken_revision_comes_back(self, make, world):
        before = make(replicas=2)
        world.run(before)
        broken = make(replicas=2, engine={"extraArgs": ["--no-such-flag"]})
        world.broken = lambda replica: replica.revision == revision_of(broken)
        world.run(broken)
        world.crash(world.available()[0])
        world.run(broken)
        assert revisions(world)[revision_of(before)] == 2
        assert len(world.available()) == 2

    def test_taking_the_edit_back_rolls_back(self, make, world):
        before = make(replicas=2)
        world.run(before)
        kept = world.available()
        broken = make(replicas=2, engine={"extraArgs": ["--no-such-flag"]})
        world.broken = lambda replica: replica.revision == revision_of(broken)
        world.run(broken)
        world.run(before)
        assert world.available() == kept
        assert revisions(world) == {revision_of(before): 2}

    def test_a_broken_first_revision_is_replaced_by_the_fixed_one(self, make, world):
        broken = make(replicas=2, engine={"extraArgs": ["--no-such-flag"]})
        world.broken = lambda replica: replica.revision == revision_of(broken)
        world.run(broken)
        fixed = make(replicas=2)
        world.run(fixed, ticks=60)
        assert revisions(world) == {revision_of(fixed): 2}

    def test_nothing_moves_while_no_gateway_reports(self, make, world):
        world.run(make(replicas=2))
        world.gateways = 0
        changed = make(replicas=2, engine={"maxModelLen": 64})
        world.run(changed)
        assert revisions(world)[revision_of(make())] == 2

    def test_a_finding_holds_the_rollout(self, make, world):
        before = make(replicas=2)
        world.run(before)
        changed = make(replicas=2, model={"source": "file://nowhere"})
        world.findings = {KEY: Finding("WeightsNotFound", "there is no nowhere")}
        decision = world.run(changed)
        assert revisions(world) == {revision_of(before): 2}
        assert decision.statuses[KEY].condition("Ready").reason == "WeightsNotFound"


class TestCrash:
    def crashed(self, *, failures: int = 0, ready_for: float | None = None) -> ReplicaState:
        ready_at = None if ready_for is None else 100.0 - ready_for
        failure = Failure("EngineExited", "", 100.0)
        return ReplicaState(KEY, "a", "r", Phase.EXITED, ready_at=ready_at, failures=failures, failure=failure)

    @pytest.mark.parametrize(("failures", "delay"), [(0, 1), (1, 2), (2, 4), (3, 8), (5, 32), (6, 60), (50, 60)])
    def test_back_off_doubles_up_to_a_minute(self, failures, delay):
        assert restart_time(self.crashed(failures=failures)) == 100 + delay

    def test_back_off_is_bounded_for_ever(self):
        assert restart_time(self.crashed(failures=10**6)) == 100 + BACKOFF_LONGEST_S

    def test_a_stable_run_clears_the_record(self):
        assert crashes_in_a_row(self.crashed(failures=5, ready_for=STABLE_AFTER_S)) == 1
        assert crashes_in_a_row(self.crashed(failures=5, ready_for=STABLE_AFTER_S - 1)) == 6

    def test_a_crashed_replica_comes_back_under_its_name_and_no_sooner(self, make, world):
        wish = make(replicas=2)
        world.run(wish)
        names = world.available()
        world.crash(names[0])
        decision = world.step(wish)
        assert decision.intentions == []
        assert decision.wake_at == world.now + 1
        world.tick()
        assert world.step(wish).intentions == [RestartReplica(names[0], 1)]
        world.run(wish)
        assert world.available() == names

    def test_a_crash_while_draining_is_simply_the_end(self, make, world):
        world.run(make(replicas=2))
        for name in world.available():
            world.load(name, 9)
        world.step(make(replicas=1))
        draining = next(name for name, replica in world.replicas.items() if replica.is_draining)
        world.crash(draining)
        assert world.step(make(replicas=1)).intentions == [StopReplica(draining)]

    def test_a_crashed_surplus_replica_is_given_up(self, make, world):
        world.run(make(replicas=2))
        victim = world.available()[0]
        world.crash(victim)
        assert world.step(make(replicas=1)).intentions == [StopReplica(victim)]

    def test_restarts_become_rare(self, make, world):
        world.broken = lambda replica: True
        world.run(make(replicas=1), ticks=300)
        restarts = sum(isinstance(intention, RestartReplica) for intention in world.log)
        assert restarts <= 11  # after 1 + 2 + 4 + ... + 32 + 60 + 60 ... s, and 2 s for each start

    def test_what_only_another_spec_can_mend_is_not_started_again(self, make, world):
        world.run(make(replicas=1))
        (name,) = world.available()
        world.crash(name, "InvalidSpec", "no such flag: --nosuch")
        decision = world.run(make(replicas=1), ticks=100)
        assert not any(isinstance(intention, RestartReplica) for intention in world.log)
        assert decision.wake_at is None
        (status,) = decision.statuses.values()
        assert (status.condition("Ready").reason, status.condition("Ready").message) == (
            "InvalidSpec",
            "no such flag: --nosuch",
        )
        world.run(make(replicas=1, engine={"maxModelLen": 64}))
        assert len(world.available()) == 1


class TestNames:
    def test_the_oldest_keeps_the_name(self, make):
        old = make("b", created="2026-01-01T00:00:00Z", model={"servedNames": ["chat"]})
        young = make("a", created="2026-01-02T00:00:00Z", model={"servedNames": ["chat", "a"]})
        (conflict,) = name_conflicts(map(Holder.of, [young, old])).items()
        assert conflict[0] == Key("default", "a")
        assert '"chat" is already served by default/b' in conflict[1].message

    def test_the_other_gets_no_replicas_and_says_so(self, make, world):
        old = make("one", created="2026-01-01T00:00:00Z", model={"servedNames": ["chat"]})
        young = make("two", created="2026-01-02T00:00:00Z", model={"servedNames": ["chat"]})
        decision = world.run(young, old)
        assert {replica.key.name for replica in world.replicas.values()} == {"one"}
        assert set(world.routes) == {Key("default", "one")}
        status = decision.statuses[Key("default", "two")]
        assert status.condition("Ready").reason == "NameConflict"
        assert status.url == ""
        assert decision.statuses[Key("default", "one")].condition("Ready").status == "True"

    def test_the_conflict_ends_with_the_older_one(self, make, world):
        old = make("one", created="2026-01-01T00:00:00Z", model={"servedNames": ["chat"]})
        young = make("two", created="2026-01-02T00:00:00Z", model={"servedNames": ["chat"]})
        world.run(young, old)
        decision = world.run(young)
        assert decision.statuses[Key("default", "two")].condition("Ready").status == "True"

    def test_a_name_given_up_is_free_for_the_next(self, make):
        first = make("a", created="1", model={"servedNames": ["x"]})
        loser = make("b", created="2", model={"servedNames": ["x", "y"]})
        third = make("c", created="3", model={"servedNames": ["y"]})
        assert set(name_conflicts(map(Holder.of, [first, loser, third]))) == {Key("default", "b")}

    def test_same_names_in_two_namespaces_conflict_by_served_name(self, make):
        one = make("a", created="1")
        other = make("a", created="2").model_copy(
            update={"metadata": one.metadata.model_copy(update={"namespace": "team", "creation_timestamp": "2"})}
        )
        assert set(name_conflicts(map(Holder.of, [one, other]))) == {Key("team", "a")}


class TestRoutes:
    def test_a_route_is_written_once_and_follows_edits(self, make, world):
        world.run(make())
        assert kinds(world.log)["ServeRoute"] == 1
        world.run(make(routing={"policy": "leastLoad"}))
        assert world.routes[KEY].policy == "leastLoad"

    def test_a_route_outlives_its_draining_replicas(self, make, world):
        world.run(make())
        world.load(world.available()[0], 3)
        world.step()
        assert KEY in world.routes
        world.run()
        assert KEY not in world.routes


def test_replica_names_are_never_shared(make, world):
    world.run(make(replicas=3))
    world.run(make(replicas=3, engine={"maxModelLen": 64}))
    started = [intention.replica for intention in world.log if isinstance(intention, StartReplica)]
    assert len(started) == len(set(started)) == 6
