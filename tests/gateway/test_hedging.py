"""A late stream is asked of a second replica too: whichever begins first goes on, and the other one stops."""

import asyncio

import pytest

from quire_api import wire

SOON = 0.05
IN_TURN = {"policy": "roundRobin"}
"""r0 is asked first."""


@pytest.fixture
async def make_gated(make_world, make_engine):
    """A gateway in front of `count` engines, each of which answers once its gate is open."""

    async def make(count=2, deployment=IN_TURN, **config):
        engines = {f"r{number}": await make_engine(replays=True) for number in range(count)}
        world = await make_world(engines, deployment, **{"hedge_after_s": SOON, **config})
        for engine in engines.values():
            engine.gate = asyncio.Event()
        return world

    return make


async def ask(world, is_stream=True):
    """The answer's headers and its text."""
    async with world.http() as http:
        body = {"model": "m", "prompt": "w1 w2", "stream": is_stream}
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            text = (await answer.aread()).decode()
    assert answer.status_code == 200, text
    return answer.headers, text


def seen(world):
    return [len(engine.seen) for engine in world.engines.values()]


async def hedges(world):
    async with world.http() as http:
        text = (await http.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("quire_gateway_hedges_total")]
    return {line.split('winner="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}


async def test_a_late_stream_begins_elsewhere_and_the_first_replica_stops(make_gated):
    world = await make_gated()
    asking = asyncio.create_task(ask(world))
    await world.until(lambda: seen(world) == [1, 1])
    world.engines["r1"].token_delay_s = 0.05
    world.engines["r1"].gate.set()
    await world.until(lambda: world.engines["r0"].hung_up == 1)
    assert not asking.done()
    assert [replica.in_flight for replica in world.gateway.fleet.replicas()] == [0, 1]
    headers, text = await asking
    assert text.count("w0 ") == 1
    assert text.endswith("data: [DONE]\n\n")
    assert (headers[wire.HEADER_REPLICA], headers[wire.HEADER_ATTEMPTS]) == ("r1", "2")
    await world.until(world.log_lines)
    (line,) = world.log_lines()
    assert (line["replica"], line["attempts"], line["moves"], line["outcome"]) == ("r1", 2, 0, "ok")
    assert await hedges(world) == {"second": 1.0}
    assert world.is_quiet()
    assert world.routable() == {"r0", "r1"}


async def test_a_replica_that_is_late_and_yet_the_first_goes_on(make_gated):
    world = await make_gated()
    asking = asyncio.create_task(ask(world))
    await world.until(lambda: seen(world) == [1, 1])
    world.engines["r0"].gate.set()
    headers, text = await asking
    assert text.count("w0 ") == 1
    assert (headers[wire.HEADER_REPLICA], headers[wire.HEADER_ATTEMPTS]) == ("r0", "1")
    await world.until(lambda: world.engines["r1"].hung_up == 1)
    await world.until(world.log_lines)
    assert world.log_lines()[0]["replica"] == "r0"
    assert await hedges(world) == {"first": 1.0}
    assert world.is_quiet()


@pytest.mark.parametrize("is_stream", [True, False])
async def test_nothing_is_asked_twice_by_default_nor_what_is_not_streamed(make_gated, is_stream):
    world = await make_gated(hedge_after_s=0.0) if is_stream else await make_gated()
    asking = asyncio.create_task(ask(world, is_stream))
    await world.until(lambda: seen(world) == [1, 0])
    await asyncio.sleep(4 * SOON)
    world.engines["r0"].gate.set()
    await asking
    assert seen(world) == [1, 0]
    assert await hedges(world) == {}


async def test_what_has_begun_is_asked_of_nobody_else(make_gated):
    world = await make_gated()
    world.engines["r0"].gate.set()
    world.engines["r0"].token_delay_s = SOON
    await ask(world)
    assert seen(world) == [1, 0]


async def test_a_single_replica_is_waited_for(make_gated):
    world = await make_gated(1)
    asking = asyncio.create_task(ask(world))
    await world.until(lambda: seen(world) == [1])
    await asyncio.sleep(2 * SOON)
    world.engines["r0"].gate.set()
    await asking
    assert await hedges(world) == {}


async def test_hedges_are_charged_to_the_budget_of_retries(make_gated):
    world = await make_gated(retry_ratio=0.0)
    world.engines["r1"].gate.set()
    (deployment,) = world.gateway.fleet.deployments.values()
    while deployment.retries.take():
        pass
    asking = asyncio.create_task(ask(world))
    await world.until(lambda: seen(world) == [1, 0])
    await asyncio.sleep(4 * SOON)
    world.engines["r0"].gate.set()
    await asking
    assert seen(world) == [1, 0]


async def test_a_replica_that_fails_in_the_race_leaves_it_to_the_other(make_gated):
    world = await make_gated()
    asking = asyncio.create_task(ask(world))
    await world.until(lambda: seen(world) == [1, 1])
    world.engines["r0"].dies_before_first_byte = True
    world.engines["r0"].gate.set()
    await world.until(lambda: world.gateway.fleet.report().replicas[0].in_flight == 0)
    world.engines["r1"].gate.set()
    headers, _ = await asking
    assert headers[wire.HEADER_REPLICA] == "r1"
    assert await hedges(world) == {"second": 1.0}
    assert world.is_quiet()


@pytest.mark.parametrize("status", [200, 503])
async def test_if_both_fail_another_is_asked(make_gated, status):
    world = await make_gated(3)
    asking = asyncio.create_task(ask(world))
    await world.until(lambda: seen(world) == [1, 1, 0])
    for name in ("r0", "r1"):
        world.engines[name].status = status
        world.engines[name].dies_before_first_byte = status == 200
        world.engines[name].gate.set()
    world.engines["r2"].gate.set()
    headers, _ = await asking
    assert headers[wire.HEADER_REPLICA] == "r2"
    assert await hedges(world) == {"neither": 1.0}
    await world.until(world.is_quiet)


async def test_a_client_that_goes_stops_both(make_gated):
    world = await make_gated()
    asking = asyncio.create_task(ask(world))
    await world.until(lambda: seen(world) == [1, 1])
    asking.cancel()
    await world.until(lambda: [engine.hung_up for engine in world.engines.values()] == [1, 1])
    await world.until(world.is_quiet)


async def test_the_winners_stream_outlives_it_and_is_not_hedged_again(make_gated):
    world = await make_gated(3)
    asking = asyncio.create_task(ask(world))
    await world.until(lambda: seen(world) == [1, 1, 0])
    world.engines["r1"].dies_after_tokens = 2
    world.engines["r1"].gate.set()
    await world.until(lambda: seen(world)[0] + seen(world)[2] == 2)
    await asyncio.sleep(4 * SOON)
    assert sum(seen(world)) == 3
    for name in ("r0", "r2"):
        world.engines[name].gate.set()
    _, text = await asking
    assert [text.count(f'"w{number} "') for number in range(5)] == [1] * 5
    await world.until(world.log_lines)
    assert world.log_lines()[0]["moves"] == 1
