"""The scaling law's writes, where the API server or the watches do not do as they should."""

import contextlib

import pytest

from quire_api import wire
from quire_operator import autoscaling
from quire_operator.autoscaling import _object, _step
from quire_operator.kube import ApiError, ApiUnavailable
from quire_operator.scaling import Scaler
from quire_operator.store import Store


def resource(name, replicas, version):
    scaling = {"minReplicas": 1, "maxReplicas": 10, "targets": {"inFlightPerReplica": 1}}
    return {
        "apiVersion": "quire.dev/v1alpha1",
        "kind": "LLMDeployment",
        "metadata": {"name": name, "namespace": "d", "uid": "u", "resourceVersion": str(version), "generation": 1},
        "spec": {"model": {"source": "file://m"}, "replicas": replicas, "autoscaling": scaling},
    }


class World:
    """An API server whose watch is as late as it likes, and gateways that say what is in flight."""

    def __init__(self, monkeypatch, *names):
        monkeypatch.setattr(autoscaling, "time", self)
        self.now = 1000.0
        self.words = {}
        self.store, self.scaler = Store(), Scaler()
        self.in_flight = dict.fromkeys(names, 1)
        self.replicas = dict.fromkeys(names, 1)
        self.failures = {}
        self.events = []
        self.woken = set()
        self.names = {}
        self.version = 0
        for name in names:
            self.store.put("LLMDeployment", resource(name, 1, 0))

    def time(self):
        return self.now

    monotonic = time

    async def ask_load(self):
        nothing = dict.fromkeys(("ttft_p50_s", "ttft_p90_s", "itl_p50_s", "itl_p90_s"))
        told = [
            wire.DeploymentLoad(
                deployment=name,
                namespace="d",
                in_flight=count,
                held=0,
                queued_tokens=0,
                requests=1,
                idle_s=0.0,
                **nothing,
            )
            for name, count in self.in_flight.items()
        ]
        return [wire.GatewayLoad(gateway="g", window_s=30.0, deployments=told)]

    async def patch(self, api_version, kind, namespace, name, change, subresource):
        if name in self.failures:
            raise self.failures[name]
        self.version += 1
        self.replicas[name] = change["spec"]["replicas"]
        return {}

    async def get(self, api_version, kind, namespace, name):
        found = resource(name, self.replicas[name], self.version)
        if name in self.names:
            found["spec"]["model"]["servedNames"] = self.names[name]
        return found

    async def create(self, manifest):
        self.events.append((manifest["type"], manifest["reason"], manifest["message"]))
        return manifest

    async def seconds(self, count):
        for _ in range(count):
            self.now += 1
            with contextlib.suppress(ApiUnavailable):  # as `autoscale_for_ever`
                await _step(self, self.store, self, self.scaler, self.woken.update)
                await _object(self, self.store, self.scaler, "operator-0")


async def test_writes_that_failed_are_no_rivals(monkeypatch):
    world = World(monkeypatch, "a")
    await world.seconds(5)
    world.in_flight["a"] = 5
    world.failures["a"] = ApiUnavailable("503")
    await world.seconds(30)
    assert world.replicas == {"a": 1}
    world.failures.clear()
    await world.seconds(30)
    assert world.replicas == {"a": 5}


async def test_a_watch_that_is_late_is_no_rival(monkeypatch):
    world = World(monkeypatch, "a")
    await world.seconds(5)
    for count in (5, 7, 9):
        world.in_flight["a"] = count
        await world.seconds(30)
        assert world.replicas == {"a": count}


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
async def test_one_that_is_refused_holds_up_no_other(monkeypatch, order):
    world = World(monkeypatch, *order)
    await world.seconds(5)
    world.in_flight |= {"a": 5, "b": 5}
    world.failures["a"] = ApiError(403, "Forbidden", "a webhook says no")
    await world.seconds(30)
    assert world.replicas == {"a": 1, "b": 5}


async def test_another_autoscaler_is_told_of_once_and_left_its_way(monkeypatch):
    world = World(monkeypatch, "a", "b")
    world.in_flight |= {"a": 5, "b": 5}
    for _ in range(10):
        await world.seconds(30)
        world.version += 1
        world.replicas["a"] = 1
        world.store.put("LLMDeployment", resource("a", 1, world.version))
    assert world.replicas == {"a": 1, "b": 5}
    [(kind, reason, message)] = world.events
    assert (kind, reason) == ("Warning", "AutoscalingContested")
    assert "remove that autoscaler, or spec.autoscaling" in message


async def test_who_waits_for_a_name_is_woken_when_it_was_freed_beside_a_write_of_the_law(monkeypatch):
    """The event of that edit is no news any more to a store that has the law's own answer."""
    world = World(monkeypatch, "a")
    waiting = resource("b", 0, 0)
    del waiting["spec"]["autoscaling"]
    waiting["spec"]["model"]["servedNames"] = ["a"]
    world.store.put("LLMDeployment", waiting)
    await world.seconds(5)
    world.names["a"] = ["other"]
    world.in_flight["a"] = 5
    await world.seconds(30)
    assert world.replicas == {"a": 5}
    assert {str(key) for key in world.woken} == {"d/a", "d/b"}
