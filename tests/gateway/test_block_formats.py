"""Engines whose blocks this gateway cannot compute, as in an upgrade that changes the hash: they serve by load."""

import asyncio

import msgspec
import pytest

from quire_api import blocks, wire

OTHER = blocks.FORMAT_VERSION + 1
PROMPTS = [" ".join(f"w{number}" for number in range(start, start + 12)) for start in range(0, 180, 6)]


async def ask(world, prompt):
    async with world.http() as http:
        answer = await http.post("/v1/completions", json={"model": "m", "prompt": prompt})
    assert answer.status_code == 200
    return answer.headers


async def test_an_engine_of_another_block_format_serves_and_its_misses_say_why(make_world, make_engine):
    world = await make_world({"new": await make_engine(block_format=OTHER, beats=True)})
    for _ in range(2):
        headers = await ask(world, PROMPTS[0])
        assert headers[wire.HEADER_REPLICA] == "new"
        assert headers[wire.HEADER_CACHED_TOKENS] == "0"
        assert headers[wire.HEADER_INDEX_MODE] == "FALLBACK"
        assert headers[wire.HEADER_MISS] == "other_block_format"
    async with world.http() as http:
        text = (await http.get("/metrics")).text
        told = (await http.post("/debug/route", json={"model": "m", "prompt": PROMPTS[0]})).json()
        (report,) = (await http.get("/internal/v1/replicas")).json()["replicas"]
    assert [line["miss"] for line in world.log_lines()] == ["other_block_format"] * 2
    assert 'quire_gateway_prefix_misses_total{deployment="d",namespace="n",reason="other_block_format"} 2.0' in text
    assert 'index_mode{deployment="d",mode="FALLBACK",namespace="n",replica="new"} 1.0' in text
    assert told["miss"] == "other_block_format"
    assert told["prompt_tokens"] == 12
    assert told["is_tokenised"]
    problem = f"its block format {OTHER} is not this gateway's ({blocks.FORMAT_VERSION})"
    assert [told["replicas"][0]["index_problem"], report["index_problem"]] == [problem] * 2


async def test_a_block_size_of_nothing_is_no_reason_to_refuse_an_engine(make_world, make_engine):
    engine = await make_engine()
    info = engine.info
    engine.info = lambda: msgspec.structs.replace(info(), block_size=0)
    world = await make_world({"odd": engine})
    await ask(world, PROMPTS[0])
    await world.until(world.log_lines)
    assert world.log_lines()[0]["miss"] == "other_block_format"


async def test_beside_it_prompts_go_where_they_are_cached_and_load_is_shared(make_world, make_engine):
    gate = asyncio.Event()
    engines = {"new": await make_engine(block_format=OTHER, gate=gate), "old": await make_engine(gate=gate)}
    world = await make_world(engines)
    gate.set()
    while (await ask(world, PROMPTS[0]))[wire.HEADER_REPLICA] != "old":
        pass
    assert [(await ask(world, PROMPTS[0]))[wire.HEADER_REPLICA] for _ in range(4)] == ["old"] * 4
    gate.clear()
    asking = [asyncio.create_task(ask(world, prompt)) for prompt in PROMPTS[1:13]]
    await world.until(lambda: sum(replica.in_flight for replica in world.gateway.fleet.replicas()) == 12)
    assert min(replica.in_flight for replica in world.gateway.fleet.replicas()) > 0
    gate.set()
    await asyncio.gather(*asking)


@pytest.mark.parametrize("first", ["a", "z"])
async def test_beginnings_are_told_apart_whichever_replica_is_named_first(make_world, make_engine, first):
    engines = {first: await make_engine(block_format=OTHER), "m1": await make_engine(), "m2": await make_engine()}
    world = await make_world(dict(sorted(engines.items())), {"policy": "consistentHash"})
    assert len({(await ask(world, prompt))[wire.HEADER_REPLICA] for prompt in PROMPTS}) == 3


async def test_an_engine_that_comes_back_with_this_gateways_format_is_followed(make_world, make_engine):
    engine = await make_engine(block_format=OTHER, beats=True)
    world = await make_world({"r": engine})
    (replica,) = world.gateway.fleet.replicas()
    engine.kill()
    await world.until_routable()
    engine.block_format, engine.epoch = blocks.FORMAT_VERSION, "2"
    await engine.start()
    await world.until(lambda: replica.index_mode == "EXACT")


async def test_an_engine_of_another_block_format_that_falls_silent_is_lost(make_world, make_engine):
    engine = await make_engine(block_format=OTHER, beats=True)
    world = await make_world({"r": engine})
    (replica,) = world.gateway.fleet.replicas()
    await world.until(lambda: replica.pulse.is_expected)
    engine.is_frozen = True
    await world.until_routable()
    assert "no sign of life" in replica.reason
