"""Two real engines behind a gateway: the second one knows what the first is asked for before its first request."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest

from quire_api import wire
from quire_api.warming import HotPrefix, HotPrefixes, Warmed

MODEL = Path(__file__).parents[2] / "models" / "quire-tiny"
KEY = "inner"
INTERNAL_NAME = "x-quire-internal-key"
INTERNAL = {INTERNAL_NAME: KEY}


@pytest.fixture
def urls(tmp_path, unused_tcp_port_factory):
    """Of two engines that have just been started."""
    started, addresses = [], []
    for number in range(2):
        port = unused_tcp_port_factory()
        flags = ["--served-model-name", "m", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
        sizes = ["--host", "127.0.0.1", "--num-gpu-blocks-override", "512", "--max-num-seqs", "16"]
        with (tmp_path / f"engine-{number}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "quire", "serve", str(MODEL), *flags, *sizes],
                env={**os.environ, "QUIRE_INTERNAL_KEY": KEY, "OMP_NUM_THREADS": "1"},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        started.append(process)
        addresses.append(f"http://127.0.0.1:{port}")
    yield addresses
    for process in started:
        process.terminate()
    for process in started:
        try:
            process.wait(60)
        finally:
            process.kill()


async def until_routable(world, *names: str) -> None:
    async with asyncio.timeout(240):
        while world.routable() != set(names):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def prefix_queries(engine: httpx.AsyncClient) -> float:
    lines = (await engine.get("/metrics")).text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("quire:prefix_cache_queries_total"))


async def test_a_second_replicas_first_request_finds_the_hot_prefix(make_world, urls):
    world = await make_world({}, {"internal_key": KEY, "api_keys": ["alice", "bob"]}, warm_timeout_s=120)
    entry = world.table.deployments[0]
    entry.replicas = [wire.Replica(id="first", url=urls[0])]
    world.publish()
    await until_routable(world, "first")

    async def ask(key: str, last: int):
        return await world.client(key).completions.with_raw_response.create(
            model="m", prompt=[7, 8, 9, 10] * 20 + [last], max_tokens=1
        )

    for last in range(4):
        await ask("alice", last)
    entry.replicas = [*entry.replicas, wire.Replica(id="second", url=urls[1])]
    world.publish()
    await until_routable(world, "first", "second")
    entry.replicas = entry.replicas[1:]
    world.publish()
    await until_routable(world, "second")

    raw = await ask("alice", 99)
    assert raw.headers["x-quire-replica"] == "second"
    assert raw.parse().usage.prompt_tokens_details.cached_tokens == 80
    # The salt came with the tokens: what alice asked for is nobody else's.
    assert ((await ask("bob", 99)).parse().usage.prompt_tokens_details.cached_tokens or 0) == 0
    async with world.http() as http:
        text = (await http.get("/metrics")).text
    assert 'quire_gateway_warmed_tokens_total{deployment="d",namespace="n"} 80.0' in text
    assert 'quire_gateway_warmings_total{deployment="d",namespace="n",outcome="warmed"} 1.0' in text
    assert len(world.log_lines()) == 6


async def test_what_an_engine_tells_and_takes(urls):
    async with (
        httpx.AsyncClient(base_url=urls[0], timeout=60, headers=INTERNAL) as first,
        httpx.AsyncClient(base_url=urls[1], timeout=60, headers=INTERNAL) as second,
    ):
        async with asyncio.timeout(240):
            for engine in (first, second):
                while not await _is_ready(engine):  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        hot = "/internal/v1/hot-prefixes"
        for _ in range(2):
            body = {"model": "m", "prompt": [7, 8, 9, 10] * 20, "max_tokens": 1, "cache_salt": "s"}
            assert (await first.post("/v1/completions", json=body)).status_code == 200
        told = await first.get(f"{hot}?prefixes=64&tokens=65536")
        found = msgspec.msgpack.decode(told.content, type=HotPrefixes)
        (prefix,) = found.prefixes
        # The last of 80 tokens is always computed, so that the block that holds it is not found.
        assert (prefix.hits, len(prefix.token_ids) // 4, prefix.cache_salt) == (1, 64, "s")

        assert (await first.get(f"{hot}?prefixes=0&tokens=1")).status_code == 400
        assert (await first.get(hot)).status_code == 400
        assert (await first.get(f"{hot}?prefixes=1&tokens=1", headers={INTERNAL_NAME: "other"})).status_code == 403
        for wrong in (b"", b"\xc1", msgspec.msgpack.encode(msgspec.structs.replace(found, model_revision="other"))):
            assert (await second.post("/internal/v1/warm?seconds=60", content=wrong)).status_code == 400
        assert (await second.post("/internal/v1/warm", content=told.content)).status_code == 400

        async def warm(content: bytes = told.content) -> Warmed:
            answer = await second.post("/internal/v1/warm?seconds=60", content=content)
            return msgspec.json.decode(answer.content, type=Warmed)

        # No prefix, half a token, no token of this model: what it cannot have does not keep it from what it can.
        strange = [HotPrefix(9, b""), HotPrefix(9, b"\1\0"), HotPrefix(9, b"\xff" * 256)]
        assert await warm(msgspec.msgpack.encode(msgspec.structs.replace(found, prefixes=strange))) == Warmed()

        both = sorted(await asyncio.gather(warm(), warm()), key=lambda each: each.skipped)
        assert both == [Warmed(prefixes=1, tokens=64), Warmed(skipped="warmed")]
        assert (await prefix_queries(first), await prefix_queries(second)) == (160, 0)
        # It is the engine's own doing, and makes nothing hot.
        again = await second.get(f"{hot}?prefixes=64&tokens=65536")
        assert msgspec.msgpack.decode(again.content, type=HotPrefixes).prefixes == []


async def _is_ready(engine: httpx.AsyncClient) -> bool:
    try:
        return (await engine.get("/ready")).status_code == 200
    except httpx.HTTPError:
        return False
