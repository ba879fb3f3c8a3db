"""A fault of the gateway's own does not leave it ready and blind."""

import asyncio

import pytest

from quire_api import wire
from quire_gateway import follow
from quire_gateway.fleet import Fleet

ASK = {"model": "m", "messages": [{"role": "user", "content": "w1 w2 w3"}]}


def failing_at_first(real, times=2):
    """`real`, which raises what nobody expects so many times first."""
    left = [times]

    def call(*args, **more):
        if left[0]:
            left[0] -= 1
            raise RuntimeError("a fault")
        return real(*args, **more)

    call.left = left
    return call


@pytest.mark.parametrize("is_half_done", [False, True])
async def test_the_table_is_followed_after_a_fault(make_world, make_engine, monkeypatch, is_half_done):
    world = await make_world(1)
    real, left = Fleet.apply, [1]

    def apply(fleet, table):
        if is_half_done:
            real(fleet, table)
        if left[0]:
            left[0] -= 1
            raise RuntimeError("a fault")
        return real(fleet, table)

    monkeypatch.setattr(Fleet, "apply", apply)
    engine = await make_engine()
    world.table.deployments[0].replicas.append(wire.Replica(id="late", url=engine.url))
    world.publish()
    await world.until_routable("r0", "late")
    assert left == [0]


async def test_replicas_are_probed_after_a_fault(make_world, monkeypatch):
    monkeypatch.setattr(follow, "probe", failing_at_first(follow.probe))
    world = await make_world(2)
    await world.client().chat.completions.create(**ASK)


async def test_silence_is_noticed_after_a_fault(make_world, make_engine, monkeypatch):
    watch = failing_at_first(follow.watch_pulses)
    monkeypatch.setattr(follow, "watch_pulses", watch)
    world = await make_world({"r0": await make_engine(beats=True), "r1": await make_engine(beats=True)})
    world.engines["r0"].is_frozen = True
    await world.until_routable("r1")


async def test_events_are_followed_after_a_fault(make_world, make_engine, monkeypatch):
    monkeypatch.setattr(follow, "follow_events", failing_at_first(follow.follow_events))
    world = await make_world({"r0": await make_engine(beats=True)})
    (replica,) = world.gateway.fleet.replicas()
    await world.until(lambda: replica.index_mode == "EXACT")


async def test_closing_ends_what_would_begin_anew(make_world, make_engine, monkeypatch):
    monkeypatch.setattr(follow, "probe", failing_at_first(follow.probe, times=10**6))
    world = await make_world({})
    before = asyncio.all_tasks()
    world.table.deployments[0].replicas.append(wire.Replica(id="r0", url=(await make_engine()).url))
    world.publish()
    await world.until(lambda: follow.probe.left[0] < 10**6)
    await world.gateway.close()
    await world.until(lambda: asyncio.all_tasks() <= before)
