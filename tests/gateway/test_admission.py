"""Keys, their limits, and the order in which they are served, over real HTTP."""

import asyncio
import time

import openai
import pytest

from quire_api import wire

ASK = {"model": "m", "messages": [{"role": "user", "content": "w1 w2 w3"}]}  # 7 tokens with the template
FOREVER_S = 1000.0


def key(name, **more):
    limits = wire.KeyLimits(**more.pop("limits", {}))
    return wire.ApiKey(name=name, key=f"sk-{name}", limits=limits, **more)


async def ask(world, who, **more):
    raw = await world.client(f"sk-{who}").chat.completions.with_raw_response.create(**ASK, **more)
    return {name: value for name, value in raw.headers.items() if name.startswith(("x-ratelimit", "x-quire"))}


async def refused(world, who, **more):
    with pytest.raises(openai.APIStatusError) as caught:
        await ask(world, who, **more)
    return caught.value


async def metrics(world):
    async with world.http() as http:
        return (await http.get("/metrics")).text


class TestLimits:
    async def test_requests_per_minute(self, make_world):
        world = await make_world(1, {"api_keys": [key("alice", limits={"requests_per_minute": 3}), key("bob")]})
        told = [await ask(world, "alice") for _ in range(3)]
        assert [each["x-ratelimit-remaining-requests"] for each in told] == ["2", "1", "0"]
        assert told[0]["x-ratelimit-limit-requests"] == "3"
        error = await refused(world, "alice")
        assert (error.status_code, error.code, error.type) == (429, "request_limit", "rate_limit_error")
        assert 1 <= int(error.response.headers["retry-after"]) <= 61
        assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
        assert "sk-alice" not in error.message
        assert "x-ratelimit-limit-requests" not in await ask(world, "bob")
        text = await metrics(world)
        who = 'deployment="d",key="alice",namespace="n"'
        assert f'quire_gateway_key_refusals_total{{{who},reason="request_limit"}} 1.0' in text
        assert f"quire_gateway_key_requests_total{{{who}}} 3.0" in text
        assert "sk-alice" not in text + world.log_path.read_text()
        assert [line["key"] for line in world.log_lines()] == ["alice"] * 4 + ["bob"]

    async def test_input_tokens_per_minute(self, make_world):
        world = await make_world(1, {"api_keys": [key("alice", limits={"input_tokens_per_minute": 12})]})
        used = 12 - int((await ask(world, "alice"))["x-ratelimit-remaining-tokens"])
        assert used > 3
        error = await refused(world, "alice", extra_body={"messages": [{"role": "user", "content": "w1 " * 8}]})
        assert error.code == "input_token_limit"
        error = await refused(world, "alice", extra_body={"messages": [{"role": "user", "content": "w1 " * 20}]})
        assert (error.code, error.response.headers["x-should-retry"]) == ("request_too_large", "false")
        assert "retry-after" not in error.response.headers

    @pytest.mark.parametrize("stream", [False, True])
    async def test_output_tokens_per_minute(self, make_world, make_engine, stream):
        usage = b'{"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5}}'
        engine = await make_engine(payload=b"" if stream else usage)
        world = await make_world({"a": engine}, {"api_keys": [key("alice", limits={"output_tokens_per_minute": 20})]})
        answer = await world.client("sk-alice").chat.completions.create(**ASK, max_tokens=18, stream=stream)
        if stream:
            assert len([event async for event in answer]) == 5
        await world.until(lambda: [line["output_tokens"] for line in world.log_lines()] == [5])
        headers = await ask(world, "alice", max_tokens=15)  # 5 written, 15 reserved while it runs
        assert headers["x-ratelimit-remaining-output-tokens"] == "0"
        error = await refused(world, "alice", max_tokens=16)
        assert error.code == "output_token_limit"
        text = await metrics(world)
        written = 5.0 if stream else 10.0
        assert f'quire_gateway_key_output_tokens_total{{deployment="d",key="alice",namespace="n"}} {written}' in text

    async def test_concurrency(self, make_world):
        world = await make_world(1, {"api_keys": [key("alice", limits={"concurrency": 2}), key("bob")]})
        engine = world.engines["r0"]
        engine.first_delay_s = FOREVER_S
        asking = [asyncio.ensure_future(ask(world, "alice")) for _ in range(2)]
        await world.until(lambda: len(engine.seen) == 2)
        assert (await refused(world, "alice")).code == "concurrency_limit"
        for each in asking:
            each.cancel()
        await world.until(world.is_quiet)
        engine.first_delay_s = 0.0
        await ask(world, "alice")

    async def test_without_keys_the_limits_hold_for_everybody_together(self, make_world):
        world = await make_world(1, {"limits": wire.KeyLimits(requests_per_minute=1)})
        await ask(world, "x")
        assert (await refused(world, "y")).code == "request_limit"


class TestKeys:
    async def test_an_expired_key_is_refused_and_a_later_one_not_yet(self, make_world):
        keys = [key("old", expires_at=time.time() - 1), key("new", expires_at=time.time() + 3600)]
        world = await make_world(1, {"api_keys": keys})
        await ask(world, "new")
        error = await refused(world, "old")
        assert (error.status_code, error.code) == (401, "expired_api_key")
        with pytest.raises(openai.AuthenticationError):
            await world.client("sk-old").models.list()

    async def test_edits_hold_at_once_and_what_was_used_stays_used(self, make_world):
        world = await make_world(1, {"api_keys": [key("alice", limits={"requests_per_minute": 2})]})
        await ask(world, "alice")
        await ask(world, "alice")
        assert (await refused(world, "alice")).code == "request_limit"
        entry = world.table.deployments[0]
        entry.api_keys = [wire.ApiKey(name="alice", key="exchanged", limits=wire.KeyLimits(requests_per_minute=3))]
        world.publish()
        deployment = world.gateway.fleet.serving("m")
        await world.until(lambda: deployment.callers.find("exchanged"))
        assert (await refused(world, "alice")).code == "invalid_api_key"
        client = world.client("exchanged")
        await client.chat.completions.create(**ASK)
        with pytest.raises(openai.RateLimitError):
            await client.chat.completions.create(**ASK)

    async def test_caches_are_apart_but_within_a_group(self, make_world):
        keys = [key("a", cache_group="team"), key("b", cache_group="team"), key("c")]
        world = await make_world(1, {"api_keys": keys, "internal_key": "inner"})
        assert [(await ask(world, who))["x-quire-cached-tokens"] != "0" for who in "abc"] == [False, True, False]
        salts = [seen.headers["x-quire-cache-salt"] for seen in world.engines["r0"].seen]
        assert salts[0] == salts[1] != salts[2]

    async def test_a_shared_cache_is_shared_by_all(self, make_world):
        world = await make_world(1, {"api_keys": [key("a"), key("b")], "internal_key": "i", "shares_cache": True})
        assert [(await ask(world, who))["x-quire-cached-tokens"] != "0" for who in "ab"] == [False, True]
        assert "x-quire-cache-salt" not in world.engines["r0"].seen[0].headers

    async def test_engines_are_told_the_keys_priority_not_the_clients(self, make_world):
        world = await make_world(1, {"api_keys": [key("batch", priority=7)], "internal_key": "inner"})
        await ask(world, "batch", extra_headers={"x-quire-priority": "-9"})
        assert world.engines["r0"].seen[0].headers["x-quire-priority"] == "7"


class TestTurns:
    async def test_a_full_deployment_serves_its_keys_in_turn(self, make_world):
        world = await make_world(
            1, {"api_keys": [key("greedy"), key("modest"), key("urgent", priority=-1)]}, max_in_flight_per_replica=1
        )
        engine, deployment = world.engines["r0"], world.gateway.fleet.serving("m")
        engine.gate = asyncio.Event()
        order = []

        async def one(who):
            await ask(world, who)
            order.append(who)

        asking = []
        for number, who in enumerate(["greedy"] * 6 + ["modest", "urgent"]):
            asking.append(asyncio.ensure_future(one(who)))
            await world.until(lambda number=number: deployment.in_flight and len(deployment.turns) == number)
        engine.gate.set()
        await asyncio.gather(*asking)
        assert order.index("urgent") < 6
        assert order.index("modest") < 6
        assert order[-1] == "greedy"
        assert world.is_quiet()

    async def test_no_more_are_in_flight_than_the_replicas_can_work_on(self, make_world):
        world = await make_world(2)  # 8 sequences each: 10 requests
        deployment = world.gateway.fleet.serving("m")
        for engine in world.engines.values():
            engine.first_delay_s = FOREVER_S
        asking = [asyncio.ensure_future(ask(world, "x")) for _ in range(30)]
        await world.until(lambda: (deployment.in_flight, len(deployment.turns)) == (20, 10))
        load = world.gateway.fleet.load().deployments[0]
        assert (load.in_flight, load.held) == (20, 10)
        for each in asking:
            each.cancel()
        await world.until(lambda: world.is_quiet() and not len(deployment.turns))

    async def test_whose_turn_does_not_come_in_time_is_told_so(self, make_world):
        world = await make_world(1, max_in_flight_per_replica=1, hold_timeout_s=0.3)
        engine = world.engines["r0"]
        engine.first_delay_s = FOREVER_S
        first = asyncio.ensure_future(ask(world, "x"))
        await world.until(lambda: engine.seen)
        error = await refused(world, "y")
        assert (error.status_code, error.code) == (503, "queue_timeout")
        assert error.response.headers["retry-after"] == "5"
        assert error.response.headers["x-quire-queue-position"] == "1"
        first.cancel()
        await world.until(world.is_quiet)

    async def test_who_hangs_up_leaves_the_queue_and_costs_nobody_a_turn(self, make_world):
        world = await make_world(1, max_in_flight_per_replica=1)
        engine, deployment = world.engines["r0"], world.gateway.fleet.serving("m")
        engine.first_delay_s = FOREVER_S
        asking = [asyncio.ensure_future(ask(world, "x")) for _ in range(4)]
        await world.until(lambda: len(deployment.turns) == 3)
        engine.first_delay_s = 0.0
        for each in asking[:3]:
            each.cancel()
        await asking[3]
        await world.until(lambda: not len(deployment.turns) and world.is_quiet())

    async def test_a_full_queue_turns_away_whoever_has_most_of_it(self, make_world):
        keys = [key("greedy"), key("modest")]
        world = await make_world(1, {"api_keys": keys}, max_in_flight_per_replica=1, max_held=3)
        engine, deployment = world.engines["r0"], world.gateway.fleet.serving("m")
        engine.first_delay_s = FOREVER_S
        greedy = []
        for waiting in range(4):
            greedy.append(asyncio.ensure_future(ask(world, "greedy")))
            await world.until(lambda waiting=waiting: deployment.in_flight and len(deployment.turns) == waiting)
        assert (await refused(world, "greedy")).code == "queue_full"
        modest = asyncio.ensure_future(ask(world, "modest"))
        with pytest.raises(openai.RateLimitError) as caught:
            await greedy[3]
        assert caught.value.code == "queue_full"
        assert not modest.done()
        for each in [*greedy, modest]:
            each.cancel()
        await world.until(world.is_quiet)

    async def test_room_at_a_new_replica_ends_the_wait(self, make_world, make_engine):
        world = await make_world(1, max_in_flight_per_replica=1)
        world.engines["r0"].first_delay_s = FOREVER_S
        first = asyncio.ensure_future(ask(world, "x"))
        await world.until(lambda: world.engines["r0"].seen)
        second = asyncio.ensure_future(ask(world, "y"))
        engine = await make_engine()
        world.table.deployments[0].replicas.append(wire.Replica(id="new", url=engine.url))
        world.publish()
        assert (await second)["x-quire-replica"] == "new"
        first.cancel()
        await world.until(world.is_quiet)
