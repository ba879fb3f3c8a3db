"""What gateways tell the scaling law, and what clients are told of being held."""

import asyncio
import time

import msgspec
import openai
import pytest

from quire_api import wire
from quire_gateway.load import Arrivals, Fading, LoadMeter, Pace, Window, quantiles

ASK = {"model": "m", "messages": [{"role": "user", "content": "w1 w2 w3"}]}


async def load_of(world) -> wire.DeploymentLoad:
    async with world.http() as http:
        answer = await http.get("/internal/v1/load")
        assert answer.status_code == 200
        (load,) = msgspec.json.decode(answer.content, type=wire.GatewayLoad).deployments
        return load


class TestLoad:
    async def test_requests_are_counted_while_they_run(self, world):
        gate = asyncio.Event()
        for engine in world.engines.values():
            engine.gate = gate
        before = await load_of(world)
        assert (before.in_flight, before.held, before.requests) == (0, 0, 0)
        client = world.client()
        asks = [asyncio.create_task(client.chat.completions.create(**ASK)) for _ in range(6)]
        await world.until(lambda: sum(replica.in_flight for replica in world.gateway.fleet.replicas()) == 6)
        during = await load_of(world)
        assert (during.in_flight, during.requests, during.idle_s) == (6, 6, 0.0)
        assert during.queued_tokens > 0
        gate.set()
        await asyncio.gather(*asks)
        after = await load_of(world)
        assert (after.in_flight, after.requests, after.queued_tokens) == (0, 6, 0)
        assert after.idle_s < 60

    async def test_idle_time_grows_until_a_request_comes(self, world):
        await world.client().chat.completions.create(**ASK)
        first = (await load_of(world)).idle_s
        await asyncio.sleep(0.2)
        assert (await load_of(world)).idle_s > first

    async def test_latencies_of_streams(self, world):
        for engine in world.engines.values():
            engine.first_delay_s, engine.token_delay_s, engine.tokens = 1.0, 0.01, 10
        stream = await world.client().chat.completions.create(**ASK, stream=True)
        assert len([event async for event in stream]) == 10
        load = await load_of(world)
        assert load.ttft_p50_s == load.ttft_p90_s
        assert load.ttft_p50_s > load.itl_p50_s > 0

    async def test_answers_in_one_piece_have_no_first_token(self, world):
        await world.client().chat.completions.create(**ASK)
        load = await load_of(world)
        assert load.ttft_p90_s is None
        assert load.itl_p90_s is None
        assert load.service_s is not None

    async def test_arrivals_and_time_at_a_replica(self, world):
        for engine in world.engines.values():
            engine.first_delay_s = 1.5
        assert (await load_of(world)).service_s is None
        await world.client().chat.completions.create(**ASK)
        load = await load_of(world)
        assert load.arrivals_per_s == 0.1  # One, more than a second ago.
        assert load.service_s >= 1.5

    async def test_it_needs_the_internal_key(self, make_world):
        world = await make_world(1, internal_key="inner")
        async with world.http() as http:
            assert (await http.get("/internal/v1/load")).status_code == 401
            with_key = await http.get("/internal/v1/load", headers={wire.HEADER_INTERNAL_KEY: "inner"})
            assert with_key.status_code == 200

    async def test_a_replica_is_warm_by_what_its_cache_has_saved(self, world):
        question = {**ASK, "messages": [{"role": "user", "content": " ".join(f"w{n}" for n in range(40))}]}
        client = world.client()
        answers = [await client.chat.completions.with_raw_response.create(**question) for _ in range(3)]
        (warm,) = {answer.headers[wire.HEADER_REPLICA] for answer in answers}
        warmth = {entry.replica: entry.warmth for entry in world.gateway.fleet.report().replicas}
        assert warmth.pop(warm) == pytest.approx(80, rel=0.05)  # 40 of 43 tokens, twice
        assert set(warmth.values()) == {0.0}


async def sleeping(make_world, **config):
    """A gateway that knows the deployment, which has no replica."""
    world = await make_world({}, {"scales_from_zero": True}, **config)
    await world.until(lambda: world.gateway.fleet.deployments)
    return world


class TestHeld:
    async def test_a_request_waits_for_the_first_replica_and_is_told_how_long(self, make_world, make_engine):
        world = await sleeping(make_world)
        client = world.client()
        asks = [asyncio.create_task(client.chat.completions.with_raw_response.create(**ASK)) for _ in range(3)]
        await world.until(lambda: sum(each.held for each in world.gateway.fleet.deployments.values()) == 3)
        asleep = await load_of(world)
        assert (asleep.held, asleep.in_flight, asleep.idle_s) == (3, 0, 0.0)
        engine = await make_engine()
        world.table.deployments[0].replicas = [wire.Replica(id="r0", url=engine.url)]
        world.publish()
        answers = await asyncio.gather(*asks)
        assert sorted(int(answer.headers[wire.HEADER_QUEUE_POSITION]) for answer in answers) == [1, 2, 3]
        for answer in answers:
            assert int(answer.headers[wire.HEADER_QUEUE_MS]) > 0
            assert time.time() < float(answer.headers[wire.HEADER_QUEUE_DEADLINE]) < time.time() + 61
        assert all(line["queue_ms"] > 0 for line in world.log_lines())

    async def test_what_it_waited_for_a_replica_is_no_time_to_first_token(self, make_world, make_engine):
        world = await sleeping(make_world)
        stream = asyncio.create_task(world.client().chat.completions.create(**ASK, stream=True))
        await asyncio.sleep(1.0)
        engine = await make_engine()
        published = time.monotonic()
        world.table.deployments[0].replicas = [wire.Replica(id="r0", url=engine.url)]
        world.publish()
        assert len([event async for event in await stream]) == 5
        ttft_s = (await load_of(world)).ttft_p90_s
        # With the second of waiting it would be longer than all that happened since; clocks tick in milliseconds.
        assert ttft_s < time.monotonic() - published + 0.5

    async def test_at_the_deadline_it_is_told_to_come_again(self, make_world):
        world = await sleeping(make_world, hold_timeout_s=0.3)
        with pytest.raises(openai.InternalServerError) as caught:
            await world.client().chat.completions.create(**ASK)
        answer = caught.value.response
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "no_replica"
        assert int(answer.headers["retry-after"]) > 0
        assert answer.headers[wire.HEADER_QUEUE_POSITION] == "1"
        assert int(answer.headers[wire.HEADER_QUEUE_MS]) > 0
        assert float(answer.headers[wire.HEADER_QUEUE_DEADLINE]) <= time.time() + 0.5

    async def test_who_hangs_up_is_not_held(self, make_world):
        world = await sleeping(make_world)
        ask = asyncio.create_task(world.client().chat.completions.create(**ASK))
        (deployment,) = world.gateway.fleet.deployments.values()
        await world.until(lambda: deployment.held == 1)
        ask.cancel()
        await world.until(lambda: deployment.held == 0)
        await world.until(lambda: deployment.load.idle_s(asyncio.get_running_loop().time()) > 0)

    async def test_a_request_that_never_waited_says_so(self, world):
        answer = await world.client().chat.completions.with_raw_response.create(**ASK)
        assert answer.headers[wire.HEADER_QUEUE_MS] == "0"
        assert wire.HEADER_QUEUE_POSITION not in answer.headers

    @pytest.mark.parametrize(("sleeps", "status"), [(True, 200), (False, 503)])
    async def test_a_gateway_is_ready_without_replicas_if_its_deployment_sleeps(self, make_world, sleeps, status):
        world = await make_world({}, {"scales_from_zero": sleeps})
        await world.until(lambda: world.gateway.fleet.deployments)
        async with world.http() as http:
            assert (await http.get("/ready")).status_code == status


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.9, None), ([7.0], 0.5, 7.0), ([1, 2, 3, 4], 0.5, 2), (range(1, 11), 0.9, 9), (range(1, 101), 0.99, 99)],
)
def test_quantiles_are_nearest_ranks(values, share, expected):
    assert quantiles(list(values), [share]) == [expected]


def test_a_window_forgets_what_is_older_than_it_is_long():
    window = Window()
    window.add(5.0, 0.0)
    window.add(1.0, 25.0)
    assert window.quantiles((0.9,), 29.0) == [5.0]
    assert window.quantiles((0.9,), 31.0) == [1.0]
    assert window.quantiles((0.9,), 60.0) == [None]


def test_a_fading_sum_halves_in_ten_minutes():
    warmth = Fading()
    warmth.add(100.0, 0.0)
    warmth.add(100.0, 600.0)
    assert warmth.value(1200.0) == pytest.approx(75.0)


def test_arrivals_are_those_of_the_latest_ten_whole_seconds():
    arrivals = Arrivals()
    for number in range(200):
        arrivals.add(number / 10)  # 10 a second until 20
    assert arrivals.per_second(20.5) == 10.0
    assert arrivals.per_second(25.0) == 5.0  # Those from 15 to 20.
    assert arrivals.per_second(30.0) == 0.0
    arrivals.add(100.2)
    assert arrivals.per_second(100.9) == 0.0  # Its second is not over.
    assert arrivals.per_second(101.0) == 0.1


def test_a_window_means_what_is_in_it():
    window = Window()
    assert window.mean(0.0) is None
    window.add(1.0, 0.0)
    window.add(3.0, 20.0)
    assert window.mean(25.0) == 2.0
    assert window.mean(40.0) == 3.0


def test_idle_time_begins_when_the_last_request_ends():
    meter = LoadMeter(0.0)
    assert meter.idle_s(5.0) == 5.0
    meter.began(6.0)
    meter.began(7.0)
    meter.ended(8.0)
    assert meter.idle_s(20.0) == 0.0
    meter.ended(30.0)
    assert meter.idle_s(31.5) == 1.5


def test_pace_is_time_per_event_after_the_first():
    told = []
    pace = Pace(told.append)
    event = b"data: {}\n\n"
    pace.saw(event, 10.0)
    for second in range(1, 5):
        pace.saw(event, 10.0 + second * 0.1)
    pace.saw(event * 6, 11.0)
    assert told == [pytest.approx(0.1)]
    pace.pause()
    pace.saw(event, 50.0)
    pace.saw(event * 2, 50.4)
    pace.end(50.4)
    assert told[1:] == [pytest.approx(0.2)]
