"""Why a prefix was not cached where the prompt went, as the access log, the metrics and /debug/route say it."""

import msgspec
import pytest


def words(start, count):
    return " ".join(f"w{number}" for number in range(start, start + count))


async def misses(world, *prompts, **more):
    for prompt in prompts:
        await world.client().completions.create(model="m", prompt=prompt, **more)
    await world.until(lambda: len(world.log_lines()) >= len(prompts))
    return [line["miss"] for line in world.log_lines()][-len(prompts) :]


async def test_a_new_prompt_is_novel_and_a_repeated_one_misses_nothing(make_world):
    world = await make_world(1)
    assert await misses(world, words(0, 20), words(0, 20), words(0, 20) + " " + words(50, 8)) == ["novel", "", "novel"]
    async with world.http() as http:
        text = (await http.get("/metrics")).text
        told = (await http.post("/debug/route", json={"model": "m", "prompt": words(90, 20)})).json()
    assert 'quire_gateway_prefix_misses_total{deployment="d",namespace="n",reason="novel"} 2.0' in text
    assert told["miss"] == "novel"


async def test_the_answer_itself_says_why(make_world):
    world = await make_world(1)
    async with world.http() as http:
        asked = {"model": "m", "prompt": words(0, 20)}
        told = [(await http.post("/v1/completions", json=asked)).headers.get("x-quire-miss") for _ in range(2)]
    assert told == ["novel", None]


async def test_what_fell_out_of_the_cache_was_evicted(make_world, make_engine):
    world = await make_world({"a": await make_engine(kv_capacity_tokens=40)})
    prompts = [words(start, 20) for start in (0, 40, 80, 0)]
    assert await misses(world, *prompts) == ["novel", "novel", "novel", "evicted"]


async def test_another_salt_is_told_from_a_new_prompt(world):
    assert await misses(world, words(0, 20), extra_body={"cache_salt": "alice"}) == ["novel"]
    await misses(world, words(0, 20), extra_body={"cache_salt": "bob"})
    await world.until(lambda: len(world.log_lines()) == 2)
    assert world.log_lines()[-1]["miss"] == "other_salt"


async def test_another_revision_is_told_from_a_new_prompt(make_world, make_engine):
    engines = {"old": await make_engine(), "new": await make_engine(revision="rev-2")}
    world = await make_world(engines, {"policy": "roundRobin"})
    assert await misses(world, words(0, 20), words(0, 20)) == ["novel", "other_model"]


async def test_another_adapter_is_told_from_a_new_prompt_and_shares_nothing(make_world, make_engine):
    engines = {"plain": await make_engine(), "tuned": await make_engine(adapter="tuned")}
    world = await make_world(engines, {"policy": "roundRobin"})
    assert await misses(world, *[words(0, 20)] * 4) == ["novel", "other_adapter", "", ""]


async def test_another_block_size_is_told_from_a_new_prompt(make_world, make_engine):
    engines = {"small": await make_engine(), "large": await make_engine()}
    info = engines["large"].info
    engines["large"].info = lambda: msgspec.structs.replace(info(), block_size=2 * info().block_size)
    world = await make_world(engines, {"policy": "roundRobin"})
    assert await misses(world, words(0, 20), words(0, 20)) == ["novel", "other_block_size"]


async def test_a_colder_replica_was_chosen_though_another_has_the_prefix(make_world):
    world = await make_world(2, {"policy": "roundRobin"})
    assert await misses(world, words(0, 20), words(0, 20)) == ["novel", "elsewhere"]


@pytest.mark.parametrize("prompt", [7, None])
async def test_what_cannot_be_tokenised_is_unknown(world, prompt):
    async with world.http() as http:
        await http.post("/v1/completions", json={"model": "m", "prompt": prompt})
    await world.until(world.log_lines)
    assert world.log_lines()[0]["miss"] == "unknown"
