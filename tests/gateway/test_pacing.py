"""What was held while there was no replica is let go as far as the replicas that have come can work on it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_api import wire
from quire_gateway import pacing
from quire_gateway.pacing import LEAST_IN_FLIGHT, MOST_QUEUED_TOKENS, paced_room


def ask(number):
    """A prompt that shares nothing with the others."""
    return {"model": "m", "messages": [{"role": "user", "content": " ".join([f"w{number}"] * 30)}]}


@pytest.mark.parametrize(
    ("free", "in_flight", "queued", "room"),
    [
        (100, 0, 0, 1),
        (100, 50, MOST_QUEUED_TOKENS - 1, 1),
        (100, 50, MOST_QUEUED_TOKENS, 0),
        (100, LEAST_IN_FLIGHT - 1, 10 * MOST_QUEUED_TOKENS, 1),
        (100, LEAST_IN_FLIGHT, 10 * MOST_QUEUED_TOKENS, 0),
        (0, 0, 0, 0),
        (-3, 9, 0, -3),
    ],
)
def test_a_replica_takes_one_more_while_its_queue_of_prompts_is_short(free, in_flight, queued, room):
    assert paced_room(free, in_flight, queued) == room


@given(st.integers(-9, 99), st.integers(0, 99), st.integers(0, 99_999))
def test_there_is_never_more_room_than_there_are_places(free, in_flight, queued):
    assert paced_room(free, in_flight, queued) <= free


@pytest.fixture
def short(monkeypatch):
    """Three such prompts are a queue, and one request may always be there."""
    monkeypatch.setattr(pacing, "MOST_QUEUED_TOKENS", 90)
    monkeypatch.setattr(pacing, "LEAST_IN_FLIGHT", 1)


async def test_what_was_held_waits_for_the_replicas_that_come_later(make_world, make_engine, short):
    engines = {name: await make_engine(gate=asyncio.Event()) for name in ("r0", "r1")}
    world = await make_world({}, {"scales_from_zero": True})
    client = world.client()
    await world.until(lambda: world.gateway.fleet.serving("m"))
    asking = [asyncio.ensure_future(client.chat.completions.create(**ask(number))) for number in range(12)]
    deployment = world.gateway.fleet.serving("m")
    await world.until(lambda: deployment.held == 12)

    def seen(name):
        return len(engines[name].seen)

    def publish(*names):
        world.table.deployments[0].replicas = [wire.Replica(id=name, url=engines[name].url) for name in names]
        world.publish()

    publish("r0")
    await world.until(lambda: seen("r0") >= 2 and seen("r0") + len(deployment.turns) == 12)
    begun = seen("r0")
    assert begun < 6, "the others wait at the door"
    publish("r0", "r1")
    await world.until(lambda: seen("r1") >= 2)
    assert seen("r0") == begun
    for engine in engines.values():
        engine.gate.set()
    answers = await asyncio.gather(*asking)
    assert all(answer.choices for answer in answers)
    assert seen("r0") + seen("r1") == 12
    await world.until(lambda: not deployment.is_waking)
    assert deployment.woken == 0
    assert world.is_quiet()


async def test_a_client_that_goes_while_it_is_held_leaves_nothing_behind(make_world, make_engine, short):
    engine = await make_engine()
    world = await make_world({}, {"scales_from_zero": True})
    await world.until(lambda: world.gateway.fleet.serving("m"))
    asking = [asyncio.ensure_future(world.client().chat.completions.create(**ask(number))) for number in range(4)]
    deployment = world.gateway.fleet.serving("m")
    await world.until(lambda: deployment.held == 4)
    for each in asking[:3]:
        each.cancel()
    await world.until(lambda: deployment.held == 1)
    world.table.deployments[0].replicas = [wire.Replica(id="r0", url=engine.url)]
    world.publish()
    assert (await asking[3]).choices
    await world.until(lambda: not deployment.is_waking and not deployment.woken)
