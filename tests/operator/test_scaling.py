"""What gateways and replicas say, put together for the scaling law."""

from dataclasses import replace

import pytest

from quire_api import wire
from quire_operator.autoscale import Load
from quire_operator.scaling import Scaler, load_of
from quire_operator.world import DrainReplica, Key, Phase, ReplicaState, StartReplica, StopReplica

KEY = Key("default", "tiny")


def told(name: str = "tiny", **load) -> wire.GatewayLoad:
    entry = {"in_flight": 0, "held": 0, "queued_tokens": 0, "requests": 0, "idle_s": 0.0, **load}
    return wire.GatewayLoad(
        gateway="g", deployments=[wire.DeploymentLoad(deployment=name, namespace="default", **entry)]
    )


def replica(name: str, phase: Phase = Phase.READY, **more) -> ReplicaState:
    more = {"is_routable": phase is Phase.READY, "ready_at": 1.0, "in_flight": 0, **more}
    return ReplicaState(KEY, name, "rev", phase, **more)


class TestLoad:
    def test_gateways_add_up(self, make):
        deployment = make(replicas=2, autoscaling={"maxReplicas": 4})
        reports = [
            told(in_flight=3, held=1, idle_s=9.0, ttft_p90_s=0.2, itl_p90_s=0.05, arrivals_per_s=1.5),
            told(in_flight=4, idle_s=5.0, ttft_p90_s=0.4, arrivals_per_s=2.0, service_s=3.0),
        ]
        assert load_of(deployment, reports, [replica("a"), replica("b")]) == Load(
            in_flight=7,
            held=1,
            ready=2,
            starting=0,
            wanted=2,
            ttft_s=0.4,
            itl_s=0.05,
            arrivals_per_s=3.5,
            service_s=3.0,
            idle_s=5.0,
        )

    def test_arrivals_are_not_known_while_an_older_gateway_does_not_tell_them(self, make):
        reports = [told(arrivals_per_s=1.5), told()]
        assert load_of(make(autoscaling={"maxReplicas": 4}), reports, []).arrivals_per_s is None

    @pytest.mark.parametrize("reports", [[], [None], [told(), None], [told("another")], [told(), told("another")]])
    def test_it_is_incomplete_while_a_gateway_has_not_told(self, make, reports):
        assert not load_of(make(autoscaling={"maxReplicas": 4}), reports, []).is_complete

    def test_only_what_serves_is_ready_and_what_leaves_does_not_count(self, make):
        replicas = [
            replica("serving"),
            replica("unprobed", is_routable=False),
            replica("loading", Phase.STARTING),
            replica("crashed", Phase.EXITED),
            replica("leaving", is_draining=True),
            replica("ending", Phase.STOPPING),
            replace(replica("other"), key=Key("default", "other")),
        ]
        seen = load_of(make(replicas=9, autoscaling={"maxReplicas": 4}), [told()], replicas)
        assert (seen.ready, seen.starting, seen.wanted) == (1, 3, 4)


class TestScaler:
    def test_deployments_without_autoscaling_are_left_alone(self, make):
        scaled = make("scaled", autoscaling={"maxReplicas": 4, "targets": {"inFlightPerReplica": 2}})
        reports = [told("scaled", in_flight=5)]
        decisions = Scaler().decide([make("fixed"), scaled], reports, [], 0.0)
        assert {key.name: decision.replicas for key, decision in decisions.items()} == {"scaled": 3}

    def test_it_remembers_between_looks(self, make):
        scaler = Scaler()
        deployment = make(replicas=3, autoscaling={"maxReplicas": 4, "scaleDownDelay": "10s"})
        replicas = [replica("a"), replica("b"), replica("c")]
        numbers = [scaler.decide([deployment], [told()], replicas, float(t))[KEY].replicas for t in range(12)]
        assert numbers == [3] * 11 + [1]


class TestInTheWorld:
    """The law's number goes through the same decisions as anybody's."""

    def test_the_coldest_replica_goes_first_and_is_drained(self, make, world):
        world.run(make(replicas=3))
        for name, warmth, in_flight in zip(sorted(world.replicas), (900.0, 10.0, 500.0), (0, 4, 0), strict=True):
            world.replicas[name] = replace(world.replicas[name], warmth=warmth, in_flight=in_flight)
        coldest = sorted(world.replicas)[1]
        world.log.clear()
        world.run(make(replicas=2))
        drains = [step.replica for step in world.log if isinstance(step, DrainReplica)]
        stops = [step.replica for step in world.log if isinstance(step, StopReplica)]
        assert drains == stops == [coldest]
        assert world.log.index(DrainReplica(coldest, world.log[0].deadline)) == 0

    def test_without_warmth_the_least_busy_goes(self, make, world):
        world.run(make(replicas=2))
        busy, calm = sorted(world.replicas)
        world.load(busy, 5)
        world.log.clear()
        world.step(make(replicas=1))
        assert [step.replica for step in world.log] == [calm]

    def test_at_zero_it_is_ready_and_its_route_says_that_it_wakes(self, make, world):
        sleeper = {"autoscaling": {"minReplicas": 0, "maxReplicas": 2}}
        decision = world.run(make(replicas=0, **sleeper))
        ready = decision.statuses[KEY].condition("Ready")
        assert (ready.status, ready.reason) == ("True", "ScaledToZero")
        assert ready.message == "no replica is wanted; the next request brings one"
        assert world.routes[KEY].scales_from_zero
        world.step(make(replicas=1, **sleeper))
        assert isinstance(world.log[-1], StartReplica)

    def test_asleep_without_a_gateway_nothing_could_wake_it(self, make, world):
        world.gateways = 0
        decision = world.run(make(replicas=0, autoscaling={"minReplicas": 0, "maxReplicas": 2}))
        ready = decision.statuses[KEY].condition("Ready")
        assert (ready.status, ready.reason) == ("False", "GatewayUnavailable")

    def test_without_autoscaling_zero_means_zero(self, make, world):
        decision = world.run(make(replicas=0))
        assert decision.statuses[KEY].condition("Ready").message == "no replica is wanted"
        assert not world.routes[KEY].scales_from_zero
