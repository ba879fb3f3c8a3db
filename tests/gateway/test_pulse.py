"""Replicas that fall silent without closing anything: frozen, or behind a cut cable."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_gateway.pulse import LOST_AFTER_S, TURN_S, Pulse

WHOLE = "".join(f"w{number} " for number in range(12))


def ask(number):
    """Prompts of different numbers share no block, so no replica draws more than one of them by its cache."""
    return [{"role": "user", "content": " ".join(f"w{10 * number + word}" for word in range(3))}]


async def read(world, number=0):
    stream = await world.client().chat.completions.create(model="m", messages=ask(number), stream=True)
    return "".join([chunk.choices[0].delta.content async for chunk in stream])


@pytest.fixture
async def beating(make_world, make_engine):
    knobs = {"replays": True, "beats": True, "tokens": 12, "token_delay_s": 0.05}
    return await make_world({f"r{number}": await make_engine(**knobs) for number in range(2)})


async def begun(world):
    """Two streams, one a replica, in their midst; the one of the replicas that is frozen now."""
    for engine in world.engines.values():
        engine.stalls_after_tokens = 3
    reading = [asyncio.ensure_future(read(world, number)) for number in range(2)]
    await world.until(lambda: all(engine.written >= 3 for engine in world.engines.values()))
    frozen = world.engines["r0"]
    frozen.is_frozen = True
    for engine in world.engines.values():
        engine.stalls_after_tokens = None
    return reading, frozen


async def test_a_frozen_replicas_streams_go_on_elsewhere_and_its_late_bytes_are_dropped(beating):
    reading, frozen = await begun(beating)
    assert await asyncio.gather(*reading) == [WHOLE, WHOLE]
    assert beating.routable() == {"r1"}
    await beating.until(lambda: frozen.hung_up >= 1)
    frozen.is_frozen = False
    await beating.until_routable("r0", "r1")
    assert [line["moves"] for line in beating.log_lines()].count(1) == 1
    assert await read(beating) == WHOLE


async def test_requests_that_wait_for_a_frozen_replica_are_asked_elsewhere(beating):
    frozen = beating.engines["r0"]
    frozen.gate = asyncio.Event()
    asking = [
        asyncio.ensure_future(beating.client().chat.completions.create(model="m", messages=ask(number)))
        for number in range(4)
    ]
    await beating.until(lambda: frozen.seen)
    frozen.is_frozen = True
    frozen.gate.set()
    answers = await asyncio.gather(*asking)
    assert {answer.choices[0].message.content for answer in answers} == {WHOLE.strip()}
    await beating.until(lambda: frozen.hung_up)


async def test_a_lone_replica_that_was_frozen_goes_on_itself(make_world, make_engine):
    engine = await make_engine(replays=True, beats=True, tokens=12, token_delay_s=0.05)
    world = await make_world({"r0": engine})
    reading = asyncio.ensure_future(read(world))
    await world.until(lambda: engine.written >= 3)
    engine.is_frozen = True
    await world.until(lambda: not world.routable())
    engine.is_frozen = False
    assert await reading == WHOLE
    await world.until(lambda: world.log_lines())
    assert world.log_lines()[0]["moves"] == 0


async def test_an_engine_that_never_sent_a_heartbeat_may_be_silent(world):
    first, _ = world.engines.values()
    first.first_delay_s = LOST_AFTER_S + 1
    for engine in world.engines.values():
        engine.first_delay_s = LOST_AFTER_S + 1
    await read_plain(world)
    assert world.routable() == {"r0", "r1"}


async def read_plain(world):
    return await world.client().chat.completions.create(model="m", messages=ask(0))


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=60))
def test_only_turns_without_a_beat_count_and_none_counts_for_more_than_two(turns):
    pulse, silent_s = Pulse(), 0.0
    pulse.is_expected = True
    for has_beaten, elapsed_s in turns:
        pulse.has_beaten = has_beaten
        pulse.turn(elapsed_s)
        silent_s = 0.0 if has_beaten else silent_s + min(elapsed_s, 2 * TURN_S)
        assert pulse.is_lost == (silent_s >= LOST_AFTER_S)
    pulse.is_expected = False
    assert not pulse.is_lost


def test_a_gateway_that_stood_still_calls_nobody_silent():
    pulse = Pulse()
    pulse.is_expected = True
    pulse.turn(3600.0)
    assert not pulse.is_lost
