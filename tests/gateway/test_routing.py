"""Where requests go, seen from the engines: prefixes, restarts, salts, discovery."""

import asyncio
import json
from hashlib import sha256

import msgspec
import pytest

from quire_api import wire
from quire_api.blocks import caller_salt


def words(start, count):
    return " ".join(f"w{number}" for number in range(start, start + count))


async def ask(world, prompt, **more):
    raw = await world.client().completions.with_raw_response.create(model="m", prompt=prompt, **more)
    return raw.headers["x-quire-replica"], raw.headers["x-quire-reason"], int(raw.headers["x-quire-cached-tokens"])


async def test_a_prompt_returns_to_the_replica_that_has_its_prefix(make_world):
    world = await make_world(3)
    first, reason, cached = await ask(world, words(0, 20))
    assert (reason, cached) == ("least-recent", 0)
    await ask(world, words(100, 20))
    assert await ask(world, words(0, 20) + " " + words(50, 7)) == (first, "prefix-hit", 20)
    # 18 of 20 words shared: 4 full blocks of 4
    assert await ask(world, words(0, 18) + " w99 w99") == (first, "prefix-hit", 16)


async def test_of_twins_that_come_at_one_moment_each_is_known_to_the_next(make_world):
    """What is noted of the first one's blocks is noted before the second is sent anywhere."""
    world = await make_world(1)
    body = json.dumps({"model": "m", "prompt": list(range(3, 23))}).encode()
    request = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    streams = [await asyncio.open_connection("127.0.0.1", world.gateway.port) for _ in range(3)]
    for _, writer in streams:
        writer.write(request)
    heads = [(await reader.readuntil(b"\r\n\r\n")).decode() for reader, _ in streams]
    told = [dict(line.split(": ", 1) for line in head.splitlines() if ": " in line) for head in heads]
    assert sorted(each["x-quire-cached-tokens"] for each in told) == ["0", "20", "20"]
    for _, writer in streams:
        writer.close()


async def test_chats_are_hashed_as_the_template_writes_them(world):
    turns = [{"role": "user", "content": words(0, 12)}]
    raw = await world.client().chat.completions.with_raw_response.create(model="m", messages=turns)
    first = raw.headers["x-quire-replica"]
    turns += [{"role": "assistant", "content": "w0"}, {"role": "user", "content": words(30, 4)}]
    raw = await world.client().chat.completions.with_raw_response.create(model="m", messages=turns)
    # <s> and 12 words are shared; then <a> was written where now <s> follows: 13 tokens, 3 blocks of 4
    assert (raw.headers["x-quire-replica"], raw.headers["x-quire-cached-tokens"]) == (first, "12")


async def test_token_ids_are_hashed_as_they_are(world):
    first, _, _ = await ask(world, list(range(3, 23)))
    assert await ask(world, list(range(3, 23))) == (first, "prefix-hit", 20)


async def test_another_salt_shares_nothing(world):
    await ask(world, words(0, 20), extra_body={"cache_salt": "alice"})
    assert (await ask(world, words(0, 20), extra_body={"cache_salt": "bob"}))[2] == 0
    assert (await ask(world, words(0, 20), extra_body={"cache_salt": "alice"}))[2] == 20


async def test_api_keys_share_nothing_and_the_engine_is_told_so(make_world, make_engine):
    engine = await make_engine(internal_key="inner")
    world = await make_world({"a": engine}, {"internal_key": "inner", "api_keys": ["alice", "bob"]})

    async def cached(key: str, **body: str) -> int:
        raw = await world.client(key).completions.with_raw_response.create(
            model="m", prompt=words(0, 20), extra_body=body
        )
        return int(raw.headers["x-quire-cached-tokens"])

    assert [await cached("alice"), await cached("bob"), await cached("alice")] == [0, 0, 20]
    assert [await cached("bob", cache_salt="apart \u20ac"), await cached("bob")] == [0, 20]
    salts = [seen.headers["x-quire-cache-salt"] for seen in engine.seen]
    assert salts[0] == salts[2] == caller_salt(sha256(b"alice").digest(), "")
    assert salts[1] == salts[4] != salts[3]
    assert len({*salts}) == 3


@pytest.mark.parametrize(
    "prompt",
    [None, 7, {"a": 1}, [[1], "x", None], [], [1, "x"] * 20, [-1] * 20, [2**32] * 20, {str(n): n for n in range(20)}],
)
async def test_prompts_that_only_the_engine_can_judge_reach_it(world, prompt):
    async with world.http() as http:
        answer = await http.post("/v1/completions", json={"model": "m", "prompt": prompt})
    assert answer.status_code == 200
    assert [seen.json["prompt"] for engine in world.engines.values() for seen in engine.seen] == [prompt]


async def test_an_engine_that_restarted_is_believed_empty(make_world):
    world = await make_world(1)
    engine = world.engines["r0"]
    await ask(world, words(0, 20))
    engine.kill()
    engine.epoch = "2"
    asking = asyncio.ensure_future(ask(world, words(0, 20)))
    await world.until(lambda: not world.routable())
    await engine.start()
    assert (await asking)[2] == 0
    assert (await ask(world, words(0, 20)))[2] == 20


async def test_the_index_never_holds_more_than_the_replicas_can(make_world, make_engine):
    world = await make_world({"a": await make_engine(kv_capacity_tokens=40)})
    for start in range(0, 180, 20):
        await ask(world, words(start, 20))
    assert len(world.gateway.fleet.serving("m").index) == 10  # 40 tokens in blocks of 4
    assert (await ask(world, words(0, 20)))[2] == 0, "the oldest was evicted"


async def test_long_prompts_are_tokenised_too(world):
    prompt = " ".join(["w5 w6 w7 w8"] * 500)
    first, _, _ = await ask(world, prompt)
    assert await ask(world, prompt) == (first, "prefix-hit", 2000)


async def test_replicas_with_equal_files_share_one_tokenizer(make_world):
    world = await make_world(3)
    assert sum(engine.bundle_fetches for engine in world.engines.values()) == 1


async def test_an_engine_that_does_not_tell_its_model_is_routed_to_by_load(make_world, make_engine):
    world = await make_world({name: await make_engine(tells_model=False) for name in "ab"})
    assert {(await ask(world, words(0, 20)))[0] for _ in range(2)} == {"a", "b"}


async def test_concurrent_requests_spread_over_idle_replicas(make_world):
    world = await make_world(4)
    gate = asyncio.Event()
    for engine in world.engines.values():
        engine.gate = gate
    asking = asyncio.gather(*(ask(world, words(number * 20, 20)) for number in range(8)))
    await world.until(lambda: sum(len(engine.seen) for engine in world.engines.values()) == 8)
    gate.set()
    answers = await asking
    assert [len(engine.seen) for engine in world.engines.values()] == [2, 2, 2, 2], answers


async def test_the_policy_of_the_deployment_rules(make_world):
    world = await make_world(2, {"policy": "roundRobin"})
    answers = [await ask(world, words(0, 20)) for _ in range(4)]
    assert [reason for _, reason, _ in answers] == ["round-robin"] * 4
    assert [len(engine.seen) for engine in world.engines.values()] == [2, 2]


async def test_consistent_hashing_brings_what_begins_alike_to_one_replica(make_world):
    world = await make_world(4, {"policy": "consistentHash"})
    answers = [await ask(world, words(0, 40) + " " + words(100 * number, 10)) for number in range(6)]
    assert {reason for _, reason, _ in answers} == {"consistent-hash"}
    assert sorted(len(engine.seen) for engine in world.engines.values()) == [0, 0, 0, 6]


@pytest.mark.parametrize(
    "broken", [b"", b"{", b"[]", b'{"deployments": [{"name": 1}]}', b'{"deployments": [{"policy": "x"}]}']
)
async def test_a_malformed_table_keeps_the_last_good_one_and_says_so(world, broken):
    world.table_path.write_bytes(broken)
    async with world.http() as http:

        async def staleness():
            return "quire_gateway_routing_table_stale 1.0" in (await http.get("/metrics")).text

        while not await staleness():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await ask(world, "w1")
        assert world.routable() == {"r0", "r1"}
        world.table.deployments[0].replicas.pop()
        world.publish()
        await world.until_routable("r0")
        assert not await staleness()


@pytest.mark.parametrize("url", ["https://127.0.0.1:1", "http://", "127.0.0.1:80", "http://h:99999", "http://h:1/p"])
async def test_an_address_that_cannot_be_used_keeps_the_last_good_table(world, url):
    world.table.deployments[0].replicas.append(wire.Replica(id="bad", url=url))
    world.publish()
    async with world.http() as http:
        while "routing_table_stale 1.0" not in (await http.get("/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert world.routable() == {"r0", "r1"}


async def test_a_table_written_in_two_halves_is_taken_over_when_it_is_whole(make_world, make_engine):
    world = await make_world(1)
    engine = await make_engine()
    world.table.deployments[0].replicas.append(wire.Replica(id="new", url=engine.url))
    data = msgspec.json.encode(world.table)
    with world.table_path.open("wb", buffering=0) as file:
        file.write(data[:50])
        await asyncio.sleep(0.5)
        assert world.routable() == {"r0"}
        file.write(data[50:])
    await world.until_routable("r0", "new")


async def test_the_first_of_two_deployments_keeps_a_name_both_claim(make_world, make_engine):
    world = await make_world(1)
    other = await make_engine()
    world.table.deployments.append(
        wire.Deployment(name="e", namespace="n", served_names=["m"], replicas=[wire.Replica(id="x", url=other.url)])
    )
    world.publish()
    await world.until_routable("r0", "x")
    await ask(world, "w1")
    assert not other.seen


async def test_of_a_deployment_that_is_gone_no_metric_is_left(make_world):
    world = await make_world(1)
    (entry,) = world.table.deployments
    successor = msgspec.structs.replace(entry, name="other")
    async with world.http() as http:

        async def named(deployment):
            lines = (await http.get("/metrics")).text.splitlines()
            return [line for line in lines if f'deployment="{deployment}"' in line]

        async def serve(entry):
            world.table.deployments = [entry]
            world.publish()
            await world.until(lambda: (entry.namespace, entry.name) in world.gateway.fleet.deployments)
            await world.until_routable("r0")
            for stream in (False, True):
                body = {"model": "m", "prompt": words(0, 20), "stream": stream}
                assert (await http.post("/v1/completions", json=body)).status_code == 200

        for now, before in ((entry, successor), (successor, entry), (entry, successor)):
            await serve(now)
            assert await named(before.name) == []
            counted = f'quire_gateway_requests_total{{code="200",deployment="{now.name}",namespace="n"}} 2.0'
            assert counted in await named(now.name)
